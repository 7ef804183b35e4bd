"""Indexing throughput: images per second, compared with reading and embedding the same images without an index.

    python benchmarks/indexing.py                           1,000 random images of 128x64, ResNet-18 on the CPU
    python benchmarks/indexing.py --images 20000 --depth 50 --batch 256 --device cuda
    python benchmarks/indexing.py --run runs/demo           the model of a run, with attribute predictions
    python benchmarks/indexing.py --model model.onnx        an exported model

Both use the same network and image reader. "Alone" reads a batch, embeds it and stores the result in memory. The index
reads ahead while the network computes, and writes embeddings and names to files that survive a kill. Both alternate;
the results are medians over the rounds. "Index again" updates an index when no image is new.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin.commands.shared import encoder_of  # noqa: E402
from cerberus_plugin.search.gallery import GalleryIndex, Pace  # noqa: E402
from cerberus_plugin.utils.images import read_image  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from common import table, timed, write  # noqa: E402
from PIL import Image  # noqa: E402

HEIGHT, WIDTH = 128, 64


class Network:
    """An encoder of images: pooled features of a ResNet with random weights, which are as fast as trained ones."""

    groups, metric, vocabulary, fingerprint = (), "cosine", None, "0" * 64
    lasting_groups, verification = (), None

    def __init__(self, depth: int, device: str) -> None:
        torch.manual_seed(0)
        self.model = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval().to(device)
        self.dim, self.device = self.model.fc.in_features, device
        self.model.fc = torch.nn.Identity()

    @torch.no_grad()
    def encode(self, images) -> np.ndarray:
        pixels = np.stack([np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for image in images])
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 255
        return self.model(batch).float().cpu().numpy()


def draw(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:04d}_c{i % 6 + 1}s1_{i:06d}_00.jpg" for i in range(count)]
    for path in paths:
        pixels = rng.integers(0, 256, (8, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def alone(paths: list[Path], network, batch: int) -> np.ndarray:
    return np.concatenate([network.encode([read_image(path) for path in paths[first:first + batch]])
                           for first in range(0, len(paths), batch)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--depth", type=int, choices=[18, 34, 50], default=18)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--run", help="folder of a training run, instead of the random network")
    model.add_argument("--model", help="exported model, instead of the random network")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4, help="threads that read images for the index")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    named = args.run or args.model
    network = encoder_of(args.run, args.model) if named else Network(args.depth, args.device)
    pace = Pace(batch_size=args.batch, workers=args.workers, progress=False)
    seconds = {"reading and embedding alone": [], "into an index": [], "index again, nothing new": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        paths = draw(folder / "images", args.images)
        alone(paths[:args.batch], network, args.batch)
        for i in range(args.rounds):
            build = GalleryIndex.build, folder / f"index{i}", folder / "images", network
            seconds["reading and embedding alone"].append(timed(alone, paths, network, args.batch)[0])
            seconds["into an index"].append(timed(*build, pace=pace)[0])
            seconds["index again, nothing new"].append(timed(*build, pace=pace)[0])
    speed = {name: args.images / statistics.median(each) for name, each in seconds.items()}
    plain = speed["reading and embedding alone"]
    print(f"{args.images} images of {HEIGHT}x{WIDTH}, {named or f'ResNet-{args.depth}'}, batch {args.batch}, "
          f"{args.device}, {args.workers} reading threads, {torch.get_num_threads()} PyTorch threads, "
          f"{args.rounds} rounds\n")
    print(table(["", "images/s", "relative to alone"], [[name, f"{value:.0f}", f"{value / plain:.2f}"]
                                               for name, value in speed.items()]))
    if args.output:
        write(args.output, {"images": args.images, "network": named or f"ResNet-{args.depth}", "batch": args.batch,
                            "device": args.device,
                            "workers": args.workers, "images_a_second": speed, "seconds": seconds,
                            "index_of_alone": speed["into an index"] / plain})


if __name__ == "__main__":
    main()
