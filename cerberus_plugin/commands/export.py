"""`cerberus export`: write a model as one ONNX file."""

from __future__ import annotations

import argparse

import cerberus_plugin


def add(jobs) -> None:
    export = jobs.add_parser("export", help="write the model as one ONNX file",
                             description="Writes a model for onnxruntime, with its attributes and calibration. The "
                             "file is kept only if it gives the embeddings of the run on the given pictures.")
    export.set_defaults(job=run)
    export.add_argument("--run", required=True, help="folder of a training run")
    export.add_argument("--images", required=True, help="folder of typical pictures, to check it on")
    export.add_argument("--output", default="model.onnx", help="file to write (default: %(default)s)")
    export.add_argument("--weights", help="checkpoint (default: the last of the run, or else the best)")
    export.add_argument("--pictures", type=int, default=256, help="largest number of them (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    cerberus_plugin.use_torch()
    from ..search.export.onnx import export

    agreement = export(args.run, args.output, args.images, weights=args.weights, pictures=args.pictures)
    print(f"wrote {args.output}; {agreement}")
