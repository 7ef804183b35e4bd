"""Attribute-accelerated retrieval: worked examples, comparison with a loop, and the guarantee of the threshold."""

from cerberus_plugin.attributes import MARKET1501
from cerberus_plugin.inference import (
    AcceleratedGallery,
    AttributeFilter,
    Predictions,
    choose_threshold,
    critical_thresholds,
    filtered_search,
)
from cerberus_plugin.metrics.filtered import filtered_metrics
from cerberus_plugin.metrics.ranking import reid_metrics

import pytest
import torch

SIZES = (2, 3, 4)
# Class and probability of three attributes, for one query and five gallery images.
QUERY = Predictions(torch.tensor([[0, 1, 2]]), torch.tensor([[0.95, 0.60, 0.80]]))
GALLERY = Predictions(
    torch.tensor([[0, 0, 2], [1, 1, 2], [1, 1, 1], [1, 0, 1], [0, 1, 2]]),
    torch.tensor([[0.9, 0.99, 0.75], [0.9, 0.9, 0.9], [0.65, 0.9, 0.9], [0.65, 0.9, 0.6], [0.71, 0.2, 0.70]]))


def random_predictions(count: int, sizes=SIZES, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.stack([torch.randint(-1, size, (count,), generator=generator) for size in sizes], dim=1)
    return Predictions(classes, torch.rand(count, len(sizes), generator=generator))


def kept_by_loops(query: Predictions, gallery: Predictions, threshold: float) -> list[list[bool]]:
    rows = []
    for q, p in zip(*query):
        rows.append([not any(p[j] > threshold and r[j] > threshold and q[j] != g[j] for j in range(len(q)))
                     for g, r in zip(*gallery)])
    return rows


@pytest.mark.parametrize(("threshold", "survivors"), [(0.7, [0, 3, 4]), (0.9, [0, 1, 2, 3, 4]), (0.0, [4])])
def test_the_worked_example_keeps_its_survivors(threshold, survivors):
    kept = AttributeFilter(GALLERY, SIZES, threshold).keep(QUERY)
    assert kept[0].nonzero().flatten().tolist() == survivors
    critical = critical_thresholds(Predictions(*(part.expand(5, -1) for part in QUERY)), GALLERY)
    assert (critical <= threshold).nonzero().flatten().tolist() == survivors


def test_a_removed_match_counts_as_a_miss():
    """Relevance of the survivors 1, 0, 1 with 3 matches before the filter: AP is 5/9, not 5/6."""
    distances = torch.tensor([[1.0, 5, 6, 2, 3]])
    pids, cams = torch.tensor([7, 7, 8, 8, 7]), torch.arange(1, 6)
    keep = AttributeFilter(GALLERY, SIZES, 0.7).keep(QUERY)
    result = filtered_metrics(lambda rows: distances[rows], lambda rows: keep[rows], torch.tensor([7]),
                              torch.tensor([0]), pids, cams)
    assert result.mAP == pytest.approx(5 / 9)
    assert result.rank1 == 1
    assert result.speed_up == pytest.approx(5 / 3)
    assert result.survivors.tolist() == [3]
    assert result.kept_matches == pytest.approx(2 / 3)


def test_lost_queries_count_as_zero_and_queries_without_matches_are_skipped():
    distances = torch.tensor([[1.0, 2, 3]] * 3)
    keep = torch.tensor([[False, True, True], [True, True, True], [True, True, True]])
    result = filtered_metrics(lambda rows: distances[rows], lambda rows: keep[rows], torch.tensor([1, 1, 9]),
                              torch.zeros(3), torch.tensor([1, 2, 3]), torch.ones(3))
    assert (result.mAP, result.rank1) == (0.5, 0.5)


def test_images_of_the_same_camera_are_not_candidates():
    distances = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    keep = torch.tensor([[True, False, True, True]])
    result = filtered_metrics(lambda rows: distances[rows], lambda rows: keep[rows], torch.tensor([1]),
                              torch.tensor([1]), torch.tensor([1, 2, 1, 3]), torch.tensor([1, 2, 2, 2]))
    assert result.survivors.tolist() == [2]
    assert result.speed_up == pytest.approx(3 / 2)
    assert result.rank1 == 1


@pytest.mark.parametrize("block_size", [None, 3])
def test_without_removed_images_metrics_are_those_of_the_plain_protocol(block_size):
    torch.manual_seed(0)
    distances = torch.rand(10, 40)
    ids = [torch.randint(5, (n,)) for n in (10, 10, 40, 40)]
    keep = torch.ones(10, 40, dtype=torch.bool)
    result = filtered_metrics(lambda rows: distances[rows], lambda rows: keep[rows], *ids, block_size=block_size)
    plain = reid_metrics(distances, *ids)
    assert (result.mAP, result.rank1) == (plain.mAP, plain.cmc[0].item())
    assert (result.speed_up, result.kept_matches) == (1, 1)


@pytest.mark.parametrize("sizes", [SIZES, MARKET1501.column_sizes, (2,) * 70])
def test_the_filter_equals_the_loop_over_pairs_and_attributes(sizes):
    queries, gallery = random_predictions(7, sizes, 1), random_predictions(11, sizes, 2)
    for threshold in (0.0, 0.5, 0.9, 1.0):
        kept = AttributeFilter(gallery, sizes, threshold).keep(queries)
        assert kept.tolist() == kept_by_loops(queries, gallery, threshold)
    assert kept.all(), "at 1 nothing is removed"


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("share", "block"), [(0.0, 2**22), (0.1, 90), (1.0, 90), (1.0, 1)])
def test_search_gives_the_nearest_survivors(metric, share, block, monkeypatch):
    monkeypatch.setattr(filtered_search, "ONE_SHARE", share)
    monkeypatch.setattr(filtered_search, "MANY_SHARE", share)
    monkeypatch.setattr(filtered_search, "BLOCK_ENTRIES", block)
    torch.manual_seed(0)
    queries, gallery = torch.randn(6, 8), torch.randn(30, 8)
    said, known = random_predictions(6, seed=3), random_predictions(30, seed=4)
    said = said.rows(torch.tensor([0, 1, 1, 2, 3, 4]))
    accelerated = AcceleratedGallery(gallery, known, SIZES, 0.5, metric)
    rows, distances = accelerated.search(queries, said, top=12)
    if metric == "cosine":
        expected = 1 - torch.nn.functional.cosine_similarity(queries[:, None], gallery[None], dim=2)
    else:
        expected = torch.cdist(queries, gallery).square()
    kept = accelerated.filter.keep(said)
    for q in range(6):
        order = [n for n in expected[q].argsort().tolist() if kept[q, n]][:12]
        found = rows[q][rows[q] >= 0].tolist()
        assert found == order
        assert distances[q, :len(order)].tolist() == pytest.approx(expected[q, order].tolist(), abs=1e-4)
        assert distances[q, len(order):].isinf().all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_queries_without_survivors_have_no_results(metric, monkeypatch):
    multiplied, multiply = [], torch.sparse.sampled_addmm
    monkeypatch.setattr(torch.sparse, "sampled_addmm", lambda wanted, *args, **kwargs: multiplied.append(
        len(wanted.values())) or multiply(wanted, *args, **kwargs))
    torch.manual_seed(0)
    gallery, sure = torch.randn(100, 8), torch.ones(100, 3)
    known = Predictions(torch.zeros(100, 3, dtype=torch.int64), sure)
    known.classes[7] = 1
    accelerated = AcceleratedGallery(gallery, known, SIZES, 0.5, metric)
    said = Predictions(torch.tensor([[1, 2, 3], [1, 2, 2]]), sure[:2])  # no gallery image has these classes
    rows, distances = accelerated.search(torch.randn(2, 8), said, top=3)
    assert rows.tolist() == [[-1] * 3] * 2 and distances.isinf().all() and multiplied == []
    rows, _ = accelerated.search(torch.randn(2, 8), Predictions(torch.tensor([[1, 2, 3], [1, 1, 1]]), sure[:2]), top=2)
    assert rows.tolist() == [[-1, -1], [7, -1]] and multiplied == [1]


def test_the_smallest_threshold_within_the_risk_is_chosen():
    """Nine identities with one pair each: for 70 %, at most (10 * 0.3 - 1) = 2 may be lost."""
    critical = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    identities = torch.arange(9)
    assert choose_threshold(critical, identities, 0.7) == pytest.approx(0.7)
    assert choose_threshold(critical, identities, 0.9) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="needs at least .* held-out identities with a true match, got 9"):
        choose_threshold(critical, identities, 0.95)


def test_all_identities_have_the_same_weight():
    critical = torch.tensor([0.9] * 8 + [0.2, 0.3])
    identities = torch.tensor([1] * 8 + [2, 3])
    # Of three identities, one may be lost for 50 %: (1 + 1) / 4.
    assert choose_threshold(critical, identities, 0.5) == pytest.approx(0.3)


def test_the_guarantee_holds_on_average_over_samples_of_identities():
    """400 samples of 60 held-out and 200 other identities with different numbers of images and difficulty."""
    torch.manual_seed(0)
    survived = []
    for _ in range(400):
        def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            pairs, ease = torch.randint(1, 6, (count,)), torch.rand(count)
            owner = torch.arange(count).repeat_interleave(pairs)
            return torch.rand(len(owner)) * ease[owner], owner

        threshold = choose_threshold(*draw(60), survival=0.9)
        critical, owner = draw(200)
        kept = (critical <= threshold).double()
        shares = torch.zeros(200, dtype=torch.float64).index_add_(0, owner, kept) / owner.bincount()
        survived.append(shares.mean().item())
    assert 0.9 <= sum(survived) / len(survived) < 0.93


@pytest.mark.parametrize(("threshold", "queries", "message"), [
    (1.2, QUERY, r"the threshold is 1.2, expected a probability between 0 and 1"),
    (-0.1, QUERY, r"the threshold is -0.1"),
    (float("nan"), QUERY, r"the threshold is nan"),
    (0.7, Predictions(torch.tensor([[0, 1, 2]]), torch.tensor([[0.9, float("nan"), 0.8]])),
     r"1 of 1 query images have no predictions, first row 0"),
    (0.7, Predictions(torch.tensor([[0, 1]]), torch.tensor([[0.9, 0.8]])),
     r"query predictions are \(1, 2\) classes .* expected \(images, 3\)"),
    (0.7, Predictions(torch.tensor([[0, 1, 2]]), torch.tensor([[0.9, 2.0, 0.8]])),
     r"1 query probabilities are outside \[0, 1\], such as 2"),
    (0.7, Predictions(torch.tensor([[0, 3, 2]]), torch.tensor([[0.9, 0.5, 0.8]])),
     "1 query classes are outside their attribute, such as 3 of attribute 1; expected -1 for none, or 0..2"),
    (0.7, Predictions(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3)), "no query images"),
])
def test_bad_thresholds_and_predictions_are_rejected(threshold, queries, message):
    with pytest.raises(ValueError, match=message):
        AttributeFilter(GALLERY, SIZES, threshold).keep(queries)


def test_a_survival_that_cannot_be_guaranteed_is_rejected():
    with pytest.raises(ValueError, match="the requested survival is 1.0"):
        choose_threshold(torch.rand(5), torch.arange(5), 1.0)
    with pytest.raises(ValueError, match="no query has a match in another camera"):
        filtered_metrics(lambda rows: torch.rand(1, 2)[rows], lambda rows: torch.ones(1, 2, dtype=torch.bool)[rows],
                         torch.tensor([1]), torch.tensor([1]), torch.tensor([2, 3]), torch.tensor([1, 2]))


def test_mismatched_sizes_of_galleries_and_queries_are_rejected():
    with pytest.raises(ValueError, match="4 gallery embeddings, but predictions of 5 images"):
        AcceleratedGallery(torch.rand(4, 8), GALLERY, SIZES, 0.7)
    accelerated = AcceleratedGallery(torch.rand(5, 8), GALLERY, SIZES, 0.7)
    for embeddings in (torch.rand(2, 8), torch.rand(1, 7)):
        with pytest.raises(ValueError, match="expected the same number of both, and embeddings with 8 values"):
            accelerated.search(embeddings, QUERY)


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_predictions_can_be_on_another_device(share, monkeypatch):
    monkeypatch.setattr(filtered_search, "ONE_SHARE", share)
    gallery, query = torch.rand(5, 8), torch.rand(1, 8)
    expected = AcceleratedGallery(gallery, GALLERY, SIZES, 0.7).search(query, QUERY)
    rows, distances = AcceleratedGallery(gallery.cuda(), GALLERY, SIZES, 0.7).search(query, QUERY)
    assert torch.equal(rows.cpu(), expected[0])
    assert torch.allclose(distances.cpu(), expected[1], atol=1e-5)
