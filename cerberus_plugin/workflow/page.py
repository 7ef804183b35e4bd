"""RUN/report.html: the metrics of a run with baselines, what was not measured, the configuration, and next commands."""

from __future__ import annotations

import base64
import io
import logging
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..evaluation.report import REID, percent, read_results
from ..experiments.figures.exhibit import DPI
from ..experiments.figures.rank_list import Gallery, Row, sheet
from ..metrics.par import LABELS
from ..own_data.check import Section
from ..own_data.people import read_people
from ..own_data.recipe import CALIBRATED_PEOPLE
from ..predictor import CerberusPredictor
from ..utils.files import write_text
from ..utils.images import Unreadable

PAGE = "report.html"
QUERIES, SEARCHES, TOP = 5, 2, 8  # rows and columns of the contact sheet
NAME = 16  # letters of a name in the contact sheet

logger = logging.getLogger("fastreid.cerberus")


def write_page(folder: Path, record: Mapping, predictor: CerberusPredictor, not_calibrated: str) -> None:
    """Write the report of a finished run.

    Args:
        folder: folder of the run.
        record: returned by `training.begin`.
        predictor: the trained model.
        not_calibrated: the reason if probabilities are not calibrated, otherwise empty.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    results = read_results(str(folder))
    name = predictor.cfg.DATASETS.TESTS[0]
    figures, floor = results["results"][name], results.get("before training", {}).get(name, {})
    calibration = predictor.calibration.record if not not_calibrated and predictor.calibration else {}
    sections = sections_of(figures, floor, calibration.get("columns", {}))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    text = environment.get_template("report.html.j2").render(
        title=Path(record["data"]).name, record=record, model=results["model"], training=results["training"],
        hardware=results["hardware"], sections=sections, picture=_contact_sheet(predictor) if "mAP" in figures else "",
        missing=not_measured(figures, not_calibrated, predictor.reader is not None),
        commands=next_commands(folder, record["data"], predictor))
    write_text(str(folder / PAGE), text)
    logger.info(f"wrote {folder / PAGE}")


def sections_of(figures: Mapping, floor: Mapping, calibrated: Mapping | None = None) -> list[Section]:
    """Return tables of the metrics of an evaluation, with those before training; one for each task that was evaluated.

    Args:
        figures: metrics, as `TaskEvaluator` returns them.
        floor: metrics before training; empty if they were not measured.
        calibrated: records of calibration.json by attribute.
    """
    rows = [(name, of) for name, of in (("this model", figures), ("before training", floor)) if of]
    sections = []
    if "mAP" in figures:
        sections.append(Section("Re-identification (reID, percent)", ("", *REID[:5]),
                                [(name, *(percent(of.get(key)) for key in REID[:5])) for name, of in rows]))
    if "PAR/mA_official" in figures:
        sections.append(_attributes(figures, floor, calibrated or {}))
    if "mAP" not in figures:
        keys = ("mA", "accuracy", "precision", "recall", "F1")
        sections.append(Section(f"Attributes as yes/no labels (percent; {LABELS})", ("", *keys), [
            (name, *(percent(of.get(f"PAR/{'label' if key == 'mA' else 'instance'}/{key}")) for key in keys))
            for name, of in rows]))
    if "APS/mAP" in figures:
        keys = ("mAP", "Rank-1", "Rank-5", "Rank-10")
        sections.append(Section(f"Search by attributes (APS, {figures['APS/queries']:.0f} queries, percent)",
                                ("", *keys),
                                [(name, *(percent(of.get(f"APS/{key}")) for key in keys)) for name, of in rows]))
    return sections


def _attributes(figures: Mapping, floor: Mapping, calibrated: Mapping) -> Section:
    """The mean of all attributes, and one row per attribute."""
    columns = ["attribute", "accuracy", "majority class", "before training", "balanced accuracy", "balanced before"]
    kinds = (("PAR", "with_none", figures), ("PAR-majority", "with_none", figures), ("PAR", "with_none", floor),
             ("PAR", "balanced", figures), ("PAR", "balanced", floor))
    rows = [("mean", *(percent(of.get(f"{source}/mA_{rule}")) for source, rule, of in kinds))]
    rows += [(name, *(percent(of.get(f"{source}/{rule}/{name}")) for source, rule, of in kinds))
             for name in (key.removeprefix("PAR/official/") for key in figures if key.startswith("PAR/official/"))]
    if calibrated:
        columns += ["not abstained", "accuracy of these"]
        answered = [calibrated.get(name, {}).get("answered", {}) for name, *_ in rows]
        rows = [(*row, _share(of.get("share")), _share(of.get("accuracy"))) for row, of in zip(rows, answered)]
    return Section(f"Attribute recognition (PAR on {figures['PAR/images']:.0f} gallery images, percent)",
                   tuple(columns), rows)


def _share(value: float | None) -> str:
    return "" if value is None else percent(100 * value)


def not_measured(figures: Mapping, not_calibrated: str, attributes: bool) -> list[str]:
    """List what the run does not measure.

    Args:
        figures: metrics, as `TaskEvaluator` returns them.
        not_calibrated: the reason if probabilities are not calibrated, otherwise empty.
        attributes: whether the model learns attributes.
    """
    texts = ["variation between seeds and splits: this run has one of each. Train with SEED 2 and another --out for a "
             "second seed; delete split.csv to draw a split with other test people",
             "images of other places and cameras: cerberus evaluate RUN OTHER"]
    if "mAP" not in figures:
        texts.append("re-identification and search by attributes: identities are unknown")
    if figures.get("shared cameras") == 0:
        texts.append("reID across cameras: queries and gallery share no known camera. If cameras are unknown, "
                     "successive images of a person count as matches, and metrics are higher")
    if not any(key.startswith("PAR/") for key in figures):
        texts.append("attributes and search by attributes: "
                     + ("the test images have no labels" if attributes else "the model learns no attributes"))
    undefined = [key.removeprefix("PAR/official/") for key, value in figures.items()
                 if key.startswith("PAR/official/") and math.isnan(value)]
    if undefined:
        texts.append(f"attributes for which no gallery image has a label: {', '.join(undefined)}")
    if not_calibrated:
        texts.append(f"calibrated probabilities: {not_calibrated}")
    elif attributes:
        texts.append(f"calibrated probabilities of attributes with labels of fewer than {CALIBRATED_PEOPLE} people: "
                     "the model abstains from these, or uses uncalibrated probabilities")
    return texts


def next_commands(folder: Path, data: str, predictor: CerberusPredictor) -> list[tuple[str, str]]:
    """Return commands to continue with, and their purposes.

    Args:
        folder: folder of the run.
        data: the data that it was trained on.
        predictor: the trained model.
    """
    pictures = Path(data) if Path(data).is_dir() else Path(data).parent
    run, data, images, gallery, audit = (shlex.quote(str(path)) for path in (folder, data, pictures, folder / "gallery",
                                                                             folder / "audit"))
    commands = [(f"cerberus index --run {run} --images {images} --out {gallery}", "embed the images, to search them")]
    if predictor.attribute_model is not None:
        column = predictor.reader.schema.columns[0]
        words = f"{column.display or column.name}={column.classes[-1]}"
        commands.append((f"cerberus search {gallery} {shlex.quote(words)}", "find people by attributes"))
    commands += [(f"cerberus serve {gallery} --run {run} --open", "search in a browser"),
                 (f"cerberus audit {data} --out {audit} --run {run}", "find wrong labels"),
                 (f"cerberus evaluate {run} OTHER", "measure the same metrics on another dataset"),
                 (f"cerberus export --run {run} --images {images}", "write one file that runs without torch")]
    return commands


def _contact_sheet(predictor: CerberusPredictor) -> str:
    """Contact sheet of queries and their matches as a PNG in base64; empty if there is nothing to show."""
    try:
        gallery = Gallery(predictor)
        top = min(TOP, len(gallery.items))
        rows = _named([gallery.query_row(index, top) for index in gallery.spread_queries(QUERIES)], predictor)
        if gallery.labels is not None and (gallery.labels >= 0).all(dim=1).any():
            rows += [gallery.search_row(labels, top) for labels in gallery.searches(SEARCHES)]
        if not rows:
            return ""
        drawn = io.BytesIO()
        sheet(rows, top).savefig(drawn, format="png", dpi=DPI)
    except Unreadable as error:  # an image that the evaluation has skipped (DATALOADER.ON_UNREADABLE)
        logger.warning(f"the report has no contact sheet: {error}")
        return ""
    return base64.b64encode(drawn.getvalue()).decode()


def _named(rows: list[Row], predictor: CerberusPredictor) -> list[Row]:
    """Queries with the names of people and cameras as in the tables of own data, instead of numbers."""
    data = predictor.cfg.DATASETS.TESTS[0]
    if not os.path.exists(data):  # a registered dataset
        return rows
    own = read_people(data, predictor.cfg.DATASETS.NAME_PATTERN)
    number = {own.path(place): place for place in range(len(own))}
    titles = []
    for row in rows:
        place = number[row.picture or ""]
        camera = "" if own.camera is None else own.camera[place]
        titles.append(f"person {own.person[place][:NAME]}" + (f", camera {camera[:NAME]}" if camera else ""))
    return [replace(row, title=title) for row, title in zip(rows, titles)]
