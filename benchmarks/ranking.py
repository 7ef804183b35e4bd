"""Time of ranking metrics compared with FastReID's pure-Python implementation, on the same distances.

    python benchmarks/ranking.py                        200 x 4,000, seconds
    python benchmarks/ranking.py --market               3,368 x 15,913, FastReID on 200 queries
    python benchmarks/ranking.py --market --full        FastReID on every query, minutes

The package must be installed or on PYTHONPATH.

Distances are random: identities, cameras and distractors in the proportions of Market-1501, images of the same identity
closer on average. Every row is a permutation of 0..N-1 divided by N, so there are no ties, which the implementations
order differently. The exit code is 1 if their metrics differ by more than 1e-6.
"""

import argparse
import pathlib
import sys

from cerberus_plugin.metrics.ranking import BLOCK_ENTRIES, evaluate_rank

import numpy as np
import torch
from common import table, timed, write
from fastreid.evaluation.rank import eval_market1501

MARKET = (3368, 15913)
TOLERANCE = 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--gallery", type=int, default=4000)
    parser.add_argument("--market", action="store_true", help="Market-1501's size")
    parser.add_argument("--host-queries", type=int, default=200, help="number of queries to time FastReID on")
    parser.add_argument("--full", action="store_true", help="time FastReID on every query")
    parser.add_argument("--repeats", type=int, default=3, help="runs of this implementation; the median is reported")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the results")
    args = parser.parse_args()
    num_queries, num_gallery = MARKET if args.market else (args.queries, args.gallery)
    num_host = num_queries if args.full else min(args.host_queries, num_queries)

    distances, *ids = draw(num_queries, num_gallery)
    evaluate_rank(distances[:8], *first_queries(ids, 8))  # warm up threads and allocations
    runs = [timed(evaluate_rank, distances, *ids) for _ in range(args.repeats)]
    cmc, ap, inp = runs[0][1]
    ours = sorted(seconds for seconds, _ in runs)[len(runs) // 2]
    of_host = (distances[:num_host], *first_queries(ids, num_host))
    host, host_figures = timed(eval_market1501, *of_host, 50)
    difference = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(evaluate_rank(*of_host), host_figures)
    )
    per_query = (host / num_host) / (ours / num_queries)

    note = "measured" if num_host == num_queries else f"extrapolated from {num_host} queries"
    print(f"{num_queries} queries x {num_gallery} gallery images, float32 on {torch.get_num_threads()} threads\n")
    headers = ["implementation", "queries timed", "seconds", "ms per query", "seconds for all queries"]
    print(table(headers, [
        ["FastReID, pure Python", num_host, f"{host:.2f}", f"{1e3 * host / num_host:.2f}",
         f"{host / num_host * num_queries:.1f} ({note})"],
        ["cerberus_plugin", num_queries, f"{ours:.2f}", f"{1e3 * ours / num_queries:.2f}",
         f"{ours:.2f} (median of {args.repeats})"]]))
    print(f"\nA query takes 1/{per_query:.0f} of FastReID's time. "
          f"Largest difference of CMC, AP and INP on {num_host} queries: {difference:.1e}\n"
          f"(random distances: Rank-1 {cmc[0]:.3f}, mAP {ap.mean():.3f}, mINP {inp.mean():.3f})")

    if args.output:
        write(args.output, {
            "queries": num_queries, "gallery": num_gallery, "block_entries": BLOCK_ENTRIES,
            "host_queries_timed": num_host, "host_seconds": host,
            "host_seconds_all_queries": host / num_host * num_queries, "host_extrapolated": num_host != num_queries,
            "ours_seconds": [seconds for seconds, _ in runs], "ours_seconds_median": ours,
            "host_over_ours_per_query": per_query, "max_difference": difference,
        })
    if difference > TOLERANCE:
        print(f"FAILED: the metrics differ by more than {TOLERANCE}", file=sys.stderr)
        return 1
    return 0


def draw(num_queries: int, num_gallery: int):
    """Distances float32 (Q, N) and ids in FastReID's order: query pids, gallery pids, query and gallery camids."""
    rng = np.random.default_rng(0)
    num_people = max(1, num_gallery * 750 // MARKET[1])
    g_pids = rng.integers(1, num_people + 1, num_gallery)
    g_pids[: num_gallery * 2798 // MARKET[1]] = 0  # distractors
    # Query identities are sampled from the gallery, so that nearly all have a match.
    q_pids = rng.choice(g_pids[g_pids > 0], num_queries)
    q_camids, g_camids = rng.integers(0, 6, num_queries), rng.integers(0, 6, num_gallery)
    distances = np.empty((num_queries, num_gallery), dtype=np.float32)
    for row, pid in zip(distances, q_pids):
        # How much closer matches are varies by query, so that Rank-1 and AP are far from 0 and 1.
        order = np.argsort(rng.standard_normal(num_gallery) - rng.uniform(1, 4) * (g_pids == pid))
        row[order] = np.arange(num_gallery, dtype=np.float32) / num_gallery
    return distances, q_pids, g_pids, q_camids, g_camids


def first_queries(ids, n: int):
    q_pids, g_pids, q_camids, g_camids = ids
    return q_pids[:n], g_pids, q_camids[:n], g_camids


if __name__ == "__main__":
    raise SystemExit(main())
