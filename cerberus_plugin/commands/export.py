"""`cerberus export`: export a model to ONNX, or for the package reid."""

from __future__ import annotations

import argparse

import cerberus_plugin

DESCRIPTION = """Exports a model to one ONNX file, with its attributes and calibration. The file is compared with the
run on the given images, and is written only if the embeddings and attributes agree.

    cerberus export --run runs/shop --images crops --output model.onnx

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
    export.add_argument("--output", help="output file (default: model.onnx), or output folder for reid (default: reid)")
    export.add_argument("--weights", help="checkpoint (default: the last one of the run, or the best one if there is "
                        "no last one)")
    export.add_argument("--pictures", type=int, default=256, help="onnx: maximum number of images to check (default: "
                        "%(default)s)")


def run(args: argparse.Namespace) -> None:
    if args.format == "onnx" and not args.images:
        raise ValueError("--format onnx needs --images, a folder of typical images, to check the exported file")
    cerberus_plugin.use_torch()
    output = args.output or {"onnx": "model.onnx", "reid": "reid"}[args.format]
    if args.format == "reid":
        from ..interchange.writing import export_reid

        name = export_reid(args.run, output, args.weights)
        print(f"wrote {output}: {name}; load it with reid.ReIDModel.from_pretrained({output!r})")
        return
    from ..search.export.onnx import export

    agreement = export(args.run, output, args.images, weights=args.weights, pictures=args.pictures)
    print(f"wrote {output}; {agreement}")
