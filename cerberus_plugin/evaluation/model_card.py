"""RUN/model_card.md: what a model was trained on, how it was evaluated, and what it must not be used for.

It is written from results.json alone, so that it can be written again at any time: `cerberus card RUN`. Its front
matter is that of model cards on Hugging Face.
"""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from tabulate import tabulate

from ..metrics.par import LABELS
from ..utils.files import write_text
from .report import REID, percent, read_results

CARD = "model_card.md"
CALIBRATION = Path("calibration", "calibration.json")
FEW_PEOPLE, FEW_IMAGES = 10, 50  # below: "too few" in place of metrics of a value; images where people are not known
FEW = "too few"
NOT_RECORDED = "not recorded"
# Datasets by a part of their names, and what their authors or hosts have said about them.
WITHDRAWN = {"duke": "DukeMTMC-reID was withdrawn by its authors in 2019. Do not publish models or results on it "
                     "without checking whether you may use it."}
LAW = (
    "EU AI Act, Regulation (EU) 2024/1689: Annex III lists remote biometric identification, point 1(a), and biometric "
    "categorisation by sensitive or protected attributes, point 1(b), as high-risk; recognising gender or age may fall "
    "under the latter. Article 5 prohibits some of these uses, among them most real-time remote biometric "
    "identification in public places for law enforcement, since February 2025. The dates of the duties for high-risk "
    "systems have been changed: check the current text.",
    "GDPR: images of people are personal data, and embeddings that identify a person are biometric data, Article 9. "
    "Check the current text and the law of your country.",
    "This section is not legal advice.")
INTENDED = ("research on person re-identification, attribute recognition and search by attributes",
            "support of a person who looks for images in recordings that may be processed for this purpose, and who "
            "checks each result")
UNSUITABLE = ("decisions about people without a human who checks them: scores and attributes are often wrong",
              "proof of identity: a match is a similar appearance, mostly of clothes, not a recognised person",
              "other places, cameras, seasons or people than those of the test data, without an evaluation there",
              "inference of gender identity, ethnicity, health or any other trait; labels of gender and age are the "
              "annotators' impressions",
              "covert surveillance, and any use that the law of the place prohibits")


def write(folder: str | Path) -> Path:
    """Write the model card of a finished run or evaluation, and return its path.

    Args:
        folder: with results.json.

    Raises:
        FileNotFoundError, ValueError: if there are no results, see `read_results`.
    """
    path = Path(folder, CARD)
    write_text(str(path), text(read_results(str(folder)), Path(folder, CALIBRATION).is_file()))
    return path


def text(results: Mapping, calibrated: bool = False) -> str:
    """The model card as Markdown with YAML front matter.

    Args:
        results: of `read_results`; records of earlier versions lack some facts, which the card calls not recorded.
        calibrated: whether the run has calibrated probabilities.
    """
    made = results.get("manifest") or {}
    trained = (made.get("training") or {}).get("data sets") or []
    name = f"{results.get('model', 'Model')} trained on {' and '.join(map(_base, trained)) or NOT_RECORDED}"
    front = yaml.safe_dump(front_matter(results), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", f"# {_escaped(name)}",
             "Written from `results.json` by Cerberus; `cerberus card RUN` writes it again. Add what the record cannot "
             "tell: who collected the data, on what legal basis, and who answers questions.",
             "## Model", _model(results), "## Data", _data(made), *_notes_on_data(results),
             "## Metrics", "In percent, for the test data below."]
    for test, metrics in results["results"].items():
        floor = (results.get("before training") or {}).get(test, {})
        parts += [f"### {_escaped(_base(test))}", *_metrics(metrics, floor)]
        values = (results.get("by value") or {}).get(test)
        if values:
            parts += _by_value(values, test)
    return "\n\n".join([*parts, "## Not measured", _list(not_measured(results, calibrated)),
                        "## Intended use", _list(INTENDED), "## Unsuitable use", _list(UNSUITABLE),
                        "## Law", _list(LAW), "## License", LICENSE]) + "\n"


LICENSE = ("State one before you publish the weights. They are subject to the terms of the training data and of the "
           "pretrained weights named above; several of them allow research only.")


def front_matter(results: Mapping) -> dict:
    """Tags, datasets and metrics as model cards on Hugging Face have them."""
    made = results.get("manifest") or {}
    names = [*((made.get("training") or {}).get("data sets") or []), *results["results"]]
    keys = {key for metrics in results["results"].values() for key in metrics}
    tasks = {"person-re-identification": "mAP", "pedestrian-attribute-recognition": "PAR/mA_with_none",
             "attribute-based-person-search": "APS/mAP"}
    metrics = {"mAP": "mAP", "rank-1": "Rank-1", "mA": "PAR/mA_with_none"}
    return {"library_name": "fastreid", "pipeline_tag": "image-feature-extraction",
            "tags": ["cerberus", *(tag for tag, key in tasks.items() if key in keys)],
            "datasets": list(dict.fromkeys(map(_slug, names))),
            "metrics": [tag for tag, key in metrics.items() if key in keys]}


def not_measured(results: Mapping, calibrated: bool) -> list[str]:
    """What this record says nothing about."""
    made = results.get("manifest") or {}
    keys = {key for metrics in results["results"].values() for key in metrics}
    texts = ["the spread over seeds and splits: these are the results of one training",
             "other places, cameras and times than those of the test data (`cerberus evaluate RUN OTHER`)"]
    if any(account.get("synthetic") for account in _accounts(made)):
        texts.append("real images: the data is synthetic, so these results say nothing about real people")
    if not calibrated:
        texts.append("the reliability of probabilities: this run is not calibrated")
    if "mAP" not in keys:
        texts.append("re-identification and search by attributes: identities of the test images are not known")
    if not any(key.startswith("PAR/") for key in keys):
        texts.append("attributes: the model learns none, or the test data has no labels")
    if not results.get("by value"):
        texts.append("differences between groups of people: there are no metrics by attribute value")
    else:
        texts.append("differences between groups of people that are not attributes of the data, such as skin colour or "
                     "disability, and combinations of attributes")
    texts.append("attacks, such as printed patterns that mislead the model")
    return texts


def _model(results: Mapping) -> str:
    made, backbone = results.get("manifest") or {}, results.get("backbone") or {}
    training, hardware = results.get("training") or {}, results.get("hardware") or {}
    versions = results.get("versions") or {}
    begun = (made.get("training") or {}).get("began with")
    seconds = training.get("seconds")
    rows = [("model", results.get("model")),
            ("backbone", " ".join(filter(None, (backbone.get("name"), backbone.get("depth"))))),
            ("pretrained weights", _starting_weights(backbone.get("pretrained"))),
            *([("training started from", f"{begun['file']}, SHA-256 {_short(begun['sha256'])}")] if begun else []),
            ("input", " x ".join(map(str, results.get("image size") or [])) + " pixels (height x width)"),
            ("weights", results.get("weights")),
            ("checkpoint", made.get("checkpoint") and f"{made['checkpoint']}, SHA-256 "
                                                      f"{_short(made.get('checkpoint sha256'))}"),
            ("training", f"{training['epochs']} epochs, seed {training['seed']}"
                         + (f", {seconds / 60:.1f} minutes" if seconds else "") if training else
             "not part of this record, which is of an evaluation alone"),
            ("configuration", f"SHA-256 {_short(made.get('config sha256'))}; config.yaml has every key"),
            ("hardware", ", ".join(f"{name} {value}" for name, value in hardware.items() if value)),
            ("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value))]
    return _table(("", ""), rows)


def _starting_weights(source: Mapping | None) -> str:
    if source is None:
        return NOT_RECORDED
    text = source["what"] + (f" ({source['file']}, SHA-256 {_short(source.get('sha256'))})" if source.get("file")
                             else "")
    if not source.get("file") and "terms" not in source:  # there are none
        return text
    return f"{text}; terms: {source.get('terms') or 'not known to this package, see where the file is from'}"


def _data(made: Mapping) -> str:
    header = ("part", "images", "identities", "cameras", "list of images", "labels")
    rows = []

    def add(name: str, counts: Mapping, account: Mapping) -> None:
        labels = account.get("labels") or {}
        cameras = counts.get("cameras")
        rows.append((name, counts.get("images"), counts.get("identities") or "not known",
                     NOT_RECORDED if cameras is None else cameras or "not known",
                     f"SHA-256 {_short(account.get('list sha256'))}",
                     f"{labels['file']}, SHA-256 {_short(labels.get('sha256'))}" if labels else "none"))

    training = made.get("training")
    if training:
        add("training: " + ", ".join(map(_base, training["data sets"])), training, training)
    for name, account in (made.get("tests") or {}).items():
        for part in ("query", "gallery"):
            add(f"{_base(name)}: {part}", account[part], account)
    if not rows:
        return f"{NOT_RECORDED.capitalize()}."
    lines = [_table(header, rows, numbers=(1, 2, 3))]
    if training and training.get("held out"):
        lines.append(f"{training['held out']} identities of the training data are held out of training.")
    for name, account in (made.get("tests") or {}).items():
        extra = [f"{account['gallery'][key]} distractors in the gallery" for key in ("distractors",)
                 if account["gallery"].get(key)]
        extra += [f"{account['left out']} images could not be read"] if account.get("left out") else []
        if extra:
            lines.append(f"{_escaped(_base(name))}: {'; '.join(extra)}.")
    return "\n\n".join(lines)


def _notes_on_data(results: Mapping) -> list[str]:
    """Warnings that belong to the data: drawn images, and datasets that were withdrawn."""
    made = results.get("manifest") or {}
    synthetic = any(account.get("synthetic") for account in _accounts(made))
    names = [*((made.get("training") or {}).get("data sets") or []), *results["results"]]
    notes = ["**Synthetic data**: the images are drawn by `cerberus_plugin.synthetic`. Results compare code with code; "
             "they do not measure the accuracy on real people."] if synthetic else []
    return notes + [f"**Withdrawn data**: {note}" for part, note in WITHDRAWN.items()
                    if any(part in _base(name).lower() for name in names) and not synthetic]


def _metrics(metrics: Mapping, floor: Mapping) -> Iterator[str]:
    rows = [("this model", metrics), *([("before training", floor)] if floor else [])]
    if "mAP" in metrics:
        ignored = "" if metrics.get("shared cameras") == 0 else "; matches of the query's own camera are ignored"
        yield f"Re-identification (AP by the rectangle rule{ignored}):"
        yield _table(("", *REID[:5]), [(name, *(percent(of.get(key)) for key in REID[:5])) for name, of in rows],
                     numbers=range(1, 6))
        if metrics.get("shared cameras") == 0:
            yield "Query and gallery share no camera, or none is known, so no match is ignored for its camera."
    if "PAR/mA_with_none" in metrics:
        keys = ("PAR/mA_with_none", "PAR/mA_balanced", "PAR/label/mA", "PAR/label/F1")
        named = [*rows, ("majority-class baseline", {key.replace("PAR-majority/", "PAR/"): value
                                                    for key, value in metrics.items()
                                                    if key.startswith("PAR-majority/")})]
        yield f"Attribute recognition on {metrics.get('PAR/images', 0):.0f} gallery images ({LABELS}):"
        yield _table(("", "accuracy, mean of attributes", "balanced", "label mA", "label F1"),
                     [(name, *(percent(of.get(key)) for key in keys)) for name, of in named if of],
                     numbers=range(1, 5))
    if "APS/mAP" in metrics:
        keys = ("mAP", "Rank-1", "Rank-5", "Rank-10")
        yield f"Search by attributes, {metrics['APS/queries']:.0f} descriptions:"
        yield _table(("", *keys), [(name, *(percent(of.get(f"APS/{key}")) for key in keys)) for name, of in rows],
                     numbers=range(1, 5))


def _by_value(values: Mapping[str, Mapping[str, Mapping]], test: str) -> Iterator[str]:
    """The table of metrics by attribute value."""
    yield f"#### By attribute value: {_escaped(_base(test))}"
    yield ("reID over the queries of people with this value, the gallery is the same for all; PAR accuracy of all "
           "attributes, and recall of this value, on gallery images with it. Values of fewer than "
           f"{FEW_PEOPLE} people (where identities are not known, {FEW_IMAGES} images) have no metrics. An image with "
           "two colours counts for both. Values differ in clothes, cameras and numbers as well: a difference is not "
           "caused by the attribute alone.")
    rows = []
    for attribute, own in values.items():
        for value, tasks in own.items():
            reid, par = tasks.get("reID") or {}, tasks.get("PAR") or {}
            rows.append((attribute, value, *_counts(reid, "queries"), *_shown(reid, "queries", ("mAP", "Rank-1")),
                         *_counts(par, "images"), *_shown(par, "images", ("accuracy", "recall"))))
    yield _table(("attribute", "value", "query people", "queries", "mAP", "Rank-1", "gallery people", "images",
                  "accuracy", "recall"), rows, numbers=range(2, 10))


def _counts(metrics: Mapping, unit: str) -> tuple:
    return metrics.get("people", ""), metrics.get(unit, "")


def _shown(metrics: Mapping, unit: str, keys: Sequence[str]) -> list[str]:
    if not metrics:
        return [""] * len(keys)
    few = metrics["people"] < FEW_PEOPLE if "people" in metrics else metrics[unit] < FEW_IMAGES
    if few:
        return [FEW] * len(keys)
    return [percent(math.nan if metrics[key] is None else metrics[key]) for key in keys]


def _accounts(made: Mapping) -> Iterator[Mapping]:
    yield from filter(None, (made.get("training"), *(made.get("tests") or {}).values()))


def _table(header: Sequence[str], rows: Iterable[Sequence], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)
    cells = [[_escaped(NOT_RECORDED if cell is None else cell) for cell in row] for row in rows]
    return tabulate(cells, header, tablefmt="pipe", disable_numparse=True,
                    colalign=["right" if k in right else "left" for k in range(len(header))] if cells else None)


def _list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _escaped(text: object) -> str:
    """Text that Markdown shows as it is, on one line: names of files and attributes are a user's own."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _short(digest: str | None) -> str:
    return digest[:16] if digest else NOT_RECORDED


def _base(name: str) -> str:
    """A dataset's name; of own data the last folder, since paths belong to a machine."""
    return os.path.basename(os.path.normpath(name))


def _slug(name: str) -> str:
    """A name in the characters that dataset names of Hugging Face have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", _base(name)).strip("-.") or "own-data"
