"""Time that guidance loss, regulariser and five triplet losses add to a training step with the identity loss.

    python benchmarks/losses.py                small on a CPU, ResNet-50 at 384x128, batch 64 on a GPU
    python benchmarks/losses.py --depth 50x --height 384 --batch 16

Steps with all losses and steps with the identity loss alone alternate on one model, so that load from other processes
affects both. Medians are compared.
"""

import argparse
import statistics
import time

from cerberus_plugin.modeling.losses import identity_loss
from setting import FAST, ON_GPU, add_size, config, people, trainer

import torch
from common import table, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size(parser, 100 if ON_GPU else 20)
    args = parser.parse_args()
    with people(args) as folder:
        built = trainer(config(args, folder, "cerberus_R50", **{**FAST, "MODEL.COMPILE": ON_GPU}))
        model, optimizer, batch = built.model, built.optimizer, next(iter(built.data_loader))
    all_losses = model.losses

    def identity_alone(outputs, *_):
        logits = outputs["logits"]  # (5, B, classes)
        return {"loss_id": identity_loss(logits.flatten(0, 1), outputs["targets"].repeat(len(logits)))}

    if ON_GPU:
        identity_alone = torch.compile(identity_alone, dynamic=False)

    def step() -> float:
        start = time.perf_counter()
        terms = model(batch)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        if ON_GPU:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds = {"identity loss alone": [], "all losses": []}
    for i in range(args.iterations + 3):
        for name, losses in (("identity loss alone", identity_alone), ("all losses", all_losses)):
            model.losses = losses
            taken = step()
            if i >= 3:
                seconds[name].append(taken)
    alone, together = (statistics.median(times) for times in seconds.values())
    # Consecutive steps run under a similar load.
    added = statistics.median(b / a - 1 for a, b in zip(*seconds.values()))
    print(f"ResNet-{args.depth.rstrip('x')}, batch {args.batch} of {args.height}x{args.height // 3}, "
          f"{args.iterations} steps of each\n")
    print(table(["losses", "ms per step", "added"], [["identity loss alone", f"{1e3 * alone:.2f}", ""],
                                                   ["all losses", f"{1e3 * together:.2f}", f"{100 * added:.1f} %"]]))
    if args.output:
        write(args.output, {"depth": args.depth, "height": args.height, "batch": args.batch, "added_percent":
                            100 * added, "seconds": seconds})


if __name__ == "__main__":
    main()
