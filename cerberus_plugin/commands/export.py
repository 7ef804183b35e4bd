"""`cerberus export`: write a model as one ONNX file, or for the package reid."""

from __future__ import annotations

import argparse
import os

import cerberus_plugin

from ..utils.commands import printable_lines

DESCRIPTION = """Writes a model for onnxruntime, with its attributes and calibration. The file is kept only if it gives
the embeddings of the run on the given pictures.

    cerberus export --run runs/shop --images crops --output model.onnx

--int8 writes a smaller and faster model with 8-bit weights and activations, calibrated on the images, and prints its
loss against float32: cosine of embeddings, size, speed, and reID, PAR and APS where the test set of the run, or --data,
has labels. The table is stored in the file, too.

    cerberus export --run runs/shop --images crops --int8 --output model_int8.onnx

--format reid writes a folder with reid_config.json and weights.safetensors, which the package reid (Roboflow) loads by
ReIDModel.from_pretrained(FOLDER); of models that it can build: OSNet and FastReID's SBS with ResNeSt-50.

    cerberus export --run runs/osnet --format reid --output osnet_reid
"""


def add(jobs) -> None:
    export = jobs.add_parser("export", help="write the model as one ONNX file, or for the package reid",
                             formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    export.set_defaults(job=run)
    export.add_argument("--run", required=True, help="folder of a training run")
    export.add_argument("--format", choices=("onnx", "reid"), default="onnx", help="(default: %(default)s)")
    export.add_argument("--images", help="onnx: folder of typical pictures, to check it on")
    export.add_argument("--output", help="file to write (default: model.onnx, with --int8 model_int8.onnx), or folder "
                        "(default: reid)")
    export.add_argument("--weights", help="checkpoint (default: the last of the run, or else the best)")
    export.add_argument("--pictures", type=int, default=256, help="onnx: largest number of them (default: %(default)s)")
    export.add_argument("--int8", action="store_true", help="onnx: quantise the model to 8 bits; needs 16 images, "
                        "better 100 or more")
    export.add_argument("--data", default="", help="int8: dataset with labels to measure the loss of reID, PAR and APS "
                        "on: a folder of own data, or a name (default: the first test set of the run)")
    export.add_argument("--full-range", action="store_true", help="int8: weights of 8 bits in place of 7; on x86 CPUs "
                        "without VNNI the sums of such products may overflow")


def run(args: argparse.Namespace) -> None:
    if args.format == "onnx" and not args.images:
        raise ValueError("--format onnx needs --images, a folder of typical pictures to check the file on")
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
        print(f"wrote {output}: {name}; load it by reid.ReIDModel.from_pretrained({output!r})")
        return
    if args.int8:
        from ..search.export.int8 import export_int8

        data = os.path.abspath(args.data) if os.path.exists(args.data) else args.data
        report = export_int8(args.run, output, args.images, weights=args.weights, pictures=args.pictures, data=data,
                             full_range=args.full_range)
        print(f"{printable_lines(report.table())}\nwrote {output}")
        return
    from ..search.export.onnx import export

    agreement = export(args.run, output, args.images, weights=args.weights, pictures=args.pictures)
    print(f"wrote {output}; {agreement}")
