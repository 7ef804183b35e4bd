"""The `cerberus` command: a trained model at work, one word a job.

    cerberus index --run RUN --images crops --out gallery     embed a folder of pictures, or bring its index up to date
    cerberus search gallery gender=female "upper colour=red"  find people by what is known of them
    cerberus search gallery --picture 0001.jpg --run RUN      find somebody who looks like a picture
    cerberus recognise --run RUN 0001.jpg                     say what somebody wears and carries
    cerberus export RUN --images crops --output model.onnx    a file that works without torch

`cerberus WORD --help` tells more of each. --model model.onnx takes the place of --run everywhere.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .portable.encoder import LASTING_GROUPS

if TYPE_CHECKING:
    from .gallery import Hit, Query
    from .portable import Answer, Encoder, Vocabulary

BATCH = 64


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["export"]:  # has its own options, and needs torch
        job, values = _export, given[1:]
    else:
        values, rest = parser().parse_known_args(given)  # argparse takes no words of a search behind its options
        unknown = [word for word in rest if word.startswith("-") or not hasattr(values, "words")]
        if unknown:
            parser().error(f"{' '.join(unknown)}: not known; cerberus {given[0]} --help")
        values.words = [*getattr(values, "words", []), *rest]
        job = values.job
    try:
        job(values)
    except (ValueError, OSError, ModuleNotFoundError) as error:  # written for people: where, what, and what to do
        raise SystemExit(f"cerberus: {error}") from error


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="cerberus", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = top.add_subparsers(required=True, metavar="WORD")

    index = jobs.add_parser("index", help="embed a folder of pictures, or bring its index up to date",
                            description="Embeds the pictures of a folder and those below. Killed, it goes on where it "
                            "was; started again later, it reads what is new or has changed, and forgets what is "
                            "gone. What cannot be read stands in OUT/unreadable.tsv with the reason.")
    index.set_defaults(job=_index)
    _add_model(index, required=True)
    index.add_argument("--images", required=True, help="folder of crops, one person each")
    index.add_argument("--out", required=True, help="folder of the index")
    index.add_argument("--dtype", choices=("float16", "float32"), help="of stored embeddings (default: that of the "
                       "index; a new one has float16, and float32 for models that are compared by distance)")
    index.add_argument("--name-pattern", help="regular expression with groups identity, camera and time, for names of "
                       "another form than Market-1501's and DukeMTMC's, which \"\" stands for (default: that of the "
                       "index)")

    search = jobs.add_parser("search", help="find people by attributes, by a picture, or by both",
                             description="Words alone need no model. With a picture, groups that words describe are "
                             "taken from them: --picture 0001.jpg backpack=no is this person without the backpack.")
    search.set_defaults(job=_search)
    search.add_argument("index", help="folder that `cerberus index` has made")
    search.add_argument("words", nargs="*", metavar="ATTRIBUTE=VALUE", help="such as gender=female, as many or as few "
                        "as are known; quote names with a space")
    search.add_argument("--picture", help="of the person looked for; needs the model of the index")
    _add_model(search)
    search.add_argument("--leave-out", default="", metavar="GROUP,GROUP", help="groups that do not count")
    search.add_argument("--may-have-changed-clothes", action="store_true", help="only groups count that are not "
                        f"clothes: those that the run has chosen, else {' and '.join(LASTING_GROUPS)}")
    search.add_argument("--weight", action="append", default=[], metavar="GROUP=NUMBER",
                        help="how much a group counts, 1 if not said; may be given several times")
    search.add_argument("--false-match-rate", type=float, metavar="RATE", help="only pictures that match at this rate, "
                        "which the run was calibrated for: of so large a share of other people a picture would match")
    search.add_argument("--reliable", type=float, metavar="PROBABILITY", help="leave out pictures whose recognised "
                        "attributes of at least this probability contradict the query: faster, and loses some")
    search.add_argument("--top", type=int, default=10, help="how many pictures (default: %(default)s)")
    search.add_argument("--csv", help="write them to this file as well")

    recognise = jobs.add_parser("recognise", help="attributes of pictures, with their probabilities")
    recognise.set_defaults(job=_recognise)
    _add_model(recognise, required=True)
    recognise.add_argument("pictures", nargs="+", help="files, or folders of them")
    recognise.add_argument("--csv", help="write them to this file as well")

    jobs.add_parser("export", help="the model as one ONNX file", add_help=False)
    return top


def _add_model(job: argparse.ArgumentParser, required: bool = False) -> None:
    model = job.add_mutually_exclusive_group(required=required)
    model.add_argument("--run", help="folder of a training run (config.yaml and a checkpoint)")
    model.add_argument("--model", help="file of `cerberus export`, in place of a run")


def encoder_of(run: str | None, model: str | None) -> Encoder:
    """The encoder of a run folder, calibrated where it has been, or of an exported file."""
    if model:
        from .portable import ExportedEncoder

        return ExportedEncoder(model, BATCH)
    from .encoding import TorchEncoder
    from .predictor import CerberusPredictor

    return TorchEncoder(CerberusPredictor(run), BATCH)


def _index(args: argparse.Namespace) -> None:
    from .gallery import GalleryIndex

    index = GalleryIndex.build(args.out, args.images, encoder_of(args.run, args.model), dtype=args.dtype,
                               pattern=args.name_pattern)
    done = index.summary
    print(f"{args.out}: {done.rows} pictures; {done.new} new, {done.changed} changed, {done.deleted} deleted"
          + (f", {done.unreadable} unreadable (unreadable.tsv says why)" if done.unreadable else ""))


def _search(args: argparse.Namespace) -> None:
    from .gallery import GalleryIndex, Prefilter

    index = GalleryIndex.open(args.index)
    query = query_of(args, index)
    hits = index.search(query, args.top, None if args.reliable is None else Prefilter(args.reliable))
    rows = [_row(place, hit) for place, hit in enumerate(hits, start=1)]
    _show(rows, args.csv)


def query_of(args: argparse.Namespace, index) -> Query:
    """What the options of a search ask for."""
    from .gallery import Query

    if not (args.words or args.picture):
        known = f"; attributes: {_known(index.vocabulary)}" if index.vocabulary else ""
        raise ValueError(f"search: say who is looked for, by ATTRIBUTE=VALUE, by --picture, or by both{known}")
    embedding = None
    if args.picture:
        if not (args.run or args.model):
            raise ValueError("search: a picture has to be embedded; name the model of the index by --run or --model")
        embedding = index.embed(encoder_of(args.run, args.model), args.picture)
    left_out = [group.strip() for group in args.leave_out.split(",") if group.strip()]
    if args.may_have_changed_clothes:
        left_out += [group for group in index.shape.groups if group not in index.lasting_groups]
    weights = {name: _number(name, value) for name, value in map(_pair, args.weight)}
    return Query(embedding, dict(map(_pair, args.words)), weights, left_out, args.false_match_rate)


def _recognise(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .gallery.walking import walk
    from .portable import Unreadable, read_image

    encoder = encoder_of(args.run, args.model)
    if encoder.vocabulary is None:
        raise ValueError(f"{args.run or args.model}: this model reads no attributes by prototypes; name a Cerberus")
    if not encoder.vocabulary.temperatures:
        print("probabilities are those of the bare softmax and nothing is withheld: calibrate by "
              "python -m cerberus_plugin.experiments.calibrate RUN" + (", and export again" if args.model else ""),
              file=sys.stderr)
    paths = [path for given in map(Path, args.pictures)
             for path in ([given / picture.path for picture in walk(given)] if given.is_dir() else [given])]
    rows = []
    for start in tqdm(range(0, len(paths), BATCH), desc="recognising", unit=" batches", disable=len(paths) <= BATCH):
        images, shown = [], []
        for path in paths[start:start + BATCH]:
            try:
                images.append(read_image(path))
                shown.append(path)
            except Unreadable as error:
                print(f"skipped {path}: {error.reason}", file=sys.stderr)
        for path, answers in zip(shown, encoder.vocabulary.recognise(encoder.encode(images)) if images else []):
            rows.append({"picture": str(path), **{name: _told(own) for name, own in answers.items()}})
    _show(rows, args.csv, [{"picture": row.pop("picture"), "recognised": _listed(f"{name} {value}" for name, value
                                                                                 in row.items())}
                           for row in map(dict, rows)])


def _export(arguments: Sequence[str]) -> None:
    from . import export

    export.main(arguments)


def _told(answer: Answer) -> str:
    """That nothing is calibrated is said once for all, not in every cell."""
    return str(answer._replace(calibrated=True))


def _row(place: int, hit: Hit) -> dict[str, str]:
    """A hit as a line: similarities tell which groups a match is by."""
    return {"": str(place), "picture": hit.path, "score": f"{hit.score:.3f}",
            **{group: f"{value:.2f}" for group, value in hit.similarities.items()},
            **({} if hit.same_person is None else {"same person": f"{hit.same_person:.0%}"}),
            "camera": hit.camera or "", "time": hit.time or "",
            "recognised": _listed(f"{name} {own.value}" for name, own in hit.attributes.items() if not own.withheld)}


def _show(rows: Sequence[dict[str, str]], path: str | None, shown: Sequence[dict[str, str]] | None = None) -> None:
    """Print rows, or in their place `shown`, and write them to a CSV file if there is to be one."""
    from tabulate import tabulate

    if path:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
    shown = shown or rows
    widths = [60 if name == "recognised" else None for name in (shown[0] if shown else ())]
    print(tabulate(shown, headers="keys", disable_numparse=True, maxcolwidths=widths) if rows else "nothing found")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name.strip() and sign and value.strip()):
        raise ValueError(f"'{text}': expected NAME=VALUE, such as gender=female; quote names with a space")
    return name.strip(), value.strip()


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"--weight {name}={value}: expected a number, such as {name}=2") from None


def _known(vocabulary: Vocabulary) -> str:
    return "; ".join(f"{column.name}: {_listed(column.classes)}" for column in vocabulary.columns)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


if __name__ == "__main__":
    main()
