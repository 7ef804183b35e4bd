"""Galleries processed in parts give the metrics of a gallery in memory, with ties, for all sources and part sizes."""

from pathlib import Path

from cerberus_plugin.metrics import ranking
from cerberus_plugin.metrics.ranking import reid_metrics, reid_metrics_from_features

import numpy as np
import pytest
import torch
from support.rankings import same_figures


@pytest.fixture
def world():
    """40 queries, 230 gallery images of 25 identities; features are small integers: exact products and many ties."""
    g = torch.Generator().manual_seed(6)
    features = torch.randint(-1, 2, (270, 8), generator=g).float()
    pids, camids = torch.randint(25, (270,), generator=g), torch.randint(4, (270,), generator=g)
    pids[:3] = 100  # not in the gallery
    return features[:40], features[40:], pids[:40], camids[:40], pids[40:], camids[40:]


class Reader:
    """A custom source of rows that records the requested slices."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        self.asked.append((rows.start, rows.stop))
        return self.rows[rows]


def equal_results(a, b):
    return same_figures(a.queries, b.queries) and torch.equal(a.cmc, b.cmc) and a.mAP == b.mAP and a.mINP == b.mINP


@pytest.mark.parametrize("block_size", [1, 7, 1000])
@pytest.mark.parametrize("part_size", [1, 29, 115, 230, 10**6])
def test_parts_and_blocks_do_not_change_metrics_with_ties(world, part_size, block_size):
    plain = reid_metrics_from_features(*world, metric="euclidean")
    parts = reid_metrics_from_features(*world, metric="euclidean", part_size=part_size, block_size=block_size)
    distances = torch.cdist(*world[:2], compute_mode="donot_use_mm_for_euclid_dist").square()
    assert equal_results(parts, plain)
    assert equal_results(parts, reid_metrics(distances, *world[2:]))
    assert parts.num_skipped == plain.num_skipped > 0


def test_parts_give_the_same_metrics_for_the_cosine(world):
    g = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(40, 16, generator=g).double(), torch.randn(230, 16, generator=g).double()
    plain = reid_metrics_from_features(queries, gallery, *world[2:])
    assert equal_results(reid_metrics_from_features(queries, gallery, *world[2:], part_size=31, block_size=9), plain)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_collapsed_model_ranks_by_gallery_index(world, metric):
    ids, same = world[2:], torch.ones(270, 4)  # of length 2, so that cosines are exact
    got = reid_metrics_from_features(same[:40], same[40:], *ids, metric=metric, part_size=32, block_size=16)
    assert equal_results(got, reid_metrics(torch.zeros(40, 230), *ids))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_arrays_memory_maps_and_custom_readers_give_the_same_metrics(world, dtype, tmp_path):
    queries, gallery, *ids = world
    array = gallery.numpy().astype(dtype)
    np.save(tmp_path / "gallery.npy", array)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    expected = reid_metrics_from_features(*world, metric="euclidean")  # exact, because features are small integers
    for source in (array, mapped, mapped[:], torch.from_numpy(array), Reader(array), Reader(torch.from_numpy(array))):
        for size in (64, None):
            got = reid_metrics_from_features(queries, source, *ids, metric="euclidean", part_size=size)
            assert equal_results(got, expected)


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no account of resident pages")
def test_pages_of_a_memory_map_are_released(tmp_path):
    path = tmp_path / "gallery.npy"
    np.save(path, np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32))  # 5,000 KiB
    mapped, ids = np.load(path, mmap_mode="r"), torch.arange(20_000)
    reid_metrics_from_features(torch.randn(4, 64), mapped, ids[:4], ids[:4], ids, ids + 1, part_size=2000)
    account = Path("/proc/self/smaps").read_text().split(str(path))[1]
    resident = next(line for line in account.splitlines() if line.startswith("Rss:"))
    assert int(resident.split()[1]) < 1000
    assert mapped[5, 5] == np.load(path)[5, 5]


def test_modifications_of_a_copy_on_write_map_are_kept(world, tmp_path):
    queries, gallery, *ids = world
    np.save(tmp_path / "gallery.npy", np.zeros_like(gallery.numpy()))
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="c")
    mapped[:] = gallery.numpy()
    got = reid_metrics_from_features(queries, mapped, *ids, metric="euclidean", part_size=50)
    assert equal_results(got, reid_metrics_from_features(*world, metric="euclidean"))


def test_one_part_is_requested_at_a_time_and_each_part_twice(world):
    queries, gallery, *ids = world
    reader = Reader(gallery)
    reid_metrics_from_features(queries, reader, *ids, part_size=100)
    assert reader.asked == 2 * [(0, 100), (100, 200), (200, 230)]


def test_parts_without_a_match_are_read_once(world):
    queries, gallery, q_pids, q_camids, g_pids, g_camids = world
    g_pids, order = g_pids.sort()
    reader = Reader(gallery[order])
    some = q_pids < 5
    reid_metrics_from_features(queries[some], reader, q_pids[some], q_camids[some], g_pids, g_camids[order],
                               part_size=80)
    assert reader.asked == [(0, 80), (0, 80), (80, 160), (160, 230)]


def test_queries_with_too_many_pairs_are_split(world, monkeypatch):
    expected = reid_metrics_from_features(*world, metric="euclidean")
    monkeypatch.setattr(ranking, "BLOCK_ENTRIES", 60)
    reader = Reader(world[1])
    got = reid_metrics_from_features(world[0], reader, *world[2:], metric="euclidean")
    assert equal_results(got, expected)
    assert len(reader.asked) > 2


def test_large_galleries_are_streamed_automatically(world, monkeypatch):
    expected, passes = reid_metrics_from_features(*world, metric="euclidean"), []
    stream = ranking.Stream
    monkeypatch.setattr(ranking, "Stream", lambda *a: passes.append(1) or stream(*a))
    reid_metrics_from_features(*world, metric="euclidean")
    assert passes == []
    monkeypatch.setattr(ranking, "BLOCK_ENTRIES", 230 * (ranking.MIN_ROWS - 1))
    assert equal_results(reid_metrics_from_features(*world, metric="euclidean"), expected)
    assert passes == [1]


def test_each_pass_is_reported_with_its_seconds(world):
    reported = []
    reid_metrics_from_features(*world, part_size=100, report=lambda *pass_: reported.append(pass_))
    assert [name for name, _ in reported] == ["distances", "ranks"] and all(seconds > 0 for _, seconds in reported)


@pytest.mark.gpu
def test_a_gallery_on_the_cpu_is_ranked_on_a_cuda_device(world):
    expected = reid_metrics_from_features(*world, metric="euclidean")
    got = reid_metrics_from_features(*world, metric="euclidean", device="cuda")
    parts = reid_metrics_from_features(*world, metric="euclidean", device="cuda", part_size=29, block_size=7)
    assert equal_results(got, expected) and equal_results(parts, expected)


def test_nan_features_are_an_error(world):
    queries, gallery, *ids = world
    gallery[200, 3] = float("nan")
    with pytest.raises(ValueError, match="distances are NaN"):
        reid_metrics_from_features(queries, gallery, *ids, part_size=50)


def test_features_of_another_size_or_metric_are_an_error(world):
    queries, gallery, *ids = world
    with pytest.raises(ValueError, match="query features have 8 values per image, gallery features 7"):
        reid_metrics_from_features(queries, gallery[:, :7], *ids, part_size=50)
    with pytest.raises(ValueError, match="unknown metric 'jaccard'"):
        reid_metrics_from_features(queries, gallery, *ids, part_size=50, metric="jaccard")
