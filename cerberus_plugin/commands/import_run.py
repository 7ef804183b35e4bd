"""`cerberus import`: a checkpoint of another package as a run."""

from __future__ import annotations

import argparse

import cerberus_plugin

DESCRIPTION = """Writes a reID model of torchreid, BoxMOT or the package reid as a run, which index, search --picture,
serve and evaluate then open. The model is recognised by its tensors: OSNet of four widths and its IBN form,
ResNet-50 and resnet50_fc512, FastReID's SBS with ResNeSt-50. It reads no attributes.

    cerberus import osnet_x1_0_msmt17.pth --out runs/osnet
    cerberus index --run runs/osnet --images crops --out gallery
    cerberus search gallery --picture crops/0001.jpg --run runs/osnet
    cerberus evaluate runs/osnet crops
"""


def add(jobs) -> None:
    job = jobs.add_parser("import", help="open a checkpoint of torchreid, BoxMOT or reid as a run",
                          formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    job.set_defaults(job=run)
    job.add_argument("checkpoint", metavar="CHECKPOINT", help="file of weights (.pth, .pt, .safetensors), or a folder "
                     "that the package reid has saved")
    job.add_argument("--out", required=True, metavar="RUN", help="folder of the run to make")


def run(args: argparse.Namespace) -> None:
    cerberus_plugin.use_torch()
    from ..interchange.opening import import_checkpoint

    done = import_checkpoint(args.checkpoint, args.out)
    left = f"; left out: {', '.join(done.left_out)}" if done.left_out else ""
    print(f"wrote {args.out}: {done.architecture}, pictures {done.size[0]}x{done.size[1]}, {done.interpolation}{left}\n"
          f"next: cerberus index --run {args.out} --images PICTURES --out GALLERY")
