"""Time and memory of ranking a gallery that does not fit into memory; metrics compared with FastReID's.

    python benchmarks/million.py                  300 x 20,000 features of 256 values, seconds
    python benchmarks/million.py --full           3,000 x 1,000,000 of 2,560, minutes; a file of 4.8 GiB in --folder
    python benchmarks/million.py --full --device cuda

The package must be installed or on PYTHONPATH.

Features are random: 15 gallery images per identity on average, six cameras, one image in seven is a distractor, in
random order. How much closer the images of an identity are to each other varies. A separate process ranks the file, and
its peak memory is measured. Some queries are then ranked again by FastReID, and by the package from precomputed
distances. The exit code is 1 if AP or INP differ by more than 1e-4: the last bit of a distance may depend on the block
shape, and FastReID does not define an order of equal distances.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from cerberus_plugin.metrics.distances import pairwise
from cerberus_plugin.metrics.ranking import BLOCK_ENTRIES, DISTANCE_BYTES, reid_metrics, reid_metrics_from_features
from cerberus_plugin.metrics.streaming import FEATURE_BYTES, PART_ENTRIES
from cerberus_plugin.utils.environment import values_at_once

import numpy as np
import torch
from common import peak_resident_bytes, table, timed, write
from fastreid.evaluation.rank import eval_market1501

TOLERANCE = 1e-4
IDS = ("query_pids", "query_camids", "gallery_pids", "gallery_camids")
METRICS = ("ap", "inp", "first_match")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--gallery", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=256, help="values of a feature")
    parser.add_argument("--full", action="store_true", help="3,000 x 1,000,000 x 2,560")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="dtype of the gallery file")
    parser.add_argument("--metric", choices=["cosine", "euclidean"], default="cosine")
    parser.add_argument("--device", default="cpu", help="device of the ranking")
    parser.add_argument("--compare", type=int, default=20, help="number of queries that FastReID ranks as well")
    parser.add_argument("--folder", type=pathlib.Path, help="folder of the gallery file, which is removed afterwards")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the results")
    parser.add_argument("--rank", type=pathlib.Path, help=argparse.SUPPRESS)  # folder; the separate process
    args = parser.parse_args()
    if args.full:
        args.queries, args.gallery, args.size = 3_000, 1_000_000, 2_560
    if args.rank:
        rank(args.rank, args.metric, args.device)
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return run(args, pathlib.Path(folder))


def run(args, folder: pathlib.Path) -> int:
    drawing, _ = timed(draw, folder, args.queries, args.gallery, args.size, args.dtype)
    subprocess.run([sys.executable, __file__, "--rank", str(folder), "--metric", args.metric, "--device", args.device],
                   check=True)
    record = json.loads((folder / "record.json").read_text())
    seconds = record["seconds"]
    print(f"{args.queries} queries x {args.gallery} gallery images x {args.size} in {args.dtype}, {args.metric}, on "
          f"{args.device}, {torch.get_num_threads()} threads\n")
    print(table(["pass", "seconds", "gallery images per second"], [
        [name, f"{taken:.1f}", f"{args.gallery / taken:.0f}"] for name, taken in seconds.items()]))
    memory = {"peak resident memory": record["peak_resident_bytes"], "before ranking": record["resident_bytes_before"],
              "gallery file": record["file_bytes"]}
    if record["peak_device_bytes"] is not None:
        memory["peak device memory"] = record["peak_device_bytes"]
    print("\n" + table(["memory", "GiB"], [[name, f"{size / 2**30:.2f}"] for name, size in memory.items()]))
    print(f"\n(random features: Rank-1 {record['rank1']:.3f}, mAP {record['mAP']:.3f}, mINP {record['mINP']:.4f}; "
          f"{record['skipped']} queries without a match; generated in {drawing:.0f} s)")

    differences = {}
    if num_compared := min(args.compare, args.queries):
        host_seconds, differences = compare(folder, num_compared, args.metric)
        print(f"\nLargest difference on {num_compared} queries against the whole gallery:\n")
        print(table(["method", *METRICS], [[name, *(f"{value:.1e}" for value in of_path.values())]
                                         for name, of_path in differences.items()]))
        print(f"\nFastReID ranks precomputed distances in {host_seconds / num_compared:.2f} s per query, "
              f"{host_seconds / num_compared * args.queries:.0f} s for all queries at this rate.")
        record |= {"compared_queries": num_compared, "differences": differences,
                   "host_seconds_a_query_without_products": host_seconds / num_compared}
    if args.output:
        write(args.output, {"queries": args.queries, "gallery": args.gallery, "size": args.size, "dtype": args.dtype,
                            "metric": args.metric, "device": args.device,
                            "block_entries": values_at_once(args.device, BLOCK_ENTRIES, DISTANCE_BYTES),
                            "part_entries": values_at_once(args.device, PART_ENTRIES, FEATURE_BYTES)} | record)
    if any(of_path[name] > TOLERANCE for of_path in differences.values() for name in ("ap", "inp")):
        print(f"FAILED: the metrics differ by more than {TOLERANCE}", file=sys.stderr)
        return 1
    return 0


def draw(folder: pathlib.Path, num_queries: int, num_gallery: int, size: int, dtype: str) -> None:
    """Write `gallery.npy` (N, D) piece by piece, `queries.npy` float32 (Q, D) and the ids."""
    rng = np.random.default_rng(0)
    num_people = max(1, num_gallery * 6 // 7 // 15)
    g_pids = rng.integers(1, num_people + 1, num_gallery)
    g_pids[rng.random(num_gallery) < 1 / 7] = 0
    q_pids = rng.choice(g_pids[g_pids > 0], num_queries)
    centres = rng.standard_normal((num_people + 1, size), dtype=np.float32).astype(np.float16)

    def features(pids):
        # The cosine of unrelated features deviates by size ** -0.5, that of one person's images is up to 8 x this.
        most = np.float32(min(0.9, 8 * size**-0.5))
        share = most * rng.random((len(pids), 1), dtype=np.float32) * (pids > 0)[:, None]
        noise = rng.standard_normal((len(pids), size), dtype=np.float32)
        return np.sqrt(share) * centres[pids] + np.sqrt(1 - share) * noise

    np.save(folder / "queries.npy", features(q_pids))
    np.savez(folder / "ids.npz", query_pids=q_pids, query_camids=rng.integers(0, 6, num_queries), gallery_pids=g_pids,
             gallery_camids=rng.integers(0, 6, num_gallery))
    with open(folder / "gallery.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (num_gallery, size)})
        for first in range(0, num_gallery, 10_000):
            features(g_pids[first:first + 10_000]).astype(dtype).tofile(file)


def read(folder: pathlib.Path):
    """Read queries (Q, D), gallery (N, D) as a mapped file, and the ids, in the order of the ranking functions."""
    ids = np.load(folder / "ids.npz")
    return (torch.from_numpy(np.load(folder / "queries.npy")), np.load(folder / "gallery.npy", mmap_mode="r"),
            *(torch.from_numpy(ids[name]) for name in IDS))


def rank(folder: pathlib.Path, metric: str, device: str) -> None:
    """Rank, and write `record.json` and the metrics of each query."""
    seconds = {"distances": 0.0, "ranks": 0.0}

    def report(name: str, taken: float) -> None:
        seconds[name] += taken

    torch.zeros(1, device=device)
    before = peak_resident_bytes()
    total, result = timed(reid_metrics_from_features, *read(folder), metric=metric, device=device, report=report)
    np.savez(folder / "figures.npz", **{name: getattr(result.queries, name).numpy() for name in METRICS})
    (folder / "record.json").write_text(json.dumps({
        "seconds": seconds | {"both": total}, "resident_bytes_before": before,
        "peak_resident_bytes": peak_resident_bytes(), "file_bytes": (folder / "gallery.npy").stat().st_size,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if device.startswith("cuda") else None,
        "rank1": result.cmc[0].item(), "mAP": result.mAP, "mINP": result.mINP, "skipped": result.num_skipped}))


def compare(folder: pathlib.Path, num_queries: int, metric: str):
    """FastReID's seconds, and the largest differences from the streamed metrics of the first queries, by method."""
    queries, gallery, q_pids, q_camids, g_pids, g_camids = read(folder)
    queries, q_pids, q_camids = (tensor[:num_queries] for tensor in (queries, q_pids, q_camids))
    pieces = (torch.from_numpy(np.array(gallery[i:i + 10_000])) for i in range(0, len(gallery), 10_000))
    distances = torch.cat([pairwise(queries, piece, metric)(slice(None)) for piece in pieces], dim=1)
    streamed = {name: values[:num_queries] for name, values in np.load(folder / "figures.npz").items()}
    found = streamed["first_match"] > 0
    ours = reid_metrics(distances, q_pids, q_camids, g_pids, g_camids).queries
    seconds, (_, ap, inp) = timed(eval_market1501, *(t.numpy() for t in (distances, q_pids, g_pids, q_camids,
                                                                                 g_camids)), 50)
    host = {"ap": np.asarray(ap), "inp": np.asarray(inp)}
    differences = {
        "precomputed distances": {name: largest(getattr(ours, name).numpy()[found], streamed[name][found])
                            for name in METRICS},
        "FastReID": {name: largest(host[name], streamed[name][found]) for name in host}}
    return seconds, differences


def largest(a, b) -> float:
    return float(np.abs(a - b).max())


if __name__ == "__main__":
    raise SystemExit(main())
