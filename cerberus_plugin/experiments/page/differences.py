"""Differences between the runs of a study and the paper, computed from the records of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from ...config import flat
from ...data.splits import HELD_OUT
from .records import RunRecord, StudyRecord

STEPS, BATCH, SIZE, TRUNK = 24000, 64, "384x128", "ResNet-50"
# Relative tolerance of the number of steps: 119 and 93 epochs are within 1 % of the paper's steps.
NEARLY = 0.01


@dataclass(frozen=True)
class PaperData:
    """A dataset as the paper uses it."""

    title: str
    identities: int
    images: int
    epochs: int  # nearest to the paper's number of steps
    queries: int
    gallery: int  # without junk


PAPER = {"Market1501": PaperData("Market-1501", 751, 12936, 119, 3368, 15913),
         "DukeMTMC": PaperData("DukeMTMC-reID", 702, 16522, 93, 2228, 17661)}


@dataclass(frozen=True)
class Found:
    """An aspect of a run and of the paper; `agrees` is None if they cannot be compared."""

    ours: str
    paper: str
    agrees: bool | None = None


@dataclass
class Differences:
    """Sentences about a study: what differs from the paper, what is the same, what is not recorded, and notes."""

    differs: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


UNKNOWN = Found("", "")


def differences(study: StudyRecord) -> Differences:
    """Compare each aspect of all runs of a study with the paper; variants are named if they differ from each other."""
    told = Differences()
    for aspect, look in ASPECTS.items():
        # An evaluation of the weights of another run is described by that run.
        found = [(run.variant, answer) for run in study.runs
                 if not run.record.get("weights of") and (answer := look(run)) is not None]
        if not found:
            continue
        known = [(variant, answer) for variant, answer in found if answer.ours]
        if not known:
            told.unknown.append(aspect)
            continue
        paper = "; ".join(dict.fromkeys(answer.paper for _, answer in known if answer.paper))
        sentence = f"{aspect}: {_joined(known)}" + (f"; the paper: {paper}" if paper else "")
        if len(known) < len(found):
            sentence += f" (not recorded by {len(found) - len(known)} of {len(found)} runs)"
        answers = {answer.agrees for _, answer in known}
        (told.differs if False in answers else told.same if True in answers else told.notes).append(sentence)
    told.notes.append(_seeds(study))
    shown = {*study.figures, *(key for run in study.runs for row in run.results.values() for key in row)}
    if any(key.startswith("PAR/") for key in shown):
        told.notes.append("PAR: the paper's mA follows the binary rule, so compare it only with columns marked "
                          "(binary). The official rule scores the colour of a garment as one choice among all colours")
    return told


def _joined(found: Sequence[tuple[str, Found]]) -> str:
    """Join `ours` of all variants: one value if they are equal, else 'x (A, B), y (C)'."""
    variants: dict[str, dict[str, None]] = {}
    for variant, answer in found:
        variants.setdefault(answer.ours, {})[variant] = None
    if len(variants) == 1:
        return next(iter(variants))
    return ", ".join(f"{ours} ({', '.join(names) if len(names) < 4 else f'{len(names)} variants'})"
                     for ours, names in variants.items())


def _seeds(study: StudyRecord) -> str:
    most = max((len(variant.runs) for variant in study.variants), default=0)
    had = "no run is finished" if not most else "one run" if most == 1 else f"up to {most} runs"
    had += " per variant" if most else ""
    return f"Seeds: {had}; the paper gives one value per row, without a deviation"


def _trained_on(run: RunRecord) -> list[str]:
    names = (run.option("DATASETS.NAMES") or ())
    return [str(name).removesuffix("Attributes") for name in names]


def _paper_data(run: RunRecord) -> PaperData | None:
    names = _trained_on(run)
    return PAPER.get(names[0]) if len(names) == 1 else None


def _number(node: Mapping | None, key: str) -> int | None:
    """Return a count of the manifest, or of a part of it, by dotted key."""
    found = flat(node or {}).get(key)
    return found if type(found) is int else None


def _compared(ours: str, paper: str) -> Found:
    """Compare two texts; unknown if the first is empty."""
    return Found(ours, paper, ours == paper) if ours else UNKNOWN


def _many(count: int | None) -> str:
    return "an unknown number of" if count is None else f"{count:,}"


def _tests(run: RunRecord) -> dict[str, Mapping]:
    """Return the entries of test datasets in the manifest, by name without "Attributes"."""
    manifest = run.record.get("manifest") or {}
    places = [manifest, *(node for node in manifest.values() if isinstance(node, Mapping))]
    return {str(name).removesuffix("Attributes"): node for place in places for name, node in place.items()
            if isinstance(node, Mapping) and "query" in node and "gallery" in node}


def data(run: RunRecord) -> Found:
    """Compare the training set."""
    names = _trained_on(run)
    if not names:
        return UNKNOWN
    paper = " and ".join(entry.title for entry in PAPER.values()) + ", separately"
    if len(names) > 1 or names[0] not in PAPER:
        return Found(" and ".join(names), paper, False)
    people = identities(run) or test_images(run) or UNKNOWN
    if people.agrees is False:
        return Found(f"in the format of {PAPER[names[0]].title}, with other people", paper, False)
    return Found(names[0], paper, people.agrees)


def identities(run: RunRecord) -> Found | None:
    """Compare the number of training identities; None if the study excludes some of them."""
    if run.option("DATASETS.LEAVE_OUT_SIDS"):
        return None
    count = _number(run.record.get("manifest"), "training.identities") or run.option("MODEL.HEADS.NUM_CLASSES")
    paper, held_out = _paper_data(run), run.option("DATASETS.HOLD_OUT") or 0
    if not count:
        return UNKNOWN
    ours = f"{count:,}" + (f", {held_out} held out" if held_out else "")
    if not paper:
        return Found(ours, " and ".join(f"{entry.identities} ({entry.title})" for entry in PAPER.values()), False)
    expected = paper.identities - held_out
    return Found(ours, f"{expected:,} ({paper.title}" + (f" less {held_out} held out)" if held_out else ")"),
                 count == expected)


def test_images(run: RunRecord) -> Found | None:
    """Compare the numbers of queries and gallery images; None without a test dataset."""
    tests = {name: node for name, node in _tests(run).items() if name != HELD_OUT}
    if not tests:
        return None
    counts = {name: tuple(_number(node, f"{part}.images") for part in ("query", "gallery"))
              for name, node in tests.items()}
    ours = "; ".join(f"{name} ({_many(queries)} queries, {_many(gallery)} gallery images)"
                     for name, (queries, gallery) in counts.items())
    known = [PAPER[name] for name in counts if name in PAPER]
    return Found(ours, "; ".join(f"{entry.title} ({entry.queries:,} and {entry.gallery:,})" for entry in known),
                 all(name in PAPER and (PAPER[name].queries, PAPER[name].gallery) == pair
                     for name, pair in counts.items()))


def schedule(run: RunRecord) -> Found:
    """Compare the number of steps, or of epochs if the number of images is unknown."""
    training = run.record.get("training") or {}
    epochs = training.get("epochs") or run.option("SOLVER.MAX_EPOCH")
    batch, images = run.option("SOLVER.IMS_PER_BATCH"), _number(run.record.get("manifest"), "training.images")
    if not epochs:
        return UNKNOWN
    paper = _paper_data(run)
    if images and batch:
        steps = epochs * (images // batch)
        return Found(f"{epochs:,} epochs, about {steps:,} steps", f"{STEPS:,} steps",
                     abs(steps - STEPS) <= NEARLY * STEPS)
    if not paper:
        return Found(f"{epochs:,} epochs", f"{STEPS:,} steps")
    return Found(f"{epochs:,} epochs", f"{STEPS:,} steps, {paper.epochs} epochs of {paper.title}",
                 epochs == paper.epochs)


def batch(run: RunRecord) -> Found:
    """Compare the batch size."""
    return _compared(str(run.option("SOLVER.IMS_PER_BATCH") or ""), str(BATCH))


def image_size(run: RunRecord) -> Found:
    """Compare the image size."""
    size = run.record.get("image size") or run.option("INPUT.SIZE_TEST")
    return _compared("x".join(map(str, size or ())), SIZE)


def trunk(run: RunRecord) -> Found:
    """Compare the backbone."""
    name, depth = run.option("MODEL.BACKBONE.NAME"), str(run.option("MODEL.BACKBONE.DEPTH") or "").removesuffix("x")
    if not name:
        return UNKNOWN
    kind = {"build_resnet_backbone": "ResNet"}.get(name, str(name).removeprefix("build_").removesuffix("_backbone"))
    return _compared(f"{kind}-{depth}" + (" with IBN" if run.option("MODEL.BACKBONE.WITH_IBN") else ""), TRUNK)


def weights(run: RunRecord) -> Found:
    """Compare the initial weights."""
    pretrained, path = run.option("MODEL.BACKBONE.PRETRAIN"), run.option("MODEL.BACKBONE.PRETRAIN_PATH")
    start = run.option("MODEL.WEIGHTS")
    if pretrained is None:
        return UNKNOWN
    if start:
        return Found(f"checkpoint {PurePath(start).name}", "trained on ImageNet", False)
    if not pretrained:
        return Found("random, trained from scratch", "trained on ImageNet", False)
    return Found(f"pretrained, {PurePath(path).name}" if path else "trained on ImageNet", "trained on ImageNet",
                 None if path else True)


def device(run: RunRecord) -> Found:
    """Describe the hardware; the paper's is not compared."""
    return Found(run.device, "") if run.device else UNKNOWN


ASPECTS: dict[str, Callable[[RunRecord], Found | None]] = {
    "Training data": data, "Training identities": identities, "Test data": test_images, "Schedule": schedule,
    "Batch size": batch, "Image size": image_size, "Backbone": trunk, "Initial weights": weights, "Device": device}
