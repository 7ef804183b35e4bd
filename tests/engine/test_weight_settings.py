"""Settings that pretrained weights require are stored in the run folder and the checkpoint, and used again."""

from pathlib import Path

from cerberus_plugin import add_cerberus_config
from cerberus_plugin.config import merge_file
from cerberus_plugin.engine.trainer import setup
from cerberus_plugin.host import settle
from cerberus_plugin.modeling.build import load_model

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine import default_argument_parser
from fastreid.modeling.backbones import build_backbone
from support import published_names
from support.training import RESNET, trained
from torch import nn

MEAN = [89.896, 79.2, 80.073]
IDE = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.EMBEDDING_DIM", 0,
       "MODEL.LOSSES.NAME", ("CrossEntropyLoss",), "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_EPOCH", 1, *RESNET)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a file in the format of LUPerson: a plain ResNet, recognised by the file name."""
    cfg = get_cfg()
    cfg.merge_from_list([*RESNET, "MODEL.BACKBONE.PRETRAIN", False])
    path = tmp_path_factory.mktemp("weights") / "lup_moco_r18.pth"
    torch.save(build_backbone(cfg).state_dict(), path)
    return path


@pytest.mark.parametrize("model", [pytest.param((), marks=pytest.mark.slow), IDE],
                         ids=["Cerberus", "a model of FastReID"])
def test_an_evaluation_uses_the_stored_settings_with_any_configuration(small_config, weights, model):
    options = (*RESNET, *model, "SOLVER.MAX_EPOCH", 1, "MODEL.BACKBONE.PRETRAIN", True,
               "MODEL.BACKBONE.PRETRAIN_PATH", str(weights))
    run = trained(small_config(*options))
    folder = Path(run.cfg.OUTPUT_DIR)
    kept = get_cfg()
    add_cerberus_config(kept)
    merge_file(kept, folder / "config.yaml")
    assert kept.MODEL.PIXEL_MEAN == MEAN and kept.MODEL.BACKBONE.STEM_POOL == "padding"
    assert run.model.pixel_mean.flatten().tolist() == pytest.approx(MEAN)

    final = ("MODEL.WEIGHTS", str(folder / "model_final.pth"))
    loaded = load_model(small_config(*options, *final))  # without both keys
    assert loaded.pixel_mean.flatten().tolist() == pytest.approx(MEAN)
    assert [module.padding for module in loaded.modules() if isinstance(module, nn.MaxPool2d)] == [1]
    with pytest.raises(ValueError, match="was trained with MODEL.BACKBONE.STEM_POOL padding, not ceil. Use the config"):
        load_model(small_config(*options, *final, "MODEL.BACKBONE.STEM_POOL", "ceil"))

    checkpoint = torch.load(folder / "model_final.pth")
    torch.save({"model": checkpoint["model"]}, folder / "earlier.pth")  # as in earlier versions, with "ceil"
    earlier = load_model(small_config(*options, "MODEL.WEIGHTS", str(folder / "earlier.pth")))
    assert [module.ceil_mode for module in earlier.modules() if isinstance(module, nn.MaxPool2d)] == [True]


def test_a_resumed_run_uses_the_stored_settings_without_the_weight_file(
        small_config, tmp_path, weights, monkeypatch):
    monkeypatch.setattr("cerberus_plugin.engine.trainer.default_setup", lambda cfg, args: None)
    run = tmp_path / "run"
    run.mkdir()
    (run / "last_checkpoint").write_text("model_0000.pth")
    given = small_config(*RESNET, "MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH", str(weights))
    began = given.clone()
    began.defrost()
    began.MODEL.PIXEL_MEAN, began.MODEL.BACKBONE.STEM_POOL = MEAN, "padding"
    (run / "config.yaml").write_text(began.dump())
    (tmp_path / "file.yml").write_text(given.dump())
    arguments = ["--config-file", str(tmp_path / "file.yml"), "--resume", "OUTPUT_DIR", str(run),
                 "MODEL.BACKBONE.PRETRAIN_PATH", "gone.pth"]
    cfg = setup(default_argument_parser().parse_args(arguments))
    assert cfg.MODEL.PIXEL_MEAN == MEAN and cfg.MODEL.BACKBONE.STEM_POOL == "padding"
    assert not cfg.MODEL.BACKBONE.PRETRAIN
    with pytest.raises(ValueError, match="config.yaml: was trained with MODEL.BACKBONE.STEM_POOL padding, not ceil"):
        setup(default_argument_parser().parse_args([*arguments, "MODEL.BACKBONE.STEM_POOL", "ceil"]))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bot", "agw", "sbs", "mgn"])
def test_fastreids_models_load_the_same_weights(tmp_path, log, model):
    from fastreid.modeling.meta_arch import build_model

    cfg = get_cfg()
    add_cerberus_config(cfg)
    merge_file(cfg, f"configs/Market1501/{model}_R50ibn_cion.yml" if model in ("bot", "mgn") else
               f"configs/Market1501/{model}_R50.yml")
    ibn = cfg.MODEL.BACKBONE.WITH_IBN
    torch.manual_seed(0)
    tensors = {name: torch.rand(shape) for name, shape in published_names.resnet(ibn=ibn, classes=0).items()}
    torch.save({"teacher": {f"module.backbone.{name}": value for name, value in tensors.items()}}, tmp_path / "R50.pth")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", 8, "MODEL.BACKBONE.PRETRAIN_PATH",
                         str(tmp_path / "R50.pth")])
    built = build_model(settle(cfg)[0])
    count = 291 if ibn else 265
    assert f"{count} of {count} tensors matched" in log.text
    last = tensors["layer4.2.conv3.weight"]
    branches = [value for name, value in built.state_dict().items()
                if name.endswith("2.conv3.weight") and value.shape == last.shape]
    assert len(branches) == (3 if model == "mgn" else 1) and all(torch.equal(value, last) for value in branches)
