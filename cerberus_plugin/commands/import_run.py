"""`cerberus import`: convert a checkpoint of another package to a run."""

from __future__ import annotations

import argparse

import cerberus_plugin

DESCRIPTION = """Converts a reID model of torchreid, BoxMOT or the package reid to a run for index, search --image,
serve and evaluate. The architecture is detected from the tensors: OSNet in four widths and OSNet-IBN, ResNet-50 and
resnet50_fc512, and FastReID's SBS with ResNeSt-50. The model does not predict attributes.

    cerberus import osnet_x1_0_msmt17.pth --out runs/osnet
    cerberus index --run runs/osnet --images crops --out gallery
    cerberus search gallery --image crops/0001.jpg --run runs/osnet
    cerberus evaluate runs/osnet crops
"""


def add(jobs) -> None:
    job = jobs.add_parser("import", help="convert a checkpoint of torchreid, BoxMOT or reid to a run",
                          formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    job.set_defaults(job=run)
    job.add_argument("checkpoint", metavar="CHECKPOINT", help="file of weights (.pth, .pt, .safetensors), or a folder "
                     "saved by the package reid")
    job.add_argument("--out", required=True, metavar="RUN", help="folder of the new run")


def run(args: argparse.Namespace) -> None:
    cerberus_plugin.use_torch()
    from ..interchange.opening import import_checkpoint

    done = import_checkpoint(args.checkpoint, args.out)
    left = f"; tensors not used: {', '.join(done.left_out)}" if done.left_out else ""
    print(f"wrote {args.out}: {done.architecture}, images {done.size[0]}x{done.size[1]}, {done.interpolation}{left}\n"
          f"next: cerberus index --run {args.out} --images IMAGES --out GALLERY")
