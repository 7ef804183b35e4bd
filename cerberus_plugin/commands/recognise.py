"""`cerberus recognise`: predict the attributes of images."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from ..utils.commands import printable
from .shared import BATCH, add_model, encoder_of, listed, print_table, skip, write_file


def add(jobs) -> None:
    recognise = jobs.add_parser("recognise", help="predict the attributes of images",
                                description="Predicts the attributes of images, with probabilities. With a calibrated "
                                "model, attributes with a probability below the calibrated threshold are listed as "
                                "uncertain.")
    recognise.set_defaults(job=run)
    add_model(recognise, required=True)
    recognise.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of images")
    recognise.add_argument("--csv", metavar="FILE", help="also write the predictions to this file")


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..search.gallery import contact_sheet
    from ..utils.folders import counts_text, walk
    from ..utils.images import Unreadable, read_image

    encoder = encoder_of(args.run, args.model)
    if encoder.vocabulary is None:
        raise ValueError(f"{args.run or args.model}: this model does not predict attributes with prototypes; give a "
                         "Cerberus model")
    if not encoder.vocabulary.temperatures:
        print(contact_sheet.UNCALIBRATED + ("; then export the model again" if args.model else ""), file=sys.stderr)
    named = {given for given in map(Path, args.images) if not given.is_dir()}
    passed_over: Counter[str] = Counter()
    paths = [path for given in map(Path, args.images) for path in ([given] if given in named else [
        given / each.path for each in walk(given, skip, passed_over=passed_over)])]
    if not paths:
        raise ValueError(f"recognise: no images found in {listed(args.images)}; skipped: "
                         f"{printable(counts_text(passed_over)) or 'nothing'}")
    rows, unreadable = [], set()
    for start in tqdm(range(0, len(paths), BATCH), desc="recognising", unit=" batches", disable=len(paths) <= BATCH):
        images, shown = [], []
        for path in paths[start:start + BATCH]:
            try:
                images.append(read_image(path))
                shown.append(path)
            except Unreadable as error:
                unreadable.add(path)
                skip(path, error.reason)
        for path, answers in zip(shown, encoder.vocabulary.recognise(encoder.encode(images)) if images else []):
            rows.append({"picture": str(path),
                         **{name: contact_sheet.answer_text(answer) for name, answer in answers.items()}})
    if args.csv:
        write_file(args.csv, contact_sheet.csv_text(rows))
    names = contact_sheet.display_names(encoder.vocabulary)
    print_table([{"picture": row["picture"], "recognised": _answers_text({names[name]: row[name] for name in names})}
                  for row in rows])
    if unreadable & named:  # unreadable files inside folders are only skipped
        raise SystemExit(1)


def _answers_text(answers: dict[str, str]) -> str:
    """Format the predictions of one image; the names of uncertain attributes come last."""
    from ..attributes.attribute_model import ABSTAINED

    abstained = [name for name, answer in answers.items() if answer == ABSTAINED]
    return "; ".join(filter(None, [
        listed(f"{name} {answer}" for name, answer in answers.items() if answer != ABSTAINED),
        abstained and f"{ABSTAINED}: {listed(abstained)}"]))
