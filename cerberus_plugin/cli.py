"""The `cerberus` command: prepare data, train models, and use trained models.

    cerberus convert pa100k PA-100K --out data/pa100k         convert a published dataset to the own-data format
    cerberus check crops                                      check own data before training
    cerberus audit crops --out runs/audit                     find probable label errors
    cerberus train crops --out runs/shop                      train, evaluate and calibrate on own data
    cerberus evaluate runs/shop airport                       evaluate a run on other data
    cerberus index --run RUN --images crops --out gallery     embed a folder of images, or update its index
    cerberus search gallery gender=female "upper colour=red"  search by attributes
    cerberus search gallery --image 0001.jpg --run RUN        search by image
    cerberus serve gallery --run RUN                          search in a web browser
    cerberus recognise --run RUN 0001.jpg                     predict the attributes of images
    cerberus export --run RUN --images crops                  write model.onnx, which runs without PyTorch
    cerberus card runs/shop                                   write the model card of a run again
    cerberus import osnet_x1_0_msmt17.pth --out RUN           convert a torchreid, BoxMOT or reid checkpoint to a run

Run "cerberus COMMAND --help" for details. index, search, serve and recognise also accept --model model.onnx instead of
--run.
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

# Listed in this order by `cerberus --help`.
COMMANDS = (convert, check, audit, train, evaluate, index, search, serve, recognise, export, card, import_run)
REMEDIES = {errno.ENOSPC: "free disk space, or give a path on another disk",
            errno.EACCES: "change its permissions, or give another path",
            errno.EROFS: "give a path on a writable disk",
            errno.EISDIR: "give the path of a file, not of a folder"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `cerberus` command.

    Args:
        arguments: of the command line; `sys.argv[1:]` if None.

    Raises:
        SystemExit: with a message if the command fails, or with code 2 if the arguments are invalid.
    """
    args = parse(sys.argv[1:] if arguments is None else arguments)
    run_command(lambda: _run(args), (ValueError, OSError, ImportError, RuntimeError, sqlite3.Error),
                lambda error: f"cerberus: {_message(error)}",
                "\ncerberus: interrupted. To continue indexing, run the same command again; to continue training, add "
                "--resume")


def _run(args: argparse.Namespace) -> None:
    with faces_blurred(getattr(args, "blur_faces", False)):
        args.job(args)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the command.

    Returns:
        the options of the subcommand; the attribute `job` is the function that runs it.

    Raises:
        SystemExit: with code 2 if the arguments are invalid.
    """
    top = argparse.ArgumentParser(prog="cerberus", description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(jobs)
    if arguments and arguments[0] in jobs.choices:  # positional arguments may stand before and after options
        return jobs.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    return top.parse_args(arguments)


def _message(error: Exception) -> str:
    """Return the text of an error; for an OSError the file, the reason, and what to do."""
    if not (isinstance(error, OSError) and error.filename and error.strerror):
        return str(error)
    remedy = REMEDIES.get(error.errno)
    return f"{printable(os.fsdecode(error.filename))}: {error.strerror}{f'; {remedy}' if remedy else ''}"


if __name__ == "__main__":
    main()
