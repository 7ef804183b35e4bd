"""Attribute-accelerated retrieval: time of the attribute filter and of the distances it saves.

    python benchmarks/filtering.py               small
    python benchmarks/filtering.py --market      3,368 queries on 15,913 images of 2,048 values

Predictions are random; the share of images with a reliable prediction is set so that a given share of the gallery
survives the filter. Searches for the ten nearest images with and without the filter alternate, one query at a time and
all at once.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin.attributes import MARKET1501  # noqa: E402
from cerberus_plugin.inference import AcceleratedGallery, Predictions  # noqa: E402
from cerberus_plugin.metrics.distances import METRICS, between, prepare, squares  # noqa: E402

import torch  # noqa: E402
from common import table, timed, write  # noqa: E402

SIZES = MARKET1501.column_sizes
THRESHOLD, TOP = 0.7, 10


def predictions(count: int, reliable: float, generator: torch.Generator) -> Predictions:
    """Random classes; each attribute is reliable in the share `reliable` of the images."""
    classes = torch.stack([torch.randint(size, (count,), generator=generator) for size in SIZES], dim=1)
    sure = torch.rand(classes.shape, generator=generator) < reliable
    return Predictions(classes, torch.where(sure, 0.9, 0.5))


def reliability(survivors: float) -> float:
    """Share r of reliable images for a given share of survivors, the product of 1 - r^2 (1 - 1/C) over attributes."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        share = torch.tensor([1 - middle**2 * (1 - 1 / size) for size in SIZES]).prod()
        low, high = (middle, high) if share > survivors else (low, middle)
    return low


def ways_of(queries: torch.Tensor, gallery: torch.Tensor, share: float, metric: str,
            generator: torch.Generator) -> dict:
    """Search functions of a slice of the queries, by name; attributes are reliable in `share` of the images."""
    prepared = prepare(gallery, metric, torch.float32)
    norms = squares(prepared)
    asked, known = (predictions(len(images), share, generator) for images in (queries, gallery))
    accelerated = AcceleratedGallery(gallery, known, SIZES, THRESHOLD, metric)

    def compare_all(rows: slice) -> torch.Tensor:
        distances = between(prepare(queries[rows], metric, torch.float32), prepared, metric, norms)(slice(None))
        return distances.topk(TOP, dim=1, largest=False).indices

    def filter_and_compare(rows: slice) -> torch.Tensor:
        return accelerated.search(queries[rows], asked.rows(rows), TOP)[0]

    def filter_alone(rows: slice) -> torch.Tensor:
        return accelerated.filter.keep(asked.rows(rows))

    return {"compare all": compare_all, "filter and compare": filter_and_compare, "filter alone": filter_alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--market", action="store_true", help="Market-1501's size")
    parser.add_argument("--metric", choices=METRICS, default="cosine")
    parser.add_argument("--survivors", type=float, nargs="+", default=[0.02, 0.1, 0.2, 0.5, 1.0])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    num_queries, num_gallery, size = (3368, 15913, 2048) if args.market else (500, 4000, 512)
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(count, size, generator=generator) for count in (num_queries, num_gallery))
    rows, record = [], []
    for wanted in args.survivors:
        ways = ways_of(queries, gallery, reliability(wanted), args.metric, generator)
        times, kept = {name: [] for name in ways}, []
        for q in range(0, num_queries, max(1, num_queries // 100)):
            for name, way in ways.items():
                seconds, found = timed(way, slice(q, q + 1))
                times[name].append(seconds)
            kept.append(found.double().mean().item())
        ms = {name: 1000 * statistics.median(each) for name, each in times.items()}
        batch = {name: timed(way, slice(None))[0] for name, way in ways.items()}
        faster = [each["compare all"] / each["filter and compare"] for each in (ms, batch)]
        rows.append([f"{statistics.mean(kept):.1%}", *(f"{value:.2f}" for value in ms.values()), f"{faster[0]:.1f}",
                     *(f"{value:.2f}" for value in batch.values()), f"{faster[1]:.1f}"])
        record.append({"survivors": statistics.mean(kept), "ms a query": ms, "seconds of all": batch})
    print(f"{num_queries} queries, {num_gallery} gallery images of {size} values, {len(SIZES)} attributes, "
          f"{args.metric}, {torch.get_num_threads()} threads\n")
    print(table(["survivors", *(f"{name}, ms per query" for name in ways), "speed-up",
                 *(f"{name}, s for all" for name in ways), "speed-up"], rows))
    if args.output:
        write(args.output, {"queries": num_queries, "gallery": num_gallery, "size": size, "rows": record})


if __name__ == "__main__":
    main()
