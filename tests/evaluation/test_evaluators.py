"""Evaluators: equality with FastReID, image sets of the protocols, gathering of batches, custom models."""

import csv
import gzip
from functools import partial

from cerberus_plugin import APSTask, PARTask, ReIDTask, TaskEvaluator, add_cerberus_config, host
from cerberus_plugin.attributes import GROUPS, MARKET1501
from cerberus_plugin.evaluation import evaluators
from cerberus_plugin.evaluation.embeddings import Gathered
from cerberus_plugin.evaluation.report import results_table
from cerberus_plugin.evaluation.tasks import check_task_options
from cerberus_plugin.metrics import ranking
from cerberus_plugin.metrics.reranking import reranked

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.evaluation import ReidEvaluator, rank
from support.data import batches, random_labels
from support.readers import OwnReader


def config(*options):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_list(list(options))
    return cfg


def run(evaluator, stream=None):
    evaluator.reset()
    for inputs, outputs in stream or batches():
        evaluator.process(inputs, outputs)
    return evaluator.evaluate()


@pytest.mark.parametrize("options", [
    ("TEST.METRIC", "cosine"), ("TEST.METRIC", "euclidean"), ("TEST.AQE.ENABLED", True), ("TEST.ROC.ENABLED", True),
    ("TEST.RERANK.ENABLED", True, "TEST.RERANK.VARIANT", "fastreid"),
    ("TEST.RERANK.ENABLED", True, "TEST.RERANK.VARIANT", "fastreid", "TEST.AQE.ENABLED", True)])
def test_reid_metrics_equal_those_of_fastreid(options, monkeypatch):
    cfg = config(*options)
    # The package replaces the ranking of FastReID; this test restores the original.
    monkeypatch.setattr(rank, "evaluate_rank", partial(host.original(rank.evaluate_rank), use_cython=False))
    ours, theirs = run(TaskEvaluator(24, [ReIDTask(cfg)])), run(ReidEvaluator(cfg, 24))
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-4 if options[0] == "TEST.METRIC" else 1e-3), name
    assert set(theirs) <= set(ours)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_reranking_uses_the_published_distances_under_both_metrics(metric):
    cfg = config("TEST.RERANK.ENABLED", True, "TEST.METRIC", metric, "TEST.RERANK.K1", 8)
    inputs = [inputs for inputs, _ in batches()]
    pids, camids = (torch.cat([batch[key] for batch in inputs]) for key in ("targets", "camids"))
    embeddings = torch.cat([outputs for _, outputs in batches()])
    distances = reranked(embeddings[:24], embeddings[24:], metric=metric, k1=8)(slice(0, 24))
    expected = ranking.reid_metrics(distances, pids[:24], camids[:24], pids[24:], camids[24:])
    found = run(TaskEvaluator(24, [ReIDTask(cfg)]))
    assert found["mAP"] == pytest.approx(100 * expected.mAP) and found["Rank-1"] == 100 * expected.cmc[0]
    plain = run(TaskEvaluator(24, [ReIDTask(config("TEST.METRIC", metric))]))
    assert found["mAP"] > plain["mAP"] + 3


def test_reranking_uses_the_groups_of_TEST_GROUPS():
    cfg = config("TEST.RERANK.ENABLED", True, "TEST.GROUPS", ["upper"])
    only = [(inputs, outputs.unflatten(1, (5, 8))[:, 1]) for inputs, outputs in batches()]
    expected = run(TaskEvaluator(24, [ReIDTask(config("TEST.RERANK.ENABLED", True))]), only)
    assert run(TaskEvaluator(24, [ReIDTask(cfg)])) == pytest.approx(expected, abs=1e-4)


def test_query_expansion_with_fewer_images_than_k_is_rejected():
    cfg = config("TEST.AQE.ENABLED", True, "TEST.AQE.QE_K", 90)
    with pytest.raises(ValueError, match="QE_K is 90, but there are 24 query and 66 gallery images.*lower"):
        run(TaskEvaluator(24, [ReIDTask(cfg)]))
    cfg = config("TEST.AQE.ENABLED", True, "TEST.AQE.QE_K", 89)
    assert run(TaskEvaluator(24, [ReIDTask(cfg)]))["mAP"] > 0


@pytest.mark.parametrize(("options", "message"), [
    (("TEST.RERANK.VARIANT", "host"), "TEST.RERANK.VARIANT is 'host'"),
    (("TEST.RERANK.VARIANT", "fastreid", "TEST.METRIC", "euclidean"), "re-ranking has almost no effect"),
    (("TEST.RERANK.K2", 0), "TEST.RERANK.K2 is 0"),
    (("TEST.AQE.ENABLED", True, "TEST.AQE.QE_K", 0), "TEST.AQE.QE_K is 0")])
def test_invalid_options_of_reranking_are_rejected_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        check_task_options(config("TEST.RERANK.ENABLED", True, *options))


def test_par_and_aps_work_with_custom_readers_and_exclude_distractors():
    labels = random_labels(MARKET1501, 6, seed=9)
    results = run(TaskEvaluator(24, [PARTask(OwnReader(), labels), APSTask(OwnReader(), labels)]))
    assert results["PAR/images"] == 55  # 66 gallery images, 11 of them of identity 0
    assert 0 < results["PAR/undefined_questions"] < results["PAR/questions"]  # nobody wears some colours
    assert results["APS/images"] == 75 and results["APS/queries"] == 5
    assert results["APS/seen/queries"] == 5 and results["APS/unseen/queries"] == 0


def test_queries_with_a_semantic_id_unseen_in_training_are_counted():
    task = APSTask(OwnReader(), random_labels(MARKET1501, 40, seed=9))
    labels = task.train_labels[:4].clone()
    head, upper = (list(MARKET1501.group_fields(group)) for group in ("head", "upper"))
    labels[0, head] = task.train_labels[7, head]  # of another person: an unseen category with seen semantic IDs
    labels[1, upper] = 1  # every colour at once
    labels[2, upper[0]] = -1  # the remaining labels are those of a training person
    expected = [any(not (task.train_labels[:, fields] == row[fields]).all(dim=1).any() and (row[fields] != -1).all()
                    for fields in (list(MARKET1501.group_fields(group)) for group in GROUPS)) for row in labels]
    alone = [task(Gathered(torch.ones(1, 1), torch.tensor([1]), torch.tensor([0]), row[None], 1)) for row in labels]
    assert [found["APS/unseen semantic ID/queries"] for found in alone] == expected == [False, True, False, False]
    assert [found["APS/seen/queries"] for found in alone] == [False, False, True, True]


def test_the_baseline_of_recognition_is_the_majority_class_of_training():
    train = random_labels(MARKET1501, 40, seed=2)
    results = run(TaskEvaluator(24, [PARTask(OwnReader(), train)]))
    majority = train[:, MARKET1501.index("hat")].mode().values.item()
    gallery = torch.cat([inputs["attributes"] for inputs, _ in batches()])[24:]
    gallery = gallery[(gallery != -1).all(dim=1)]
    expected = (gallery[:, MARKET1501.index("hat")] == majority).double().mean().item()
    assert results["PAR-majority/official/hat"] == pytest.approx(100 * expected)


def test_recognition_can_be_scored_on_query_identities_only():
    stream = list(batches())
    inputs = stream[0][0]
    inputs["targets"] = torch.where(inputs["targets"] == 5, 4, inputs["targets"])  # identity 5 has no query
    stream[1][0]["targets"] = torch.where(stream[1][0]["targets"] == 5, 4, stream[1][0]["targets"])
    every = run(TaskEvaluator(24, [PARTask(OwnReader())]), stream)
    some = run(TaskEvaluator(24, [PARTask(OwnReader(), query_identities_only=True)]), stream)
    assert some["PAR/images"] < every["PAR/images"]


def test_label_and_instance_metrics_skip_missing_labels():
    """Compared with loops over the binary labels of the schema."""
    stream, hat = list(batches()), MARKET1501.index("hat")
    for inputs, _ in stream:
        inputs["attributes"][::3, hat] = -1
    results = run(TaskEvaluator(24, [PARTask(OwnReader())]), stream)
    labels = torch.cat([inputs["attributes"] for inputs, _ in stream])[24:]
    said = torch.cat([outputs for _, outputs in stream])[24:, 0] > 0  # the reader predicts 1 for all attributes, or 0
    right, pairs = {}, {}
    for i, row in enumerate(labels.tolist()):
        if max(row) < 0:
            continue  # a distractor
        for field, value in zip(MARKET1501.fields, row):
            for k in (range(4) if field.name == "age" else (1,)):
                garment = [own.name for own in MARKET1501.fields if own.column == field.column]
                answer = int(said[i]) == (garment.index(field.name) if field.column else k)
                if value >= 0:
                    right.setdefault((field.name, k), []).append(answer == (value == k))
                    pairs.setdefault(i, []).append((answer, value == k))
    shares = [sum(own) / len(own) for own in right.values()]
    assert len(shares) == results["PAR/questions"] == 30
    assert results["PAR/label/accuracy"] == pytest.approx(100 * sum(shares) / 30)
    recalls = [sum(a and t for a, t in own) / sum(t for _, t in own) for own in pairs.values()]
    precisions = [sum(a and t for a, t in own) / sum(a for a, _ in own) for own in pairs.values()]
    precision, recall = sum(precisions) / len(pairs), sum(recalls) / len(pairs)
    assert results["PAR/instance/precision"] == pytest.approx(100 * precision)
    assert results["PAR/instance/recall"] == pytest.approx(100 * recall)
    assert results["PAR/instance/F1"] == pytest.approx(200 * precision * recall / (precision + recall))
    assert results["PAR/instance/without_yes"] == 0 and results["PAR/label/mA"] == results["PAR/mA_balanced"]


def gathered_example() -> Gathered:
    return Gathered(torch.randn(4, 10), torch.tensor([1, 2, 1, 3]), torch.tensor([0, 0, 1, 1]),
                    random_labels(MARKET1501, 4), 2)


def test_query_and_gallery_are_views_of_the_embeddings():
    given = gathered_example()
    assert given.query.embeddings.data_ptr() == given.embeddings.data_ptr()
    assert given.gallery.embeddings.data_ptr() == given.embeddings[2:].data_ptr()
    assert given.rows(torch.ones(4, dtype=torch.bool)).embeddings.data_ptr() == given.embeddings.data_ptr()
    assert torch.equal(given.rows(torch.tensor([3, 1])).embeddings, given.embeddings[[3, 1]])
    assert given.rows(slice(4, None)).num_query == len(given.rows(slice(4, None)).pids) == 0


@pytest.mark.parametrize("protocol", ["asmr", "sal"])
def test_metrics_do_not_depend_on_the_size_of_chunks(protocol, monkeypatch):
    def figures():
        return run(TaskEvaluator(24, [ReIDTask(config()), PARTask(OwnReader(), query_identities_only=True),
                                      APSTask(OwnReader(), protocol=protocol, groups=("upper",))]))

    whole = figures()
    monkeypatch.setattr("cerberus_plugin.evaluation.embeddings.CHUNK_ENTRIES", 7 * 40)
    monkeypatch.setattr(ranking, "BLOCK_ENTRIES", 90)
    assert figures() == whole


def test_embeddings_larger_than_half_of_the_free_memory_stay_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8000, 80000))
    assert evaluators._fits(torch.zeros(10, 100), "cuda")
    assert not evaluators._fits(torch.zeros(10, 101), "cuda")
    assert evaluators._fits(torch.zeros(10, 10**6), "cpu")


def test_batches_stay_on_the_device_up_to_a_limit(monkeypatch):
    evaluator = TaskEvaluator(24, [])
    evaluator.reset()
    monkeypatch.setattr(evaluators, "WAITING_BYTES", 3 * 16 * 40 * 4)
    given = [({key: value.to("meta") for key, value in inputs.items()}, outputs.to("meta"))
             for inputs, outputs in batches()]
    assert given[0][1].shape == (16, 40)
    for inputs, outputs in given[:3]:
        evaluator.process(inputs, outputs)
    with pytest.raises(NotImplementedError, match="meta tensor"):  # the error of a copy to the CPU
        evaluator.process(*given[3])


@pytest.mark.gpu
@pytest.mark.parametrize("waiting", [0, 3 * 16 * 40 * 4, 2**26])
def test_metrics_on_a_gpu_equal_those_on_the_cpu(waiting, monkeypatch):
    monkeypatch.setattr(evaluators, "WAITING_BYTES", waiting)

    def figures(device):
        buffer = torch.empty(16, 40, device=device)  # the same memory for all outputs, as with a CUDA graph
        stream = (({key: value.to(device) for key, value in inputs.items()}, buffer[:len(outputs)].copy_(outputs))
                  for inputs, outputs in batches())
        return run(TaskEvaluator(24, [ReIDTask(config()), PARTask(OwnReader())]), stream)

    expected = run(TaskEvaluator(24, [ReIDTask(config()), PARTask(OwnReader())]))
    assert figures("cuda") == pytest.approx(expected)


def test_a_subset_of_rows_counts_its_query_images():
    part = gathered_example().rows(torch.tensor([False, True, True, True]))
    assert part.num_query == 1 and part.query.pids.tolist() == [2] and part.gallery.pids.tolist() == [1, 3]


@pytest.mark.parametrize(("protocol", "queries", "mAP", "rank1"), [
    ("asmr", 2, (29 / 36 + 9 / 20) / 2, 50), ("sal", 1, 7 / 12, 0), ("sal-all", 2, (7 / 12 + 1 / 4) / 2, 0)])
def test_the_sal_protocol_excludes_the_representatives_person_and_camera(protocol, queries, mAP, rank1):
    """Images of the same person and camera as a category's representative are excluded (example A2).

    These are person 7 under camera 1 for category 0, a query image, and person 8 under camera 1 for category 1, which
    has no query image and is therefore no query in the code of SAL.
    """
    kinds = random_labels(MARKET1501, 2, seed=1)
    categories, pids, cams = [0, 0, 1, 0, 1], [7, 7, 8, 9, 8], [1, 2, 1, 1, 2]
    scores = torch.tensor([.9, .4, .8, .7, .1])

    class Given(OwnReader):
        def search(self, labels, embeddings):
            return embeddings[:, 0].expand(len(labels), -1)

    given = Gathered(scores[:, None], torch.tensor(pids), torch.tensor(cams), kinds[categories], 1)
    figures = APSTask(Given(), protocol=protocol)(given)
    assert (figures["APS/mAP"], figures["APS/Rank-1"]) == (pytest.approx(100 * mAP), rank1)
    assert figures["APS/queries"] == figures["APS/person/queries"] == queries and figures["APS/categories"] == 2


@pytest.mark.parametrize(("name", "expected"), [
    ("market", {"asmr": 484, "sal": 484, "sal-all": 484}), ("duke", {"asmr": 387, "sal": 307, "sal-all": 387})])
def test_number_of_queries_in_the_published_datasets_by_protocol(request, real_data, name, expected):
    """One image of each test identity in the gallery, and the published query images."""
    annotations = request.getfixturevalue(name)
    file = real_data / {"market": "market1501_query.csv.gz", "duke": "dukeMTMC_query.csv.gz"}[name]
    if not file.is_file():
        pytest.skip("published file lists not found")
    with gzip.open(file, "rt") as lines:
        pids = sorted({int(pid) for pid, _ in csv.reader(lines)})
    num_query = len(pids)
    pids += sorted(annotations.test)
    images = Gathered(torch.ones(len(pids), 1), torch.tensor(pids), torch.arange(len(pids)) >= num_query,
                      torch.stack([annotations.test[pid] for pid in pids]), num_query)

    class Reader(OwnReader):
        schema = annotations.schema

    found = {protocol: APSTask(Reader(), protocol=protocol)(images) for protocol in expected}
    assert {protocol: figures["APS/queries"] for protocol, figures in found.items()} == expected
    assert {figures["APS/categories"] for figures in found.values()} == {expected["asmr"]}


@pytest.mark.parametrize("protocol", ["sal", "sal-all"])
def test_sal_uses_categories_of_query_images_in_partial_searches_too(protocol):
    """Random people, some of them only in the gallery; compared with a loop over the categories."""
    labels, upper = random_labels(MARKET1501, 12, seed=3), list(MARKET1501.group_fields("upper"))
    draw = torch.Generator().manual_seed(8)
    pids = torch.cat([torch.arange(7), torch.arange(12).repeat(4)])
    camids = torch.randint(3, (len(pids),), generator=draw)
    images = Gathered(torch.randn(len(pids), 1, generator=draw), pids, camids, labels[pids], 7)

    class Reader(OwnReader):
        def search(self, asked, embeddings):
            return asked.float().sum(dim=1, keepdim=True).sin() * embeddings[:, 0]

    figures = APSTask(Reader(), protocol=protocol, groups=("upper",))(images)
    order = [*range(7, len(pids)), *range(7)]  # gallery first
    for name, fields in (("", range(labels.shape[1])), ("upper/", upper)):
        kinds = [tuple(row) for row in images.attributes[:, list(fields)].tolist()]
        precisions = []
        for kind in dict.fromkeys(kinds if protocol == "sal-all" else kinds[:7]):
            asked = torch.full((1, labels.shape[1]), -1)
            asked[0, list(fields)] = torch.tensor(kind)
            scores = Reader().search(asked, images.embeddings)[0].tolist()
            first = next(i for i in [*range(7), *order] if kinds[i] == kind)
            left = [i for i in order if (pids[i], camids[i]) != (pids[first], camids[first])]
            ranked = [kinds[i] == kind for i in sorted(left, key=lambda i: -scores[i])]
            hits = [place for place, right in enumerate(ranked, 1) if right]
            precisions += [sum(n / place for n, place in enumerate(hits, 1)) / len(hits)] if hits else []
        assert figures[f"APS/{name}mAP{'_given' if name else ''}"] == pytest.approx(
            100 * sum(precisions) / len(precisions))
    assert figures["APS/queries"] == {"sal": 7, "sal-all": 12}[protocol]
    table = results_table(figures)
    assert ("queries are the 7 categories of the query images, out of 12" in table) == (protocol == "sal")


def test_sal_is_rejected_without_labelled_query_images():
    labels = random_labels(MARKET1501, 4).index_fill(0, torch.tensor([0, 1]), -1)
    images = Gathered(torch.ones(8, 1), torch.arange(4).repeat(2), torch.arange(8) // 4, labels.repeat(2, 1), 2)
    with pytest.raises(ValueError, match="sal takes the categories of query images.* none of them has labels"):
        APSTask(OwnReader(), protocol="sal")(images)
    assert APSTask(OwnReader(), protocol="sal-all")(images)["APS/queries"] == 2


@pytest.mark.parametrize("protocol", ["asmr", "sal"])
def test_metrics_of_seen_and_unseen_categories_add_up_to_those_of_all(protocol):
    stream = list(batches())
    for inputs, _ in stream:
        inputs["camids"] = torch.where(inputs["targets"] == 5, 0, inputs["camids"])  # "sal" excludes all of its matches
    results = run(TaskEvaluator(24, [APSTask(OwnReader(), random_labels(MARKET1501, 6, seed=9)[[1, 5]],
                                             protocol=protocol)]), stream)
    assert results["APS/unmatched"] == (protocol == "sal")
    for key in ("mAP", "mAP_trapezoid", "Rank-1"):
        parts = [(results[f"APS/{part}/{key}"], results[f"APS/{part}/queries"]) for part in ("seen", "unseen")]
        assert sum(value * count for value, count in parts) / sum(count for _, count in parts) == pytest.approx(
            results[f"APS/{key}"])


@pytest.mark.parametrize(("change", "message"), [
    (lambda i: i, "24 query and 0 gallery images"),
    (None, "has no images"),
])
def test_an_empty_query_or_gallery_set_is_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        run(TaskEvaluator(24, []), [next(iter(batches(24, size=24)))] if change else iter(()))


def test_queries_without_a_match_are_skipped_unless_none_has_one():
    stream = list(batches())
    stream[0][0]["targets"][0] = 99
    skipped = run(TaskEvaluator(24, [ReIDTask(config())]), stream)
    without = list(batches())
    without[0] = ({key: value[1:] for key, value in without[0][0].items()}, without[0][1][1:])
    assert skipped == pytest.approx(run(TaskEvaluator(23, [ReIDTask(config())]), without))
    for inputs, _ in stream[:2]:
        inputs["targets"] = inputs["targets"] + 1000
    with pytest.raises(ValueError, match="all query identities do not appear in gallery"):
        run(TaskEvaluator(16, [ReIDTask(config())]), stream[:1] + list(batches(seed=1))[2:])


def test_damaged_embeddings_missing_labels_and_unknown_groups_are_rejected():
    bad = list(batches())
    bad[0][1][0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 90 embeddings are not finite"):
        run(TaskEvaluator(24, []), bad)
    for inputs, _ in (plain := list(batches())):
        del inputs["attributes"]
    with pytest.raises(ValueError, match="need batches with 'attributes'.*CerberusTrainer.build_test_loader"):
        run(TaskEvaluator(24, [PARTask(OwnReader())]), plain)
    for inputs, _ in (unlabelled := list(batches())):
        inputs["attributes"] = torch.full_like(inputs["attributes"], -1)
    with pytest.raises(ValueError, match="none of the test images has labels"):
        run(TaskEvaluator(24, [PARTask(OwnReader())]), unlabelled)
    with pytest.raises(ValueError, match="GROUPS contains 'feet', expected names joined"):
        run(TaskEvaluator(24, [APSTask(OwnReader(), groups=("feet",))]))


def test_finish_is_applied_to_the_embeddings():
    seen = []
    run(TaskEvaluator(24, [lambda gathered: seen.append(gathered.embeddings) or {}], finish=lambda e: e * 0 + 2))
    assert (seen[0] == 2).all()


def test_attributes_without_labels_are_undefined_and_excluded_from_means():
    """Two people with labels of gender, one also of hat; the reader predicts yes and female or no and male."""
    labels = torch.full((2, len(MARKET1501.fields)), -1)
    labels[:, MARKET1501.index("gender")] = torch.tensor([0, 1])
    labels[0, MARKET1501.index("hat")] = 1
    pids = torch.tensor([1, 2, 1, 2, 2])
    images = Gathered(torch.tensor([[1.0], [1], [1], [-1], [1]]), pids, torch.arange(5), labels[pids - 1], 2)
    figures = PARTask(OwnReader())(images) | APSTask(OwnReader())(images)
    # Gallery: a man predicted as a woman with a hat, and two images of a woman, predicted as male and as female.
    official = {name.rsplit("/", 1)[1]: value for name, value in figures.items() if name.startswith("PAR/official/")}
    assert {name for name, value in official.items() if value == value} == {"gender", "hat"}
    assert official["gender"] == pytest.approx(100 / 3) and official["hat"] == 100
    assert figures["PAR/mA_official"] == figures["PAR/label/accuracy"] == pytest.approx((100 / 3 + 100) / 2)
    assert figures["PAR/label/mA"] == pytest.approx(100 * (0 + 1 / 2) / 2)  # mA is undefined for a hat that all wear
    # The man has two labels, one of them right; the woman has one, right on one image: |P & A| / |P | A| is 1/2, 0, 1.
    assert figures["PAR/instance/accuracy"] == pytest.approx(100 * (1 / 2 + 0 + 1) / 3)
    table = results_table(figures)
    assert "undefined" in table and "nan" not in table
    # Queries are the known labels: a man with a hat, and a woman.
    assert figures["APS/queries"] == 2
