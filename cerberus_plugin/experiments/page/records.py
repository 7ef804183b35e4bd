"""Read the records of studies and figures in a folder, for the report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ... import config

UNCHECKED = ("an older version wrote this record and did not check whether the runs were tested by the same rules; run "
             "the study's command again, it does not repeat finished runs")
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class RunRecord:
    """A run of a variant: its entry in the record of the study, and its configuration if the run folder exists."""

    variant: str
    seed: int | None
    folder: str  # relative to the report's folder
    results: dict[str, dict[str, float]]  # metrics by test dataset, without "Attributes" in its name
    record: dict
    config: dict
    config_text: str
    anchor: str

    @property
    def minutes(self) -> float:
        """Training minutes; NaN if not recorded."""
        seconds = (self.record.get("training") or {}).get("seconds")
        return math.nan if seconds is None else seconds / 60

    @property
    def device(self) -> str:
        """GPU or processor; empty if not recorded."""
        machine = self.record.get("hardware") or {}
        processor = f"{machine.get('processor') or 'unknown processor'}, {machine.get('cores', '?')} core(s)"
        return "" if not machine else machine.get("gpu") or processor

    @property
    def account(self) -> dict[str, str]:
        """How the run was made, by name: folder, seed, time, hardware, versions, rules, hashes."""
        told = {"folder": self.folder, "seed": in_words(self.seed),
                "configuration sha256 (without the seed)": self.record.get("recipe sha256"),
                "training minutes": "" if math.isnan(self.minutes) else f"{self.minutes:.1f}"}
        for key in ("training", "at the end of training", "hardware", "versions", "protocol", "manifest"):
            told |= flat(self.record.get(key) or {}, key)
        return {name: in_words(value) for name, value in told.items() if value not in ("", None)}

    def option(self, key: str):
        """Return a value of the configuration by its dotted key; None if unknown."""
        return config.flat(self.config).get(key)


@dataclass(frozen=True)
class VariantRecord:
    """A variant in the record of a study."""

    name: str
    options: dict
    note: str
    published: dict[str, dict[str, float]]
    rule: str  # of the published PAR results; empty if not recorded
    curve: str  # that the variant is a point of; empty if none
    x: float | None  # position on this curve
    costs: dict
    runs: list[RunRecord]


@dataclass(frozen=True)
class StudyRecord:
    """The record of a study.

    `refused` is the reason why its runs cannot be compared, empty if they can. `findings` are the paragraphs of
    findings/<study>.txt, which the user writes.
    """

    anchor: str
    file: str
    name: str
    title: str
    question: str
    note: str
    command: str
    config: str
    date: str
    hours: float | None
    against: str
    seeds: list
    figures: list[str]
    variants: list[VariantRecord]
    claims: dict[str, list[str]]
    missing: list[str]
    findings: list[str] = field(default_factory=list)
    refused: str = ""

    @property
    def runs(self) -> list[RunRecord]:
        """Runs of all variants."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def origin(self) -> dict[str, str]:
        """How the study was made, by name, as far as it is recorded."""
        told = {"record": self.file, "configuration": self.config, "seeds": in_words(self.seeds), "date": self.date,
                "compared with": self.against,
                "expected hours per run on one H100": "" if self.hours is None else in_words(self.hours)}
        return {name: value for name, value in told.items() if value}

    @property
    def datasets(self) -> list[str]:
        """Test datasets with measured results; those with published results if nothing has been measured."""
        measured = dict.fromkeys(name for run in self.runs for name in run.results)
        return list(measured or dict.fromkeys(name for variant in self.variants for name in variant.published))


@dataclass(frozen=True)
class Exhibit:
    """The record of a figure."""

    anchor: str
    title: str
    question: str
    caption: str
    pictures: list[tuple[str, str]]  # path relative to the report's folder, caption
    absent: list[str]
    made_by: dict[str, str]


@dataclass
class Folder:
    """Contents of a report."""

    path: Path
    studies: list[StudyRecord] = field(default_factory=list)
    exhibits: list[Exhibit] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


# Errors of reading a damaged file.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)


def read_folder(path: Path) -> Folder:
    """Read the records of studies and figures in a folder.

    Other files are ignored. Damaged records are listed in `unreadable`.

    Args:
        path: --output of `experiments.reproduce` or `experiments.figures`.

    Raises:
        ValueError: If the folder has no record.
    """
    folder = Folder(path)
    for pattern, key, read, found in (("*.json", "study", read_study, folder.studies),
                                      ("figures/*.json", "exhibit", _exhibit, folder.exhibits)):
        for file in sorted(path.glob(pattern)):
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
                if isinstance(record, dict) and key in record:
                    found.append(read(folder, file, record))
            except DAMAGE as error:
                folder.unreadable.append(f"{file.relative_to(path)}: {_short(error)}")
    if not (folder.studies or folder.exhibits or folder.unreadable):
        raise ValueError(f'{path}: no record of a study (*.json with "study") or of a figure (figures/*.json with '
                         '"exhibit"); name the --output folder of experiments.reproduce or experiments.figures')
    return folder


def slug(text: str) -> str:
    """Convert text to a name for files and anchors.

    Examples:
        >>> slug("APR: lambda 0.5")
        'apr-lambda-0-5'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def flat(node, prefix: str = "") -> dict[str, str]:
    """Flatten a nested record to texts by dotted name.

    Examples:
        >>> flat({"training": {"epochs": 12}})
        {'training.epochs': '12'}
    """
    values = config.flat({prefix: node} if prefix else node)
    return {name: in_words(value) for name, value in values.items()}


def in_words(value) -> str:
    """Convert a value of a record to text.

    Examples:
        >>> in_words({"seed": 1, "groups": ["head", "upper"]})
        'seed 1, groups head, upper'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    return "none" if value is None else str(value)


def read_study(folder: Folder, file: Path, record: dict) -> StudyRecord:
    """Convert the record of a study.

    Args:
        folder: of the report; unreadable configurations are added to it.
        file: of the record.
        record: contents of the file.

    Raises:
        ValueError: If the record is damaged, or two variants have the same name.
    """
    anchor = slug(file.stem)
    variants = [_variant(folder, f"{anchor}-{place}", item)
                for place, item in enumerate(_take(record, "variants", list, "the study"))]
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"duplicate variants {', '.join(twice)}, whose runs would be mixed; give each variant of "
                         "the study its own name")

    text = {key: in_words(record.get(key) or "")
            for key in ("title", "question", "note", "command", "config", "date", "against", "refused")}
    text["title"] = text["title"] or in_words(record["study"])
    if "refused" not in record:
        text["refused"] = UNCHECKED
    return StudyRecord(
        anchor=anchor, file=file.name, name=in_words(record["study"]), **text, hours=record.get("hours"),
        seeds=_take(record, "seeds", list, "the study", []),
        figures=list(map(str, _take(record, "figures", list, "the study", []))), variants=variants,
        claims={_data(name): list(map(str, sentences))
                for name, sentences in _take(record, "claims", dict, "the study", {}).items()},
        missing=list(map(in_words, _take(record, "missing", list, "the study", []))),
        findings=_findings(folder.path / "findings" / f"{file.stem}.txt"))


def _findings(path: Path) -> list[str]:
    paragraphs = path.read_text(encoding="utf-8").split("\n\n") if path.is_file() else []
    return [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]


def _variant(folder: Folder, anchor: str, record: dict) -> VariantRecord:
    name = in_words(_take(record, "name", str, "a variant"))
    runs = []
    for place, item in enumerate(_take(record, "runs", list, f"variant '{name}'", [])):
        where = f"a run of variant '{name}'"
        run_folder = _take(item, "folder", str, where, "")
        text, config = _config(folder, run_folder)
        results = {_data(data): {key: math.nan if value is None else float(value) for key, value in row.items()}
                   for data, row in _take(item, "results", dict, where, {}).items()}
        runs.append(RunRecord(name, item.get("seed"), run_folder, results, item, config, text, f"{anchor}-run-{place}"))
    published = {_data(data): {key: float(value) for key, value in row.items() if value is not None}
                 for data, row in _take(record, "published", dict, f"variant '{name}'", {}).items()}
    return VariantRecord(name, _take(record, "options", dict, f"variant '{name}'", {}),
                         in_words(record.get("note") or ""), published, in_words(record.get("rule") or ""),
                         in_words(record.get("curve") or ""), None if record.get("x") is None else float(record["x"]),
                         flat(_take(record, "costs", dict, f"variant '{name}'", {})), runs)


def _exhibit(folder: Folder, file: Path, record: dict) -> Exhibit:
    pictures, absent = [], []
    for item in _take(record, "pictures", list, "the figure", []):
        name = _take(item, "file", str, "a picture")
        path = (folder.path / name).resolve()
        inside = path.is_relative_to(folder.path.resolve()) and path.suffix.lower() in PICTURES
        if inside and path.is_file():
            pictures.append((name, in_words(item.get("caption") or "")))
        else:
            absent.append(f"{name}: " + ("not found" if inside else
                                          f"not an image ({', '.join(PICTURES)}) in this folder"))
    text = {key: in_words(record.get(key) or "") for key in ("exhibit", "title", "question", "caption")}
    return Exhibit(f"figure-{slug(file.stem)}", text["title"] or text["exhibit"], text["question"], text["caption"],
                   pictures, absent, flat(_take(record, "made by", dict, "the figure", {})))


def _take(record, key: str, kind: type, where: str, default=None):
    """Return a field of a record and check its type; the default replaces a missing value."""
    value = record.get(key) if isinstance(record, Mapping) else None
    if value is None and default is not None:
        return default
    if not isinstance(value, kind):
        raise ValueError(f"'{key}' of {where} is {value!r:.60}, expected a {kind.__name__}; run the experiment's "
                         "command again to rewrite the record, it does not repeat finished runs")
    return value


def _config(folder: Folder, run_folder: str) -> tuple[str, dict]:
    """Read config.yaml of a run as text and as values, both empty if it does not exist."""
    path = folder.path / run_folder / "config.yaml"
    if not run_folder or not path.is_file():
        return "", {}
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        return text, values if isinstance(values, dict) else {}
    except DAMAGE as error:
        damage = f"{run_folder}/config.yaml: {_short(error)}"
        if damage not in folder.unreadable:  # studies may share runs
            folder.unreadable.append(damage)
        return "", {}


def _data(name: str) -> str:
    """Remove "Attributes" from the name of a dataset: it has the same images with and without attributes."""
    return name.removesuffix("Attributes")


def _short(error: Exception) -> str:
    """First line of an error."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    return f"{text} is missing" if isinstance(error, KeyError) else text
