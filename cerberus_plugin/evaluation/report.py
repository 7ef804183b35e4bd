"""Result tables (results.txt) and records (results.json); files are written atomically."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from ..metrics.aps import RANKS
from ..metrics.outfits import CHANGES, SETTINGS
from ..metrics.par import LABELS
from ..utils.files import read_json, write_json, write_text

FLOOR_FILE = "before_training.json"
RESULTS_FILE = "results.json"
STARTING_WEIGHTS_FILE = "starting_weights.json"
REID = ("mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "mAP_trapezoid")
MEANS = ("official", "binary", "balanced")
# Metrics that are stored for each evaluated epoch, by key and (KEPT_PARTS) by prefix: all but those by attribute.
KEPT = ("metric", *REID, "APS/mAP", "APS/mAP_trapezoid", *(f"APS/Rank-{k}" for k in RANKS))
# The two prediction methods of Cerberus; the keys of the one that is not TEST.READING contain its name.
READINGS = {"nearest": "nearest prototype", "probability": "by probability"}
PERSON = "by person"
APS_PARTS = {"person": f"all, {PERSON}", "seen": "seen in training", "unseen": "unseen in training",
             "unseen semantic ID": "with a semantic ID unseen in training"}
KEPT_PARTS = ("cloth-changing/", "same-clothes/", "single-shot/", "PAR/mA_", "PAR/label/", "PAR/instance/")


def results_table(results: Mapping[str, float], floor: Mapping[str, float] | None = None,
                  best: Sequence[tuple[str, Mapping[str, float]]] = ()) -> str:
    """Format reID, PAR and APS with their baselines as text tables, in percent.

    Tasks that are not evaluated are omitted.

    Args:
        results: metrics by name, as `TaskEvaluator` returns them.
        floor: the metrics before the first training step, if they were measured.
        best: rows of the best epochs, `best_rows`, to show next to the last epoch; for PAR and APS, they contain
            means only.
    """
    rows = [("this model, last epoch", results), *best] if best else [("this model", results)]
    rows += [("before training", floor)] if floor else []
    parts = ["reID (rectangle AP unless stated otherwise)\n" + _table(
        ["", *REID], [[name, *(figures.get(key) for key in REID)] for name, figures in rows])]
    if "mAP" not in results and "PAR/mA_official" in results:
        parts[0] = "no reID and no APS: the images have no identities"
    if any(f"{setting}/mAP" in results for setting in SETTINGS):
        parts[0] = _outfits_table(rows)
    if results.get("shared cameras") == 0:
        parts[0] += "\nqueries and gallery share no camera, or cameras are unknown: no match is excluded by its camera"
    if "PAR/mA_official" in results:
        parts.append(_par_table(rows))
    if "PAR/label/mA" in results:
        parts.append(_labels_table(rows))
    if "APS/mAP" in results:
        parts.append(_aps_table(rows))
    return "\n\n".join(parts)


def summary(figures: Mapping[str, float]) -> dict[str, float]:
    """Select the metrics of an evaluation that are stored for each epoch, as Python floats."""
    return {key: float(value) for key, value in figures.items() if key in KEPT or key.startswith(KEPT_PARTS)}


def best_rows(evaluations: Mapping[int, Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    """Select the best epoch, and the best epoch of each of mAP and Rank-1, all on the test set.

    The best epoch is the earliest one with the highest "metric"; its PAR and APS need not be the best. The second row
    has the highest mAP and the highest Rank-1 of each setting, each from a different epoch if need be, as the published
    code of CSSC reports them; no single model has these metrics.

    Args:
        evaluations: metrics by epoch, from 1 on; the last epoch is that of the model.

    Returns:
        names and metrics of the two rows; empty if "metric" is undefined in all epochs.
    """
    metrics = {epoch: evaluations[epoch].get("metric", math.nan) for epoch in sorted(evaluations)}
    metrics = {epoch: metric for epoch, metric in metrics.items() if not math.isnan(metric)}
    if not metrics:
        return []
    best = max(metrics, key=metrics.__getitem__)
    keys = [f"{prefix}{key}" for prefix in ("", *(f"{name}/" for name in SETTINGS)) for key in ("mAP", "Rank-1")]
    values = {key: [row[key] for row in evaluations.values() if not math.isnan(row.get(key, math.nan))] for key in keys}
    by = "reID" if "mAP" in evaluations[best] else "label mA"
    return [(f"epoch {best} of {max(evaluations)}, the best on this test set by {by}", evaluations[best]),
            ("best epoch of each metric on this test set", {key: max(of) for key, of in values.items() if of})]


def by_reading(figures: Mapping[str, float], reading: str) -> dict[str, float]:
    """Select the PAR and APS metrics of one prediction method and give them their usual keys.

    If the evaluation used the other method, its PAR and APS metrics are replaced; those without a counterpart, such as
    partial searches, are omitted. Otherwise all metrics are returned unchanged.

    Args:
        figures: metrics by key of results.json.
        reading: one of `READINGS`, or "" for the method of the evaluation.

    Examples:
        >>> by_reading({"mAP": 9.0, "PAR/mA": 1.0, "PAR (nearest)/mA": 2.0}, "nearest")
        {'mAP': 9.0, 'PAR/mA': 2.0}
    """
    renamed = {f"{task} ({reading})/": f"{task}/" for task in ("PAR", "APS")}
    found = {key.replace(source, usual, 1): value for source, usual in renamed.items()
             for key, value in figures.items() if key.startswith(source)}
    if not found:
        return dict(figures)
    return {key: value for key, value in figures.items() if not key.startswith(("PAR/", "APS/", *renamed))} | found


def readings_of(figures: Mapping[str, float]) -> tuple[str, ...]:
    """Return the prediction methods in an evaluation's PAR metrics; empty for a model with one method only."""
    return tuple(READINGS) if any(f"PAR ({name})/images" in figures for name in READINGS) else ()


def by_dataset(tests: Sequence[str], results: Mapping) -> dict[str, dict]:
    """Return metrics by test dataset; FastReID returns those of a single test dataset without its name."""
    return {tests[0]: dict(results)} if len(tests) == 1 else dict(results)


def _outfits_table(rows: list[tuple[str, Mapping]]) -> str:
    """Format one row per setting, first that of the "metric"; metrics without a setting are over all queries."""
    shown = [setting for setting in CHANGES if f"{setting}/mAP" in rows[0][1]]
    lines = []
    for name, figures in rows:
        lines += [[name, setting, figures.get(f"{setting}/queries"), *(figures.get(f"{setting}/{k}") for k in REID)]
                  for setting in shown]
        lines.append([name, "standard, all queries", None, *(figures.get(key) for key in REID)])
        for setting in shown:
            if f"single-shot/{setting}/Rank-1" in figures:
                mean, deviation = (figures[f"single-shot/{setting}/Rank-1{k}"] for k in ("", "_deviation"))
                lines.append([name, f"single-shot, {setting}", None, None, f"{percent(mean)} +- {percent(deviation)}"])
    title = "reID by outfits (rectangle AP unless stated otherwise)"
    if "single-shot/draws" in rows[0][1]:
        title += (f"; single-shot: Rank-1 over {rows[0][1]['single-shot/draws']:.0f} draws, each of one "
                  "random gallery image per person; mAP is computed on the full gallery only")
    return f"{title}\n" + _table(["", "setting", "queries", *REID], lines)


def _par_table(rows: list[tuple[str, Mapping]]) -> str:
    results = rows[0][1]
    columns = [key.removeprefix("PAR/official/") for key in results if key.startswith("PAR/official/")]

    def line(name: str, figures: Mapping, rule: str, source: str = "PAR") -> list:
        return [name, figures.get(f"{source}/mA_{rule}"), *(figures.get(f"{source}/{rule}/{c}") for c in columns)]

    others = {name: words for name, words in READINGS.items() if f"PAR ({name})/mA_official" in results}
    own = next((f", {words}" for name, words in READINGS.items() if others and name not in others), "")
    lines = []
    for words, source in ((own, "PAR"), *((f", {words}", f"PAR ({name})") for name, words in others.items())):
        lines += [line(rule + words, results, rule, source) for rule in MEANS]
        if f"{source}/person/mA_official" in results:
            lines += [line(f"{rule}{words}, {PERSON}", results, rule, f"{source}/person") for rule in MEANS]
    if "PAR-majority/mA_official" in results:
        lines += [line(f"majority class, {rule}", results, rule, "PAR-majority") for rule in MEANS]
    lines += [line(f"{name}, {rule}", figures, rule) for name, figures in rows[1:] for rule in MEANS
              if f"PAR/mA_{rule}" in figures]
    ceiling = [results.get(f"PAR/ceiling/{c}", math.nan if math.isnan(results[f"PAR/official/{c}"]) else 100.0)
               for c in columns]
    known = [share for share in ceiling if not math.isnan(share)]
    lines.append(["ceiling, official", sum(known) / len(known) if known else math.nan, *ceiling])
    title = f"PAR on {results['PAR/images']:.0f} gallery images (mA and accuracy of each attribute)"
    if "PAR/person/persons" in results:
        title += (f"; {PERSON}: one prediction for the images of each of {results['PAR/person/persons']:.0f} "
                  "persons (once for each set of labels, if images of a person have different labels)")
    if results.get("PAR/undefined_questions"):
        title += (f"; balanced excludes {results['PAR/undefined_questions']:.0f} of {results['PAR/questions']:.0f} "
                  "yes/no labels that are equal on all images")
    if others:
        title += ("\nby probability: the most probable value; balanced: the value with the largest "
                  "(p - pi) / (pi (1 - pi)), where pi is its share of the training identities")
    return f"{title}\n" + _table(["rule", "mA", *columns], lines)


def _labels_table(rows: list[tuple[str, Mapping]]) -> str:
    """Format the metrics of yes/no labels, as published for PETA, RAP and PA-100K."""
    results = rows[0][1]
    keys = ("label/accuracy", "label/mA", "label/F1", "instance/accuracy", "instance/precision", "instance/recall",
            "instance/F1")
    lines = []

    def add(name: str, figures: Mapping, source: str = "PAR") -> None:
        if f"{source}/label/mA" in figures:
            lines.append([name, *(figures.get(f"{source}/{key}") for key in keys)])

    others = {name: words for name, words in READINGS.items() if f"PAR ({name})/label/mA" in results}
    own = next((f", {words}" for name, words in READINGS.items() if others and name not in others), "")
    for words, source in ((own, "PAR"), *((f", {words}", f"PAR ({name})") for name, words in others.items())):
        add(rows[0][0] + words, results, source)
        add(f"{rows[0][0]}{words}, {PERSON}", results, f"{source}/person")
    add("majority class", results, "PAR-majority")
    for name, figures in rows[1:]:
        add(name, figures)
    left_out = [f"{words}: {results[f'PAR/{key}']:.0f}" for key, words in (
        ("label/undefined_F1", "labels without F1 (never yes, never predicted)"),
        ("instance/without_yes", "images without recall (no label is yes)"),
        ("instance/without_answer", "images without precision (no prediction is yes)"),
        ("instance/without_either", "images without instance accuracy (neither is yes)")) if results.get(f"PAR/{key}")]
    title = f"PAR by {results['PAR/questions']:.0f} yes/no labels ({LABELS})"
    if left_out:
        title += f"\nexcluded from the means: {'; '.join(left_out)}"
    return f"{title}\n" + _table(["", "label accuracy", "label mA", "label F1", "instance accuracy", "precision",
                                  "recall", "F1"], lines)


def _aps_table(rows: list[tuple[str, Mapping]]) -> str:
    results = rows[0][1]
    lines, ranks = [], [f"Rank-{k}" for k in RANKS]

    def add(name: str, words: str, queries, figures: Mapping, part: str = "APS", suffix: str = "") -> None:
        keys = ("mAP", "mAP_trapezoid", *ranks)
        lines.append([name, words, queries, *(figures.get(f"{part}/{key}{suffix}") for key in keys)])

    for name, figures in rows:
        if "APS/mAP" in figures:
            add(name, "all", results["APS/queries"], figures)
        for part, words in APS_PARTS.items():
            if figures.get(f"APS/{part}/queries"):
                add(name, words, figures[f"APS/{part}/queries"], figures, f"APS/{part}")
    for reading, words in READINGS.items():
        source = f"APS ({reading})"
        for part, kind in ((source, "all"), (f"{source}/person", APS_PARTS["person"])):
            if f"{part}/mAP" in results:
                add(f"{rows[0][0]}, {words}", kind, results[f"{part}/queries"], results, part)
    for key in [key for key in results if key.startswith("APS/") and key.endswith("/mAP_given")]:
        groups = key.split("/")[1]
        for reading, word in (("given", "same in these groups"), ("full", "same in all groups")):
            for name, figures in rows:
                if f"APS/{groups}/mAP_{reading}" in figures:
                    add(name, f"by {groups}, relevant: {word}", None, figures, f"APS/{groups}", f"_{reading}")
    title = (f"APS over {results['APS/images']:.0f} images of query and gallery (ASMR publishes the trapezoid AP, SAL "
             "the rectangle AP)")
    if results.get("APS/categories", 0) > results["APS/queries"]:
        title += (f"; queries are the {results['APS/queries']:.0f} categories of the query images, out of "
                  f"{results['APS/categories']:.0f} in the test set")
    if "APS/person/persons" in results:
        title += (f"; {PERSON}: {results['APS/person/persons']:.0f} persons are ranked, each by the mean score of "
                  "their images (once for each set of labels)")
    if results.get("APS/unmatched"):
        title += f"; {results['APS/unmatched']:.0f} queries have no relevant image"
    return f"{title}\n" + _table(["", "categories", "queries", "mAP (rectangle)", "mAP (trapezoid)", *ranks], lines)


def _table(headers: list[str], lines: list[list]) -> str:
    # Queries are counts; everything else is a percentage with two decimals.
    formatted = [[_format(headers[i], value) for i, value in enumerate(line)] for line in lines]
    return tabulate(formatted, headers=headers, disable_numparse=True, stralign="right")


def _format(header: str, value) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if header == "queries" and value is not None else percent(value)


def aligned(rows: Sequence[Sequence[str]], headers: Sequence[str], form: str = "simple") -> str:
    """Format a table with left-aligned names in the first column and right-aligned numbers in the others.

    Args:
        rows: cells as text.
        headers: names of the columns.
        form: format of tabulate.
    """
    return tabulate(rows, headers, tablefmt=form, disable_numparse=True,
                    colalign=("left", *["right"] * (len(headers) - 1)))


def percent(value: float | None) -> str:
    """Format a number with two decimals; "undefined" for NaN, "" for None.

    Examples:
        >>> percent(89.8251), percent(math.nan), percent(None)
        ('89.83', 'undefined', '')
    """
    if value is None:
        return ""
    return "undefined" if math.isnan(value) else f"{value:.2f}"


def read_floor(folder: str) -> dict[str, dict]:
    """Read the metrics before training, by test dataset; empty if they were not measured.

    Raises:
        ValueError: if the file is damaged.
    """
    path = os.path.join(folder, FLOOR_FILE)
    if not os.path.isfile(path):
        return {}
    remedy = "delete it, or train again with TEST.UNTRAINED_FLOOR True"
    floor = read_json(path, remedy)
    if not _are_figures(floor):
        raise ValueError(f"{path}: expected metrics by test dataset; {remedy}")
    return _with_nan(floor)


def write_floor(folder: str, floor: Mapping[str, Mapping]) -> None:
    """Write the metrics before training, by test dataset."""
    write_json(os.path.join(folder, FLOOR_FILE), floor)


def write_starting_weights(folder: str, source: Mapping | None) -> None:
    """Write starting_weights.json, a record of the pretrained weights of a training.

    A resumed run does not load these weights, so it needs the record for its results.

    Args:
        folder: of the run.
        source: record of `host.starting_weights`.
    """
    write_json(os.path.join(folder, STARTING_WEIGHTS_FILE), source)


def read_starting_weights(folder: str) -> dict | None:
    """Read the record of `write_starting_weights`; None if there is none, as in runs of version 0.1."""
    path = os.path.join(folder, STARTING_WEIGHTS_FILE)
    return read_json(path, "delete it; the model card then says 'not recorded'") if os.path.isfile(path) else None


def read_results(folder: str) -> dict:
    """Read results.json of a finished run, see `write_results`; null is NaN.

    Raises:
        FileNotFoundError: if the folder has no results.json.
        ValueError: if the file is damaged.
    """
    path = os.path.join(folder, RESULTS_FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: not found; it is written at the end of a run. Finish the run in this "
                                "folder (train_net.py --resume), or give the folder of a finished run.")
    remedy = "evaluate the run again (train_net.py --eval-only), or finish it (--resume)"
    record = read_json(path, remedy)
    if not isinstance(record, dict) or not _are_figures(record.get("results")):
        raise ValueError(f"{path}: has no 'results' with metrics by test dataset; {remedy}")
    return record | {"results": _with_nan(record["results"])}


def write_results(folder: str, results: Mapping[str, Mapping], record: Mapping,
                  best: Mapping[str, Sequence[tuple[str, Mapping]]] | None = None) -> str:
    """Write results.txt with the tables and results.json with the metrics.

    Args:
        folder: of the run.
        results: metrics by test dataset.
        record: further entries of results.json, such as the manifest.
        best: rows of the best epochs by test dataset, `best_rows`, to show in the tables.

    Returns:
        the tables.
    """
    floor = read_floor(folder)
    write_json(os.path.join(folder, RESULTS_FILE), {"results": results, "before training": floor, **record})
    best = best or {}
    tables = {name: results_table(figures, floor.get(name), best.get(name, ())) for name, figures in results.items()}
    text = "\n".join(f"{name}\n\n{table}\n" for name, table in tables.items())
    write_text(os.path.join(folder, "results.txt"), text)
    return text


def _are_figures(record: object) -> bool:
    """Whether a record has metrics by test dataset."""
    return isinstance(record, Mapping) and all(isinstance(row, Mapping) for row in record.values())


def _with_nan(figures: Mapping[str, Mapping]) -> dict[str, dict]:
    """Return metrics by test dataset, with NaN for null."""
    return {name: {key: math.nan if value is None else value for key, value in row.items()}
            for name, row in figures.items()}
