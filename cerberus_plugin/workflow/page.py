"""RUN/report.html: what was chosen, what came out beside its floors, what was not measured, and what to do next."""

from __future__ import annotations

import base64
import io
import logging
import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from ..evaluation.report import REID, percent, read_results
from ..experiments.figures.exhibit import DPI
from ..experiments.figures.rank_list import Gallery, sheet
from ..metrics.par import LABELS
from ..own_data.check import Section
from ..own_data.recipe import CALIBRATED_PEOPLE
from ..predictor import CerberusPredictor
from ..utils.files import write_text
from ..utils.images import Unreadable

PAGE = "report.html"
QUERIES, SEARCHES, TOP = 5, 2, 8  # of the picture

logger = logging.getLogger("fastreid.cerberus")


def write_page(folder: Path, record: Mapping, predictor: CerberusPredictor, not_calibrated: str) -> None:
    """Write the report of a finished run.

    Args:
        record: of `training.begin`.   not_calibrated: the reason; empty where it was.
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
        hardware=results["hardware"], sections=sections, picture=_picture(predictor) if "mAP" in figures else "",
        missing=not_measured(figures, not_calibrated, predictor.reader is not None),
        commands=next_commands(folder, record["data"], predictor))
    write_text(str(folder / PAGE), text)
    logger.info(f"wrote {folder / PAGE}")


def sections_of(figures: Mapping, floor: Mapping, calibrated: Mapping | None = None) -> list[Section]:
    """The figures of an evaluation beside those before training; without what was not evaluated.

    Args:
        calibrated: record of each attribute in calibration.json.
    """
    rows = [(name, of) for name, of in (("this model", figures), ("before training", floor)) if of]
    sections = []
    if "mAP" in figures:
        sections.append(Section("The same person again (reID, percent)", ("", *REID[:5]),
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
        sections.append(Section(f"People by a description (APS, {figures['APS/queries']:.0f} descriptions, percent)",
                                ("", *keys),
                                [(name, *(percent(of.get(f"APS/{key}")) for key in keys)) for name, of in rows]))
    return sections


def _attributes(figures: Mapping, floor: Mapping, calibrated: Mapping) -> Section:
    """A line an attribute, and one of their means."""
    columns = ["attribute", "accuracy", "most frequent value", "before training", "balanced", "balanced before"]
    kinds = (("PAR", "official", figures), ("PAR-majority", "official", figures), ("PAR", "official", floor),
             ("PAR", "balanced", figures), ("PAR", "balanced", floor))
    rows = [("mean", *(percent(of.get(f"{source}/mA_{rule}")) for source, rule, of in kinds))]
    rows += [(name, *(percent(of.get(f"{source}/{rule}/{name}")) for source, rule, of in kinds))
             for name in (key.removeprefix("PAR/official/") for key in figures if key.startswith("PAR/official/"))]
    if calibrated:
        columns += ["answered", "accuracy of these"]
        answered = [calibrated.get(name, {}).get("answered", {}) for name, *_ in rows]
        rows = [(*row, _share(of.get("share")), _share(of.get("accuracy"))) for row, of in zip(rows, answered)]
    return Section(f"Attributes of a picture (PAR on {figures['PAR/images']:.0f} gallery pictures, percent)",
                   tuple(columns), rows)


def _share(value: float | None) -> str:
    return "" if value is None else percent(100 * value)


def not_measured(figures: Mapping, not_calibrated: str, attributes: bool) -> list[str]:
    """What nobody knows after this run."""
    texts = ["how figures differ between seeds and splits: this is one of each. SEED 2 in another --out is a second "
             "one; delete split.csv for another split, whose people are others",
             "pictures of other places and cameras: cerberus evaluate RUN OTHER"]
    if "mAP" not in figures:
        texts.append("who is found again, and searches by description: it is not known who is on the pictures")
    if figures.get("shared cameras") == 0:
        texts.append("reID across cameras: no camera is known, so pictures taken one after the other count as found, "
                     "and figures are higher")
    if not any(key.startswith("PAR/") for key in figures):
        texts.append("attributes and searches by description: "
                     + ("none are known of the test" if attributes else "the model learns none"))
    undefined = [key.removeprefix("PAR/official/") for key, value in figures.items()
                 if key.startswith("PAR/official/") and math.isnan(value)]
    if undefined:
        texts.append(f"attributes that no gallery picture is labelled with: {', '.join(undefined)}")
    never = [f"{percent(value)} % of '{key.removeprefix('PAR/ceiling/')}'" for key, value in figures.items()
             if key.startswith("PAR/ceiling/") and value < 100]
    if never:
        texts.append("answers of none: pictures with none of the listed values count as wrong in the accuracy, "
                     f"whatever is answered, so that at most {', '.join(never)} can be right; balanced counts them")
    if not_calibrated:
        texts.append(f"probabilities: not calibrated; {not_calibrated}")
    elif attributes:
        texts.append(f"probabilities of attributes of which fewer than {CALIBRATED_PEOPLE} people are known: the model "
                     "abstains from these or answers as it is")
    return texts


def next_commands(folder: Path, data: str, predictor: CerberusPredictor) -> list[tuple[str, str]]:
    """Commands and what they do."""
    pictures = Path(data) if Path(data).is_dir() else Path(data).parent
    run, data, images, gallery = (shlex.quote(str(path)) for path in (folder, data, pictures, folder / "gallery"))
    commands = [(f"cerberus index --run {run} --images {images} --out {gallery}", "embed the pictures, to search them")]
    if predictor.attribute_model is not None:
        column = predictor.reader.schema.columns[0]
        words = f"{column.display or column.name}={column.classes[-1]}"
        commands.append((f"cerberus search {gallery} {shlex.quote(words)}", "find people by attributes"))
    commands += [(f"cerberus serve {gallery} --run {run} --open", "search in a browser"),
                 (f"cerberus audit {data} --run {run}", "look for wrong labels"),
                 (f"cerberus evaluate {run} OTHER", "the same figures on another data set"),
                 (f"cerberus export --run {run} --images {images}", "one file that runs without torch")]
    return commands


def _picture(predictor: CerberusPredictor) -> str:
    """Found people as a PNG in base64; empty where nothing can be shown."""
    try:
        gallery = Gallery(predictor)
        top = min(TOP, len(gallery.items))
        rows = [gallery.query_row(index, top) for index in gallery.spread_queries(QUERIES)]
        if gallery.labels is not None and (gallery.labels >= 0).all(dim=1).any():
            rows += [gallery.search_row(labels, top) for labels in gallery.searches(SEARCHES)]
        if not rows:
            return ""
        drawn = io.BytesIO()
        sheet(rows, top).savefig(drawn, format="png", dpi=DPI)
    except Unreadable as error:  # the evaluation has passed over it, as DATALOADER.ON_UNREADABLE says
        logger.warning(f"no picture of found people: {error}")
        return ""
    return base64.b64encode(drawn.getvalue()).decode()
