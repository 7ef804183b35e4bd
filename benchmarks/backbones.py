"""Size and speed of Cerberus on each backbone: parameters, multiply-adds, images a second in torch and as ONNX.

Random weights, images of 256x128 in memory. The exported model runs in ONNX Runtime with the same number of threads.
Models are timed in turn, round by round. The table has medians over the rounds, and medians of the ratio to the first
model in the same round, which a load that changes from round to round affects less.

    python benchmarks/backbones.py --batch 8 --rounds 5
"""

import argparse
import io
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin import add_cerberus_config  # noqa: E402
from cerberus_plugin.config import with_values  # noqa: E402
from cerberus_plugin.experiments.costs import counts  # noqa: E402
from cerberus_plugin.search.export.torch_encoder import Embedder  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import table, timed, write  # noqa: E402
from fastreid.config import CfgNode, get_cfg  # noqa: E402
from fastreid.modeling.meta_arch import build_model  # noqa: E402

CONFIG = Path(__file__).resolve().parents[1] / "configs/Market1501/cerberus_R50.yml"
TIMM = "build_timm_backbone"
BACKBONES = {"ResNet-50": ("build_resnet_backbone", "50x", 2048), "ResNet-18": ("build_resnet_backbone", "18x", 512),
             "OSNet x1.0": ("build_osnet_backbone", "x1_0", 512),
             "MobileNetV2": ("build_mobilenetv2_backbone", "1.0x", 1280),
             "RepViT-M0.9": (TIMM, "repvit_m0_9", 384), "ViT-tiny": (TIMM, "vit_tiny_patch16_224", 192),
             "Swin-tiny": (TIMM, "swin_tiny_patch4_window7_224", 768)}



def config(name: str, size: list[int]) -> CfgNode:
    """Cerberus with the paper's heads on a backbone of BACKBONES."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    return filled(with_values(cfg, options_of(name)), size)


def options_of(name: str) -> dict[str, object]:
    """Configuration keys of a backbone of BACKBONES."""
    builder, depth, channels = BACKBONES[name]
    return {"MODEL.BACKBONE.NAME": builder, "MODEL.BACKBONE.DEPTH": depth, "MODEL.BACKBONE.FEAT_DIM": channels}


def filled(cfg: CfgNode, size: list[int]) -> CfgNode:
    """The configuration on the CPU with random weights, images of this height and width, and Market-1501's labels."""
    return with_values(cfg, {
        "MODEL.DEVICE": "cpu", "MODEL.BACKBONE.PRETRAIN": False, "INPUT.SIZE_TRAIN": size, "INPUT.SIZE_TEST": size,
        "MODEL.HEADS.NUM_CLASSES": 751, "MODEL.CERBERUS.SCHEMA": "market1501",
        "MODEL.CERBERUS.NUM_SIDS": [4, 18, 40, 8, 4]})


def exported(embedder: torch.nn.Module, images: torch.Tensor):
    """A session of ONNX Runtime with the embedder."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own code
        program = torch.onnx.export(embedder, (images,), dynamo=True, verbose=False,
                                    dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to the next model
    file = io.BytesIO(program.model_proto.SerializeToString())
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])


def passes(name: str, cfg: CfgNode, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """One inference of a batch in torch, and one in ONNX Runtime, whose embeddings agree."""
    torch.manual_seed(0)
    embedder = Embedder(build_model(cfg).eval(), blocks=5, metric="cosine").eval()
    images = torch.randint(256, (batch, 3, *cfg.INPUT.SIZE_TEST), dtype=torch.uint8)

    def in_torch() -> torch.Tensor:
        with torch.no_grad():
            return embedder(images)

    with torch.no_grad():
        session = exported(embedder, images)
    feed = {session.get_inputs()[0].name: images.numpy()}

    def in_onnx() -> np.ndarray:
        return session.run(None, feed)[0]

    difference = np.abs(in_onnx() - in_torch().numpy()).max()
    assert difference < 1e-3, f"{name}: the exported model differs by {difference}"
    return in_torch, in_onnx


def in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in each round; every round times every work once, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for place in range(rounds + 1):
        for name, work in works.items():
            took = timed(work)[0]
            if place:
                seconds[name].append(took)
    return seconds


def rates(seconds: Mapping[str, Sequence[float]], batch: int) -> dict[str, dict[str, float]]:
    """Images a second, and how many times those of the first model: medians over the rounds."""
    first = next(iter(seconds.values()))
    return {name: {"images_a_second": batch / statistics.median(own),
                   "times_first": statistics.median(one / other for one, other in zip(first, own))}
            for name, own in seconds.items()}


def compare(cfgs: Mapping[str, CfgNode], batch: int, rounds: int) -> dict[str, dict]:
    """Size and speed of each configuration; the first one is the reference of the ratios."""
    works = {name: passes(name, cfg, batch) for name, cfg in cfgs.items()}
    in_torch, in_onnx = (rates(in_turn({name: work[way] for name, work in works.items()}, rounds), batch)
                         for way in (0, 1))
    found = {}
    for name, cfg in cfgs.items():
        sizes = counts(cfg)
        found[name] = {"parameters": sizes["parameters"], "multiply_adds": sizes["operations, torch"] // 2,
                       "torch": in_torch[name], "onnx": in_onnx[name]}
    return found


def speed_table(found: Mapping[str, Mapping]) -> str:
    """What `compare` has found, a row each model."""
    first = next(iter(found))
    return table(
        ["Cerberus on", "parameters, M", "multiply-adds, G", "torch, images a second", f"times {first}",
         "ONNX Runtime, images a second", f"times {first}"],
        [[name, f"{each['parameters'] / 1e6:.1f}", f"{each['multiply_adds'] / 1e9:.2f}",
          *(text for way in ("torch", "onnx") for text in (f"{each[way]['images_a_second']:.1f}",
                                                           f"{each[way]['times_first']:.2f}"))]
         for name, each in found.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--height", type=int, default=256, help="of an image, twice its width")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    found = compare({name: config(name, [args.height, args.height // 2]) for name in args.names}, args.batch,
                    args.rounds)
    print(speed_table(found))
    print(f"{args.height}x{args.height // 2} pixels, batch {args.batch}, {torch.get_num_threads()} threads; "
          f"multiply-adds by torch's counter, attention included; medians of {args.rounds} rounds; load average "
          f"before: {load:.1f}")
    fastest = max(each["onnx"]["images_a_second"] for each in found.values())
    if args.output:
        write(args.output, {"backbones": found, "fastest": fastest, "load_before": load})


if __name__ == "__main__":
    main()
