"""What Cerberus costs on each backbone: parameters, multiply-adds, images a second in torch and in an exported model.

Random weights, pictures of 256x128 that lie in memory. The exported model runs in ONNX Runtime on as many threads.

    python benchmarks/backbones.py --batch 8 --repeats 5
"""

import argparse
import io
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin import add_cerberus_config  # noqa: E402
from cerberus_plugin.config import with_values  # noqa: E402
from cerberus_plugin.experiments.costs import counts  # noqa: E402
from cerberus_plugin.search.export.torch_encoder import Embedder  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import table, timed, write  # noqa: E402
from fastreid.config import get_cfg  # noqa: E402
from fastreid.modeling.meta_arch import build_model  # noqa: E402

CONFIG = Path(__file__).resolve().parents[1] / "configs/Market1501/cerberus_R50.yml"
TIMM = "build_timm_backbone"
BACKBONES = {"ResNet-50": ("build_resnet_backbone", "50x", 2048), "ResNet-18": ("build_resnet_backbone", "18x", 512),
             "OSNet x1.0": ("build_osnet_backbone", "x1_0", 512),
             "MobileNetV2": ("build_mobilenetv2_backbone", "1.0x", 1280),
             "RepViT-M0.9": (TIMM, "repvit_m0_9", 384), "ViT-tiny": (TIMM, "vit_tiny_patch16_224", 192),
             "Swin-tiny": (TIMM, "swin_tiny_patch4_window7_224", 768)}


def config(name: str, size: list[int]):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    backbone, depth, channels = BACKBONES[name]
    return with_values(cfg, {
        "MODEL.DEVICE": "cpu", "MODEL.BACKBONE.NAME": backbone, "MODEL.BACKBONE.DEPTH": depth,
        "MODEL.BACKBONE.FEAT_DIM": channels, "MODEL.BACKBONE.PRETRAIN": False, "INPUT.SIZE_TRAIN": size,
        "INPUT.SIZE_TEST": size, "MODEL.HEADS.NUM_CLASSES": 751, "MODEL.CERBERUS.SCHEMA": "market1501",
        "MODEL.CERBERUS.NUM_SIDS": [4, 18, 40, 8, 4]})


def exported(embedder: torch.nn.Module, images: torch.Tensor):
    """A session of ONNX Runtime with the embedder."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(embedder, (images,), dynamo=True, verbose=False,
                                    dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    file = io.BytesIO(program.model_proto.SerializeToString())
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])


def images_a_second(work, batch: int, repeats: int) -> float:
    """Of the median run, after one that does not count."""
    work()
    return batch / float(np.median([timed(work)[0] for _ in range(repeats)]))


def measure(name: str, args) -> dict:
    cfg = config(name, [args.height, args.height // 2])
    found = counts(cfg)
    torch.manual_seed(0)
    embedder = Embedder(build_model(cfg).eval(), blocks=5, metric="cosine").eval()
    images = torch.randint(256, (args.batch, 3, args.height, args.height // 2), dtype=torch.uint8)
    with torch.no_grad():
        expected = embedder(images).numpy()
        in_torch = images_a_second(lambda: embedder(images), args.batch, args.repeats)
        session = exported(embedder, images)
    feed = {session.get_inputs()[0].name: images.numpy()}
    difference = np.abs(session.run(None, feed)[0] - expected).max()
    assert difference < 1e-3, f"{name}: the exported model differs by {difference}"
    in_onnx = images_a_second(lambda: session.run(None, feed), args.batch, args.repeats)
    return {"parameters": found["parameters"], "multiply_adds": found["operations, torch"] // 2,
            "torch_images_a_second": in_torch, "onnx_images_a_second": in_onnx}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--height", type=int, default=256, help="of an image, twice its width")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    found = {name: measure(name, args) for name in args.names}
    print(table(["Cerberus on", "parameters, M", "multiply-adds, G", "torch, images a second",
                 "ONNX Runtime, images a second"],
                [[name, f"{each['parameters'] / 1e6:.1f}", f"{each['multiply_adds'] / 1e9:.2f}",
                  f"{each['torch_images_a_second']:.1f}", f"{each['onnx_images_a_second']:.1f}"]
                 for name, each in found.items()]))
    print(f"{args.height}x{args.height // 2} pixels, batch {args.batch}, {torch.get_num_threads()} threads; "
          "multiply-adds by torch's counter, attention included; the middle one of several runs")
    fastest = max(each["onnx_images_a_second"] for each in found.values())
    if args.output:
        write(args.output, {"backbones": found, "fastest": fastest, "load_before": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
