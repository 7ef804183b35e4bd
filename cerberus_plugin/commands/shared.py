"""Options and output functions that several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cerberus_plugin

from ..utils.commands import printable
from ..utils.files import write_whole

if TYPE_CHECKING:
    from ..search.gallery import GalleryIndex
    from ..search.portable import Encoder

BATCH = 64


def add_index(job: argparse.ArgumentParser) -> None:
    """Add the arguments that choose an index and its search engine."""
    job.add_argument("index", help="index folder written by `cerberus index`")
    job.add_argument("--images", metavar="FOLDER", help="folder of the indexed images, if it has moved")
    job.add_argument("--engine", default="exact", metavar="ENGINE", help="search engine: exact, float16, int8 or pq "
                     "for FAISS in memory (pq needs the least memory); or Milvus: a file NAME.db, or "
                     "http://host:19530 with the token in the environment variable MILVUS_TOKEN (default: %(default)s)")


def add_model(job: argparse.ArgumentParser, required: bool = False) -> None:
    """Add the mutually exclusive options --run and --model."""
    model = job.add_mutually_exclusive_group(required=required)
    model.add_argument("--run", metavar="FOLDER", help="folder of a training run (config.yaml and a checkpoint)")
    model.add_argument("--model", metavar="FILE", help="model exported by `cerberus export`, instead of a run")


def encoder_of(run: str | None, model: str | None) -> Encoder:
    """Load the encoder of a run folder, with its calibration if it has one, or of an exported file."""
    if model:
        from ..search.portable import ExportedEncoder

        return ExportedEncoder(model, BATCH)
    cerberus_plugin.use_torch()
    from ..predictor import CerberusPredictor
    from ..search.export.torch_encoder import TorchEncoder

    return TorchEncoder(CerberusPredictor(run), BATCH)


def open_index(args: argparse.Namespace) -> GalleryIndex:
    """Open the index of the options with the search engine of the options."""
    from ..search.gallery import GalleryIndex
    from ..search.gallery.engines import FORMS, Faiss, Milvus

    if args.engine in FORMS:
        engine = Faiss(args.engine)
    elif "://" in args.engine or args.engine.endswith(".db"):
        engine = Milvus(args.engine, token=os.environ.get("MILVUS_TOKEN", ""))
    else:
        raise ValueError(f"--engine {args.engine}: expected one of {', '.join(FORMS)}, or for Milvus a file NAME.db or "
                         "an address http://host:19530")
    return GalleryIndex.open(args.index, images=args.images, engine=engine)


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Print rows, one dictionary per row, all with the same keys."""
    from tabulate import tabulate

    widths = [60 if name == "recognised" else None for name in (rows[0] if rows else ())]
    rows = [{name: printable(value) for name, value in row.items()} for row in rows]
    print(tabulate(rows, headers="keys", disable_numparse=True, maxcolwidths=widths) if rows else "no results")


def skip(path: str | Path, reason: str) -> None:
    """Report a skipped file on standard error."""
    print(f"skipped {printable(str(path))}: {reason}", file=sys.stderr)


def write_file(path: str, text: str) -> None:
    """Write a text file in one step, or write to a pipe or device. Undecodable bytes of file names are escaped."""
    if Path(path).exists() and not Path(path).is_file():  # such as /dev/stdout, which must not be replaced by a file
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    else:
        write_whole(Path(path).resolve(), lambda file: file.write(text.encode(errors="backslashreplace")))


def listed(words: Iterable[str]) -> str:
    """Join words with commas."""
    return ", ".join(words)
