"""Which configuration people's own data is trained with, from what `check` has counted and from the hardware."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# Model by its word: the name of its files in configs/Market1501, NAME_R50.yml and NAME_demo.yml, and whether it needs
# attributes.
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
# --size tiny without weights: of the same short training MobileNetV2 from scratch learns next to nothing, see
# docs/light_models.md.
FROM_SCRATCH = {"tiny": Backbone(OSNET, "x1_0", 512, "OSNet, 2 M parameters, as MobileNetV2 needs pretrained weights")}
OF_RESNETS = {"LAST_STRIDE": "1", "WITH_NL": "False"}  # keys that other backbones do not have, and their defaults
# Height of images by --size and by whether there is a GPU; the recipe's where it is not listed. 256 is usual for light
# models (OSNet); on a CPU images are small, so that a training ends.
HEIGHTS = {("tiny", True): 256, ("small", True): 256, ("tiny", False): 96, ("small", False): 96, ("base", False): 128}
OF_ATTRIBUTES = tuple(name for name, (_, attributes) in MODELS.items() if attributes)
CERBERUS = ("plus", "cerberus")
WITHOUT_PEOPLE = (*CERBERUS, "arn")  # which learn attributes alone where nobody's identity is known
# Of the recipes, on Market-1501: epochs, and steps in which the learning rate rises.
EPOCHS = {"apr": 60, "arn": 60, "ide": 60, "sbs": 60, "mgn": 60}
MOST_EPOCHS, LEAST_EPOCHS, WARMUP = 120, 20, 2000
DECAYS = {"apr": (40,), "arn": (40,), "ide": (40,), "bot": (40, 90), "agw": (40, 90)}  # epochs, where there are steps
BATCH, IMAGES_OF_EACH, STEPS = 64, 4, 24_000
MANY_IMAGES_OF_EACH = 16  # of SBS and MGN
# On a CPU: pictures that pass through the model, about five minutes of two cores, in no less epochs than the demo's.
CPU_PASSES, CPU_LEAST_EPOCHS = 20_000, 12
# Choosing what a model abstains from takes this many people: `search.calibration.abstention.identities_to_vouch(0.95)`.
CALIBRATED_PEOPLE = 45
HELD_OUT_FROM, MOST_HELD_OUT = 300, 200  # people to train on, and held out of them
FEW_PEOPLE, FEW_IMAGES = 100, 4
MODEL = "model"  # a choice that is no key
UPRIGHT = 1.3  # height over width from which pictures are crops of a whole person


@dataclass(frozen=True)
class Facts:
    """What `check` has counted.

    Attributes:
        images, people: to train on; people None where nobody's identity is known.
        tested: people who are asked for in the test.
        attributes: number of attributes that a model can learn.
        not_for_cerberus: why a Cerberus cannot learn them; empty where it can.
        crowded: groups whose values have too many combinations for a prototype each.
        cameras: whether any camera is known.
        size: height and width of pictures, the median; None where they were not opened.
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
    """A key of the configuration, its value, and why it has this value."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class Recipe:
    """A file below the folder of configurations, and what is set otherwise than in it."""

    model: str
    file: str
    choices: list[Choice]
    steps: int
    epochs: int
    calibrated_on: str  # empty where there are too few people
    not_calibrated: str  # the reason then

    @property
    def options(self) -> list[str]:
        """KEY value of every choice of the configuration, in order."""
        return [word for choice in self.choices if choice.key != MODEL for word in (choice.key, choice.value)]


@dataclass(frozen=True)
class Wish:
    """What the user says.

    Attributes:
        model: a key of `MODELS`; empty to have one chosen.   epochs: 0 to have them chosen.
        weights: file of pretrained weights of a backbone; empty for none.
        backbone: NAME, DEPTH, FEAT_DIM and WITH_IBN of MODEL.BACKBONE that these weights belong to; {} if unknown.
        given: KEY value of the configuration, which beat what is chosen.
        size: a key of `SIZES`; empty for the backbone of the recipe.
    """

    model: str = ""
    epochs: int = 0
    weights: str = ""
    backbone: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    size: str = ""


class Schedule(NamedTuple):
    """How long is trained."""

    batch: int
    epochs: int
    steps: int
    warmup: int


def schedule(images: int, people: int | None, gpu: bool, *, usual_batch: int = BATCH, usual_epochs: int = MOST_EPOCHS,
             batch: int = 0, epochs: int = 0) -> Schedule:
    """Batch, epochs and warm-up for so many pictures to train on; a batch of 0 where they are too few.

    Args:
        gpu: train as the papers do; or briefly.
        usual_batch, usual_epochs: of the recipe.
        batch, epochs: where the user has said them.
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
    # One epoch at least follows the warm-up, as the host's cosine wants it.
    return Schedule(batch, epochs, steps, min(WARMUP, steps // 10) if epochs > 1 else 0)


def too_few(facts: Facts) -> str:
    """Why nothing can be trained on so few pictures; empty where something can."""
    if not facts.images or schedule(facts.images, facts.people, gpu=True).batch:
        return ""
    who = "" if facts.people is None else f" of {facts.people} people"
    return (f"{facts.images} pictures{who} are too few to train on; a batch needs "
            + ("" if facts.people is None else "two people and ") + f"{2 * IMAGES_OF_EACH} pictures")


def model_for(facts: Facts, wanted: str = "") -> tuple[str, str]:
    """A model for the data, and why.

    Args:
        wanted: a key of `MODELS`, which is refused where the data is not for it.

    Raises:
        ValueError: if the data has not what the model needs.
    """
    if wanted and wanted not in MODELS:
        raise ValueError(f"--model {wanted}: expected one of {', '.join(MODELS)}")
    if wanted in OF_ATTRIBUTES and not facts.attributes:
        raise ValueError(f"--model {wanted}: needs attributes, and no column of the data is one. Add columns of words "
                         "to its table, or take one of "
                         f"{', '.join(name for name in MODELS if name not in OF_ATTRIBUTES)}.")
    if wanted and wanted not in WITHOUT_PEOPLE and facts.people is None:
        raise ValueError(f"--model {wanted}: learns identities, and none are known. Add the column 'person', or take "
                         f"one of {', '.join(WITHOUT_PEOPLE)}.")
    alone = "arn" if facts.people is None else "apr"
    if wanted in CERBERUS and facts.not_for_cerberus:
        raise ValueError(f"--model {wanted}: {facts.not_for_cerberus}; or take --model {alone}.")
    if wanted:
        return wanted, "as said by --model"
    if facts.not_for_cerberus and facts.attributes:
        return alone, facts.not_for_cerberus
    if facts.people is None:
        return "plus", "attributes alone, as nobody's identity is known"
    if not facts.attributes:
        return "bot", "no attributes are known; bag of tricks is a strong baseline on identities alone"
    return "plus", f"{facts.attributes} attribute{'s' if facts.attributes > 1 else ''}: Cerberus learns people and " \
                   "attributes together"


def choose(facts: Facts, gpu: bool, cores: int = 1, wish: Wish | None = None) -> Recipe:
    """The configuration for some data.

    Args:
        gpu: whether there is one to train on.   cores: of the processor.

    Raises:
        ValueError: if the data is too small, has not what the model needs, or a number of the user's is none.
    """
    wish = wish or Wish()
    model, why = model_for(facts, wish.model)
    if reason := too_few(facts):
        raise ValueError(reason)
    if wish.epochs and "SOLVER.MAX_EPOCH" in wish.given:
        raise ValueError(f"--epochs {wish.epochs} and SOLVER.MAX_EPOCH {wish.given['SOLVER.MAX_EPOCH']} say the same; "
                         "give one of them.")
    check_size(model, wish)
    name = MODELS[model][0]
    file = f"Market1501/{name}_{'R50' if gpu else 'demo'}.yml"
    choices = [Choice("MODEL.DEVICE", "cuda" if gpu else "cpu", "a GPU is there: the recipe of the paper" if gpu else
                      "no GPU is used: a small recipe, ResNet-18 and small pictures")]
    if wish.size and not gpu:
        choices[0] = choices[0]._replace(reason="no GPU is used: a small recipe")
    if model == "mgn" and not gpu:
        choices[0] = choices[0]._replace(reason="no GPU is used: small pictures; MGN takes no backbone smaller than "
                                                "ResNet-50")

    held = _held_out(facts)
    if "DATASETS.HOLD_OUT" in wish.given:
        held = _number("DATASETS.HOLD_OUT", wish.given)
    images, people = facts.images, facts.people
    if held and people:
        images, people = images * (people - held) // people, people - held
        choices.append(Choice("DATASETS.HOLD_OUT", str(held), f"of {facts.people} people to train on, to fit "
                              "probabilities on"))
    usual = MOST_EPOCHS if not gpu else EPOCHS.get(model, MOST_EPOCHS)
    plan = schedule(images, people, gpu, usual_batch=32 if gpu and model in ("apr", "arn", "ide") else BATCH,
                    usual_epochs=usual, batch=_number("SOLVER.IMS_PER_BATCH", wish.given, 2 * IMAGES_OF_EACH),
                    epochs=wish.epochs or _number("SOLVER.MAX_EPOCH", wish.given, 1))
    if not plan.batch:
        raise ValueError(f"{images} pictures of {people} people are too few to train on, as the rest is set; give a "
                         "smaller SOLVER.IMS_PER_BATCH or DATASETS.HOLD_OUT")
    who = "" if people is None else f" of {people} people"
    choices += [
        Choice("SOLVER.IMS_PER_BATCH", str(plan.batch), f"{images} pictures{who} to train on"),
        Choice("SOLVER.MAX_EPOCH", str(plan.epochs), "as said by --epochs" if wish.epochs else
               f"{plan.steps} steps of {plan.batch} pictures"),
        Choice("SOLVER.WARMUP_ITERS", str(plan.warmup), "steps in which the learning rate rises, a tenth of all"
               if plan.warmup < WARMUP else "of the recipe")]
    if gpu:
        choices += _in_epochs(model, plan, usual)
        choices += _many_of_each(model, images, people)
    choices += _input(facts, model, gpu, wish.size)
    choices += _backbone(model, gpu, wish)
    if facts.crowded and model in CERBERUS:
        choices.append(Choice("MODEL.CERBERUS.SID_SPACE", "observed", "too many combinations of values in "
                              f"{', '.join(facts.crowded)}: those that training people carry"))
    period = max(1, plan.epochs // 10)
    choices += [
        Choice("SOLVER.CHECKPOINT_PERIOD", str(period), "epochs; --resume goes on from the last one"),
        Choice("TEST.EVAL_PERIOD", str(plan.epochs), "once, at the end: no epoch is chosen by the test"),
        Choice("TEST.UNTRAINED_FLOOR", "True", "figures before training, to compare with"),
        Choice("DATALOADER.NUM_WORKERS", str(min(8, cores) if gpu else 0), f"{cores} cores" if gpu else
               "all cores are for training"),
        Choice("LOG_PERIOD", str(max(1, min(200 if gpu else 20, plan.steps // 40))), "steps between two lines of "
               "progress"),
        Choice("SEED", "1", "the same command trains the same model")]
    choices += [Choice(key, value, "as given") for key, value in wish.given.items()]
    fitted, missing = calibration_of(facts, held)
    last = {choice.key: choice for choice in (Choice(MODEL, model, why), *choices)}
    return Recipe(model, file, list(last.values()), plan.steps, plan.epochs, fitted, missing)


def _held_out(facts: Facts) -> int:
    if facts.people is None or facts.people < HELD_OUT_FROM or not facts.tested:
        return 0
    return min(MOST_HELD_OUT, max(CALIBRATED_PEOPLE, facts.people // 10))


def calibration_of(facts: Facts, held: int) -> tuple[str, str]:
    """Whom probabilities are fitted on, or why they are not."""
    if facts.people is None:
        return "", "nobody's identity is known"
    if held >= CALIBRATED_PEOPLE:
        return f"{held} people held out of training", ""
    if not held and facts.tested // 2 >= CALIBRATED_PEOPLE:
        return f"half of the {facts.tested} people of the test", ""
    return "", (f"probabilities are fitted on {CALIBRATED_PEOPLE} people or more, held out of {HELD_OUT_FROM} to train "
                f"on, or half of those of the test; there are {facts.people} and {facts.tested}")


def _in_epochs(model: str, plan: Schedule, usual: int) -> list[Choice]:
    """What the recipe counts in epochs or steps, for as many as there are."""
    if plan.epochs == usual and model not in ("sbs", "mgn"):
        return []
    reason = f"as in the recipe's {usual} epochs"
    if model in DECAYS:
        steps = sorted({max(1, epoch * plan.epochs // usual) for epoch in DECAYS[model]})
        return [Choice("SOLVER.STEPS", str(steps), reason)]
    if model in ("sbs", "mgn"):
        return [Choice("SOLVER.DELAY_EPOCHS", str(plan.epochs // 2), reason),
                Choice("SOLVER.FREEZE_ITERS", str(max(1, min(1000, plan.steps // 12))), "the backbone is kept as it is "
                       "for a twelfth of all steps")]
    return []


def _many_of_each(model: str, images: int, people: int | None) -> list[Choice]:
    if model in ("sbs", "mgn") and people and images / people < MANY_IMAGES_OF_EACH:
        return [Choice("DATALOADER.NUM_INSTANCE", str(IMAGES_OF_EACH), f"{images / people:.1f} pictures a person, "
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
        reason = f"pictures are {facts.size[1]:g} x {facts.size[0]:g} in the median, wider than crops of whole people"
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
    reason = f"--size {wish.size}: {named.what}" if named and wish.size else "that of the weights"
    chosen = {"NAME": named.name, "DEPTH": named.depth, "FEAT_DIM": str(named.features)} if named else {}
    if wish.backbone:
        chosen, reason = dict(wish.backbone), "that of the weights"
    keys = [Choice(f"{key}.{name}", value, reason) for name, value in chosen.items()]
    other = chosen.get("NAME", RESNET) != RESNET
    keys += [Choice(f"{key}.{name}", value, "the recipe's is of ResNets only") for name, value in OF_RESNETS.items()
             ] if other else []
    light = other and model in CERBERUS
    keys += [Choice("MODEL.CERBERUS.SIGMA", "1.0", "in the median norm of the map; the paper's 5 belongs to ResNet-50"),
             Choice("MODEL.CERBERUS.SIGMA_QUANTILE", "0.5", "the median")] if light else []
    if not wish.weights:
        advice = "; light backbones learn little from scratch in a short training: give some by --weights"
        keys.append(Choice(f"{key}.PRETRAIN", "False", f"no pretrained weights are given{advice if other else ''}"))
        if model in CERBERUS:
            keys.append(Choice("MODEL.CERBERUS.ALIGN", "False", "crops by norms of a pretrained backbone; those of "
                               "one from scratch are of another size"))
        if gpu and model in ("sbs", "mgn"):
            keys += [Choice("MODEL.FREEZE_LAYERS", "[]", "a backbone from scratch has to learn"),
                     Choice("SOLVER.FREEZE_ITERS", "0", "likewise")]
        return keys
    keys += [Choice(f"{key}.PRETRAIN", "True", "a backbone that knows pictures learns people from fewer of them"),
             Choice(f"{key}.PRETRAIN_PATH", wish.weights, "the weights that it begins with")]
    if not gpu and model in CERBERUS and not light:
        keys.append(Choice("MODEL.CERBERUS.SIGMA", "5.0", "of the paper, for pretrained weights"))
    return keys


def _number(key: str, given: Mapping[str, str], least: int = 0) -> int:
    """A number that the user gives, 0 where not."""
    try:
        number = int(given.get(key, least))
    except ValueError:
        number = least - 1
    if number < least:
        raise ValueError(f"{key} {given[key]}: expected a whole number from {least} on")
    return number if key in given else 0
