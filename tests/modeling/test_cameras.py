"""Camera embeddings: trained and evaluated with the camera of each image, and with their mean where it is unknown."""

import gc
from pathlib import Path

from cerberus_plugin import CerberusPredictor, CerberusTrainer
from cerberus_plugin.config import check_model_keys
from cerberus_plugin.data.build import build_test_set, build_train_loader, build_train_set, camera_number
from cerberus_plugin.data.loader import UNKNOWN_CAMERA
from cerberus_plugin.experiments.gathering import gather
from cerberus_plugin.modeling.build import load_model
from cerberus_plugin.modeling.cameras import CameraEmbedding, camera_embeddings, pass_cameras
from cerberus_plugin.pretrained import names_of
from cerberus_plugin.pretrained.fitting import fit
from cerberus_plugin.search.export.onnx import export
from cerberus_plugin.search.portable import ExportedEncoder
from cerberus_plugin.utils.images import read_image

import pytest
import torch
from fastreid.evaluation import inference_on_dataset
from fastreid.modeling.backbones import build_backbone
from support.data import write_market_folder
from support.own_data import write_people
from support.training import trained
from torch import nn

VIT = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.DEPTH", "test_vit", "MODEL.BACKBONE.FEAT_DIM", 64)
SIZE = ("INPUT.SIZE_TRAIN", [64, 32], "INPUT.SIZE_TEST", [64, 32])
SIE = (*VIT, *SIZE, "MODEL.BACKBONE.SIE_CAMERAS", 4)
MODELS = {
    "Cerberus": ("configs/Market1501/cerberus_demo.yml", ("MODEL.HEADS.EMBEDDING_DIM", 16)),
    "APR": ("configs/Market1501/apr_demo.yml", ()),
    "CSSC": ("configs/PRCC/cssc_demo.yml", ("DATASETS.NAMES", ("Market1501",), "DATASETS.TESTS", ("Market1501",),
                                            "DATASETS.HOLD_OUT", 0, "INPUT.SIZE_TRAIN", [128, 32],
                                            "INPUT.SIZE_TEST", [128, 32])),
    "Baseline": ("configs/Market1501/bot_demo.yml", ()),
}


@pytest.fixture
def config(small_config):
    def config(model: str = "Cerberus", *options):
        file, own = MODELS[model]
        return small_config(*SIE, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, "SOLVER.IMS_PER_BATCH", 8, *own,
                            *options, file=file)

    return config


def cameras_of(name: str, *numbers: int) -> torch.Tensor:
    return torch.tensor([camera_number(f"{name}/{number}") for number in numbers])


def batch_of(dataset, rows) -> dict:
    items = [dataset[row] for row in rows]
    return {"images": torch.stack([item["images"] for item in items]),
            "cameras": torch.tensor([item["cameras"] for item in items])}


@torch.no_grad()
def embedded_by_hand(model: nn.Module, batch: dict) -> torch.Tensor:
    """Embed images one by one, with the embedding of their camera as part of the position embeddings."""
    sie, = camera_embeddings(model)
    vit = next(module for module in model.modules() if getattr(module, "pos_drop", None) is sie)
    rows, positions = [], vit.pos_embed.data.clone()
    vit.pos_drop = nn.Identity()
    for image, camera in zip(batch["images"], batch["cameras"].tolist()):
        known = sie.cameras.tolist()
        own = sie.sie_embed[known.index(camera)] if camera in known else sum(sie.sie_embed) / 4
        vit.pos_embed.data = positions + 3.0 * own
        rows.append(model({"images": image[None].clone()}))
    vit.pos_embed.data, vit.pos_drop = positions, sie
    return torch.cat(rows)


@pytest.mark.parametrize("model", MODELS)
def test_each_model_trains_and_embeds_with_the_cameras_of_the_batch(config, model):
    trainer = trained(config(model))
    own, sie = trainer.model.eval(), camera_embeddings(trainer.model)[0]
    name = next(name for name, module in own.named_modules() if module is sie)
    assert sie.scale == 3.0
    assert not torch.equal(sie.sie_embed, trainer.start[f"{name}.sie_embed"])
    assert set(sie.cameras.tolist()) == set(cameras_of("market1501", 0, 1, 2, 3).tolist())
    assert trainer.results["mAP"] > 0
    nn.init.normal_(sie.sie_embed)
    test_set, _ = build_test_set(trainer.cfg, trainer.cfg.DATASETS.TESTS[0])
    batch = batch_of(test_set, [0, 6, 7, 8, 9, 1])
    batch["cameras"][5] = cameras_of("dukemtmcreid", 0)[0]  # not a camera of the training set
    assert len(set(batch["cameras"].tolist())) >= 3
    expected = embedded_by_hand(own, batch)
    with torch.no_grad():
        with_cameras = own({**batch, "images": batch["images"].clone()})
        without = own({"images": batch["images"].clone()})
        unknown = own({"images": batch["images"].clone(), "cameras": torch.full((6,), UNKNOWN_CAMERA)})
    assert torch.allclose(with_cameras, expected, atol=1e-5)
    assert not torch.allclose(with_cameras[:5], without[:5], atol=1e-3)
    assert torch.allclose(with_cameras[5], without[5], atol=1e-5) and torch.allclose(unknown, without, atol=1e-5)


def test_evaluations_use_cameras_and_searches_and_calibrations_the_mean(config):
    trainer = trained(config("Cerberus", "TEST.FLIP.ENABLED", True))
    nn.init.normal_(camera_embeddings(trainer.model)[0].sie_embed)
    trainer.checkpointer.save("model_final")
    folder, cfg = trainer.cfg.OUTPUT_DIR, trainer.cfg
    predictor = CerberusPredictor(folder, device="cpu", precise=True)
    test_set, _ = build_test_set(cfg, cfg.DATASETS.TESTS[0])
    rows = range(len(test_set))
    batch = batch_of(test_set, rows)
    assert torch.equal(camera_embeddings(predictor.model)[0].cameras, camera_embeddings(trainer.model)[0].cameras)
    kept = []
    loader, evaluator = CerberusTrainer.build_evaluator(cfg, cfg.DATASETS.TESTS[0], model=predictor.model,
                                                        tasks=[lambda gathered: kept.append(gathered) or {}])
    inference_on_dataset(predictor.model, loader, evaluator, flip_test=False)
    assert torch.allclose(kept[0].embeddings, embedded_by_hand(predictor.model, batch), atol=1e-5)
    mean = {**batch, "cameras": torch.full((len(rows),), UNKNOWN_CAMERA)}
    expected = embedded_by_hand(predictor.model, mean)
    paths = [path for path, *_ in test_set.img_items]
    assert torch.allclose(predictor.embed(paths), expected, atol=1e-5)
    assert not torch.allclose(kept[0].embeddings, expected, atol=1e-2)
    predictor.cfg.defrost()
    predictor.cfg.TEST.FLIP.ENABLED = False
    assert torch.allclose(gather(predictor, cfg.DATASETS.TESTS[0]).embeddings, expected, atol=1e-5)


@pytest.mark.slow
def test_an_exported_model_has_the_mean_embedding(config, market_root, tmp_path):
    trainer = trained(config())
    nn.init.normal_(camera_embeddings(trainer.model)[0].sie_embed)
    trainer.checkpointer.save("model_final")
    folder = trainer.cfg.OUTPUT_DIR
    del trainer
    gc.collect()  # see test_backbones.py
    images = market_root / "Market-1501-v15.09.15" / "query"
    assert export(folder, tmp_path / "model.onnx", images).holds  # it compares with the embeddings of the run
    predictor, paths = CerberusPredictor(folder, device="cpu", precise=True), sorted(map(str, images.iterdir()))
    given = ExportedEncoder(tmp_path / "model.onnx", threads=1).encode(list(map(read_image, paths)))
    batch = {"images": predictor.load_images(paths), "cameras": torch.full((len(paths),), UNKNOWN_CAMERA)}
    assert torch.allclose(torch.from_numpy(given), embedded_by_hand(predictor.model, batch), atol=1e-5)


def test_weight_files_without_camera_embeddings_fill_the_other_tensors(config):
    plain, own = (build_backbone(config("Cerberus", "MODEL.BACKBONE.SIE_CAMERAS", number)) for number in (0, 4))
    result = fit(own, names_of(plain))
    assert result.share == 1 and result.added == ("pos_drop.sie_embed", "pos_drop.cameras")
    assert torch.equal(own.timm_model.pos_embed, plain.timm_model.pos_embed)


def test_a_checkpoint_is_resumed_and_loaded_with_its_cameras(config, market_people, tmp_path, use_root):
    first = trained(config())
    left = {name: value.clone() for name, value in first.model.state_dict().items()}
    second = CerberusTrainer(config("Cerberus", "SOLVER.MAX_EPOCH", 2))
    second.resume_or_load(resume=True)
    restored = second.model.state_dict()
    assert second.start_epoch == 1 and all(torch.equal(restored[name], value) for name, value in left.items())
    path = str(Path(first.cfg.OUTPUT_DIR) / "model_final.pth")
    loaded = load_model(config("Cerberus", "MODEL.WEIGHTS", path))
    assert torch.equal(camera_embeddings(loaded)[0].sie_embed, camera_embeddings(first.model)[0].sie_embed)
    # Camera 2 of the training images becomes camera 6.
    root = write_market_folder(tmp_path / "other", *market_people)
    for image in (root / "Market-1501-v15.09.15" / "bounding_box_train").iterdir():
        image.rename(image.with_name(image.name.replace("_c2", "_c6")))
    use_root(root)
    with pytest.raises(ValueError, match=r"'trunk.vit.pos_drop.cameras' differs"):
        CerberusTrainer(config("Cerberus", "SOLVER.MAX_EPOCH", 2)).resume_or_load(resume=True)
    other = CerberusTrainer(config("Cerberus", "OUTPUT_DIR", str(tmp_path / "new"), "MODEL.WEIGHTS", path))
    start = camera_embeddings(other.model)[0].sie_embed.clone()
    other.resume_or_load(resume=False)
    sie, = camera_embeddings(other.model)
    assert set(sie.cameras.tolist()) == set(cameras_of("market1501", 0, 2, 3, 5).tolist())
    assert torch.equal(sie.sie_embed, start)  # those of the checkpoint belong to other cameras
    assert torch.equal(other.model.trunk.vit.pos_embed, left["trunk.vit.pos_embed"])


def test_training_and_test_items_of_a_camera_have_the_same_number(config):
    cfg = config("Cerberus", "DATASETS.HOLD_OUT", 2)
    train, test = build_train_set(cfg), build_test_set(cfg, cfg.DATASETS.TESTS[0])[0]
    held_out = build_test_set(cfg, "held-out")[0]
    for dataset in (train, test, held_out):
        for row, (path, *_) in enumerate(dataset.img_items):
            camera = int(Path(path).name.split("_c")[1][0]) - 1
            assert dataset[row]["cameras"] == cameras_of("market1501", camera)[0]
    for resident in (False, True):
        batch = next(iter(build_train_loader(config("Cerberus", "DATALOADER.RESIDENT", resident))))
        cameras = [int(Path(path).name.split("_c")[1][0]) - 1 for path in batch["img_paths"]]
        assert batch["cameras"].tolist() == cameras_of("market1501", *cameras).tolist()


def test_items_have_no_cameras_without_camera_embeddings(config):
    cfg = config("Cerberus", "MODEL.BACKBONE.SIE_CAMERAS", 0)
    assert "cameras" not in build_train_set(cfg)[0] and not len(build_train_set(cfg).cameras)


def test_cameras_of_own_data_are_those_of_the_table(small_config, tmp_path, own_schemas):
    folders = [str(write_people(tmp_path / name)) for name in ("site", "yard")]
    cfg = small_config("DATASETS.NAMES", folders, "MODEL.BACKBONE.SIE_CAMERAS", 6)
    train, test = build_train_set(cfg), build_test_set(cfg, folders[1])[0]
    assert len(train.cameras) == 6 and len(test.cameras) >= 2
    assert set(test.cameras.tolist()) < set(train.cameras.tolist())


def test_images_without_cameras_are_unknown(small_config, tmp_path, own_schemas):
    folder = write_people(tmp_path / "site")
    table = next(folder.glob("metadata.*"))
    header, *rows = table.read_text().splitlines()
    column = header.split(",").index("camera")
    cells = [row.split(",") for row in rows]
    for row in cells[::2]:
        row[column] = ""
    table.write_text("\n".join([header, *map(",".join, cells)]) + "\n")
    train = build_train_set(small_config("DATASETS.NAMES", [str(folder)], "MODEL.BACKBONE.SIE_CAMERAS", 4))
    cameras = [train[row]["cameras"] for row in range(len(train))]
    assert UNKNOWN_CAMERA in cameras and set(cameras) - {UNKNOWN_CAMERA} == set(train.cameras.tolist())


@pytest.mark.parametrize(("options", "message"), [
    (("MODEL.BACKBONE.SIE_CAMERAS", 3), r"SIE_CAMERAS is 3, but .* are from 4 known cameras; set it to 4"),
    (("MODEL.BACKBONE.SIE_CAMERAS", -1), r"SIE_CAMERAS is -1, but .* set it to 4"),
    (("MODEL.BACKBONE.DEPTH", "test_convnext"), "SIE_CAMERAS is 4, which only timm's vision transformers"),
    (("MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.BACKBONE.DEPTH", "small"),
     "without effect.*SIE_CAMERAS is 4"),
    (("MODEL.BACKBONE.SIE_CAMERAS", 0, "MODEL.BACKBONE.SIE_COE", 1.0), "without effect on Cerberus.*SIE_COE is 1.0"),
])
def test_wrong_settings_are_rejected(config, options, message):
    with pytest.raises(ValueError, match=message):
        CerberusTrainer(config("Cerberus", *options))


def test_the_weight_is_a_key(config):
    cfg = config("Cerberus", "MODEL.BACKBONE.SIE_COE", 1.5)
    check_model_keys(cfg)
    assert camera_embeddings(CerberusTrainer(cfg).model)[0].scale == 1.5


def test_it_is_added_to_all_tokens_of_an_image_and_cameras_end_with_the_pass():
    sie = CameraEmbedding(2, 3, 2.0, nn.Identity())
    sie.fill(torch.tensor([5, 9]))
    with torch.no_grad():
        sie.sie_embed.copy_(torch.tensor([[1.0, 2, 3], [3, 2, 1]]))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.sie = sie

        def forward(self, batch):
            if "fail" in batch:
                raise RuntimeError
            return self.sie(torch.zeros(len(batch["images"]), 2, 3))

    model = Model()
    pass_cameras(model)
    images = torch.zeros(3, 1)
    given = model({"images": images, "cameras": torch.tensor([9, 5, 7])})
    assert given.tolist() == [[[6, 4, 2]] * 2, [[2, 4, 6]] * 2, [[4, 4, 4]] * 2]
    given.sum().backward()
    assert sie.sie_embed.grad.isfinite().all() and (sie.sie_embed.grad > 0).all()
    with pytest.raises(RuntimeError):
        model({"images": images, "cameras": torch.tensor([9, 5, 7]), "fail": True})
    assert sie(torch.zeros(1, 1, 3)).tolist() == [[[4, 4, 4]]]


def test_models_with_camera_embeddings_train_uncompiled_and_in_bfloat16(config, log):
    trainer = CerberusTrainer(config("Cerberus", "MODEL.COMPILE", True, "SOLVER.AUTOCAST", "bfloat16"))
    assert "camera embeddings" in log.text and "training runs uncompiled" in log.text
    losses = trainer.model.train()(next(iter(trainer.data_loader)))
    assert all(loss.isfinite() for loss in losses.values())
