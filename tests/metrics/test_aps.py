"""Attribute search: worked examples with exact fractions, and comparison of all protocols with brute force."""

from cerberus_plugin.metrics.aps import aps_metrics, categories, relations

import pytest
import torch


def exactly(*values):
    """Compare double-precision fractions up to rounding errors of a sum."""
    return pytest.approx(values if len(values) > 1 else values[0], abs=1e-14, nan_ok=True)


# Two groups, upper and lower: categories a = (u1, l1), b = (u1, l2), c = (u2, l1); gallery a b a c b.
QUERIES, GALLERY = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0, 2, 1])
UPPER = torch.tensor([0, 0, 1])  # the upper label of categories a, b, c
# Multiples of 1/10, so that the scores of images 0 and 4 for category c are equal.
COS_U = torch.tensor([[9, 8, 2, 1, 7], [1, 3, 6, 9.5, 2]])
COS_L = torch.tensor([[6, 1, 8, 7, 5], [2, 9, 1, 0, 6]])
FULL = (COS_U[[0, 0, 1]] + COS_L[[0, 1, 0]]) / 20


def test_full_queries_of_the_worked_example_give_its_exact_fractions():
    result = aps_metrics(FULL, QUERIES, GALLERY)
    assert result.queries.ap.tolist() == exactly(5 / 6, 1, 1)
    assert result.queries.ap_trapezoid.tolist() == exactly(19 / 24, 1, 1)
    assert (result.mAP, result.mAP_trapezoid, result.rank1) == exactly(17 / 18, 67 / 72, 1)
    assert result.num_unmatched == 0


def test_partial_queries_evaluated_on_the_full_category():
    result = aps_metrics(COS_U[UPPER] / 10, QUERIES, GALLERY)
    assert result.queries.ap.tolist() == exactly(3 / 4, 7 / 12, 1)
    assert (result.mAP, result.mAP_trapezoid, result.rank1) == exactly(7 / 9, 17 / 24, 2 / 3)


def test_partial_queries_evaluated_on_the_described_groups():
    result = aps_metrics(COS_U[UPPER] / 10, UPPER[QUERIES], UPPER[GALLERY])
    assert (result.mAP, result.rank1) == exactly(1, 1)


# Partially described head group: hair short, hat unknown; cosines of three images with the four head semantic IDs.
HEAD_COSINES = torch.tensor([[6, 1, 2, 0], [3, 5, 9, 2], [5, 2, 3, 9]])


@pytest.mark.parametrize("scores", [HEAD_COSINES[:, [0, 2]].sum(1) / 20, HEAD_COSINES[:, [0, 2]].amax(1) / 10],
                         ids=["mean", "max"])
def test_a_partially_described_group_ranks_images_1_0_2_by_mean_and_max(scores):
    # The means of images 0 and 2 are equal: the lower index ranks first.
    ranks = [int(aps_metrics(scores[None], torch.tensor([i]), torch.arange(3)).queries.first_match) for i in range(3)]
    assert ranks == [2, 1, 3]


@pytest.fixture
def pool():
    """One query of category 0 and five images with identities and cameras."""
    return {
        "scores": torch.tensor([[0.9, 0.4, 0.8, 0.7, 0.1]]),
        "query_categories": torch.tensor([0]),
        "gallery_categories": torch.tensor([0, 0, 1, 0, 1]),
        "gallery_pids": torch.tensor([7, 7, 8, 9, 8]),
        "gallery_camids": torch.tensor([1, 2, 1, 1, 2]),
        "representative_pids": torch.tensor([7]),
        "representative_camids": torch.tensor([1]),
    }


def test_asmr_ranks_the_whole_pool(pool):
    result = aps_metrics(**pool, protocol="asmr")
    assert (result.mAP, result.mAP_trapezoid, result.rank1) == exactly(29 / 36, 55 / 72, 1)


def test_sal_excludes_the_representative_identity_and_camera(pool):
    result = aps_metrics(**pool, protocol="sal")
    assert (result.mAP, result.mAP_trapezoid, result.rank1) == exactly(7 / 12, 5 / 12, 0)


def test_queries_without_relevant_images_count_as_zero_only_in_asmr(pool):
    pool["scores"] = pool["scores"].expand(2, -1)
    pool["query_categories"] = torch.tensor([0, 5])
    for name in ("representative_pids", "representative_camids"):
        pool[name] = pool[name].expand(2)
    asmr, sal = aps_metrics(**pool), aps_metrics(**pool, protocol="sal")
    assert (asmr.mAP, asmr.rank1, asmr.num_unmatched) == exactly(29 / 72, 1 / 2, 1)
    assert (sal.mAP, sal.rank1, sal.num_unmatched) == exactly(7 / 12, 0, 1)


@pytest.mark.parametrize("protocol", ["asmr", "sal", "sal-all"])
@pytest.mark.parametrize("block_size", [1, 5, 256])
def test_aps_equals_brute_force_with_ties_for_all_block_sizes(protocol, block_size):
    g = torch.Generator().manual_seed(5)
    num_queries, num_gallery = 23, 60
    scores = torch.randint(12, (num_queries, num_gallery), generator=g).float()
    wanted, category = torch.arange(num_queries), torch.randint(num_queries, (num_gallery,), generator=g)
    pids, camids = category * 2 + torch.randint(2, (num_gallery,), generator=g), torch.arange(num_gallery) % 3
    people = {"representative_pids": wanted * 2, "representative_camids": wanted % 3, "gallery_pids": pids,
              "gallery_camids": camids}
    got = aps_metrics(lambda rows: scores[rows], wanted, category, protocol=protocol, block_size=block_size, **people)
    ap, first = [], []
    for q in range(num_queries):
        dropped = (pids == 2 * q) & (camids == q % 3) & (protocol != "asmr")
        order = [i for i in sorted(range(num_gallery), key=lambda i: (-scores[q, i].item(), i)) if not dropped[i]]
        hits = [rank for rank, i in enumerate(order, start=1) if category[i] == q]
        if hits or protocol == "asmr":
            ap.append(sum(k / rank for k, rank in enumerate(hits, start=1)) / max(len(hits), 1))
            first.append(hits[0] if hits else num_gallery + 1)
    assert got.num_unmatched > 0
    assert got.mAP == exactly(sum(ap) / len(ap))
    shares = {k: sum(rank <= k for rank in first) / len(first) for k in (1, 5, 10, 20)}
    assert shares[1] < shares[5] < shares[10] < shares[20]
    assert {k: got.percentages()[f"Rank-{k}"] for k in shares} == {k: exactly(100 * shares[k]) for k in shares}


def test_ranks_beyond_the_gallery_repeat_the_last_value():
    metrics = aps_metrics(FULL, QUERIES, GALLERY).percentages()
    assert [metrics[f"Rank-{k}"] for k in (1, 5, 10, 20)] == [100] * 4


def test_categories_are_numbered_in_lexicographic_order():
    ids, distinct = categories(torch.tensor([[1, 0, 2], [0, 5, 5], [1, 0, 2], [1, 0, 1]]))
    assert ids.tolist() == [2, 0, 2, 1]
    assert distinct.tolist() == [[0, 5, 5], [1, 0, 1], [1, 0, 2]]


def test_an_unknown_protocol_is_an_error(pool):
    with pytest.raises(ValueError, match="unknown protocol 'reid'"):
        aps_metrics(**pool, protocol="reid")


@pytest.mark.parametrize("protocol", ["sal", "sal-all"])
def test_sal_without_the_representatives_is_an_error(protocol):
    with pytest.raises(ValueError, match=f"'{protocol}' needs representative_pids"):
        aps_metrics(FULL, QUERIES, GALLERY, protocol=protocol)


def test_scores_or_blocks_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"scores has the shape \(3, 4\), expected \(3, 5\)"):
        aps_metrics(FULL[:, :4], QUERIES, GALLERY)
    with pytest.raises(ValueError, match=r"a block of scores has the shape \(3, 4\)"):
        aps_metrics(lambda rows: FULL[rows, :4], QUERIES, GALLERY)


def test_no_query_with_a_relevant_image_is_an_error():
    with pytest.raises(ValueError, match="none of 3 queries has a relevant image"):
        aps_metrics(FULL, QUERIES + 10, GALLERY)


# Sleeve and colour; -1 where the label is missing.
PARTLY_KNOWN = torch.tensor([[0, -1], [0, 0], [0, 1], [1, -1], [1, 0]])


def test_undecided_images_are_excluded_with_missing_labels():
    fits, may = relations(PARTLY_KNOWN, PARTLY_KNOWN)
    assert fits.int().tolist() == [[1, 1, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert may.int().tolist() == [[0] * 5, [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5, [0, 0, 0, 1, 0]]
    # Images in the order 3, 1, 0, 2, 4 for each query.
    scores = torch.tensor([[3.0, 4, 2, 5, 1]]).expand(5, -1)
    found = aps_metrics(scores, torch.arange(5), torch.arange(5), related=(fits, may))
    assert found.queries.ap.tolist() == exactly((1 / 2 + 2 / 3 + 3 / 4) / 3, 1 / 2, 1 / 3, (1 + 2 / 5) / 2, 1 / 4)
    assert found.queries.num_matches.tolist() == [3, 1, 1, 2, 1]


def test_without_gaps_categories_only_match_themselves():
    assert relations(*[torch.tensor([[0, 1, -1], [1, 1, -1]])] * 2) is None
    known = torch.arange(3)[:, None]
    assert relations(known, known) is None


def test_sal_excludes_representative_and_undecided_images(pool):
    related = torch.eye(2, dtype=torch.bool), torch.tensor([[False, True], [False, False]])
    result = aps_metrics(**pool, protocol="sal", related=related)
    assert result.mAP == exactly(1)  # images 1 and 3 remain, both relevant
