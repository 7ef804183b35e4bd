"""Ranking metrics: worked examples with exact fractions, brute force, and comparison with FastReID's function."""

import itertools

from cerberus_plugin.metrics import ranking
from cerberus_plugin.metrics.ranking import (
    Ranking,
    cmc_curve,
    evaluate_rank,
    pairwise,
    rank_in_blocks,
    rank_matches,
    reid_metrics,
    reid_metrics_from_features,
)
from cerberus_plugin.metrics.streaming import FEATURE_BYTES, PART_ENTRIES
from cerberus_plugin.utils import environment
from cerberus_plugin.utils.environment import values_at_once

import numpy as np
import pytest
import torch
from fastreid.evaluation.rank import eval_market1501
from support.rankings import same_figures


def exactly(*values):
    """Compare double-precision fractions up to rounding errors of a sum."""
    return pytest.approx(values if len(values) > 1 else values[0], abs=1e-14, nan_ok=True)


@pytest.fixture
def three_queries():
    """Seven gallery images (identity, camera) and three queries; the last query's only match has the same camera."""
    gallery = torch.tensor([(1, 1), (1, 2), (2, 2), (0, 1), (1, 3), (2, 3), (3, 1)])
    queries = torch.tensor([(1, 1), (2, 2), (3, 1)])
    distances = torch.tensor([
        [0.10, 0.30, 0.20, 0.25, 0.60, 0.70, 0.90],
        [0.50, 0.40, 0.05, 0.30, 0.45, 0.35, 0.10],
        [0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.10],
    ])
    return distances, queries[:, 0], queries[:, 1], gallery[:, 0], gallery[:, 1]


@pytest.fixture
def retrieval():
    """60 queries and 300 images of 40 identities in 4 cameras; identities 36..39 are not in the gallery."""
    g = torch.Generator().manual_seed(3)

    def draw(high, n):
        return torch.randint(high, (n,), generator=g)

    return torch.rand(60, 300, generator=g), draw(40, 60), draw(4, 60), draw(36, 300), draw(4, 300)


def brute_force(distances, relevant, ignored):
    """Metrics of one query by a loop: (ap, ap_trapezoid, inp, first match, matches)."""
    order = sorted((d, i) for i, d in enumerate(distances) if not ignored[i])
    ranks = [rank for rank, (_, i) in enumerate(order, start=1) if relevant[i]]
    if not ranks:
        return float("nan"), float("nan"), float("nan"), 0, 0
    ap = trapezoid = 0.0
    for hits, rank in enumerate(ranks, start=1):
        old = 1.0 if rank == 1 else (hits - 1) / (rank - 1)
        ap += hits / rank / len(ranks)
        trapezoid += (hits / rank + old) / 2 / len(ranks)
    return ap, trapezoid, len(ranks) / ranks[-1], ranks[0], len(ranks)


def full_sort(distances, relevant, ignored=None):
    """The same metrics from a stable argsort of the whole gallery."""
    order = distances.sort(dim=1, stable=True).indices
    ignored = torch.zeros_like(relevant) if ignored is None else ignored
    relevant = relevant & ~ignored
    query, column = relevant.gather(1, order).nonzero(as_tuple=True)
    rank = column + 1 - ignored.gather(1, order).cumsum(dim=1)[query, column]
    num_matches = relevant.sum(dim=1)
    end = num_matches.cumsum(dim=0)
    start = end - num_matches
    hits = torch.arange(1, len(rank) + 1) - start[query]
    precision = hits.double() / rank
    old_precision = torch.where(rank == 1, 1.0, (hits - 1).double() / (rank - 1))

    def mean(values):
        return torch.zeros(len(start), dtype=torch.float64).index_add_(0, query, values) / num_matches

    found = num_matches > 0
    first, last = torch.zeros_like(num_matches), torch.zeros_like(num_matches)
    first[found], last[found] = rank[start[found]], rank[end[found] - 1]
    return Ranking(mean(precision), mean((precision + old_precision) / 2), num_matches.double() / last, first,
                   num_matches)


def test_the_worked_example_gives_exact_fractions_of_ap_inp_and_cmc(three_queries):
    result = reid_metrics(*three_queries, max_rank=3)
    nan = float("nan")
    assert result.queries.ap.tolist() == exactly(5 / 12, 1 / 3, nan)
    assert result.queries.ap_trapezoid.tolist() == exactly(7 / 24, 1 / 6, nan)
    assert result.queries.inp.tolist() == exactly(1 / 2, 1 / 3, nan)
    assert result.mAP == exactly(3 / 8)
    assert result.mAP_trapezoid == exactly(11 / 48)
    assert result.mINP == exactly(5 / 12)
    assert result.cmc.tolist() == [0, 0, 1]


def test_a_query_whose_only_match_is_in_its_own_camera_is_skipped_and_counted(three_queries):
    result = reid_metrics(*three_queries)
    assert result.num_skipped == 1
    assert result.queries.num_matches.tolist() == [2, 1, 0]
    assert result.queries.first_match.tolist() == [3, 3, 0]


def test_equal_distances_rank_the_lower_gallery_index_first():
    distances, relevant = torch.tensor([[0.5, 0.5, 0.5, 0.2]]), torch.tensor([[False, True, False, False]])
    assert rank_matches(distances, relevant).ap.item() == exactly(1 / 3)


def test_mean_over_all_gallery_orders_is_the_expected_ap_under_ties():
    distances, relevant = torch.tensor([0.5, 0.5, 0.5, 0.2]), torch.tensor([False, True, False, False])
    orders = torch.tensor(list(itertools.permutations(range(4))))
    ap = rank_matches(distances[orders], relevant[orders]).ap
    assert ap.mean().item() == exactly(13 / 36)
    assert (ap.min().item(), ap.max().item()) == exactly(1 / 4, 1 / 2)


def test_other_filters_are_given_as_ignored_images():
    # The cloth-changing protocol of LTCC: (identity, camera, outfit), query (5, 1, 10).
    gallery = torch.tensor([(5, 1, 10), (5, 2, 10), (5, 2, 11), (5, 3, 11), (6, 1, 20), (6, 2, 20)])
    distances = -torch.tensor([[0.9, 0.8, 0.3, 0.6, 0.7, 0.5]])
    same = gallery[:, 0] == 5
    standard = rank_matches(distances, same[None], (same & (gallery[:, 1] == 1))[None])
    changing = rank_matches(distances, same[None], (same & ((gallery[:, 1] == 1) | (gallery[:, 2] == 10)))[None])
    assert (standard.ap.item(), standard.first_match.item()) == exactly(34 / 45, 1)
    assert (changing.ap.item(), changing.first_match.item()) == exactly(1 / 2, 2)


@pytest.mark.parametrize("levels", [3, 20, 10**6], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("ignoring", [False, True])
def test_ranking_equals_brute_force(levels, ignoring):
    g = torch.Generator().manual_seed(levels)
    distances = torch.randint(levels, (80, 37), generator=g).float()
    relevant = torch.rand(80, 37, generator=g) < torch.rand(80, 1, generator=g) * 0.2
    ignored = (torch.rand(80, 37, generator=g) < 0.2) & ignoring
    got = rank_matches(distances, relevant, ignored if ignoring else None)
    rows = zip(distances.tolist(), relevant.tolist(), ignored.tolist())
    expected = list(zip(*(brute_force(*row) for row in rows)))
    assert (got.num_matches == 0).any() and (got.num_matches > 1).any()
    for values, reference in zip(got, expected):
        assert values.tolist() == exactly(*reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [1, 2, 9, 10**6], ids=["collapsed", "two levels", "many ties", "few ties"])
def test_ranking_is_bitwise_equal_to_a_full_stable_sort(levels, dtype):
    g = torch.Generator().manual_seed(levels)
    for matches, ignoring in ((0.05, 0.0), (0.3, 0.2), (0.0, 0.1), (0.9, 0.5), (1.0, 0.0), (0.5, 1.0)):
        distances = (torch.randint(levels, (50, 61), generator=g) / levels - 0.3).to(dtype)
        relevant = torch.rand(50, 61, generator=g) < matches
        ignored = torch.rand(50, 61, generator=g) < ignoring
        assert same_figures(rank_matches(distances, relevant, ignored), full_sort(distances, relevant, ignored))
        assert same_figures(rank_matches(distances, relevant), full_sort(distances, relevant))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_distances_and_both_zeros_rank_as_in_the_full_stable_sort(dtype):
    g = torch.Generator().manual_seed(4)
    values = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0], dtype=dtype)
    distances = values[torch.randint(6, (70, 40), generator=g)]
    relevant, ignored = torch.rand(70, 40, generator=g) < 0.2, torch.rand(70, 40, generator=g) < 0.2
    assert same_figures(rank_matches(distances, relevant, ignored), full_sort(distances, relevant, ignored))


def test_input_distances_are_not_modified():
    distances, relevant = torch.rand(4, 9), torch.rand(4, 9) < 0.4
    kept = distances.clone()
    rank_matches(distances, relevant)
    rank_matches(distances.expand(4, 9)[:, ::2], relevant[:, ::2])
    assert torch.equal(distances, kept)


def test_identities_and_masks_give_the_same_metrics(retrieval):
    distances, q_pids, q_camids, g_pids, g_camids = retrieval
    same = q_pids[:, None] == g_pids
    by_masks = rank_matches((distances * 9).round(), same, same & (q_camids[:, None] == g_camids))
    by_number = reid_metrics((distances * 9).round(), q_pids, q_camids, g_pids, g_camids)
    assert same_figures(by_number.queries, by_masks)


def test_a_block_has_a_fixed_number_of_distances(monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_ENTRIES", 1000)
    assert [ranking.block_rows(n) for n in (1, 10, 300, 1000, 10**6)] == [1000, 100, 3, 1, 1]


def test_the_block_size_on_a_gpu_depends_on_its_memory(monkeypatch):
    monkeypatch.setattr(environment, "free_bytes", lambda device: 79 * 2**30)
    assert ranking.block_rows(15_913, "cuda") > 3368  # Market-1501 in one block
    part = values_at_once("cuda", PART_ENTRIES, FEATURE_BYTES) // 2560
    assert -(-10**6 // part) * -(-3368 // ranking.block_rows(part, "cuda")) <= 20  # 847 blocks on a CPU
    for free in (1, 2**20, 3 * 2**30, 2**45):
        monkeypatch.setattr(environment, "free_bytes", lambda device, free=free: free)
        values = values_at_once("cuda", 7, 64)
        assert values == 1 or values * 64 <= free / 4 and values <= 2**28
    assert values_at_once("cpu", 7, 64) == 7


def test_blocks_after_the_first_have_the_size_for_the_device_of_the_distances(retrieval, monkeypatch):
    distances, *ids = retrieval
    asked, sizes = [], {"cpu": 4}
    monkeypatch.setattr(ranking, "block_rows", lambda count, device="cpu": sizes.pop("cpu", 25))
    result = reid_metrics(lambda rows: asked.append((rows.start, rows.stop)) or distances[rows], *ids)
    assert asked[:3] == [(0, 4), (4, 29), (29, 54)] and asked[-1][1] == len(distances)
    assert same_figures(result.queries, reid_metrics(distances, *ids, block_size=len(distances)).queries)


def test_the_trapezoid_ap_is_lower_except_for_a_perfect_ranking(retrieval):
    perfect = rank_matches(torch.arange(6.0)[None], torch.tensor([[True, True, True, False, False, False]]))
    assert (perfect.ap.item(), perfect.ap_trapezoid.item(), perfect.inp.item()) == (1, 1, 1)
    queries = reid_metrics(*retrieval).queries
    found = queries.num_matches > 0
    assert (queries.ap_trapezoid[found] < queries.ap[found]).all()


@pytest.mark.parametrize("block_size", [1, 7, 60, 1000])
def test_the_block_size_does_not_change_metrics(retrieval, block_size):
    whole, blocks = reid_metrics(*retrieval), reid_metrics(*retrieval, block_size=block_size)
    for a, b in zip(whole.queries, blocks.queries):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    assert torch.equal(whole.cmc, blocks.cmc)
    assert (whole.mAP, whole.mINP, whole.num_skipped) == (blocks.mAP, blocks.mINP, blocks.num_skipped)


def test_at_most_one_block_of_distances_is_requested():
    asked = []

    def block(rows):
        asked.append((rows.start, rows.stop))
        return torch.rand(rows.stop - rows.start, 5), torch.ones(rows.stop - rows.start, 5, dtype=torch.bool), None

    assert len(rank_in_blocks(block, 10, 5, block_size=4).ap) == 10
    assert asked == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_features_give_the_metrics_of_their_distance_matrix(retrieval, metric):
    g = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(60, 16, generator=g).double(), torch.randn(300, 16, generator=g).double()
    if metric == "cosine":
        distances = 1 - torch.nn.functional.cosine_similarity(queries[:, None], gallery, dim=2)
    else:
        distances = torch.cdist(queries, gallery)
    expected = reid_metrics(distances, *retrieval[1:])
    got = reid_metrics_from_features(queries, gallery, *retrieval[1:], metric=metric, block_size=17)
    assert torch.equal(got.queries.ap.nan_to_num(-1), expected.queries.ap.nan_to_num(-1))
    assert torch.equal(got.cmc, expected.cmc)


def test_half_precision_features_are_compared_in_single_precision():
    queries, gallery = torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(3, 8, dtype=torch.bfloat16)
    assert pairwise(queries, gallery)(slice(0, 2)).dtype == torch.float32


def test_cmc_repeats_its_last_value_beyond_a_short_gallery():
    assert cmc_curve(torch.tensor([1, 3, 0]), max_rank=6, num_queries=2).tolist() == [0.5, 0.5, 1, 1, 1, 1]


def test_evaluate_rank_equals_fastreid_without_ties(retrieval):
    distances, q_pids, q_camids, g_pids, g_camids = (tensor.numpy() for tensor in retrieval)
    arguments = (distances, q_pids, g_pids, q_camids, g_camids)
    fastreid_cmc, fastreid_ap, fastreid_inp = eval_market1501(*arguments, 50)
    cmc, ap, inp = evaluate_rank(*arguments)
    assert cmc.shape == (50,) and len(ap) == len(fastreid_ap) < 60
    np.testing.assert_allclose(cmc, fastreid_cmc, atol=1e-6)
    np.testing.assert_allclose(ap, fastreid_ap, atol=1e-6)
    np.testing.assert_allclose(inp, fastreid_inp, atol=1e-6)


def test_evaluate_rank_keeps_max_rank_entries_for_a_short_gallery(three_queries):
    distances, q_pids, q_camids, g_pids, g_camids = (tensor.numpy() for tensor in three_queries)
    cmc, ap, inp = evaluate_rank(distances, q_pids, g_pids, q_camids, g_camids, max_rank=50)
    assert cmc.shape == (50,) and cmc[-1] == 1
    assert (len(ap), len(inp)) == (2, 2)


@pytest.mark.gpu
def test_metrics_on_a_gpu_equal_those_on_the_cpu_with_ties(retrieval):
    distances = (retrieval[0] * 20).round()
    cpu = reid_metrics(distances, *retrieval[1:])
    cuda = reid_metrics(distances.cuda(), *retrieval[1:])
    for a, b in zip(cpu.queries, cuda.queries):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def test_no_query_with_a_match_is_an_error(retrieval):
    distances, q_pids, *rest = retrieval
    with pytest.raises(ValueError, match="all query identities do not appear in gallery"):
        reid_metrics(distances, q_pids + 1000, *rest)


def test_an_empty_query_set_is_an_error():
    none, some = torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="empty query set"):
        reid_metrics(torch.zeros(0, 4), none, none, some, some)


def test_an_empty_gallery_is_an_error():
    none, some = np.zeros(0, dtype=np.int64), np.zeros(4, dtype=np.int64)
    with pytest.raises(ValueError, match="empty query or gallery"):
        evaluate_rank(np.zeros((4, 0), dtype=np.float32), some, none, some, none)


def test_nan_distances_are_an_error():
    with pytest.raises(ValueError, match="1 of 4 distances are NaN"):
        rank_matches(torch.tensor([[0.0, float("nan")], [1.0, 2.0]]), torch.ones(2, 2, dtype=torch.bool))


def test_ids_of_another_length_than_the_distances_are_an_error(retrieval):
    distances, q_pids, q_camids, g_pids, g_camids = retrieval
    with pytest.raises(ValueError, match=r"distances are \(60, 300\).*299 gallery pids"):
        reid_metrics(distances, q_pids, q_camids, g_pids[:-1], g_camids)


def test_an_unknown_metric_is_an_error():
    with pytest.raises(ValueError, match="unknown metric 'jaccard'"):
        pairwise(torch.zeros(1, 2), torch.zeros(1, 2), "jaccard")
