"""The result table that people read and the records that programs read; every file is written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping

import torch
from tabulate import tabulate

from . import host

FLOOR_FILE = "untrained.json"
REID = ("mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "mAP_trapezoid")
MEANS = ("official", "binary", "balanced")


def results_table(results: Mapping[str, float], floor: Mapping[str, float] | None = None) -> str:
    """reID, PAR and APS side by side with their floors, percent. Tasks that a model does not serve are not shown.

    Args:
        results: figures by name, as `TaskEvaluator` returns them.
        floor: the same of the untrained model, where it was evaluated.
    """
    rows = [("this model", results)] + ([("untrained", floor)] if floor else [])
    parts = ["reID (rectangle AP unless said)\n" + _table(
        ["", *REID], [[name, *(figures.get(key) for key in REID)] for name, figures in rows])]
    if "PAR/mA_official" in results:
        parts.append(_par_table(rows))
    if "APS/mAP" in results:
        parts.append(_aps_table(rows))
    return "\n\n".join(parts)


def _par_table(rows: list[tuple[str, Mapping]]) -> str:
    results = rows[0][1]
    columns = [key.removeprefix("PAR/official/") for key in results if key.startswith("PAR/official/")]
    lines = []
    for rule in MEANS:
        lines.append([f"{rule}", results[f"PAR/mA_{rule}"], *(results[f"PAR/{rule}/{c}"] for c in columns)])
    for rule in MEANS:
        if f"PAR-majority/mA_{rule}" in results:
            figures = [results[f"PAR-majority/{rule}/{c}"] for c in columns]
            lines.append([f"majority answer, {rule}", results[f"PAR-majority/mA_{rule}"], *figures])
    for name, figures in rows[1:]:
        lines.append([f"{name}, official", figures.get("PAR/mA_official"),
                      *(figures.get(f"PAR/official/{c}") for c in columns)])
    ceiling = [results.get(f"PAR/ceiling/{c}", 100.0) for c in columns]
    lines.append(["ceiling, official", sum(ceiling) / len(ceiling), *ceiling])
    title = f"PAR on {results['PAR/images']:.0f} gallery images (mA and accuracy of each attribute)"
    return f"{title}\n" + _table(["rule", "mA", *columns], lines)


def _aps_table(rows: list[tuple[str, Mapping]]) -> str:
    results = rows[0][1]
    lines = []
    for name, figures in rows:
        lines.append([name, "all", results["APS/queries"], figures.get("APS/mAP"), figures.get("APS/Rank-1"),
                      figures.get("APS/mAP_trapezoid")])
        for part in ("seen", "unseen"):
            if f"APS/{part}/mAP" in figures:
                lines.append([name, f"{part} in training", figures[f"APS/{part}/queries"], figures[f"APS/{part}/mAP"],
                              figures[f"APS/{part}/Rank-1"], None])
    for key in results:
        if key.endswith("/mAP_given"):
            groups = key.split("/")[1]
            for reading, word in (("given", "relevant: same in these groups"), ("full", "relevant: same in all")):
                lines.append([f"{groups} only", word, None, results[f"APS/{groups}/mAP_{reading}"],
                              results[f"APS/{groups}/Rank-1_{reading}"], None])
    title = f"APS over {results['APS/images']:.0f} images of query and gallery"
    return f"{title}\n" + _table(["", "categories", "queries", "mAP", "Rank-1", "mAP_trapezoid"], lines)


def _table(headers: list[str], lines: list[list]) -> str:
    # Queries are counts; everything else is a percentage with two decimals.
    formatted = [[_format(headers[i], value) for i, value in enumerate(line)] for line in lines]
    return tabulate(formatted, headers=headers, disable_numparse=True, stralign="right")


def _format(header: str, value) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if math.isnan(value):
        return "undefined"
    return f"{value:.0f}" if header == "queries" else f"{value:.2f}"


def read_floor(output_dir: str, dataset_name: str) -> dict | None:
    path = os.path.join(output_dir, FLOOR_FILE)
    if not os.path.isfile(path):
        return None
    with open(path) as file:
        return json.load(file).get(dataset_name)


def write_floor(cfg, results: Mapping) -> None:
    write_json(os.path.join(cfg.OUTPUT_DIR, FLOOR_FILE), _by_dataset(cfg, results))


def write_results(cfg, results: Mapping) -> None:
    """results.txt, the table; results.json, the figures with what is needed to compare them with others'."""
    by_dataset = _by_dataset(cfg, results)
    record = {
        "results": by_dataset,
        "untrained": {name: read_floor(cfg.OUTPUT_DIR, name) for name in by_dataset},
        "protocol": {
            "reid": {"ap": "rectangle", "same camera": "ignored", "metric": cfg.TEST.METRIC,
                     "flip": cfg.TEST.FLIP.ENABLED, "re-ranking": cfg.TEST.RERANK.ENABLED,
                     "query expansion": cfg.TEST.AQE.ENABLED},
            "par": {"force colour": cfg.TEST.PAR.FORCE_COLOUR,
                    "query identities only": cfg.TEST.PAR.QUERY_IDENTITIES_ONLY},
            "aps": {"protocol": cfg.TEST.APS.PROTOCOL, "pool": "query and gallery", "ap": "rectangle"},
        },
        "model": cfg.MODEL.META_ARCHITECTURE,
        "image size": list(cfg.INPUT.SIZE_TEST),
        "versions": {"fastreid": host.version(), "torch": torch.__version__, "python": platform.python_version()},
    }
    write_json(os.path.join(cfg.OUTPUT_DIR, "results.json"), record)
    tables = [f"{name}\n\n{results_table(by_dataset[name], record['untrained'][name])}\n" for name in by_dataset]
    write_text(os.path.join(cfg.OUTPUT_DIR, "results.txt"), "\n".join(tables))


def write_json(path: str, record) -> None:
    # NaN is not JSON; an undefined figure is null.
    write_text(path, json.dumps(_without_nan(record), indent=1))


def write_text(path: str, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _by_dataset(cfg, results: Mapping) -> dict:
    """The host returns the bare figures where there is one test data set."""
    return {cfg.DATASETS.TESTS[0]: dict(results)} if len(cfg.DATASETS.TESTS) == 1 else dict(results)


def _without_nan(value):
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
