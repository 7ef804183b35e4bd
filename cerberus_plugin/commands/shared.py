"""Options that several commands have, and what several print and write."""

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
    job.add_argument("index", help="folder that `cerberus index` has made")
    job.add_argument("--images", help="folder of its pictures, where it has moved")
    job.add_argument("--engine", default="exact", metavar="ENGINE", help="exact, float16, int8 or pq: FAISS in memory, "
                     "each smaller than the one before; or Milvus: a file NAME.db, or http://host:19530 with the token "
                     "in MILVUS_TOKEN (default: %(default)s)")


def add_model(job: argparse.ArgumentParser, required: bool = False) -> None:
    model = job.add_mutually_exclusive_group(required=required)
    model.add_argument("--run", help="folder of a training run (config.yaml and a checkpoint)")
    model.add_argument("--model", help="file of `cerberus export`, in place of a run")


def encoder_of(run: str | None, model: str | None) -> Encoder:
    """The encoder of a run folder, calibrated where it has been, or of an exported file."""
    if model:
        from ..search.portable import ExportedEncoder

        return ExportedEncoder(model, BATCH)
    cerberus_plugin.use_torch()
    from ..predictor import CerberusPredictor
    from ..search.export.torch_encoder import TorchEncoder

    return TorchEncoder(CerberusPredictor(run), BATCH)


def open_index(args: argparse.Namespace) -> GalleryIndex:
    """The index, searched by the engine of the options."""
    from ..search.gallery import GalleryIndex
    from ..search.gallery.engines import FORMS, Faiss, Milvus

    if args.engine in FORMS:
        engine = Faiss(args.engine)
    elif "://" in args.engine or args.engine.endswith(".db"):
        engine = Milvus(args.engine, token=os.environ.get("MILVUS_TOKEN", ""))
    else:
        raise ValueError(f"--engine {args.engine}: expected one of {', '.join(FORMS)}, or a gallery of Milvus: a file "
                         "NAME.db, or an address http://host:19530")
    return GalleryIndex.open(args.index, images=args.images, engine=engine)


def print_table(rows: Sequence[dict[str, str]]) -> None:
    from tabulate import tabulate

    widths = [60 if name == "recognised" else None for name in (rows[0] if rows else ())]
    rows = [{name: printable(value) for name, value in row.items()} for row in rows]
    print(tabulate(rows, headers="keys", disable_numparse=True, maxcolwidths=widths) if rows else "nothing found")


def skip(path: str | Path, reason: str) -> None:
    print(f"skipped {printable(str(path))}: {reason}", file=sys.stderr)


def write_file(path: str, text: str) -> None:
    if Path(path).exists() and not Path(path).is_file():  # such as /dev/stdout, which nothing may take the place of
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    else:  # names of files may be no text
        write_whole(Path(path).resolve(), lambda file: file.write(text.encode(errors="backslashreplace")))


def listed(words: Iterable[str]) -> str:
    return ", ".join(words)
