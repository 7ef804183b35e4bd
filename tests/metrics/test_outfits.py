"""Outfit settings: worked example, brute force, published protocol of PRCC, single-shot evaluation, and the task."""

import math

from cerberus_plugin import ReIDTask, TaskEvaluator, add_cerberus_config
from cerberus_plugin.data.clothes import LTCC
from cerberus_plugin.evaluation.clothes_task import ClothesTask
from cerberus_plugin.evaluation.embeddings import Gathered
from cerberus_plugin.evaluation.report import results_table
from cerberus_plugin.metrics import ranking
from cerberus_plugin.metrics.outfits import SETTINGS, Outfits, draw_single_shot
from cerberus_plugin.metrics.ranking import reid_metrics, reid_metrics_from_features

import pytest
import torch
from fastreid.config import get_cfg


def exactly(value):
    return pytest.approx(value, abs=1e-14, nan_ok=True)


def config(*options):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_list(list(options))
    return cfg


@pytest.mark.parametrize(("setting", "ap", "rank1"), [("standard", 34 / 45, 1), ("cloth-changing", 1 / 2, 0),
                                                      ("same-clothes", 1 / 1, 1)])
def test_the_worked_example_gives_the_exact_fractions(setting, ap, rank1):
    """(identity, camera, outfit). Ranks: standard 1, 4, 3, 5, 2; cloth-changing 4, 3, 5, 2; same-clothes 1, 4, 5."""
    gallery = torch.tensor([(5, 1, 10), (5, 2, 10), (5, 2, 11), (5, 3, 11), (6, 1, 20), (6, 2, 20)])
    query = torch.tensor([(5, 1, 10)])
    result = reid_metrics(-torch.tensor([[.9, .8, .3, .6, .7, .5]]), query[:, 0], query[:, 1], gallery[:, 0],
                          gallery[:, 1], outfits=Outfits(query[:, 2], gallery[:, 2], setting))
    assert (result.mAP, result.cmc[0].item()) == (exactly(ap), rank1)


@pytest.fixture
def world():
    """50 queries, 200 gallery images: 15 persons, 3 cameras, 3 outfits per person; person 14 is not in the gallery."""
    g = torch.Generator().manual_seed(5)

    def draw(high, n):
        return torch.randint(high, (n,), generator=g)

    query, gallery = torch.randn(50, 6, generator=g), torch.randn(200, 6, generator=g)
    q_pids, g_pids = draw(15, 50), draw(14, 200)
    ids = q_pids, draw(3, 50), g_pids, draw(3, 200)
    return query, gallery, ids, (3 * q_pids + draw(3, 50), 3 * g_pids + draw(3, 200))


def brute_force(distances, ids, outfits, setting):
    """AP of each query by a loop over the gallery."""
    q_pids, q_camids, g_pids, g_camids = (part.tolist() for part in ids)
    q_outfits, g_outfits = (part.tolist() for part in outfits)
    found = []
    for q, row in enumerate(distances.tolist()):
        hits, precisions, rank = 0, [], 0
        for _, g in sorted((d, g) for g, d in enumerate(row)):
            same = g_pids[g] == q_pids[q]
            camera, outfit = g_camids[g] == q_camids[q], g_outfits[g] == q_outfits[q]
            if same and {"standard": camera, "cloth-changing": camera or outfit,
                         "same-clothes": camera or not outfit}[setting]:
                continue
            rank += 1
            if same:
                hits += 1
                precisions.append(hits / rank)
        found.append(sum(precisions) / len(precisions) if precisions else math.nan)
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_outfit_settings_equal_brute_force(world, setting, monkeypatch):
    query, gallery, ids, outfits = world
    distances = torch.cdist(query, gallery)
    expected = brute_force(distances, ids, outfits, setting)
    given = Outfits(*outfits, setting)
    skipped = sum(map(math.isnan, expected))
    assert skipped > 0
    result = reid_metrics(distances, *ids, outfits=given)
    assert result.queries.ap.tolist() == exactly(expected) and result.num_skipped == skipped
    for other in (reid_metrics(distances, *ids, block_size=7, outfits=given),
                  reid_metrics_from_features(query, gallery, *ids, metric="euclidean", outfits=given),
                  reid_metrics_from_features(query, gallery, *ids, metric="euclidean", part_size=33, outfits=given)):
        assert other.queries.ap.tolist() == exactly(expected)
    monkeypatch.setattr(ranking, "BLOCK_ENTRIES", 60)  # slices of queries with few pairs
    streamed = reid_metrics_from_features(query, gallery, *ids, metric="euclidean", part_size=33, outfits=given)
    assert streamed.queries.ap.tolist() == exactly(expected)


def test_the_standard_setting_is_the_market_protocol(world):
    query, gallery, ids, outfits = world
    distances = torch.cdist(query, gallery)
    plain = reid_metrics(distances, *ids)
    ours = reid_metrics(distances, *ids, outfits=Outfits(*outfits, "standard"))
    assert (plain.mAP, plain.mINP, plain.num_skipped) == (ours.mAP, ours.mINP, ours.num_skipped)


def test_a_setting_without_matches_has_undefined_metrics(world):
    query, gallery, ids, _ = world
    one = Outfits(ids[0], ids[2], "cloth-changing")  # all images have the same outfit
    result = reid_metrics(torch.cdist(query, gallery), *ids, outfits=one)
    assert math.isnan(result.mAP) and result.cmc.isnan().all() and result.num_skipped == 50


@pytest.mark.parametrize(("outfits", "message"), [
    (Outfits(torch.zeros(50), torch.zeros(200), "naked"), "setting is 'naked', expected one of standard, cloth-chang"),
    (Outfits(torch.zeros(50), torch.zeros(3), "standard"), "200 gallery images, but outfits of 50 and 3"),
])
def test_unknown_settings_and_missing_outfits_are_rejected(world, outfits, message):
    query, gallery, ids, _ = world
    with pytest.raises(ValueError, match=message):
        reid_metrics(torch.cdist(query, gallery), *ids, outfits=outfits)


def prcc(seed: int = 0, people: int = 12, images: int = 4) -> Gathered:
    """Queries of cameras B and C, gallery of camera A; in B persons wear the clothes of A and look more similar."""
    g = torch.Generator().manual_seed(seed)
    person, clothes = 0.3 * torch.randn(people, 16, generator=g), torch.randn(2 * people, 16, generator=g)
    rows = [(p, camera, p + people * (camera == 2)) for camera in (1, 2, 0) for p in range(people)
            for _ in range(images)]
    pids, camids, outfits = torch.tensor(rows).T
    embeddings = person[pids] + clothes[outfits] + 1.2 * torch.randn(len(rows), 16, generator=g)
    return Gathered(embeddings, pids, camids, None, 2 * people * images, outfits=outfits)


SETTINGS_OF_PRCC = ("cloth-changing", "same-clothes", "single-shot")


def task(*options, settings=SETTINGS_OF_PRCC, **kwargs) -> ClothesTask:
    return ClothesTask(ReIDTask(config(*options)).ranker, settings, **kwargs)


def test_one_pass_over_b_and_c_gives_the_published_metrics_of_prcc():
    """Published protocol: queries of C (or B) only, gallery of all images of A, no camera filter."""
    given = prcc()
    metrics = task()(given)
    for camera, setting in ((2, "cloth-changing"), (1, "same-clothes")):
        query = given.query.rows(given.query.camids == camera)
        distances = 1 - torch.nn.functional.normalize(query.embeddings) @ torch.nn.functional.normalize(
            given.gallery.embeddings).T
        relevant = query.pids[:, None] == given.gallery.pids
        alone = ranking.rank_matches(distances, relevant)
        assert metrics[f"{setting}/mAP"] == pytest.approx(100 * alone.ap.mean().item())
        assert metrics[f"{setting}/Rank-1"] == pytest.approx(100 * (alone.first_match == 1).double().mean().item())
        assert metrics[f"{setting}/queries"] == 48
    assert metrics["same-clothes/mAP"] > metrics["cloth-changing/mAP"]


def test_the_settings_of_ltcc_are_the_published_three(world):
    """Standard, and the settings of CAL's code: ignore images of the person in the same outfit, or in other outfits."""
    query, gallery, (q_pids, q_camids, g_pids, g_camids), (q_outfits, g_outfits) = world
    given = Gathered(torch.cat([query, gallery]), torch.cat([q_pids, g_pids]), torch.cat([q_camids, g_camids]), None,
                     len(query), outfits=torch.cat([q_outfits, g_outfits]))
    metrics = evaluated(given, ReIDTask(config("TEST.METRIC", "euclidean")),
                        task("TEST.METRIC", "euclidean", settings=LTCC.settings))
    for setting, prefix in (("standard", ""), ("cloth-changing", "cloth-changing/"), ("same-clothes", "same-clothes/")):
        expected = brute_force(torch.cdist(query, gallery), world[2], world[3], setting)
        found = [ap for ap in expected if not math.isnan(ap)]
        assert metrics[f"{prefix}mAP"] == pytest.approx(100 * sum(found) / len(found))
        assert metrics.get(f"{prefix}queries", len(found)) == len(found) < len(query)


def test_skipped_queries_of_a_setting_are_logged(log):
    task(settings=("cloth-changing",))(prcc())
    assert list(dict.fromkeys(log.messages)) == ["cloth-changing: 48 of 96 queries have no valid match and are skipped"]


def test_a_sample_has_one_image_per_identity_and_samples_cover_all_images():
    pids = torch.tensor([7, 3, 7, 3, 3, 9])
    samples = draw_single_shot(pids, draws=200, seed=1)
    assert samples.shape == (200, 3) and all(sorted(pids[rows].tolist()) == [3, 7, 9] for rows in samples)
    counts = samples.flatten().bincount(minlength=6).tolist()
    assert counts[5] == 200
    assert all(80 < counts[i] < 120 for i in (0, 2)) and all(45 < counts[i] < 90 for i in (1, 3, 4))
    assert torch.equal(samples, draw_single_shot(pids, draws=200, seed=1))
    assert not torch.equal(samples, draw_single_shot(pids, draws=200, seed=2))
    assert (samples.diff(dim=1) > 0).all()


def test_single_shot_is_mean_and_deviation_of_rank_1_over_the_samples():
    given = prcc()
    metrics = task()(given)
    query = given.query.rows(given.query.camids == 2)
    cosines = torch.nn.functional.normalize(query.embeddings) @ torch.nn.functional.normalize(
        given.gallery.embeddings).T
    rank1 = torch.stack([(given.gallery.pids[rows][cosines[:, rows].argmax(dim=1)] == query.pids).double().mean()
                         for rows in draw_single_shot(given.gallery.pids)])
    assert len(rank1) == metrics["single-shot/draws"] == 10
    assert metrics["single-shot/cloth-changing/Rank-1"] == pytest.approx(100 * rank1.mean().item())
    assert metrics["single-shot/cloth-changing/Rank-1_deviation"] == pytest.approx(100 * rank1.std().item())
    assert metrics["single-shot/cloth-changing/Rank-1_deviation"] > 0
    assert not any(key.startswith("single-shot") and "mAP" in key for key in metrics)


def batches(given: Gathered, size: int = 10):
    for start in range(0, len(given.pids), size):
        rows = slice(start, start + size)
        yield ({"targets": given.pids[rows], "camids": given.camids[rows], "outfits": given.outfits[rows]},
               given.embeddings[rows])


def evaluated(given: Gathered, *tasks):
    evaluator = TaskEvaluator(given.num_query, tasks)
    for inputs, outputs in batches(given):
        evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def test_the_metric_of_the_best_checkpoint_is_that_of_changed_clothes():
    given = prcc()
    plain = evaluated(given, ReIDTask(config()))
    both = evaluated(given, ReIDTask(config()), task())
    assert {key: both[key] for key in plain if key != "metric"} == {k: v for k, v in plain.items() if k != "metric"}
    assert both["metric"] == (both["cloth-changing/mAP"] + both["cloth-changing/Rank-1"]) / 2 != plain["metric"]


def test_outfits_of_two_processes_are_gathered(monkeypatch):
    given, comm = prcc(), "cerberus_plugin.evaluation.evaluators.comm"
    expected = evaluated(given, task())
    monkeypatch.setattr(f"{comm}.get_world_size", lambda: 2)
    monkeypatch.setattr(f"{comm}.gather", lambda batches, dst: [batches[:6], batches[6:]])
    assert evaluated(given, task()) == expected


def test_selected_rows_keep_their_outfits():
    given = prcc()
    assert torch.equal(given.rows(torch.tensor([100, 3])).outfits, given.outfits[[100, 3]])
    assert torch.equal(given.gallery.outfits, given.outfits[96:])


@pytest.mark.parametrize("option", ["TEST.RERANK.ENABLED", "TEST.AQE.ENABLED"])
def test_re_ranking_and_query_expansion_apply_to_all_settings(option):
    given = prcc()
    before, after = evaluated(given, task()), evaluated(given, ReIDTask(config(option, True)), task(option, True))
    assert after["mAP"] > 0
    for setting in ("cloth-changing", "same-clothes", "single-shot/cloth-changing"):
        assert after[f"{setting}/Rank-1"] > 0 and after.keys() >= before.keys()
    assert after["cloth-changing/mAP"] != before["cloth-changing/mAP"]


def test_undefined_metrics_do_not_change_the_metric_of_fastreid(log):
    given = prcc()
    given = Gathered(given.embeddings, given.pids, given.camids, None, given.num_query, outfits=given.pids)
    plain = evaluated(given, ReIDTask(config()))
    both = evaluated(given, ReIDTask(config()), task(settings=("cloth-changing",)))
    assert math.isnan(both["cloth-changing/mAP"]) and both["metric"] == plain["metric"]
    assert "none of 96 queries has a valid match" in log.text and "undefined" in results_table(both)


def test_batches_without_outfits_and_unknown_settings_are_rejected():
    given = prcc()
    with pytest.raises(ValueError, match="needs batches with 'outfits'.*such as PRCC or LTCC"):
        task()(Gathered(given.embeddings, given.pids, given.camids, None, given.num_query))
    with pytest.raises(ValueError, match="setting is 'naked', expected one of standard, cloth-changing"):
        task(settings=("naked",))(given)


def test_one_table_shows_all_settings_and_the_baseline():
    metrics = evaluated(prcc(), ReIDTask(config()), task())
    lines = results_table(metrics, evaluated(prcc(1), ReIDTask(config()), task())).splitlines()
    shown = ["cloth-changing", "same-clothes", "standard, all queries", "single-shot, cloth-changing",
             "single-shot, same-clothes"]
    assert "10 draws" in lines[0] and len(lines) == 14 and "camera" in lines[-1]  # queries of PRCC have own cameras
    for line, name in zip(lines[3:], [f"this model  {s}" for s in shown] + [f"before training  {s}" for s in shown]):
        assert line.split()[:len(name.split())] == name.split()
    assert f"{metrics['cloth-changing/mAP']:.2f}" in lines[3] and "48" in lines[3] and "+-" in lines[6]
