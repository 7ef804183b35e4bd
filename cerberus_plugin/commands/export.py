"""`cerberus export`: export a model to ONNX, or for the package reid."""

from __future__ import annotations

import argparse
import os

import cerberus_plugin

from ..utils.commands import printable_lines

DESCRIPTION = """Exports a model to one ONNX file, with its attributes and calibration. The file is compared with the
run on the given images, and is written only if the embeddings and attributes agree.

    cerberus export --run runs/shop --images crops --output model.onnx

--int8 exports a smaller and faster model with 8-bit weights and activations, calibrated on the images, and prints its
loss against float32: cosine of embeddings, size, speed, and reID, PAR and APS if the test set of the run, or --data,
has labels. The table is also stored in the file.

    cerberus export --run runs/shop --images crops --int8 --output model_int8.onnx

--format reid writes a folder with reid_config.json and weights.safetensors for the package reid (Roboflow), which loads
it with ReIDModel.from_pretrained(FOLDER). Supported models: OSNet, and FastReID's SBS with ResNeSt-50.

    cerberus export --run runs/osnet --format reid --output osnet_reid
"""


def add(jobs) -> None:
    export = jobs.add_parser("export", help="export a model to ONNX, or for the package reid",
                             formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    export.set_defaults(job=run)
    export.add_argument("--run", required=True, help="folder of a training run")
    export.add_argument("--format", choices=("onnx", "reid"), default="onnx", help="output format (default: "
                        "%(default)s)")
    export.add_argument("--images", help="onnx: folder of typical images, used to check the exported file")
    export.add_argument("--output", help="output file (default: model.onnx; model_int8.onnx with --int8), or output "
                        "folder for reid (default: reid)")
    export.add_argument("--weights", help="checkpoint (default: the last one of the run, or the best one if there is "
                        "no last one)")
    export.add_argument("--max-images", type=int, default=256, help="onnx: maximum number of images to check "
                        "(default: %(default)s)")
    export.add_argument("--pictures", type=int, dest="max_images", default=256, help=argparse.SUPPRESS)  # former name
    export.add_argument("--int8", action="store_true", help="onnx: quantise the model to 8 bits; needs 16 images, "
                        "better 100 or more")
    export.add_argument("--data", default="", help="int8: dataset with labels to measure the loss of reID, PAR and APS "
                        "on: a folder of own data, or a name (default: the first test set of the run)")
    export.add_argument("--full-range", action="store_true", help="int8: weights of 8 bits instead of 7; on x86 CPUs "
                        "without VNNI, sums of their products can overflow")


def run(args: argparse.Namespace) -> None:
    if args.format == "onnx" and not args.images:
        raise ValueError("--format onnx needs --images, a folder of typical images, to check the exported file")
    if args.int8 and args.format != "onnx":
        raise ValueError("--int8 writes ONNX; leave out --format reid, or --int8")
    for option, given in (("--data", args.data), ("--full-range", args.full_range)):
        if given and not args.int8:
            raise ValueError(f"{option} belongs to --int8; add --int8, or leave out {option}")
    cerberus_plugin.use_torch()
    output = args.output or ("model_int8.onnx" if args.int8 else {"onnx": "model.onnx", "reid": "reid"}[args.format])
    if args.format == "reid":
        from ..interchange.writing import export_reid

        name = export_reid(args.run, output, args.weights)
        print(f"wrote {output}: {name}; load it with reid.ReIDModel.from_pretrained({output!r})")
        return
    if args.int8:
        from ..search.export.int8 import export_int8

        data = os.path.abspath(args.data) if os.path.exists(args.data) else args.data
        report = export_int8(args.run, output, args.images, weights=args.weights, pictures=args.max_images, data=data,
                             full_range=args.full_range)
        print(f"{printable_lines(report.table())}\nwrote {output}")
        return
    from ..search.export.onnx import export

    agreement = export(args.run, output, args.images, weights=args.weights, pictures=args.max_images)
    print(f"wrote {output}; {agreement}")
