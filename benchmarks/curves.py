"""Loss curves with all speed options on ("fast") and off ("plain"), compared with the variation between seeds.

    python benchmarks/curves.py --seeds 3 --iterations 120 --plot curves.png

All runs train on the same synthetic people and evaluate others. The curves agree where the means of "fast" and "plain"
differ by less than the standard deviation between seeds.
"""

import argparse
import statistics
from pathlib import Path

from setting import FAST, ON_GPU, add_size, config, people, trainer

from common import table, write
from fastreid.utils.events import EventStorage

WINDOWS = 6  # intervals of the curve in the table
METRICS = ("mAP", "PAR/mA_balanced", "APS/mAP")


def run(cfg, iterations: int) -> tuple[list[float], dict[str, float]]:
    """Total loss of each step, and metrics on the test people after the last step."""
    built, losses = trainer(cfg), []
    with EventStorage(0) as built.storage:
        for _ in range(iterations):
            built.iter = built.storage.iter
            built.run_step()
            losses.append(built.storage.latest()["total_loss"][0])
            built.storage.step()
    results = built.test(cfg, built.model)
    return losses, {name: results[name] for name in METRICS}


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size(parser, 600 if ON_GPU else 24, "18x", 32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile on a CPU as well")
    parser.add_argument("--plot", type=Path, help="plot of the curves")
    args = parser.parse_args()
    fast = {**FAST, "TEST.AUTOCAST": "bfloat16", "MODEL.COMPILE": ON_GPU or args.compile}
    paths = {"plain": {}, "fast": fast}
    curves, metrics = {name: [] for name in paths}, {name: [] for name in paths}
    with people(args, test_ids=24) as folder:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for name, keys in paths.items():
                losses, results = run(config(args, folder, "cerberus_R50", SEED=seed, **keys), args.iterations)
                curves[name].append(losses)
                metrics[name].append(results)
                print(f"seed {seed}, {name}: loss {losses[0]:.3f} to {statistics.mean(losses[-5:]):.3f}", flush=True)
    length = max(1, args.iterations // WINDOWS)
    rows, apart = [], []
    for start in range(0, args.iterations - length + 1, length):
        means = {name: [statistics.mean(curve[start:start + length]) for curve in curves[name]] for name in paths}
        rows.append([f"loss, steps {start} to {start + length - 1}", *compared(means, apart)])
    for name in METRICS:
        rows.append([f"{name}, unseen people", *compared({path: [f[name] for f in metrics[path]] for path in paths},
                                                         apart)])
    print(f"\n{args.seeds} seeds, ResNet-{args.depth.rstrip('x')}, batch {args.batch} of {args.height}x"
          f"{args.height // 3}; mean ± standard deviation over seeds\n")
    print(table(["", "plain", "fast", "difference of means", "in standard deviations of a run"], rows))
    if args.output:
        write(args.output, {"seeds": args.seeds, "first_seed": args.first_seed, "iterations": args.iterations,
                            "curves": curves, "figures": metrics,
                            "fast": fast, "largest_difference_in_deviations": max(apart)})
    if args.plot:
        draw(args.plot, curves)


def compared(values: dict[str, list[float]], apart: list[float]) -> list[str]:
    """Cells of a row; how far the means are apart, in deviations of one run, goes to `apart`."""
    difference = statistics.mean(values["fast"]) - statistics.mean(values["plain"])
    deviation = (statistics.variance(values["plain"]) / 2 + statistics.variance(values["fast"]) / 2) ** 0.5
    apart.append(abs(difference) / deviation)
    return [spread(values["plain"]), spread(values["fast"]), f"{difference:+.3f}", f"{apart[-1]:.1f}"]


def draw(path: Path, curves: dict) -> None:
    from matplotlib.figure import Figure

    figure = Figure((7, 3.5), layout="constrained")
    axes = figure.subplots()
    for (name, runs), colour in zip(curves.items(), ("tab:blue", "tab:orange")):
        for i, losses in enumerate(runs):
            axes.plot(losses, color=colour, alpha=0.6, linewidth=1, label=name if i == 0 else None)
    axes.set(xlabel="step", ylabel="total loss")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
