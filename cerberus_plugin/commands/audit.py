"""`cerberus audit`: find probable label errors."""

from __future__ import annotations

import argparse
import os

from ..utils.commands import add_blur_faces

DESCRIPTION = """Finds attribute labels that are probably wrong, and identity errors: two identities that are the same
person, one identity that contains two people, images assigned to the wrong identity, and copies of an image under two
identities. The identities are split into folds; each fold is checked by a model that is trained briefly on the other
folds. The report begins with the accuracy of these models. It lists what they cannot judge, and has no findings for it.
Writes

    OUT/audit.html    page to accept or reject each finding by mouse or keyboard; exports labels_overlay.csv
    OUT/audit.csv     findings, most certain first; OUT/audit.json has all details
    OUT/fold1, ...    training runs of the folds; they are resumed after an interruption

Save labels_overlay.csv next to the data table. All commands then apply it; the table itself is not changed.

    cerberus audit crops --out runs/audit
    cerberus audit crops --out runs/audit --run runs/own     use a trained model; its training identities are skipped
    cerberus audit crops --out runs/audit --no-images        only find contradictions between labels, in seconds
    cerberus audit crops --out runs/audit --epochs 30 INPUT.SIZE_TRAIN "[128,64]" INPUT.SIZE_TEST "[128,64]"
"""


def add(jobs) -> None:
    audit = jobs.add_parser("audit", help="find probable label errors", description=DESCRIPTION,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    audit.set_defaults(job=run)
    audit.add_argument("data", help="data folder or its table, in the format of `cerberus check`")
    audit.add_argument("options", nargs="*", metavar="KEY VALUE", help="configuration keys of the training runs; they "
                       "override the automatic choices")
    audit.add_argument("--out", required=True, help="output folder")
    audit.add_argument("--run", default="", help="folder of a training run to use instead of folds")
    audit.add_argument("--images", action=argparse.BooleanOptionalAction, default=True, help="compare the labels "
                       "with the images (default: yes); --no-images compares only the labels with each other")
    audit.add_argument("--pictures", dest="images", action=argparse.BooleanOptionalAction, default=True,
                       help=argparse.SUPPRESS)  # former names
    audit.add_argument("--name-pattern", default="", metavar="PATTERN", help="as in `cerberus check`")
    audit.add_argument("--folds", type=int, default=3, help="number of folds (default: %(default)s)")
    audit.add_argument("--seed", type=int, default=0, help="random seed of the folds (default: %(default)s)")
    audit.add_argument("--epochs", type=int, default=0, help="training epochs of each fold (default: depends on the "
                       "number of images)")
    add_blur_faces(audit)


def run(args: argparse.Namespace) -> None:
    import cerberus_plugin

    from .train import given_keys

    given = given_keys(args.options)
    # Idle OpenMP threads then yield their core to other processes. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if args.images:
        cerberus_plugin.use_torch()
    from ..audit import audit, text

    print(text(audit(args.data, args.out, run=args.run, pictures=args.images, name_pattern=args.name_pattern,
                     folds=args.folds, seed=args.seed, epochs=args.epochs, given=given)))
    print(f"\n{args.out}/audit.html: accept or reject findings, and export labels_overlay.csv")
