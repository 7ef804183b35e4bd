"""The `cerberus` command: check own data, use a trained model; the first word chooses the job.

    cerberus check crops                                      look over own data before training
    cerberus index --run RUN --images crops --out gallery     embed a folder of pictures, or update its index
    cerberus search gallery gender=female "upper colour=red"  find people by attributes
    cerberus search gallery --picture 0001.jpg --run RUN      find people who look like a picture
    cerberus serve gallery --run RUN                          search in a browser
    cerberus recognise --run RUN 0001.jpg                     print the attributes of pictures
    cerberus export --run RUN --images crops                  write model.onnx, which runs without torch

`cerberus WORD --help` describes each. Except for check and export, --model model.onnx can be given in place of --run.
"""

from __future__ import annotations

import argparse
import errno
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Modules that import numpy are imported inside the jobs, so that `cerberus --help` starts quickly.
import cerberus_plugin

from .utils.commands import printable, run_command
from .utils.files import write_whole

if TYPE_CHECKING:
    from .search.gallery import GalleryIndex, Hit, Prefilter, Query
    from .search.portable import AttributeModel, Encoder

BATCH = 64
CHECK = """Counts pictures, people, cameras and attributes of a folder, and looks for what training would stumble
over. It reads

    DATA/metadata.csv     file_name and person; camera, split, outfit and time if known; every other column is an
                          attribute in words. Also metadata.jsonl or .parquet
    DATA/people.csv       attributes of people (person, ...); DATA/outfits.csv likewise (person, outfit, ...)
    DATA/PERSON/PICTURE   in place of a table; also in train, query and gallery

and writes what is not there: split.csv, and schema.yaml with groups, attributes and values, for you to correct.
The exit code is 1 where training would fail.

    cerberus check crops --html check.html
    cerberus check crops --name-pattern "(?P<person>\\d+)_c(?P<camera>\\d+)"
"""
REMEDIES = {errno.ENOSPC: "free space on its disk, or give a place on another one",
            errno.EACCES: "change its permissions, or give another path",
            errno.EROFS: "give a path on a disk that can be written",
            errno.EISDIR: "give the path of a file, not of a folder"}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(sys.argv[1:] if arguments is None else arguments)
    run_command(lambda: args.job(args), (ValueError, OSError, ImportError, RuntimeError, sqlite3.Error),
                lambda error: f"cerberus: {_message(error)}",
                "\ncerberus: stopped; an index goes on where it was when it is started again")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a job, with the function that does it as `job`; exits with a message where they are wrong."""
    top = argparse.ArgumentParser(prog="cerberus", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = top.add_subparsers(required=True, metavar="WORD")
    _add_jobs(jobs)
    if arguments and arguments[0] in jobs.choices:  # which takes the words of a search before and after its options
        return jobs.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    return top.parse_args(arguments)


def _message(error: Exception) -> str:
    """The text of an error; for one of the operating system the file, the reason, and a remedy."""
    if not (isinstance(error, OSError) and error.filename and error.strerror):
        return str(error)
    remedy = REMEDIES.get(error.errno)
    return f"{printable(os.fsdecode(error.filename))}: {error.strerror}{f'; {remedy}' if remedy else ''}"


def _add_jobs(jobs) -> None:
    check = jobs.add_parser("check", help="look over own data before training",
                            formatter_class=argparse.RawDescriptionHelpFormatter, description=CHECK)
    check.set_defaults(job=_check)
    check.add_argument("data", help="folder, or table in it")
    check.add_argument("--name-pattern", default="", metavar="PATTERN", help="regular expression with the group "
                       "person, and camera, time and outfit as far as names of pictures tell; in place of a table")
    check.add_argument("--seed", type=int, default=0, help="of the split, where one is drawn (default: %(default)s)")
    check.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True, help="open every picture, "
                       "and look for files that are there twice (default: yes)")
    check.add_argument("--html", metavar="FILE", help="also write the report to this page")

    index = jobs.add_parser("index", help="embed a folder of pictures, or update its index",
                            description="Embeds the pictures of a folder and its subfolders. After an interruption it "
                            "continues; run again later, it embeds new and changed pictures, removes deleted ones, "
                            "and repairs damaged files of the index. OUT/unreadable.tsv lists pictures that cannot be "
                            "read, with the reason.")
    index.set_defaults(job=_index)
    _add_model(index, required=True)
    index.add_argument("--images", required=True, help="folder of crops, one person each")
    index.add_argument("--out", required=True, help="folder of the index")
    index.add_argument("--dtype", choices=("float16", "float32"), help="of stored embeddings (default: that of the "
                       "index; for a new one float16, or float32 for models that are compared by distance)")
    index.add_argument("--name-pattern", help="regular expression with groups identity, camera and time, for names in "
                       "another form than Market-1501's and DukeMTMC's; \"\" is for these two (default: that of the "
                       "index)")
    index.add_argument("--follow-links", action=argparse.BooleanOptionalAction, help="include the pictures of linked "
                       "folders (default: as before; off for a new index)")

    search = jobs.add_parser("search", help="find people by attributes, by a picture, or by both",
                             description="A search by words needs no model. With a picture, words replace the "
                             "groups that they describe: --picture 0001.jpg backpack=no finds this person without the "
                             "backpack.")
    search.set_defaults(job=_search)
    _add_index(search)
    search.add_argument("words", nargs="*", metavar="ATTRIBUTE=VALUE", help="such as gender=female; any number; quote "
                        "names with a space")
    search.add_argument("--picture", help="of the wanted person; needs the model of the index")
    _add_model(search)
    search.add_argument("--leave-out", default="", metavar="GROUP,GROUP", help="groups that are not compared")
    search.add_argument("--may-have-changed-clothes", action="store_true", help="compare only groups that "
                        "last when clothes change: those chosen for the run, else those of its schema")
    search.add_argument("--weight", action="append", default=[], metavar="GROUP=NUMBER",
                        help="weight of a group (default: 1); may be given several times")
    search.add_argument("--false-match-rate", type=float, metavar="RATE", help="show only pictures above the score "
                        "that this share of the pictures of other people exceeds; one of the rates of the calibration")
    search.add_argument("--prior", type=float, metavar="PROBABILITY", help="prior probability that a picture shows "
                        "this person, for \"same person\" (default: 1 / (N + 1) for N pictures)")
    search.add_argument("--reliable", type=float, metavar="PROBABILITY", help="leave out pictures with an attribute "
                        "that contradicts the query and was recognised with more than this probability")
    search.add_argument("--top", type=int, default=10, help="number of pictures (default: %(default)s)")
    search.add_argument("--csv", help="also write the results to this file")
    search.add_argument("--html", help="also write the results to this page, with the pictures in it")

    serve = jobs.add_parser("serve", help="search in a browser",
                            description="Serves a web page to search a gallery by pictures, attributes, or both. "
                            "Only this machine can reach it unless --host is given. Uploaded pictures are kept in "
                            "memory only. Without a model, one can search by attributes and by pictures of the "
                            "gallery.")
    serve.set_defaults(job=_serve)
    _add_index(serve)
    _add_model(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on, 0.0.0.0 for all addresses of this "
                       "machine (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="(default: %(default)s); 0 for a free one")
    serve.add_argument("--user", default="", metavar="NAME", help="user who may log in; the password is read from the "
                       "terminal, or from CERBERUS_PASSWORD in the environment")
    serve.add_argument("--without-login", action="store_true", help="let other machines see all pictures")
    serve.add_argument("--certificate", default="", metavar="FILE", help="PEM file, for https")
    serve.add_argument("--key", default="", metavar="FILE", help="PEM file of its key")
    serve.add_argument("--open", action="store_true", help="open the page in a browser")
    serve.add_argument("--verbose", action="store_true", help="write every request to the terminal")

    recognise = jobs.add_parser("recognise", help="print the attributes of pictures, with probabilities")
    recognise.set_defaults(job=_recognise)
    _add_model(recognise, required=True)
    recognise.add_argument("pictures", nargs="+", help="files, or folders of them")
    recognise.add_argument("--csv", help="also write them to this file")

    export = jobs.add_parser("export", help="write the model as one ONNX file",
                             description="Writes a model for onnxruntime, with its attributes and calibration. The "
                             "file is kept only if it gives the embeddings of the run on the given pictures.")
    export.set_defaults(job=_export)
    export.add_argument("--run", required=True, help="folder of a training run")
    export.add_argument("--images", required=True, help="folder of typical pictures, to check it on")
    export.add_argument("--output", default="model.onnx", help="file to write (default: %(default)s)")
    export.add_argument("--weights", help="checkpoint (default: the last of the run, or else the best)")
    export.add_argument("--pictures", type=int, default=256, help="largest number of them (default: %(default)s)")


def _add_index(job: argparse.ArgumentParser) -> None:
    job.add_argument("index", help="folder that `cerberus index` has made")
    job.add_argument("--images", help="folder of its pictures, where it has moved")
    job.add_argument("--engine", default="exact", metavar="ENGINE", help="exact, float16, int8 or pq: FAISS in memory, "
                     "each smaller than the one before; or Milvus: a file NAME.db, or http://host:19530 with the token "
                     "in MILVUS_TOKEN (default: %(default)s)")


def _add_model(job: argparse.ArgumentParser, required: bool = False) -> None:
    model = job.add_mutually_exclusive_group(required=required)
    model.add_argument("--run", help="folder of a training run (config.yaml and a checkpoint)")
    model.add_argument("--model", help="file of `cerberus export`, in place of a run")


def encoder_of(run: str | None, model: str | None) -> Encoder:
    """The encoder of a run folder, calibrated where it has been, or of an exported file."""
    if model:
        from .search.portable import ExportedEncoder

        return ExportedEncoder(model, BATCH)
    cerberus_plugin.use_torch()
    from .predictor import CerberusPredictor
    from .search.export.torch_encoder import TorchEncoder

    return TorchEncoder(CerberusPredictor(run), BATCH)


def _check(args: argparse.Namespace) -> None:
    from .own_data import check

    report = check.check(args.data, args.name_pattern, args.seed, args.pictures)
    print(check.text(report))
    if args.html:
        _write(args.html, check.html(report))
    if report.errors:
        raise SystemExit(1)


def _index(args: argparse.Namespace) -> None:
    from .search.gallery import GalleryIndex
    from .utils.folders import LINKS, counts_text
    from .utils.images import SUFFIXES

    index = GalleryIndex.build(args.out, args.images, encoder_of(args.run, args.model), dtype=args.dtype,
                               pattern=args.name_pattern, follow_links=args.follow_links)
    done, unreadable = index.summary, len(index.unreadable)
    for lost in index.lost:
        print(f"{printable(str(lost.path))}: {lost.reason}; made anew", file=sys.stderr)
    print(f"{args.out}: {done.rows} pictures; {done.new} new, {done.changed} changed, {done.deleted} deleted"
          + (f"; {unreadable} of these cannot be read, unreadable.tsv says why" if done.unreadable else
             f"; {unreadable} others cannot be read, unreadable.tsv says why" if unreadable else ""))
    links = f"; --follow-links takes in the pictures of {LINKS}" if index.passed_over[LINKS] else ""
    if not done.rows:
        raise ValueError(f"{args.images}: no picture was found that can be read. Passed over: "
                         f"{printable(counts_text(index.passed_over)) or 'nothing'}; pictures end in "
                         f"{_listed(SUFFIXES)}{links}")
    if links:
        print(f"{args.images}: passed over {LINKS} ({index.passed_over[LINKS]}){links}", file=sys.stderr)


def _search(args: argparse.Namespace) -> None:
    from .search.gallery import Prefilter
    from .search.gallery.parts import EMBED_AGAIN

    index = _open_index(args)
    query = _query(args, index)
    prefilter = None if args.reliable is None else Prefilter(args.reliable)
    try:
        hits = index.search(query, args.top, prefilter)
    except KeyError as error:  # rows were deleted twice during the search, or are recorded wrongly
        raise RuntimeError(f"{error.args[0]}; if that happens again, {EMBED_AGAIN}") from error
    _render(args, index, query, prefilter, hits)


def _render(args: argparse.Namespace, index: GalleryIndex, query: Query, prefilter: Prefilter | None,
            hits: Sequence[Hit]) -> None:
    """Hits to the terminal, and to files where these are given."""
    from .search.gallery import contact_sheet
    from .search.gallery.thumbnails import thumbnail
    from .utils.images import read_image

    names = contact_sheet.display_names(index.vocabulary)
    shown = contact_sheet.with_display_names(hits, names)
    notes = contact_sheet.notes_of(hits, index.prior if query.prior is None else query.prior)
    if args.csv:
        _write(args.csv, contact_sheet.csv_text(contact_sheet.rows_of(hits)))
    if args.html:
        picture = thumbnail(read_image(args.picture)) if args.picture else None
        conditions = contact_sheet.conditions_of(query, Path(args.picture or "").name, prefilter, index.clothing_groups,
                                                 names)
        _write(args.html, contact_sheet.html_text(shown, conditions, picture=picture, notes=notes))
    _print_table([_row(place, hit) for place, hit in enumerate(shown, start=1)])
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)


def _open_index(args: argparse.Namespace) -> GalleryIndex:
    """The index, searched by the engine of the options."""
    from .search.gallery import GalleryIndex
    from .search.gallery.engines import FORMS, Faiss, Milvus

    if args.engine in FORMS:
        engine = Faiss(args.engine)
    elif "://" in args.engine or args.engine.endswith(".db"):
        engine = Milvus(args.engine, token=os.environ.get("MILVUS_TOKEN", ""))
    else:
        raise ValueError(f"--engine {args.engine}: expected one of {', '.join(FORMS)}, or a gallery of Milvus: a file "
                         "NAME.db, or an address http://host:19530")
    return GalleryIndex.open(args.index, images=args.images, engine=engine)


def _query(args: argparse.Namespace, index: GalleryIndex) -> Query:
    """The query of the options; embeds the picture, if there is one."""
    from .search.gallery import Query

    if not (args.words or args.picture):
        known = f"; attributes: {_known(index.vocabulary)}" if index.vocabulary else ""
        raise ValueError(f"search: say who is looked for, by ATTRIBUTE=VALUE, by --picture, or by both{known}")
    embedding = None
    if args.picture:
        if not (args.run or args.model):
            raise ValueError("search: a picture has to be embedded; name the model of the index by --run or --model")
        embedding = index.embed(encoder_of(args.run, args.model), args.picture)
    left_out = [group.strip() for group in args.leave_out.split(",") if group.strip()]
    weights = {name: _number(name, value) for name, value in _pairs(args.weight).items()}
    return Query(embedding, _pairs(args.words), weights, left_out, args.false_match_rate, args.prior,
                 args.may_have_changed_clothes)


def _serve(args: argparse.Namespace) -> None:
    from .search.web import serving

    serving.check_packages()
    config = serving.ServerConfig(args.host, args.port, args.user, args.without_login, args.certificate, args.key)
    index = _open_index(args)
    login = config.login()
    encoder = encoder_of(args.run, args.model) if args.run or args.model else None
    serving.serve(index, encoder, config, login, args.open, args.verbose)


def _recognise(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .search.gallery import contact_sheet
    from .utils.folders import counts_text, walk
    from .utils.images import Unreadable, read_image

    encoder = encoder_of(args.run, args.model)
    if encoder.vocabulary is None:
        raise ValueError(f"{args.run or args.model}: this model reads no attributes by prototypes; name a Cerberus")
    if not encoder.vocabulary.temperatures:
        print(contact_sheet.UNCALIBRATED + (", and export again" if args.model else ""), file=sys.stderr)
    named = {given for given in map(Path, args.pictures) if not given.is_dir()}
    passed_over: Counter[str] = Counter()
    paths = [path for given in map(Path, args.pictures) for path in ([given] if given in named else [
        given / each.path for each in walk(given, _skip, passed_over=passed_over)])]
    if not paths:
        raise ValueError(f"recognise: no pictures found in {_listed(args.pictures)}; passed over: "
                         f"{printable(counts_text(passed_over)) or 'nothing'}")
    rows, refused = [], set()
    for start in tqdm(range(0, len(paths), BATCH), desc="recognising", unit=" batches", disable=len(paths) <= BATCH):
        images, shown = [], []
        for path in paths[start:start + BATCH]:
            try:
                images.append(read_image(path))
                shown.append(path)
            except Unreadable as error:
                refused.add(path)
                _skip(path, error.reason)
        for path, answers in zip(shown, encoder.vocabulary.recognise(encoder.encode(images)) if images else []):
            rows.append({"picture": str(path),
                         **{name: contact_sheet.answer_text(answer) for name, answer in answers.items()}})
    if args.csv:
        _write(args.csv, contact_sheet.csv_text(rows))
    names = contact_sheet.display_names(encoder.vocabulary)
    _print_table([{"picture": row["picture"], "recognised": _answers_text({names[name]: row[name] for name in names})}
                  for row in rows])
    if refused & named:  # one in a folder is no failure
        raise SystemExit(1)


def _export(args: argparse.Namespace) -> None:
    cerberus_plugin.use_torch()
    from .search.export.onnx import export

    agreement = export(args.run, args.output, args.images, weights=args.weights, pictures=args.pictures)
    print(f"wrote {args.output}; {agreement}")


def _row(place: int, hit: Hit) -> dict[str, str]:
    """A hit as a line to read."""
    from .search.gallery import contact_sheet

    return {**contact_sheet.line_of(place, hit),
            **({} if hit.same_person is None else {"same person": contact_sheet.likely(hit.same_person)}),
            "recognised": _listed(f"{name} {own.value}" for name, own in hit.attributes.items() if not own.abstained)}


def _answers_text(answers: dict[str, str]) -> str:
    """Answers by column, with the columns that the model abstains from at the end."""
    from .attributes.attribute_model import ABSTAINED

    abstained = [name for name, answer in answers.items() if answer == ABSTAINED]
    return "; ".join(filter(None, [
        _listed(f"{name} {answer}" for name, answer in answers.items() if answer != ABSTAINED),
        abstained and f"{ABSTAINED}: {_listed(abstained)}"]))


def _print_table(rows: Sequence[dict[str, str]]) -> None:
    from tabulate import tabulate

    widths = [60 if name == "recognised" else None for name in (rows[0] if rows else ())]
    rows = [{name: printable(value) for name, value in row.items()} for row in rows]
    print(tabulate(rows, headers="keys", disable_numparse=True, maxcolwidths=widths) if rows else "nothing found")


def _skip(path: str | Path, reason: str) -> None:
    print(f"skipped {printable(str(path))}: {reason}", file=sys.stderr)


def _write(path: str, text: str) -> None:
    if Path(path).exists() and not Path(path).is_file():  # such as /dev/stdout, which nothing may take the place of
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    else:  # names of files may be no text
        write_whole(Path(path).resolve(), lambda file: file.write(text.encode(errors="backslashreplace")))


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name.strip() and sign and value.strip()):
        raise ValueError(f"'{text}': expected NAME=VALUE, such as gender=female; quote names with a space")
    return name.strip(), value.strip()


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name, value in map(_pair, texts):
        if name in pairs:
            raise ValueError(f"'{name}' is said twice, {pairs[name]} and {value}; say it once, two colours as \"{name}="
                             f"{pairs[name]} and {value}\"")
        pairs[name] = value
    return pairs


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"--weight {name}={value}: expected a number, such as {name}=2") from None


def _known(vocabulary: AttributeModel) -> str:
    return "; ".join(f"{column.display}: {_listed(column.classes)}" for column in vocabulary.columns)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


if __name__ == "__main__":
    main()
