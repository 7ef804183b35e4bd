"""Choose the training configuration for own data, from the counts of `check` and the hardware."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..utils.text import counted

# By the value of --model: the name of its files in configs/Market1501, NAME_R50.yml and NAME_demo.yml, and whether it
# needs attributes.
MODELS = {"plus": ("cerberus_plus", True), "cerberus": ("cerberus", True), "apr": ("apr", True), "arn": ("arn", True),
          "ide": ("ide", False), "bot": ("bot", False), "agw": ("agw", False), "sbs": ("sbs", False),
          "mgn": ("mgn", False)}


class Backbone(NamedTuple):
    """A backbone by keys of MODEL.BACKBONE.

    Attributes:
        name, depth, features: NAME, DEPTH and FEAT_DIM.
        what: name and number of parameters, for the printed reason.
    """

    name: str
    depth: str
    features: int
    what: str


RESNET, MOBILENET, OSNET = "build_resnet_backbone", "build_mobilenetv2_backbone", "build_osnet_backbone"
SIZES = {"tiny": Backbone(MOBILENET, "1.0x", 1280, "MobileNetV2, 2 M parameters"),
         "small": Backbone(RESNET, "18x", 512, "ResNet-18, 11 M parameters"),
         "base": Backbone(RESNET, "50x", 2048, "ResNet-50, 24 M parameters")}
# --size tiny without weights: in the same short training OSNet learns far more than MobileNetV2 (docs/light_models.md).
FROM_SCRATCH = {"tiny": Backbone(OSNET, "x1_0", 512, "OSNet, 2 M parameters, as MobileNetV2 needs pretrained weights")}
OF_RESNETS = {"LAST_STRIDE": "1", "WITH_NL": "False"}  # keys that other backbones do not have, and their defaults
# Height of images by --size and by whether there is a GPU; the recipe's where it is not listed. 256 is usual for light
# models (OSNet); on a CPU images are small, so that a training ends.
HEIGHTS = {("tiny", True): 256, ("small", True): 256, ("tiny", False): 96, ("small", False): 96, ("base", False): 128}
OF_ATTRIBUTES = tuple(name for name, (_, attributes) in MODELS.items() if attributes)
CERBERUS = ("plus", "cerberus")
WITHOUT_PEOPLE = (*CERBERUS, "arn")  # models that learn only attributes if identities are unknown
# Epochs and warm-up steps of the recipes for Market-1501.
EPOCHS = {"apr": 60, "arn": 60, "ide": 60, "sbs": 60, "mgn": 60}
MOST_EPOCHS, LEAST_EPOCHS, WARMUP = 120, 20, 2000
DECAYS = {"apr": (40,), "arn": (40,), "ide": (40,), "bot": (40, 90), "agw": (40, 90)}  # epochs of SOLVER.STEPS
BATCH, IMAGES_OF_EACH, STEPS = 64, 4, 24_000
MANY_IMAGES_OF_EACH = 16  # of SBS and MGN
# On a CPU: number of training images over all epochs, about five minutes on two cores; and the fewest epochs.
CPU_PASSES, CPU_LEAST_EPOCHS = 20_000, 12
# People needed to choose when a model abstains: `search.calibration.abstention.identities_to_vouch(0.95)`.
CALIBRATED_PEOPLE = 45
HELD_OUT_FROM, MOST_HELD_OUT = 300, 200  # training people from which some are held out, and their largest number
FEW_PEOPLE, FEW_IMAGES = 100, 4
MODEL = "model"  # the choice that is not a configuration key
UPRIGHT = 1.3  # smallest height / width of crops of whole people


@dataclass(frozen=True)
class Facts:
    """Counts of `check` that determine the configuration.

    Attributes:
        images, people: number of training images and people; people is None if identities are unknown.
        tested: number of people among the queries.
        attributes: number of attributes that a model can learn.
        not_for_cerberus: the reason why Cerberus cannot learn them; empty if it can.
        crowded: groups with too many combinations of values for one prototype each.
        cameras: whether any camera is known.
        size: median height and width of the images in pixels; None if they were not opened.
    """

    images: int
    people: int | None
    tested: int
    attributes: int = 0
    not_for_cerberus: str = ""
    crowded: tuple[str, ...] = ()
    cameras: bool = True
    size: tuple[float, float] | None = None


class Choice(NamedTuple):
    """A configuration key, its value, and the reason for it."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class Recipe:
    """A chosen configuration.

    Attributes:
        model: a key of `MODELS`.
        file: the base, a path below the folder of configurations.
        choices: keys that are set in addition to the file, with reasons.
        steps, epochs: length of the training.
        calibrated_on: people on which probabilities are calibrated; empty if there are too few.
        not_calibrated: the reason in this case, otherwise empty.
    """

    model: str
    file: str
    choices: list[Choice]
    steps: int
    epochs: int
    calibrated_on: str
    not_calibrated: str

    @property
    def options(self) -> list[str]:
        """Keys and values of all choices, in one list."""
        return [word for choice in self.choices if choice.key != MODEL for word in (choice.key, choice.value)]


@dataclass(frozen=True)
class Wish:
    """Options of the user.

    Attributes:
        model: a key of `MODELS`; empty to choose it.   epochs: 0 to choose them.
        weights: file of pretrained weights of a backbone; empty for none.
        backbone: NAME, DEPTH, FEAT_DIM and WITH_IBN of MODEL.BACKBONE that these weights belong to; {} if unknown.
        given: configuration keys and values that take precedence.
        size: a key of `SIZES`; empty for the backbone of the recipe.
    """

    model: str = ""
    epochs: int = 0
    weights: str = ""
    backbone: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    size: str = ""


class Schedule(NamedTuple):
    """Length of a training: batch size in images, epochs, steps, and warm-up steps."""

    batch: int
    epochs: int
    steps: int
    warmup: int


def schedule(images: int, people: int | None, gpu: bool, *, usual_batch: int = BATCH, usual_epochs: int = MOST_EPOCHS,
             batch: int = 0, epochs: int = 0) -> Schedule:
    """Choose batch size, epochs and warm-up.

    Args:
        images: number of training images.
        people: number of training people, None if unknown.
        gpu: True for a training on a GPU, False for a shorter one on a CPU.
        usual_batch, usual_epochs: values of the recipe.
        batch, epochs: values given by the user, 0 for none.

    Returns:
        the schedule; its batch is 0 if there are too few images.

    Examples:
        >>> schedule(12_936, 751, gpu=True)
        Schedule(batch=64, epochs=30, steps=6060, warmup=606)
    """
    most = images if people is None else min(IMAGES_OF_EACH * people, images)
    batch = batch or min(usual_batch, most - most % IMAGES_OF_EACH)
    if batch < 2 * IMAGES_OF_EACH or images < batch:
        return Schedule(0, 0, 0, 0)
    if not epochs:
        wanted = STEPS / 4 * batch / images if gpu else CPU_PASSES / images
        least = LEAST_EPOCHS if gpu else CPU_LEAST_EPOCHS
        epochs = min(usual_epochs if gpu else MOST_EPOCHS, max(least, math.ceil(wanted)))
    steps = epochs * (images // batch)
    # FastReID's cosine schedule needs at least one epoch after the warm-up.
    return Schedule(batch, epochs, steps, min(WARMUP, steps // 10) if epochs > 1 else 0)


def too_few(facts: Facts) -> str:
    """Return the reason why there is too little data to train; empty if there is enough."""
    if not facts.images or schedule(facts.images, facts.people, gpu=True).batch:
        return ""
    who = "" if facts.people is None else f" of {counted(facts.people, 'person', 'people')}"
    return (f"{facts.images} images{who} are too few for training; a batch needs "
            + ("" if facts.people is None else "two people and ") + f"{2 * IMAGES_OF_EACH} images")


def model_for(facts: Facts, wanted: str = "") -> tuple[str, str]:
    """Choose a model for the data.

    Args:
        facts: counts of the data.
        wanted: the user's choice, a key of `MODELS`; empty to choose it.

    Returns:
        a key of `MODELS`, and the reason.

    Raises:
        ValueError: if the data lacks identities or attributes that the wanted model needs.
    """
    if wanted and wanted not in MODELS:
        raise ValueError(f"--model {wanted}: expected one of {', '.join(MODELS)}")
    if wanted in OF_ATTRIBUTES and not facts.attributes:
        raise ValueError(f"--model {wanted}: needs attributes, but the data has none. Add columns of attributes to the "
                         "table, or choose one of "
                         f"{', '.join(name for name in MODELS if name not in OF_ATTRIBUTES)}.")
    if wanted and wanted not in WITHOUT_PEOPLE and facts.people is None:
        raise ValueError(f"--model {wanted}: needs identities, but they are unknown. Add the column 'person', or "
                         f"choose one of {', '.join(WITHOUT_PEOPLE)}.")
    alone = "arn" if facts.people is None else "apr"
    if wanted in CERBERUS and facts.not_for_cerberus:
        raise ValueError(f"--model {wanted}: {facts.not_for_cerberus}; or choose --model {alone}.")
    if wanted:
        return wanted, "given by --model"
    if facts.not_for_cerberus and facts.attributes:
        return alone, facts.not_for_cerberus
    if facts.people is None:
        return "plus", "only attributes, since identities are unknown"
    if not facts.attributes:
        return "bot", "no attributes are known; Bag of Tricks is a strong baseline for identities only"
    return "plus", f"{facts.attributes} attribute{'s' if facts.attributes > 1 else ''}: Cerberus learns identities " \
                   "and attributes together"


def choose(facts: Facts, gpu: bool, cores: int = 1, wish: Wish | None = None) -> Recipe:
    """Choose the configuration for some data.

    Args:
        facts: counts of the data.
        gpu: whether to train on a GPU.
        cores: number of CPU cores.
        wish: options of the user.

    Raises:
        ValueError: if the data is too small or lacks what the model needs, or if an option is not valid.
    """
    wish = wish or Wish()
    model, why = model_for(facts, wish.model)
    if reason := too_few(facts):
        raise ValueError(reason)
    if wish.epochs and "SOLVER.MAX_EPOCH" in wish.given:
        raise ValueError(f"--epochs {wish.epochs} and SOLVER.MAX_EPOCH {wish.given['SOLVER.MAX_EPOCH']} conflict; "
                         "give one of them.")
    check_size(model, wish)
    name = MODELS[model][0]
    file = f"Market1501/{name}_{'R50' if gpu else 'demo'}.yml"
    choices = [Choice("MODEL.DEVICE", "cuda" if gpu else "cpu", "a GPU is used: the recipe of the paper" if gpu else
                      "no GPU is used: a small recipe, ResNet-18 and small images")]
    if wish.size and not gpu:
        choices[0] = choices[0]._replace(reason="no GPU is used: a small recipe")
    if model == "mgn" and not gpu:
        choices[0] = choices[0]._replace(reason="no GPU is used: small images; MGN needs a backbone of at least "
                                                "ResNet-50")

    held = _held_out(facts)
    if "DATASETS.HOLD_OUT" in wish.given:
        held = _number("DATASETS.HOLD_OUT", wish.given)
    images, people = facts.images, facts.people
    if held and people:
        images, people = images * (people - held) // people, people - held
        choices.append(Choice("DATASETS.HOLD_OUT", str(held), f"of {facts.people} training people, held out to "
                              "calibrate probabilities"))
    usual = MOST_EPOCHS if not gpu else EPOCHS.get(model, MOST_EPOCHS)
    plan = schedule(images, people, gpu, usual_batch=32 if gpu and model in ("apr", "arn", "ide") else BATCH,
                    usual_epochs=usual, batch=_number("SOLVER.IMS_PER_BATCH", wish.given, 2 * IMAGES_OF_EACH),
                    epochs=wish.epochs or _number("SOLVER.MAX_EPOCH", wish.given, 1))
    who = "" if people is None else f" of {counted(people, 'person', 'people')}"
    if not plan.batch:
        raise ValueError(f"{images} images{who} are too few for training with these options; give a "
                         "smaller SOLVER.IMS_PER_BATCH or DATASETS.HOLD_OUT")
    choices += [
        Choice("SOLVER.IMS_PER_BATCH", str(plan.batch), f"{images} training images{who}"),
        Choice("SOLVER.MAX_EPOCH", str(plan.epochs), "given by --epochs" if wish.epochs else
               f"{plan.steps} steps of {plan.batch} images"),
        Choice("SOLVER.WARMUP_ITERS", str(plan.warmup), "steps with a rising learning rate, a tenth of all steps"
               if plan.warmup < WARMUP else "value of the recipe")]
    if gpu:
        choices += _in_epochs(model, plan, usual)
        choices += _many_of_each(model, images, people)
    choices += _input(facts, model, gpu, wish.size)
    choices += _backbone(model, gpu, wish)
    if facts.crowded and model in CERBERUS:
        choices.append(Choice("MODEL.CERBERUS.SID_SPACE", "observed", "too many combinations of values in "
                              f"{', '.join(facts.crowded)}: prototypes only for those in the training set"))
    period = max(1, plan.epochs // 10)
    choices += [
        Choice("SOLVER.CHECKPOINT_PERIOD", str(period), "epochs; --resume continues from the last checkpoint"),
        Choice("TEST.EVAL_PERIOD", str(plan.epochs), "only after the last epoch, so that the test selects no epoch"),
        Choice("TEST.UNTRAINED_FLOOR", "True", "metrics before training, as a baseline"),
        Choice("DATALOADER.NUM_WORKERS", str(min(8, cores) if gpu else 0), f"{cores} cores" if gpu else
               "all cores are used for training"),
        Choice("LOG_PERIOD", str(max(1, min(200 if gpu else 20, plan.steps // 40))), "steps between two lines of "
               "progress"),
        Choice("SEED", "1", "the same command trains the same model")]
    choices += [Choice(key, value, "given by the user") for key, value in wish.given.items()]
    fitted, missing = calibration_of(facts, held)
    last = {choice.key: choice for choice in (Choice(MODEL, model, why), *choices)}
    return Recipe(model, file, list(last.values()), plan.steps, plan.epochs, fitted, missing)


def _held_out(facts: Facts) -> int:
    if facts.people is None or facts.people < HELD_OUT_FROM or not facts.tested:
        return 0
    return min(MOST_HELD_OUT, max(CALIBRATED_PEOPLE, facts.people // 10))


def calibration_of(facts: Facts, held: int) -> tuple[str, str]:
    """Choose the people on which probabilities are calibrated.

    Args:
        facts: counts of the data.
        held: number of people held out of training.

    Returns:
        the people, empty if there are too few; and the reason in this case.
    """
    if facts.people is None:
        return "", "identities are unknown"
    if held >= CALIBRATED_PEOPLE:
        return f"{held} people held out of training", ""
    if not held and facts.tested // 2 >= CALIBRATED_PEOPLE:
        return f"half of the {facts.tested} test people", ""
    return "", (f"calibration needs {CALIBRATED_PEOPLE} people: held out of at least {HELD_OUT_FROM} training people, "
                f"or half of the test people; there are {facts.people} training and {facts.tested} test people")


def _in_epochs(model: str, plan: Schedule, usual: int) -> list[Choice]:
    """Scale the recipe's values that are in epochs or steps to the number of epochs."""
    if plan.epochs == usual and model not in ("sbs", "mgn"):
        return []
    reason = f"scaled from the recipe's {usual} epochs"
    if model in DECAYS:
        steps = sorted({max(1, epoch * plan.epochs // usual) for epoch in DECAYS[model]})
        return [Choice("SOLVER.STEPS", str(steps), reason)]
    if model in ("sbs", "mgn"):
        return [Choice("SOLVER.DELAY_EPOCHS", str(plan.epochs // 2), reason),
                Choice("SOLVER.FREEZE_ITERS", str(max(1, min(1000, plan.steps // 12))), "the backbone is frozen for a "
                       "twelfth of all steps")]
    return []


def _many_of_each(model: str, images: int, people: int | None) -> list[Choice]:
    if model in ("sbs", "mgn") and people and images / people < MANY_IMAGES_OF_EACH:
        return [Choice("DATALOADER.NUM_INSTANCE", str(IMAGES_OF_EACH), f"{images / people:.1f} images per person, "
                       f"fewer than the recipe's {MANY_IMAGES_OF_EACH}")]
    return []


def _input(facts: Facts, model: str, gpu: bool, size: str) -> list[Choice]:
    """Choose the image size by --size, and wider images than the recipe's where the crops are not upright."""
    wide = facts.size is not None and facts.size[0] / facts.size[1] < UPRIGHT
    height = 0 if model == "mgn" else HEIGHTS.get((size, gpu), 0)  # MGN divides a map of its own height into parts
    if not (height or wide):
        return []
    reason = f"--size {size}" + (": usual for light models" if gpu else ": small, so that a CPU trains it")
    if wide and facts.size:
        reason = f"the median image size is {facts.size[1]:g} x {facts.size[0]:g}, wider than crops of whole people"
    height = height or (384 if model == "mgn" and gpu else 256 if gpu else 96)
    value = f"[{height}, {3 * height // 4 if wide else height // 2}]"
    return [Choice(key, value, reason) for key in ("INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST")]


def size_of(backbone: Mapping[str, str]) -> str:
    """Return the key of `SIZES` that a backbone counts as.

    Args:
        backbone: NAME and DEPTH of MODEL.BACKBONE.

    Examples:
        >>> size_of({"NAME": "build_osnet_backbone", "DEPTH": "x1_0"})
        'tiny'
    """
    if backbone["NAME"] in (MOBILENET, OSNET):
        return "tiny"
    return "small" if backbone["DEPTH"] in ("18x", "34x") else "base"


def check_size(model: str, wish: Wish) -> None:
    """Reject a size that differs from the one of the weights, or that the model cannot have.

    Raises:
        ValueError: with what to do.
    """
    if wish.size and wish.size not in SIZES:
        raise ValueError(f"--size {wish.size}: expected one of {', '.join(SIZES)}")
    known = size_of(wish.backbone) if wish.backbone else ""
    if wish.size and known and known != wish.size:
        held = f"{wish.backbone['NAME']} {wish.backbone['DEPTH']}"
        raise ValueError(f"--size {wish.size}: is {SIZES[wish.size].what}, but {wish.weights} has weights of {held}; "
                         f"take --size {known}, leave out --size, or give weights of {SIZES[wish.size].what}")
    if model == "mgn" and (wish.size or known or "base") != "base":
        raise ValueError(f"--model mgn: takes no backbone smaller than ResNet-50, not {wish.size or known}; take "
                         "--size base or another --model")


def _backbone(model: str, gpu: bool, wish: Wish) -> list[Choice]:
    """Choose the backbone by the weights or by --size, and whether it is pretrained."""
    key = "MODEL.BACKBONE"
    size = wish.size or ("base" if wish.weights else "")
    named = SIZES.get(size) if wish.weights else FROM_SCRATCH.get(size, SIZES.get(size))
    reason = f"--size {wish.size}: {named.what}" if named and wish.size else "backbone of the weights"
    chosen = {"NAME": named.name, "DEPTH": named.depth, "FEAT_DIM": str(named.features)} if named else {}
    if wish.backbone:
        chosen, reason = dict(wish.backbone), "backbone of the weights"
    keys = [Choice(f"{key}.{name}", value, reason) for name, value in chosen.items()]
    other = chosen.get("NAME", RESNET) != RESNET
    keys += [Choice(f"{key}.{name}", value, "the recipe's value is for ResNets") for name, value in OF_RESNETS.items()
             ] if other else []
    light = other and model in CERBERUS
    keys += [Choice("MODEL.CERBERUS.SIGMA", "1.0", "times the median norm of each map; the paper's 5 is for "
                    "ResNet-50"),
             Choice("MODEL.CERBERUS.SIGMA_QUANTILE", "0.5", "the median of these norms")] if light else []
    if not wish.weights:
        if light and not wish.backbone:
            keys.append(Choice("SOLVER.BASE_LR", "0.0015", "that of OSNet's authors") if gpu else
                        Choice("SOLVER.BASE_LR", "0.003", "in a short training, OSNet without weights learns much more "
                               "than with the recipe's 0.00035"))
        advice = "; light backbones learn little from scratch in a short training: give some by --weights"
        keys.append(Choice(f"{key}.PRETRAIN", "False", f"no pretrained weights are given{advice if other else ''}"))
        if model in CERBERUS:
            keys.append(Choice("MODEL.CERBERUS.ALIGN", "False", "needs the norms of a pretrained backbone; those of "
                               "an untrained one have another scale"))
        if gpu and model in ("sbs", "mgn"):
            keys += [Choice("MODEL.FREEZE_LAYERS", "[]", "a backbone without pretrained weights must be trained"),
                     Choice("SOLVER.FREEZE_ITERS", "0", "the same reason")]
        return keys
    keys += [Choice(f"{key}.PRETRAIN", "True", "a pretrained backbone needs fewer training images"),
             Choice(f"{key}.PRETRAIN_PATH", wish.weights, "pretrained weights of the backbone")]
    if not gpu and model in CERBERUS and not light:
        keys.append(Choice("MODEL.CERBERUS.SIGMA", "5.0", "value of the paper, for pretrained weights"))
    return keys


def _number(key: str, given: Mapping[str, str], least: int = 0) -> int:
    """Return a number given by the user, 0 if it is not given."""
    try:
        number = int(given.get(key, least))
    except ValueError:
        number = least - 1
    if number < least:
        raise ValueError(f"{key} {given[key]}: expected a whole number, at least {least}")
    return number if key in given else 0
