"""The `cerberus` command: check own data, use a trained model; the first word chooses the job.

    cerberus convert pa100k PA-100K --out data/pa100k         write a published set in the form of own data
    cerberus check crops                                      look over own data before training
    cerberus audit crops --out runs/audit                     look for wrong labels
    cerberus train crops --out runs/shop                      train, evaluate and calibrate on own data
    cerberus evaluate runs/shop airport                       the figures of a run on other data
    cerberus index --run RUN --images crops --out gallery     embed a folder of pictures, or update its index
    cerberus search gallery gender=female "upper colour=red"  find people by attributes
    cerberus search gallery --picture 0001.jpg --run RUN      find people who look like a picture
    cerberus serve gallery --run RUN                          search in a browser
    cerberus recognise --run RUN 0001.jpg                     print the attributes of pictures
    cerberus export --run RUN --images crops                  write model.onnx, which runs without torch
    cerberus card runs/shop                                   write the model card of a run again
    cerberus import osnet_x1_0_msmt17.pth --out RUN           open a checkpoint of torchreid, BoxMOT or reid as a run

`cerberus WORD --help` describes each. index, search, serve and recognise take --model model.onnx in place of --run.
"""

from __future__ import annotations

import argparse
import errno
import os
import sqlite3
import sys
from collections.abc import Sequence

# Modules that import numpy are imported inside the commands, so that `cerberus --help` starts quickly.
from .commands import audit, card, check, convert, evaluate, export, import_run, index, recognise, search, serve, train
from .utils.commands import faces_blurred, printable, run_command

# In the order of `cerberus --help`.
COMMANDS = (convert, check, audit, train, evaluate, index, search, serve, recognise, export, card, import_run)
REMEDIES = {errno.ENOSPC: "free space on its disk, or give a place on another one",
            errno.EACCES: "change its permissions, or give another path",
            errno.EROFS: "give a path on a disk that can be written",
            errno.EISDIR: "give the path of a file, not of a folder"}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(sys.argv[1:] if arguments is None else arguments)
    run_command(lambda: _run(args), (ValueError, OSError, ImportError, RuntimeError, sqlite3.Error),
                lambda error: f"cerberus: {_message(error)}",
                "\ncerberus: stopped; an index goes on where it was when it is started again, a training with --resume")


def _run(args: argparse.Namespace) -> None:
    with faces_blurred(getattr(args, "blur_faces", False)):
        args.job(args)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a job, with the function that does it as `job`; exits with a message where they are wrong."""
    top = argparse.ArgumentParser(prog="cerberus", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = top.add_subparsers(required=True, metavar="WORD")
    for command in COMMANDS:
        command.add(jobs)
    if arguments and arguments[0] in jobs.choices:  # which takes the words of a search before and after its options
        return jobs.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    return top.parse_args(arguments)


def _message(error: Exception) -> str:
    """The text of an error; for one of the operating system the file, the reason, and a remedy."""
    if not (isinstance(error, OSError) and error.filename and error.strerror):
        return str(error)
    remedy = REMEDIES.get(error.errno)
    return f"{printable(os.fsdecode(error.filename))}: {error.strerror}{f'; {remedy}' if remedy else ''}"


if __name__ == "__main__":
    main()
