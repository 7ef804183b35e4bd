"""Queries by image, by attributes, and by both; weights, ignored groups, calibration and the prefilter."""

import json
from dataclasses import replace

from cerberus_plugin.search.gallery import GalleryIndex, Pace, Prefilter, Query
from cerberus_plugin.search.gallery.engines import Faiss, FaissEngine
from cerberus_plugin.search.gallery.query import SearchedModel, Shape, compile_query
from cerberus_plugin.search.portable import Verification

import numpy as np
import pytest
from support.galleries import BLUE, GREEN, GROUPS, RED, BandEncoder, PlainEncoder, Words, draw, draw_many, read

MODEL = SearchedModel(Shape(GROUPS, 20, "cosine"), Words(), None, ("head", "identity"))
ALIKE = ("head", "identity")


def make(folder, encoder=None, **options) -> GalleryIndex:
    return GalleryIndex.build(folder / "index", folder / "crops", encoder or BandEncoder(), read=read,
                              **{"pace": Pace(progress=False), "dtype": "float32", **options})


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An index of 60 images, which tests only search, and their embeddings (60, 5, 4) in the order of their names."""
    folder = tmp_path_factory.mktemp("gallery")
    paths = draw_many(folder / "crops", 60)
    return make(folder), BandEncoder().encode([read(path) for path in paths]).reshape(60, 5, 4)


def numbers(hits) -> list[int]:
    return [int(hit.path.rsplit("/", 1)[1][:4]) for hit in hits]


def unit(*rows) -> np.ndarray:
    rows = np.array(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# The vector.


def test_a_query_vector_is_the_weighted_mean_of_its_blocks_by_hand():
    picture = np.tile(np.array([0.6, 0.8, 0, 0], np.float32), 5)
    query = Query(picture, {"upper colour": "blue"}, weights={"upper": 3, "head": 0.5}, leave_out=["lower"])
    compiled = compile_query(query, MODEL)
    weights = np.array([0.5, 3 * 2.5, 0, 1, 1]) / 10  # 2.5: the sum of the weights of the image's groups
    blocks = np.array([[0.6, 0.8, 0, 0], [0, 0, 1, 0], [0.6, 0.8, 0, 0], [0.6, 0.8, 0, 0], [0.6, 0.8, 0, 0]])
    assert np.allclose(compiled.vector.reshape(5, 4), weights[:, None] * blocks)


def test_attributes_and_image_have_the_same_total_weight():
    picture = np.ones(20, np.float32)
    for words in ({"upper colour": "blue"}, {"upper colour": "blue", "lower colour": "red", "head colour": "red"}):
        described = [f"{group} colour" in words for group in GROUPS]
        weights = compile_query(Query(picture, words), MODEL).weights
        assert weights[described].sum() == pytest.approx(0.5) and len(set(weights[described].tolist())) == 1
    whole = dict.fromkeys((f"{group} colour" for group in GROUPS), "red")
    assert np.allclose(compile_query(Query(picture, whole), MODEL).weights, 0.2)
    out = compile_query(Query(picture, {"upper colour": "blue"}, leave_out=["upper"]), MODEL)
    assert np.allclose(out.weights, [0.25, 0, 0.25, 0.25, 0.25])


def test_only_the_described_groups_are_compared():
    compiled = compile_query(Query(words={"head colour": "red", "lower colour": "blue"}), MODEL)
    assert np.allclose(compiled.weights, [0.5, 0, 0.5, 0, 0]) and compiled.known.tolist() == [1, 0, 1, 0, 0]


def test_only_lasting_groups_are_compared_if_clothes_may_have_changed():
    compiled = compile_query(Query(np.ones(20), leave_out=["head"], may_have_changed_clothes=True), MODEL)
    assert compiled.weights.tolist() == [0, 0, 0, 1, 0]
    compiled = compile_query(Query(np.ones(20), may_have_changed_clothes=True),
                             MODEL._replace(lasting_groups=("head", "carrying")))
    assert compiled.weights.tolist() == [0.5, 0, 0, 0, 0.5]


@pytest.mark.parametrize(("query", "message"), [
    (Query(), "the query is empty; give an image, or at least one attribute"),
    (Query(words={"head colour": "red"}, leave_out=["head"]), "the query only describes head, which is ignored"),
    (Query(np.zeros(7)), r"shape \(7,\), expected \(20,\) finite values"),
    (Query(np.full(20, np.nan)), r"expected \(20,\) finite values"),
    (Query(np.ones(20), weights={"shoes": 1}), "unknown group 'shoes', expected one of head, upper"),
    (Query(np.ones(20), weights={"head": -1}), "weights of groups are {'head': -1}, expected finite numbers"),
    (Query(np.ones(20), weights={"head": float("inf")}), "expected finite numbers of 0 or more"),
    (Query(words={"shoes": "red"}), "unknown 'shoes'"),
])
def test_empty_and_invalid_queries_are_rejected(query, message):
    with pytest.raises(ValueError, match=message):
        compile_query(query, MODEL)


def test_a_model_without_attributes_or_groups_rejects_them():
    plain = SearchedModel(Shape((), 3, "euclidean"))
    with pytest.raises(ValueError, match="does not predict attributes; search by image"):
        compile_query(Query(words={"head colour": "red"}), plain)
    with pytest.raises(ValueError, match="unknown group 'head', expected one of none, since this model has no groups"):
        compile_query(Query(np.ones(3), leave_out=["head"]), plain)
    with pytest.raises(ValueError, match="this model has no groups, so clothes cannot be ignored"):
        compile_query(Query(np.ones(3), may_have_changed_clothes=True), plain)


# Searching.


@pytest.mark.parametrize("form", ["exact", "float16", "int8"])
def test_an_image_query_has_the_results_of_brute_force(many, form):
    index, rows = many
    index.faiss(form)
    query = unit(rows[7] + 0.2)
    hits = index.search(Query(query.reshape(-1)), top=6)
    expected = (rows * query).sum(axis=2)  # (60, 5)
    assert numbers(hits) == np.argsort(-expected.mean(axis=1))[:6].tolist()
    for hit, i in zip(hits, numbers(hits)):
        assert list(hit.similarities) == list(GROUPS)
        assert list(hit.similarities.values()) == pytest.approx(expected[i].tolist(), abs=1e-5)
        assert hit.score == pytest.approx(expected[i].mean(), abs=1e-5)
        assert hit.camera == str(i % 6 + 1) and hit.time == f"s1_{i:06d}" and hit.identity == f"{i:04d}"
        assert {name: answer.value for name, answer in hit.attributes.items()} == {
            f"{group} colour": Words.values[block[:3].argmax()] for group, block in zip(GROUPS, rows[i])}


def test_a_partial_description_ranks_by_the_described_groups(many):
    index, rows = many
    hits = index.search(Query(words={"upper colour": "green", "carrying colour": "red"}), top=60)
    expected = (rows[:, 1, 1] + rows[:, 4, 0]) / 2
    assert numbers(hits) == np.argsort(-expected).tolist()
    assert [hit.score for hit in hits] == pytest.approx(np.sort(expected)[::-1].tolist(), abs=1e-5)
    assert list(hits[0].similarities) == ["upper", "carrying"]


def test_similarities_of_ignored_groups_are_shown(many):
    index, rows = many
    hits = index.search(Query(rows[3].reshape(-1), leave_out=["upper", "lower", "carrying"]), top=60)
    expected = (rows * rows[3]).sum(axis=2)
    assert numbers(hits) == np.argsort(-expected[:, [0, 3]].mean(axis=1)).tolist()
    assert all(hit.score == pytest.approx(sum(hit.similarities[g] for g in ALIKE) / 2, abs=1e-5) for hit in hits)
    assert hits[5].similarities["upper"] == pytest.approx(expected[numbers(hits)[5], 1], abs=1e-5)


def test_weights_change_the_ranking_as_computed_by_hand(many):
    index, rows = many
    weights = {"head": 5.0, "upper": 0.25, "carrying": 0.0}
    hits = index.search(Query(rows[11].reshape(-1), weights=weights), top=60)
    expected = (rows * rows[11]).sum(axis=2) @ np.array([5, 0.25, 1, 1, 0]) / 7.25
    assert numbers(hits) == np.argsort(-expected).tolist()


def test_models_with_groups_are_compared_by_cosine_even_with_the_metric_euclidean(many, tmp_path):
    class ByDistance(BandEncoder):
        metric = "euclidean"

    index, rows = many
    draw_many(tmp_path / "crops", 60)
    query = Query(rows[8].reshape(-1), leave_out=["head"])
    expected = [(hit.score, hit.similarities) for hit in index.search(query)]
    assert [(hit.score, hit.similarities) for hit in make(tmp_path, ByDistance()).search(query)] == expected


def test_an_attribute_replaces_its_group_of_the_image(tmp_path):
    wanted = draw(tmp_path / "crops/same_without.png", RED, GREEN, BLUE, RED, GREEN)
    same = draw(tmp_path / "crops/same_with.png", RED, GREEN, BLUE, RED, BLUE)
    draw(tmp_path / "crops/other_without.png", GREEN, RED, RED, GREEN, GREEN)
    index = make(tmp_path)
    picture = index.embed(BandEncoder(), same, read)
    assert index.search(Query(picture))[0].path == str(same)
    hits = index.search(Query(picture, {"carrying colour": "green"}))
    assert hits[0].path == str(wanted) and list(hits[0].similarities) == list(GROUPS)
    for hit in hits:  # half of the score from the image, half from the attribute
        person = np.mean([hit.similarities[group] for group in GROUPS if group != "carrying"])
        assert hit.score == pytest.approx((person + hit.similarities["carrying"]) / 2, abs=1e-5)


def test_several_queries_at_once_have_the_results_of_single_queries(many):
    index, rows = many
    queries = [Query(rows[2].reshape(-1)), Query(words={"head colour": "red"}), Query(rows[9].reshape(-1),
                                                                                      leave_out=["head"])]
    assert index.search_many(queries, top=4) == [index.search(query, top=4) for query in queries]
    assert index.search_many([]) == []
    with pytest.raises(ValueError, match="the number of results is 0, expected at least 1"):
        index.search(queries[0], top=0)


def test_a_search_by_attributes_needs_no_model(many):
    index, rows = many
    hits = GalleryIndex.open(index.folder, Words()).search(Query(words={"head colour": "red"}), top=3)
    assert numbers(hits) == np.argsort(-rows[:, 0, 0])[:3].tolist()


def test_the_row_of_a_hit_gives_its_path_and_embedding(many):
    index, embeddings = many
    hit = index.search(Query(words={"head colour": "red"}), top=1)[0]
    assert str(index.path(hit.row)) == hit.path
    assert np.allclose(index.embedding(hit.row), embeddings[numbers([hit])[0]].reshape(-1), atol=1e-6)
    assert index.search(Query(index.embedding(hit.row)), top=1)[0].row == hit.row


def test_a_sample_is_spread_over_the_gallery_without_duplicates(many):
    index, _ = many
    few = index.sample(5)
    assert [int(index.path(row).name[:4]) for row in few] == [0, 14, 29, 44, 59]
    assert sorted(index.sample(1000)) == sorted(index.store.ids.tolist())


def test_rows_follow_changes_of_another_process(tmp_path):
    paths = draw_many(tmp_path / "crops", 3)
    index = make(tmp_path)
    row = index.sample(1)[0]
    paths[0].unlink()
    draw(tmp_path / "crops/new.png", RED)
    make(tmp_path)
    rows = {index.path(each).name: each for each in index.sample(9)}
    assert set(rows) == {paths[1].name, paths[2].name, "new.png"}
    assert np.allclose(index.embedding(rows["new.png"]), BandEncoder().encode([read(tmp_path / "crops/new.png")])[0])
    assert index.sample(2) == [rows[paths[1].name], rows["new.png"]]
    for ask in (index.path, index.embedding):
        with pytest.raises(LookupError, match=f"contains no row {row}; its image was deleted or has changed"):
            ask(row)


def test_an_index_without_images_has_no_results(tmp_path):
    (tmp_path / "crops").mkdir()
    index = make(tmp_path)
    assert index.search(Query(words={"head colour": "red"})) == [] and np.isnan(index.recall(index.faiss("int8")))


def test_the_engine_of_an_index_is_saved_and_its_recall_is_measured(tmp_path):
    draw_many(tmp_path / "crops", 60)
    index = make(tmp_path)
    assert index.recall(index.faiss()) == 1
    assert index.recall(index.faiss("int8"), k=5, queries=20) > 0.8
    kept = list((tmp_path / "index/engines").iterdir())
    assert [path.name.split("-")[0] for path in kept] == ["int8"]
    before = kept[0].stat().st_mtime_ns
    GalleryIndex.open(tmp_path / "index", Words(), engine=Faiss("int8"))
    assert kept[0].stat().st_mtime_ns == before


def test_an_index_is_opened_with_an_engine_or_a_function_that_creates_one(many):
    index, rows = many
    query = Query(rows[7].reshape(-1))
    spaces, expected = [], index.search(query, 4)

    def own(space):
        spaces.append(space)
        return FaissEngine(space.dim, metric=space.metric)

    for engine in (FaissEngine(20), Faiss("float16"), own):
        assert numbers(GalleryIndex.open(index.folder, Words(), engine=engine).search(query, 4)) == numbers(expected)
    assert (spaces[0].folder, spaces[0].dim, spaces[0].metric) == (index.folder, 20, "cosine")


def test_no_score_exceeds_one_and_the_order_is_that_of_the_stored_embeddings(tmp_path):
    draw_many(tmp_path / "crops", 60)
    index = make(tmp_path, dtype="float16")
    longer = 0
    for row in index.store.embeddings(index.store.ids):
        hits = index.search(Query(row), top=60)
        query = unit(row.reshape(5, 4)).reshape(-1)
        expected = index.store.embeddings(index.store.ids) @ query / 5
        longer += expected.max() > 1
        assert max(hit.score for hit in hits) <= 1 and max(max(hit.similarities.values()) for hit in hits) <= 1
        assert numbers(hits)[0] == expected.argmax()
    assert longer


def test_the_limit_of_an_engine_is_only_exceeded_if_the_caller_requests_more(many):
    class Few(FaissEngine):
        most_hits, asked = 20, []

        def __init__(self):
            super().__init__(20)
            self.exact = False

        def search(self, queries, k, among=None):
            self.asked.append(k)
            return super().search(queries, k, among)

    index, rows = many
    index.use(Few())
    for top in (2, 5, 30):
        assert len(index.search(Query(rows[0].reshape(-1)), top)) == top
    assert Few.asked == [16, 20, 30]
    index.faiss()


def test_milvus_has_the_same_results(many, tmp_path):
    pytest.importorskip("milvus_lite")
    index, rows = many
    query = Query(rows[20].reshape(-1), {"head colour": "blue"}, leave_out=["lower"])
    index.faiss()
    expected = [index.search(query, 7, prefilter) for prefilter in (None, Prefilter(0.8))]
    engine = index.milvus(str(tmp_path / "gallery.db"))
    assert [index.search(query, 7, prefilter) for prefilter in (None, Prefilter(0.8))] == expected
    engine.close()
    index.faiss()


# The same person.

FITTED = Verification(slope=20.0, intercept=-16.0, prior=0.5, metric="cosine", groups=(), thresholds={0.1: 0.9})


class Calibrated(BandEncoder):
    verification = FITTED
    lasting_groups = ("head",)


@pytest.fixture(scope="module")
def judged(many, tmp_path_factory):
    """The index of `many` with a calibrated model."""
    folder = tmp_path_factory.mktemp("judged")
    draw_many(folder / "crops", 60)
    make(folder).close()
    make(folder, Calibrated()).close()
    return GalleryIndex.open(folder / "index", Words())


def test_image_queries_have_the_calibrated_probability_of_the_same_person(judged, many):
    assert judged.verification == FITTED and judged.lasting_groups == ("head",)
    for prior, odds in ((None, 1 / 60), (0.5, 1.0), (0.2, 0.25)):  # one of 60 images, or none of them
        for hit in judged.search(Query(many[1][5].reshape(-1), prior=prior), top=60):
            expected = odds * np.exp(20 * hit.score - 16)
            assert hit.same_person == pytest.approx(expected / (1 + expected), rel=1e-6)
    assert many[0].verification is None
    assert {hit.same_person for hit in many[0].search(Query(many[1][5].reshape(-1)))} == {None}


def test_a_false_match_rate_excludes_scores_below_its_threshold(judged, many):
    query = many[1][5].reshape(-1)
    every = judged.search(Query(query), top=60)
    kept = judged.search(Query(query, false_match_rate=0.1), top=60)
    assert kept == [hit for hit in every if hit.score >= 0.9] and 0 < len(kept) < 60
    with pytest.raises(ValueError, match="false-match rate 0.2: not calibrated; calibrated rates: 0.1"):
        judged.search(Query(query, false_match_rate=0.2))
    with pytest.raises(ValueError, match="the model of this index is not calibrated, so the false-match rate is"):
        many[0].search(Query(query, false_match_rate=0.1))


@pytest.mark.parametrize("query", [{"words": {"head colour": "red"}}, {"leave_out": ["upper"]},
                                   {"weights": {"head": 2}}])
def test_a_calibration_does_not_apply_to_attributes_weights_and_fewer_groups(judged, many, query):
    assert judged.search(Query(many[1][5].reshape(-1), **query))[0].same_person is None
    with pytest.raises(ValueError, match="compared by all groups with equal weights; remove attributes and weights"):
        judged.search(Query(many[1][5].reshape(-1), **query, false_match_rate=0.1))


def test_a_calibration_of_some_groups_only_applies_to_these(many):
    some = replace(FITTED, groups=ALIKE)
    whole, part = (compile_query(Query(np.ones(20), leave_out=out), MODEL)
                   for out in ((), [group for group in GROUPS if group not in ALIKE]))
    assert part.is_judged_by(some) and not whole.is_judged_by(some) and not part.is_judged_by(FITTED)
    assert not whole.is_judged_by(replace(FITTED, metric="euclidean")) and whole.is_judged_by(FITTED)


def test_a_calibration_of_distances_does_not_apply_to_cosines_and_the_error_says_so():
    """The index of a run with groups compares by cosine even if TEST.METRIC is euclidean."""
    query = Query(np.ones(20), false_match_rate=0.1)
    assert compile_query(query, MODEL._replace(verification=FITTED)).least_score == FITTED.thresholds[0.1]
    with pytest.raises(ValueError, match="calibrated on euclidean scores, but the index compares by cosine, .* Set "
                                         "TEST.METRIC cosine in config.yaml of the run, calibrate it again"):
        compile_query(query, MODEL._replace(verification=replace(FITTED, metric="euclidean")))


def test_a_calibration_survives_json():
    assert Verification.from_dict(json.loads(json.dumps(FITTED.to_dict()))) == FITTED


# The prefilter.


def reliable(rows: np.ndarray) -> np.ndarray:
    """Return values and probabilities of the attributes of rows (N, 5, 4), predicted by the test vocabulary."""
    answers = Words().recognise(rows.reshape(len(rows), 20))
    return np.array([[Words.values.index(a.value) for a in row.values()] for row in answers]), np.array(
        [[a.probability for a in row.values()] for row in answers])


def test_the_prefilter_excludes_images_that_reliably_contradict_a_description(many):
    index, rows = many
    index.faiss()
    values, probabilities = reliable(rows)
    kept = (values[:, 1] == 1) | (probabilities[:, 1] <= 0.95)
    hits = index.search(Query(words={"upper colour": "green"}), 60, Prefilter(0.95))
    assert 5 < kept.sum() < 55 and sorted(numbers(hits)) == np.flatnonzero(kept).tolist()
    everything = index.search(Query(words={"upper colour": "green"}), 60)
    assert hits == [hit for hit in everything if kept[numbers([hit])[0]]]


def test_the_prefilter_uses_reliable_attributes_of_the_query_image_in_compared_groups(many):
    index, rows = many
    index.faiss()
    values, probabilities = reliable(rows)
    i = int((probabilities[:, [0, 4]] > 0.95).all(axis=1).argmax())
    query = Query(rows[i].reshape(-1), {"upper colour": "red"}, leave_out=["lower", "carrying"])
    kept = (values[:, 1] == 0) | (probabilities[:, 1] <= 0.95)
    for g in (0, 3):  # head and identity; upper is described, the others are ignored
        if probabilities[i, g] > 0.95:
            kept &= (values[:, g] == values[i, g]) | (probabilities[:, g] <= 0.95)
    assert sorted(numbers(index.search(query, 60, Prefilter(0.95)))) == np.flatnonzero(kept).tolist()
    assert 0 < kept.sum() < 50


def test_a_threshold_of_one_excludes_nothing_and_only_probabilities_are_accepted(many):
    index, _ = many
    assert len(index.search(Query(words={"upper colour": "green"}), 60, Prefilter(1.0))) == 60
    with pytest.raises(ValueError, match="the threshold is 1.5, expected a probability between 0 and 1"):
        Prefilter(1.5)


def test_a_model_without_attributes_rejects_the_prefilter(tmp_path):
    draw(tmp_path / "crops/red.png", RED)
    index = make(tmp_path, PlainEncoder())
    with pytest.raises(ValueError, match="filter: the model of this index does not predict attributes"):
        index.search(Query(np.ones(3)), prefilter=Prefilter())
