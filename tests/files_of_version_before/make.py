"""Write a run, its calibration, an index and an exported model with an earlier version, and its predictions.

    PYTHONPATH=BEFORE:tests python tests/files_of_version_before/make.py BEFORE

BEFORE is a checkout of that version. The script writes files.zip and answers.json to its own folder. The synthetic
dataset and images are not stored.
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from cerberus_plugin import CerberusPredictor, CerberusTrainer, add_cerberus_config
from cerberus_plugin.encoding import TorchEncoder
from cerberus_plugin.experiments import calibrate
from cerberus_plugin.export import export
from cerberus_plugin.gallery import GalleryIndex, Pace, Query
from cerberus_plugin.gallery.record import Record
from cerberus_plugin.portable import ExportedEncoder, read_image

import torch
from fastreid.config import get_cfg
from fastreid.utils.env import seed_all_rng
from support import backbones  # noqa: F401  registers the tiny backbone
from support.data import market_labels, write_bands, write_market_folder

WORDS = {"gender": "female", "upper colour": "red"}
KEPT = ("run/config.yaml", "run/model_final.pth", "run/last_checkpoint", "run/results.json",
        "run/calibration/calibration.json", "model.onnx", "index/**/*")
OPTIONS = (
    "MODEL.DEVICE", "cpu", "MODEL.COMPILE", False, "MODEL.BACKBONE.PRETRAIN", False,
    "MODEL.BACKBONE.NAME", "build_tiny_backbone", "MODEL.BACKBONE.FEAT_DIM", 4, "MODEL.HEADS.EMBEDDING_DIM", 8,
    "MODEL.CERBERUS.SIGMA", 1.0, "INPUT.SIZE_TRAIN", [48, 24], "INPUT.SIZE_TEST", [48, 24],
    "SOLVER.AMP.ENABLED", False, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.MAX_EPOCH", 12, "SOLVER.WARMUP_ITERS", 0,
    "SOLVER.CHECKPOINT_PERIOD", 12, "TEST.EVAL_PERIOD", 12, "TEST.UNTRAINED_FLOOR", False,
    "DATALOADER.NUM_WORKERS", 0, "SEED", 1, "OUTPUT_DIR", "run")


def train(checkout: Path) -> None:
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(checkout / "configs/Market1501/cerberus_demo.yml"))
    cfg.merge_from_list(list(OPTIONS))
    cfg.freeze()
    seed_all_rng(1)
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


def rounded(value):
    """Round the numbers of nested lists and dictionaries to six decimals."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else (
        round(value, 6) if isinstance(value, float) else value)


def hits(found) -> list:
    return [[Path(hit.path).name, hit.score] for hit in found]


def answers() -> dict:
    """Return the predictions and search results that later versions must reproduce, as plain values."""
    predictor = CerberusPredictor("run", device="cpu")
    pictures = predictor.pictures("crops")
    index = GalleryIndex.open("index")
    exported = ExportedEncoder("model.onnx", providers=["CPUExecutionProvider"])
    images = [read_image(path) for path in pictures]
    recognised = {key: [{name: [own.value, own.probability, own.withheld] for name, own in row.items()} for row in rows]
                  for key, rows in (("answers", predictor.answers(pictures)),
                                    ("exported answers", exported.vocabulary.recognise(exported.encode(images))))}
    return recognised | {
        "embeddings": predictor.embed(pictures).tolist(),
        "recognised": predictor.recognise(pictures),
        "same person": predictor.same_person(*pictures[:2]),
        "search by words": hits(predictor.search(WORDS, "crops")),
        "search by picture": hits(predictor.search(pictures[0], "crops")),
        "index by words": hits(index.search(Query(words=WORDS))),
        "index by picture": hits(index.search(Query(index.embed(exported, pictures[0]), leave_out=["upper"]))),
        "exported embeddings": exported.encode(images).tolist(),
        "fingerprint": exported.fingerprint,
    }


def main() -> None:
    here, checkout = Path(__file__).resolve().parent, Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that paths in the files are relative
        import fastreid.data.build

        fastreid.data.build._root = "data"
        write_market_folder(Path("data"), *market_labels())
        write_bands(Path("crops"), 6)
        train(checkout)
        calibrate.main(["run", "--accuracy", "0.4", "--confidence", "0.6", "--false-match-rate", "0.3",
                        "--device", "cpu"])
        GalleryIndex.build("index", "crops", TorchEncoder(CerberusPredictor("run", device="cpu"), 4),
                           pace=Pace(progress=False))
        replace(Record.read(Path("index")), images="crops").write(Path("index"))
        print(export("run", "model.onnx", "crops"))
        (here / "answers.json").write_text(json.dumps(rounded(answers()), indent=1) + "\n")
        with ZipFile(here / "files.zip", "w", ZIP_DEFLATED, compresslevel=9) as packed:
            for path in sorted(path for kept in KEPT for path in Path().glob(kept) if path.is_file()):
                packed.write(path)
        os.chdir(here)


if __name__ == "__main__":
    main()
