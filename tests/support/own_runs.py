"""Runs of `cerberus train` on small data sets of one's own."""

import json
from pathlib import Path

from cerberus_plugin import cli

from support.training import SMALL

TINY_RUN = (*SMALL, "INPUT.SIZE_TRAIN", "[48,24]", "INPUT.SIZE_TEST", "[48,24]")


def train_own(data: Path, run: Path, *options, model: str = "plus", epochs: int | None = 2) -> Path:
    """Train a tiny model by the command; options as there."""
    said = ["--model", model] if model else []
    said += ["--epochs", str(epochs)] if epochs else []
    tiny = TINY_RUN if model in ("plus", "cerberus", "") else (*TINY_RUN[:4], *TINY_RUN[6:])  # no other has that head
    cli.main(["train", str(data), "--out", str(run), *said, *map(str, (*tiny, *options))])
    return run


def figures(run: Path) -> dict:
    """Figures of a run's own test set."""
    (found,) = json.loads((run / "results.json").read_text())["results"].values()
    return found
