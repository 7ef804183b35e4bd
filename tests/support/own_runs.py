"""Runs of `cerberus train` on small own datasets."""

import json
from pathlib import Path

from cerberus_plugin import cli

from support.training import SMALL

TINY_RUN = (*SMALL, "INPUT.SIZE_TRAIN", "[48,24]", "INPUT.SIZE_TEST", "[48,24]")


def train_own(data: Path, run: Path, *options, model: str = "plus", epochs: int | None = 2) -> Path:
    """Train a tiny model with `cerberus train` and its options."""
    arguments = ["--model", model] if model else []
    arguments += ["--epochs", str(epochs)] if epochs else []
    tiny = TINY_RUN if model in ("plus", "cerberus", "") else (*TINY_RUN[:4], *TINY_RUN[6:])  # no such head
    cli.main(["train", str(data), "--out", str(run), *arguments, *map(str, (*tiny, *options))])
    return run


def figures(run: Path) -> dict:
    """Metrics on the test set of a run."""
    (found,) = json.loads((run / "results.json").read_text())["results"].values()
    return found
