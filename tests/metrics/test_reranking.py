"""k-reciprocal re-ranking: comparison with a dense implementation of the paper and with FastReID's function."""

import itertools
import math

from cerberus_plugin.metrics import reranking
from cerberus_plugin.metrics.reranking import reranked

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.utils.compute_dist import build_dist


def features(num_query: int = 12, num_gallery: int = 48, people: int = 10, size: int = 8, seed: int = 0):
    """Identities as noisy centres: queries (Q, D) and gallery (N, D), not normalised."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(people, size, generator=generator)
    labels = torch.randint(people, (num_query + num_gallery,), generator=generator)
    rows = 3 * centres[labels] + 2 * torch.randn(len(labels), size, generator=generator)
    return rows[:num_query], rows[num_query:]


def whole(query, gallery, **options) -> np.ndarray:
    return reranked(query, gallery, **options)(slice(0, len(query))).numpy()


def by_the_paper(query, gallery, metric="euclidean", k1=20, k2=6, lambda_value=0.3) -> np.ndarray:
    """Section 3 of the paper with dense float64 matrices, in a loop over images."""
    rows = torch.cat([query, gallery]).double().numpy()
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        distances = 1 - rows @ rows.T
    else:
        distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, 0)
    distances = (distances / distances.max(axis=0)).T  # of image i to all others, divided by its largest distance
    ranks = [sorted(range(len(rows)), key=lambda j, row=row, i=i: (j != i, row[j], j)) for i, row in
             enumerate(distances)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in ranks[i][:k + 1] if i in ranks[j][:k + 1]}

    weights = np.zeros_like(distances)
    for i in range(len(rows)):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            others = reciprocal(j, int(np.around(k1 / 2)))
            if len(others & own) > 2 / 3 * len(others):
                expanded |= others
        for j in expanded:
            weights[i, j] = math.exp(-distances[i, j])
        weights[i] /= weights[i].sum()
    weights = np.stack([np.mean([weights[j] for j in ranks[i][:k2]], axis=0) for i in range(len(rows))])
    result = np.zeros((len(query), len(gallery)))
    for i, j in itertools.product(range(len(query)), range(len(gallery))):
        one, other = weights[i], weights[len(query) + j]
        jaccard = 1 - np.minimum(one, other).sum() / np.maximum(one, other).sum()
        result[i, j] = (1 - lambda_value) * jaccard + lambda_value * distances[i, len(query) + j]
    return result


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("options", [{}, {"k1": 7, "k2": 3, "lambda_value": 0.5}, {"k1": 3, "k2": 1},
                                     {"k1": 1, "k2": 2}, {"k1": 3, "k2": 20}, {"k1": 200, "k2": 100}])
def test_reranked_distances_equal_a_dense_reference(metric, options):
    query, gallery = features()
    expected = by_the_paper(query, gallery, metric, **options)
    assert whole(query, gallery, metric=metric, **options) == pytest.approx(expected, abs=1e-5)
    assert whole(query.half(), gallery.half(), metric=metric, **options) == pytest.approx(expected, abs=0.1)


def test_reranking_matches_values_computed_by_hand():
    """Two pairs on a line, at 0 and 1 and at 9 and 10; the query is the image at 0; k1 = 1, no query expansion."""
    query, gallery = torch.tensor([[0.0]]), torch.tensor([[1.0], [9], [10]])
    # The only neighbour of each image is its partner. Weights: of the query (1, exp(-1 / 100)), of its partner at 1,
    # whose largest distance is 81, (exp(-1 / 81), 1), divided by their sums; no weight is shared with the other pair.
    one, other = np.array([1, math.exp(-1 / 100)]), np.array([math.exp(-1 / 81), 1])
    one, other = one / one.sum(), other / other.sum()
    jaccard = 1 - np.minimum(one, other).sum() / np.maximum(one, other).sum()
    expected = [0.7 * jaccard + 0.3 * 0.01, 0.7 + 0.3 * 0.81, 0.7 + 0.3]
    assert whole(query, gallery, metric="euclidean", k1=1, k2=1)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_both_metrics_agree_on_features_of_unit_length():
    query, gallery = (F.normalize(side) for side in features(seed=3))
    by_cosine = whole(query, gallery, metric="cosine")
    assert whole(query, gallery, metric="euclidean") == pytest.approx(by_cosine, abs=1e-5)


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(20, 6, 0.3), (9, 4, 0.6), (6, 1, 0.3)])
def test_fastreids_variant_gives_fastreids_distances(k1, k2, lambda_value):
    query, gallery = features(seed=5)
    q, g = F.normalize(query), F.normalize(gallery)
    jaccard = build_dist(q, g, metric="jaccard", k1=k1, k2=k2)
    expected = jaccard * (1 - lambda_value) + build_dist(query, gallery, "cosine") * lambda_value
    found = whole(query, gallery, variant="fastreid", k1=k1, k2=k2, lambda_value=lambda_value)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("variant", ["paper", "fastreid"])
def test_blocks_do_not_change_reranked_distances(variant, monkeypatch):
    query, gallery = features()
    expected = whole(query, gallery, variant=variant)
    monkeypatch.setattr(reranking, "BLOCK_ENTRIES", 130)
    distances = reranked(query, gallery, variant=variant)
    parts = [distances(slice(start, min(start + 5, len(query)))) for start in range(0, len(query), 5)]
    assert torch.cat(parts).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equal_images_of_any_number_have_defined_distances(metric):
    query, gallery = torch.ones(3, 4), torch.ones(40, 4)
    distances = whole(query, gallery, metric=metric, k1=5, k2=2)
    assert np.isfinite(distances).all()
    query, gallery = features(2, 30)
    query[1] = gallery[7] = gallery[9] = query[0]
    distances = whole(query, gallery, metric=metric)
    assert distances[0] == pytest.approx(distances[1], abs=1e-6)
    assert sorted(distances[0].argsort()[:2]) == [7, 9]


def test_no_dense_matrix_of_all_pairs_is_allocated(monkeypatch):
    """The size of blocks does not grow with the number of images."""
    query, gallery = features(40, 360)
    largest = 0
    between = reranking.between

    def measured(*args):
        distances = between(*args)

        def rows(block):
            nonlocal largest
            found = distances(block)
            largest = max(largest, found.numel())
            return found

        return rows

    monkeypatch.setattr(reranking, "between", measured)
    monkeypatch.setattr(reranking, "BLOCK_ENTRIES", 4000)
    reranked(query, gallery)(slice(0, 5))
    assert 0 < largest <= 4000


@pytest.mark.parametrize(("options", "message"), [
    ({"variant": "host"}, "TEST.RERANK.VARIANT is 'host', expected one of paper, fastreid"),
    ({"metric": "euclidean", "variant": "fastreid"}, "'fastreid' and TEST.METRIC 'euclidean'.*VARIANT paper"),
    ({"metric": "manhattan"}, "TEST.METRIC is 'manhattan', expected one of cosine, euclidean"),
    ({"k1": 0}, "RERANK.K1 is 0, expected 1 or more"), ({"k2": 0}, "RERANK.K2 is 0, expected 1 or more"),
    ({"lambda_value": 1.5}, "RERANK.LAMBDA is 1.5, expected a share from 0 to 1")])
def test_unsupported_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        reranked(*features(), **options)


def test_nan_in_the_features_is_rejected():
    query, gallery = features()
    gallery[3] = math.nan
    with pytest.raises(ValueError, match="look for NaN in the features"):
        reranked(query, gallery)
