"""`cerberus audit`: look for wrong labels."""

from __future__ import annotations

import argparse
import os

from ..utils.commands import add_blur_faces

DESCRIPTION = """Looks for labels that are probably wrong, and for people who are mixed up: two people who are one, one
who is two, pictures that lie with another person, copies under two people. People are put into folds, and each fold is
looked at by a model that was trained on the others, in a short training. The result begins with what these models know,
and what they cannot judge is named and has no findings. Writes

    OUT/audit.html    a page to accept or reject each finding by a click or a key; it exports labels_overlay.csv
    OUT/audit.csv     the findings, the surest first; OUT/audit.json has all of each
    OUT/fold1, ...    the trainings; after an interruption they go on where they were

Save labels_overlay.csv beside the table of the data: every command reads it, and the table stays as it is.

    cerberus audit crops --out runs/audit
    cerberus audit crops --out runs/audit --run runs/own     by a trained model; people it was trained on are left out
    cerberus audit crops --out runs/audit --no-pictures      what labels contradict among themselves, in seconds
    cerberus audit crops --out runs/audit --epochs 30 INPUT.SIZE_TRAIN "[128,64]" INPUT.SIZE_TEST "[128,64]"
"""


def add(jobs) -> None:
    audit = jobs.add_parser("audit", help="look for wrong labels", description=DESCRIPTION,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    audit.set_defaults(job=run)
    audit.add_argument("data", help="folder, or table in it, as `cerberus check` reads it")
    audit.add_argument("options", nargs="*", metavar="KEY VALUE", help="keys of the "
                       "configuration of the trainings, which beat what is chosen")
    audit.add_argument("--out", required=True, help="folder to write to")
    audit.add_argument("--run", default="", help="folder of a training run, in place of folds")
    audit.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True, help="look at pictures, not "
                       "at labels alone (default: yes)")
    audit.add_argument("--name-pattern", default="", metavar="PATTERN", help="as for `cerberus check`")
    audit.add_argument("--folds", type=int, default=3, help="(default: %(default)s)")
    audit.add_argument("--seed", type=int, default=0, help="of the folds (default: %(default)s)")
    audit.add_argument("--epochs", type=int, default=0, help="of each training (default: by the number of pictures)")
    add_blur_faces(audit)


def run(args: argparse.Namespace) -> None:
    import cerberus_plugin

    from .train import given_keys

    given = given_keys(args.options)
    # OpenMP reads it once, when torch is imported: where other processes use the cores as well, waiting threads yield.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if args.pictures:
        cerberus_plugin.use_torch()
    from ..audit import audit, text

    print(text(audit(args.data, args.out, run=args.run, pictures=args.pictures, name_pattern=args.name_pattern,
                     folds=args.folds, seed=args.seed, epochs=args.epochs, given=given)))
    print(f"\n{args.out}/audit.html: accept or reject findings, and export labels_overlay.csv")
