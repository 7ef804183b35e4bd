"""`cerberus export`: write a model as one ONNX file, or for the package reid."""

from __future__ import annotations

import argparse

import cerberus_plugin

DESCRIPTION = """Writes a model for onnxruntime, with its attributes and calibration. The file is kept only if it gives
the embeddings of the run on the given pictures.

    cerberus export --run runs/shop --images crops --output model.onnx

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
    export.add_argument("--output", help="file to write (default: model.onnx), or folder (default: reid)")
    export.add_argument("--weights", help="checkpoint (default: the last of the run, or else the best)")
    export.add_argument("--pictures", type=int, default=256, help="onnx: largest number of them (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    if args.format == "onnx" and not args.images:
        raise ValueError("--format onnx needs --images, a folder of typical pictures to check the file on")
    cerberus_plugin.use_torch()
    output = args.output or {"onnx": "model.onnx", "reid": "reid"}[args.format]
    if args.format == "reid":
        from ..interchange.writing import export_reid

        name = export_reid(args.run, output, args.weights)
        print(f"wrote {output}: {name}; load it by reid.ReIDModel.from_pretrained({output!r})")
        return
    from ..search.export.onnx import export

    agreement = export(args.run, output, args.images, weights=args.weights, pictures=args.pictures)
    print(f"wrote {output}; {agreement}")
