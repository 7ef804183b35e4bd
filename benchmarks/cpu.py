"""Two settings of training on a CPU: weight gradients by matrix products, and threads that sleep while they wait.

    python benchmarks/cpu.py
    python benchmarks/cpu.py --iterations 20 --busy 0 1 2

The first table compares weight gradients of 3x3 convolutions on small maps with oneDNN's, in bfloat16 and channels-last
order. The second has the time of a training step while other processes are busy: with one thread, and with all cores
for both OpenMP policies of waiting threads.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time

from cerberus_plugin.modeling.convolutions import weight_gradient
from setting import FAST, add_size, config, people, trainer

import torch
from common import table, write
from fastreid.utils.events import EventStorage

# Images, channels, height, width.
SIZES = ((64, 512, 6, 3), (64, 256, 6, 3), (64, 512, 8, 4), (64, 256, 8, 4), (16, 512, 16, 8))
POLICIES = {"one thread": {"OMP_NUM_THREADS": "1"}, "all cores, default": {},
            "all cores, threads sleep": {"OMP_WAIT_POLICY": "passive"}}
WARM = 3
CHILD = "--child"


def gradients(images: int, channels: int, height: int, width: int, repeats: int = 10) -> dict:
    """Milliseconds of both methods (minimum over calls), and their largest difference relative to the largest value."""
    x, gradient = (torch.randn(images, channels, height, width).bfloat16().to(memory_format=torch.channels_last)
                   for _ in range(2))
    shape = (channels, channels, 3, 3)
    ways = {"oneDNN, ms": lambda: torch.nn.grad.conv2d_weight(x, shape, gradient, padding=1),
            "matrix products, ms": lambda: weight_gradient(x, gradient)}
    row = {}
    for name, way in ways.items():
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - start)
        row[name] = 1e3 * min(seconds)
    first, second = (way().float() for way in ways.values())
    row["difference"] = ((first - second).abs().max() / first.abs().max()).item()
    return row


def step_seconds(args) -> float:
    """The median time of a training step of Cerberus."""
    with people(args) as folder:
        built = trainer(config(args, folder, "cerberus_R50", **{**FAST, "MODEL.COMPILE": False}))
        seconds = []
        with EventStorage(0) as built.storage:
            for built.iter in range(args.iterations + WARM):
                start = time.perf_counter()
                built.run_step()
                seconds.append(time.perf_counter() - start)
                built.storage.step()
    return statistics.median(seconds[WARM:])


@contextlib.contextmanager
def busy(processes: int):
    """Start processes that each keep a core busy."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size(parser, 10, depth_on_cpu="18x", batch_on_cpu=64)
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1], help="numbers of busy processes")
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(step_seconds(args))
        return
    rows = {f"{n} x {c} x {h} x {w}": gradients(n, c, h, w) for n, c, h, w in SIZES}
    print(table(["images x channels x height x width", "oneDNN, ms", "matrix products, ms", "speed-up"], [
        [name, f"{row['oneDNN, ms']:.1f}", f"{row['matrix products, ms']:.1f}",
         f"{row['oneDNN, ms'] / row['matrix products, ms']:.1f}"] for name, row in rows.items()]))
    own = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    command = [sys.executable, "-W", "ignore", *sys.argv, CHILD]
    steps = {}
    for name, variables in POLICIES.items():
        steps[name] = {}
        for processes in args.busy:
            with busy(processes):
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=own | variables)
            steps[name][processes] = float(done.stdout.splitlines()[-1])
    size = f"batch {args.batch} of {args.height}x{args.height // 3}"
    print(f"\nSeconds per step: ResNet-{args.depth.rstrip('x')}, {size}\n")
    print(table(["", *(f"with {n} busy process{'es' * (n != 1)}" for n in args.busy)],
                [[name, *(f"{seconds:.2f}" for seconds in row.values())] for name, row in steps.items()]))
    if args.output:
        write(args.output, {"gradients": rows, "steps": steps, "times_faster":
                            rows[next(iter(rows))]["oneDNN, ms"] / rows[next(iter(rows))]["matrix products, ms"]})


if __name__ == "__main__":
    main()
