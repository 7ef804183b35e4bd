"""Images per second of complete training steps, loader included: speed options one by one, and FastReID's models.

    python benchmarks/training.py                      small on a CPU, full size on a GPU
    python benchmarks/training.py --compile            compiled rows on a CPU as well, minutes longer
    python benchmarks/training.py --only cerberus      without FastReID's models

A step is FastReID's `run_step`: load the batch, forward, backward, optimizer, log the losses. Rows are timed in turn in
several rounds, so that load from other processes affects all of them. Medians are reported.
"""

import argparse
import statistics
import time

from setting import ON_GPU, SPEED_OPTIONS, add_size, config, people, trainer

import torch
from common import table, write
from fastreid.utils.events import EventStorage

WARM = 3  # untimed steps: allocations, choice of cuDNN algorithms, compilation
ROUNDS = 3


def rows_of(args) -> dict[str, tuple[str, dict]]:
    """Configuration file and keys of each row; a row of Cerberus includes the options of the rows above it."""
    rows = {}
    for name, file in (("FastReID BoT", "bot_R50"), ("FastReID MGN", "mgn_R50")) if args.only != "cerberus" else ():
        rows[f"{name}, float32"] = file, {}
        if ON_GPU:
            rows[f"{name}, FastReID's float16"] = file, {"SOLVER.AMP.ENABLED": True}
            rows[f"{name}, FastReID's float16, channels last"] = file, {"SOLVER.AMP.ENABLED": True,
                                                                        **SPEED_OPTIONS["channels last"]}
        rows[f"{name} with our fused optimizer, bfloat16"] = file, {**SPEED_OPTIONS["fused optimizer"],
                                                                    **SPEED_OPTIONS["bfloat16"]}
    rows["Cerberus, plain"] = "cerberus_R50", {}
    so_far = {}
    for name, keys in SPEED_OPTIONS.items():
        if name != "compiled" or ON_GPU or args.compile:
            so_far = {**so_far, **keys}
            rows[f"+ {name}"] = "cerberus_R50", so_far
    return rows


class StepClock:
    """Seconds between marks; on a GPU measured with CUDA events, without synchronizing after each step."""

    def __init__(self) -> None:
        self._marks: list = []
        self.mark()

    def mark(self) -> None:
        if ON_GPU:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        pairs = list(zip(self._marks, self._marks[1:]))
        if not ON_GPU:
            return [stop - start for start, stop in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]


class Row:
    """One trainer and the times of its steps."""

    def __init__(self, cfg) -> None:
        self.trainer, self.seconds, self.waiting = trainer(cfg), [], []
        self.batch, self.storage, self.peak = cfg.SOLVER.IMS_PER_BATCH, EventStorage(0), 0
        start = time.perf_counter()
        self.run(WARM, timed=False)
        self.first_steps = time.perf_counter() - start

    def run(self, steps: int, timed: bool = True) -> None:
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        clock = StepClock()
        with self.storage as self.trainer.storage:
            for _ in range(steps):
                self.trainer.iter = self.storage.iter
                self.trainer.run_step()
                self.storage.step()
                clock.mark()
                if timed:
                    self.waiting.append(self.storage.latest()["data_time"][0])
        seconds = clock.seconds()
        if timed:
            self.seconds += seconds
        self.peak = torch.cuda.max_memory_allocated() if ON_GPU else 0

    def results(self) -> dict:
        step = statistics.median(self.seconds)
        return {"img/s": self.batch / step, "ms per step": 1e3 * step, "first steps, s": self.first_steps,
                "waiting for input, %": 100 * sum(self.waiting) / sum(self.seconds), "peak GiB": self.peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size(parser, 90 if ON_GPU else 9)
    parser.add_argument("--compile", action="store_true", help="measure compiled rows on a CPU as well")
    parser.add_argument("--only", choices=("cerberus", "all"), default="all")
    args = parser.parse_args()
    results = {}
    with people(args) as folder:
        if ON_GPU:  # one after the other: the memory may not suffice for several trainers
            for name, (file, keys) in rows_of(args).items():
                row = Row(config(args, folder, file, **keys))
                row.run(args.iterations)
                results[name] = row.results()
                del row
        else:
            rows = {name: Row(config(args, folder, file, **keys)) for name, (file, keys) in rows_of(args).items()}
            for _ in range(ROUNDS):
                for row in rows.values():
                    row.run(max(1, args.iterations // ROUNDS))
            results = {name: row.results() for name, row in rows.items()}
    plain = results["Cerberus, plain"]["img/s"]
    peer = max((f["img/s"] for name, f in results.items() if "MGN" in name), default=None)
    print(f"ResNet-{args.depth.rstrip('x')}, batch {args.batch} of {args.height}x{args.height // 3}, loader included\n")
    print(table(["", "img/s", "relative to plain", "relative to the fastest MGN", "ms per step",
                 "waiting for input", "peak GiB"], [
        [name, f"{f['img/s']:.1f}", f"{f['img/s'] / plain:.2f}", f"{f['img/s'] / peer:.2f}" if peer else "",
         f"{f['ms per step']:.1f}", f"{f['waiting for input, %']:.1f} %", f"{f['peak GiB']:.2f}" if ON_GPU else ""]
        for name, f in results.items()]))
    if args.output:
        write(args.output, {"depth": args.depth, "height": args.height, "batch": args.batch, "rows": results})


if __name__ == "__main__":
    main()
