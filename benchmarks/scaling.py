"""Cost by image size, backbone, identities, semantic IDs and gallery size: a table for each, and a plot.

    python benchmarks/scaling.py --plot docs/scaling.png
    python benchmarks/scaling.py --identities 751 10000 100000 --gallery 4000 16000 64000 250000

A training step is that of the model and the optimizer on random pixels, without the loader. Memory is the peak
allocation of a GPU; on a CPU, the size of weights, gradients and moments.
"""

import argparse
import statistics
from pathlib import Path

from cerberus_plugin.engine import CerberusTrainer
from cerberus_plugin.inference import blocks
from cerberus_plugin.metrics.ranking import reid_metrics_from_features
from setting import FAST, ON_GPU, add_size, config

import torch
import torch.nn.functional as F
from common import table, timed, write

SIDS = [4, 18, 40, 8, 4]  # semantic IDs per group, about those of Market-1501


def step_cost(args, sids=SIDS, identities: int = 751, sampled: int = 0, **changes) -> dict[str, float]:
    """Seconds of a training step, GiB, and ms per evaluated image, of Cerberus on random pixels."""
    torch.manual_seed(0)
    cfg = config(args, Path("."), "cerberus_R50", **{
        **FAST, "MODEL.COMPILE": ON_GPU, "MODEL.HEADS.NUM_CLASSES": identities, "MODEL.CERBERUS.SCHEMA": "market1501",
        "MODEL.CERBERUS.NUM_SIDS": sids, "MODEL.CERBERUS.SAMPLED_IDENTITIES": sampled, **changes})
    model = CerberusTrainer.build_model(cfg).train()
    optimizer, _ = CerberusTrainer.build_optimizer(cfg, model)
    height, width = cfg.INPUT.SIZE_TRAIN
    batch = {"images": torch.randint(256, (args.batch, 3, height, width), device=model.device).float(),
             "targets": torch.arange(args.batch, device=model.device) // 4,
             "sids": torch.stack([torch.randint(k, (args.batch,)) for k in sids], dim=1).to(model.device)}

    def step():
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    for _ in range(2):
        step()
    seconds = statistics.median(timed(step)[0] for _ in range(max(3, args.iterations)))
    if ON_GPU:
        memory = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        groups = [p for group in optimizer.param_groups for p in group["params"]]
        memory = sum(4 * p.numel() * p.element_size() for p in groups)  # weights, gradients and Adam's two moments
    evaluated = statistics.median(timed(predict, model.eval(), batch)[0] for _ in range(max(3, args.iterations)))
    return {"seconds": seconds, "GiB": memory / 2**30, "ms per evaluated image": 1e3 * evaluated / args.batch}


@torch.no_grad()
def predict(model, batch) -> None:
    """Compute embeddings of a batch and their cosines with every prototype."""
    for group, block in zip(model.prototypes.groups, blocks(model(batch), len(model.groups)).unbind(1)):
        block @ F.normalize(model.prototypes.prototypes(group), dim=1).T


def ranking_cost(size: int, queries: int, width: int) -> dict[str, float]:
    """Seconds of the reID metrics against `size` gallery rows, from features."""
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if ON_GPU else "cpu"
    gallery = torch.randn(size, width, generator=generator).to(device)
    people = torch.arange(size) // 10
    chosen = torch.randint(size, (queries,), generator=generator)
    camids = torch.arange(size) % 6
    seconds, _ = timed(reid_metrics_from_features, gallery[chosen.to(device)], gallery, people[chosen],
                       (camids[chosen] + 1) % 6, people, camids)
    return {"seconds": seconds, "ms per query": 1e3 * seconds / queries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size(parser, 20 if ON_GPU else 3, "18x")
    parser.add_argument("--heights", type=int, nargs="+",
                        default=[128, 256, 384, 512] if ON_GPU else [48, 96, 144, 192])
    parser.add_argument("--depths", nargs="+", default=["18x", "34x", "50x", *(["101x"] if ON_GPU else [])])
    parser.add_argument("--identities", type=int, nargs="+",
                        default=[751, 10_000, *([100_000] if ON_GPU else [])])
    parser.add_argument("--sampled", type=int, default=4096, help="identities per step in rows with sampling")
    parser.add_argument("--sids", type=int, nargs="+", default=[74, 740, 7_400])
    parser.add_argument("--gallery", type=int, nargs="+",
                        default=[16_000, 100_000, 1_000_000] if ON_GPU else [4_000, 16_000, 64_000])
    parser.add_argument("--queries", type=int, default=3368 if ON_GPU else 200)
    parser.add_argument("--width", type=int, default=2560 if ON_GPU else 512, help="values of a gallery embedding")
    parser.add_argument("--plot", type=Path, help="plot of the curves")
    args = parser.parse_args()

    widths = {"18x": 512, "34x": 512}
    largest = max(args.identities)
    cost = {
        "image height": {h: step_cost(args, **{"INPUT.SIZE_TRAIN": [h, h // 3]}) for h in args.heights},
        "backbone": {d: step_cost(args, **{"MODEL.BACKBONE.DEPTH": d, "MODEL.BACKBONE.FEAT_DIM": widths.get(d, 2048)})
                     for d in args.depths},
        "identities": {n: step_cost(args, identities=n) for n in args.identities},
        "identities, sampled": {n: step_cost(args, identities=n, sampled=args.sampled) for n in args.identities
                                if n > args.sampled},
        "semantic IDs": {n: step_cost(args, sids=[max(1, n * k // sum(SIDS)) for k in SIDS]) for n in args.sids},
        "gallery": {n: ranking_cost(n, args.queries, args.width) for n in args.gallery},
    }
    print(f"ResNet-{args.depth.rstrip('x')}, batch {args.batch} of {args.height}x{args.height // 3} unless the row "
          f"says otherwise; gallery: {args.queries} queries of {args.width}; sampled: {args.sampled} "
          "identities per step\n")
    for name, rows in cost.items():
        columns = list(next(iter(rows.values()), {}))
        if rows:
            print(table([name, *columns], [[f"{key:,}" if isinstance(key, int) else key.rstrip("x"),
                                            *(f"{row[c]:.3f}" for c in columns)] for key, row in rows.items()]) + "\n")
    without = step_cost(args, identities=args.batch)["seconds"]
    share = 1 - without / cost["identities"][largest]["seconds"]
    print(f"The five classifiers take {100 * share:.0f} % of a step with {largest:,} identities, "
          f"compared with a step with {args.batch} identities.")
    if args.output:
        write(args.output, {"depth": args.depth, "height": args.height, "batch": args.batch, "queries": args.queries,
                            "width": args.width, "sampled": args.sampled, "cost": cost, "classifiers_share": share})
    if args.plot:
        draw(args.plot, cost)


def draw(path: Path, cost: dict) -> None:
    from matplotlib.figure import Figure

    panels = ("image height", "backbone", "identities", "semantic IDs", "gallery")
    figure = Figure((13, 2.8), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for name, axis in zip(panels, axes):
        for label in (name, f"{name}, sampled"):
            rows = cost.get(label)
            if rows:
                keys = [key.rstrip("x") if isinstance(key, str) else key for key in rows]
                axis.plot(keys, [row["seconds"] for row in rows.values()], marker="o", label=label.rpartition(", ")[2])
        if name in ("identities", "semantic IDs", "gallery"):
            axis.set(xscale="log")
        axis.set(xlabel=name, ylim=(0, None))
        if f"{name}, sampled" in cost and cost[f"{name}, sampled"]:
            axis.legend()
    axes[0].set(ylabel="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
