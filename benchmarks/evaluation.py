"""Time of all three tasks with a loaded model, compared with FastReID's MGN and its evaluator.

    python benchmarks/evaluation.py                          small synthetic dataset
    python benchmarks/evaluation.py --data FOLDER            the test set of a folder
    python benchmarks/evaluation.py --data FOLDER --host-queries 100000    FastReID's ranking on every query

Cerberus: reID, PAR and APS, in float32 and with the speed options (resident loader, bfloat16, channels last). FastReID:
MGN, its loader and its evaluator; the pure-Python ranking is timed on --host-queries queries and extrapolated. Weights
are random, so the accuracy is meaningless.
"""

import argparse
import time
from collections import OrderedDict

from setting import ON_GPU, add_size, config, people, trainer

import torch
from common import table, write
from fastreid.evaluation.rank import eval_market1501
from fastreid.utils.compute_dist import build_dist


class Clock:
    """Seconds of named parts."""

    def __init__(self) -> None:
        self.seconds: OrderedDict[str, float] = OrderedDict()

    def time(self, name: str, function, *args):
        start = time.perf_counter()
        result = function(*args)
        if ON_GPU:
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - start
        return result


@torch.no_grad()
def extract(model, loader, process) -> None:
    for inputs in loader:
        process(inputs, model(inputs))


def ours(cfg) -> dict[str, float]:
    built, clock = trainer(cfg), Clock()
    model = built.model.eval()
    loader, evaluator = clock.time("read images", lambda: built.build_evaluator(cfg, cfg.DATASETS.TESTS[0],
                                                                               model=model))
    clock.time("extract", extract, model, loader, evaluator.process)
    gathered = clock.time("gather", lambda: evaluator._to_cpu() or evaluator._join(evaluator._batches))
    for task in evaluator._tasks:
        clock.time(type(task).__name__.removesuffix("Task"), task, gathered)
    return clock.seconds


def hosts(cfg, num_queries: int) -> tuple[dict[str, float], int]:
    """Seconds of FastReID's parts, and the number of queries its ranking was timed on."""
    built, clock, batches = trainer(cfg), Clock(), []
    model = built.model.eval()
    loader, count = clock.time("read images", built.build_test_loader, cfg, cfg.DATASETS.TESTS[0])
    clock.time("extract", extract, model, loader,
               lambda inputs, outputs: batches.append((outputs.cpu(), inputs["targets"].cpu(), inputs["camids"].cpu())))
    features, pids, camids = (torch.cat(column) for column in zip(*batches))
    distances = clock.time("distances", build_dist, features[:count], features[count:], cfg.TEST.METRIC)
    timed = min(num_queries, count)
    pids, camids = pids.numpy(), camids.numpy()
    clock.time("reID", eval_market1501, distances[:timed], pids[:timed], pids[count:], camids[:timed],
               camids[count:], 50)
    clock.seconds["reID"] *= count / timed
    return clock.seconds, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size(parser, 0)
    parser.add_argument("--test-people", type=int, default=750 if ON_GPU else 60)
    parser.add_argument("--host-queries", type=int, default=100,
                        help="number of queries to time FastReID's ranking on")
    args = parser.parse_args()
    with people(args, args.test_people) as folder:
        batch = {"TEST.IMS_PER_BATCH": 256 if ON_GPU else 64}
        rows = {
            "Cerberus, float32": ours(config(args, folder, "cerberus_R50", **batch)),
            "Cerberus, fast": ours(config(args, folder, "cerberus_R50", **batch, **{
                "TEST.AUTOCAST": "bfloat16", "MODEL.CHANNELS_LAST": True, "DATALOADER.RESIDENT": True})),
        }
        rows["FastReID MGN and evaluator"], timed = hosts(config(args, folder, "mgn_R50", **batch), args.host_queries)
    peer = "FastReID MGN and evaluator"
    totals = {name: sum(seconds.values()) for name, seconds in rows.items()}
    stretches = list(dict.fromkeys(name for seconds in rows.values() for name in seconds))
    print(f"ResNet-{args.depth.rstrip('x')}, {args.height}x{args.height // 3}; seconds. FastReID's reID is "
          f"extrapolated from {timed} queries; it has no PAR and no APS.\n")
    print(table(["", *stretches, "all", "FastReID's time / this"], [
        [name, *(f"{seconds[s]:.2f}" if s in seconds else "" for s in stretches), f"{totals[name]:.2f}",
         f"{totals[peer] / totals[name]:.1f}"] for name, seconds in rows.items()]))
    if args.output:
        write(args.output, {"depth": args.depth, "height": args.height, "seconds": rows, "total": totals,
                            "host_queries_timed": timed})


if __name__ == "__main__":
    main()
