"""Keys of MODEL: each key either has an effect on a model or its training, or is rejected."""

import importlib
from pathlib import Path

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.config import BACKBONE_KEYS, MODEL_KEYS, changed, check_model_keys
from cerberus_plugin.modeling.build import load_model

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage
from support.data import random_labels
from support.training import RESNET, read_config

# Keys that only the trainer uses; they are tested with the trainer.
OF_THE_TRAINER = {"META_ARCHITECTURE", "DEVICE", "WEIGHTS", "FREEZE_LAYERS", "CHANNELS_LAST", "COMPILE", "COMPILE_MODE",
                  "SYNC_BN"}
EVERY_LOSS = ("MODEL.HEADS.WITH_BNNECK", True, "MODEL.HEADS.CLS_LAYER", "CosSoftmax", "MODEL.LOSSES.CE.EPSILON", -1.0,
              "MODEL.LOSSES.NAME", ["CrossEntropyLoss", "TripletLoss", "CircleLoss", "Cosface"])
CASES = {
    "Cerberus": ("configs/Market1501/cerberus_demo.yml", ()),
    "CSSC": ("configs/PRCC/cssc_demo.yml", ()),
    "IDE": ("configs/Market1501/ide_demo.yml", ()),
    "ARN": ("configs/Market1501/arn_demo.yml", ()),
    "APR": ("configs/Market1501/apr_demo.yml", ()),
    "IDE, every loss": ("configs/Market1501/ide_demo.yml", EVERY_LOSS),
}
OTHER_VALUES = {"HEADS.NAME": "ClasHead", "HEADS.NORM": "syncBN", "HEADS.NECK_FEAT": "after",
                "HEADS.POOL_LAYER": "GlobalMaxPool", "HEADS.CLS_LAYER": "CircleSoftmax",
                "LOSSES.NAME": ["CrossEntropyLoss", "CircleLoss"], "LOSSES.CE.EPSILON": 0.25,
                "PIXEL_MEAN": [1.0, 2.0, 3.0], "PIXEL_STD": [1.0, 2.0, 3.0]}


def config_of(case: str, *options) -> CfgNode:
    file, of_case = CASES[case]
    return read_config("MODEL.HEADS.NUM_CLASSES", 4, "MODEL.CERBERUS.SCHEMA", "market1501",
                       "MODEL.APR.SCHEMA", "market1501", "MODEL.CERBERUS.NUM_SIDS", [4, 18, 40, 8, 4],
                       *of_case, *options, file=file)


def outcome(cfg: CfgNode) -> list:
    """Observable properties of a model: its layers, losses and embeddings; or the error that building it raises."""
    from cerberus_plugin.attributes import MARKET1501

    torch.manual_seed(0)
    try:
        model = build_model(cfg)
        torch.manual_seed(1)
        images = 255 * torch.rand(8, 3, 32, 8)
        batch = {"images": images.clone(), "targets": torch.arange(8) // 2, "attributes": random_labels(MARKET1501, 8),
                 "sids": torch.randint(4, (8, 5))}
        with EventStorage(0), torch.no_grad():
            losses = {name: value.item() for name, value in model(batch).items()}
            layers = [type(layer) for layer in model.modules() if any(True for _ in layer.parameters(recurse=False))]
            shapes = [value.shape for value in model.state_dict().values()]
            return [layers, shapes, losses, model.eval()(images).tolist()]
    except Exception as error:
        return [type(error)]


def keys_of(node: CfgNode, prefix: str = "") -> list[tuple]:
    """Keys of MODEL with their values, except those of the backbone and of the sections of the plugin's models."""
    found = []
    for key, value in node.items():
        if isinstance(value, CfgNode):
            found += keys_of(value, f"{prefix}{key}.") if key not in ("BACKBONE", "CERBERUS", "APR", "CSSC") else []
        else:
            found.append((prefix + key, value))
    return found


def another(key: str, value):
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    return not value if isinstance(value, bool) else value + (1 if isinstance(value, int) else 0.125)


@pytest.mark.parametrize("case", CASES)
def test_keys_are_rejected_exactly_if_they_have_no_effect(case):
    plain = config_of(case)
    check_model_keys(plain)
    expected, wrong = outcome(plain), []
    assert len(expected) > 1, expected
    for key, value in keys_of(plain.MODEL):
        if key in OF_THE_TRAINER:
            continue
        cfg = plain.clone()
        cfg.defrost()
        cfg.merge_from_list([f"MODEL.{key}", another(key, value)])
        try:
            check_model_keys(cfg)
            rejected = False
        except ValueError as error:
            assert f"MODEL.{key} is " in str(error)
            rejected = True
        if rejected == (outcome(cfg) != expected):
            wrong.append((key, "rejected" if rejected else "accepted"))
    assert wrong == []


@pytest.mark.parametrize(("name", "module", "built", "depth"), [
    ("resnet", "resnet", "ResNet", "50x"), ("resnext", "resnext", "ResNeXt", "50x"),
    ("resnest", "resnest", "ResNeSt", "50x"), ("osnet", "osnet", "OSNet", "x1_0"),
    ("mobilenetv2", "mobilenet", "MobileNetV2", "1.0x"), ("mobilenetv3", "mobilenetv3", "MobileNetV3", "Small"),
    ("shufflenetv2", "shufflenet", "ShuffleNetV2", "1.0x"), ("effnet", "regnet.effnet", "EffNet", "b0"),
    ("regnet", "regnet.regnet", "RegNet", "200x"), ("repvgg", "repvgg", "RepVGG", "A0"),
    ("vit", "vision_transformer", "VisionTransformer", "small")])
def test_the_keys_of_a_backbone_are_those_used_by_its_builder(monkeypatch, name, module, built, depth):
    read = set()

    class Recorded(CfgNode):
        def __getattr__(self, key):
            read.add(key)
            return super().__getattr__(key)

    module = importlib.import_module(f"fastreid.modeling.backbones.{module}")
    monkeypatch.setattr(module, built, lambda *args, **kwargs: None)
    cfg = read_config("MODEL.BACKBONE.DEPTH", depth).clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE = Recorded(cfg.MODEL.BACKBONE)
    read.clear()
    getattr(module, f"build_{name}_backbone")(cfg)
    outside = {"NAME", "FEAT_DIM", "CUT", "STEM_POOL", "PRETRAIN_SOURCE", "PRETRAIN_PARTIAL"}  # not used by the builder
    without_effect = {"SIE_COE"}  # weight of camera embeddings, which FastReID's builder does not use
    keys = set(BACKBONE_KEYS[f"build_{name}_backbone"]) - outside
    assert keys == {key for key in read if key.isupper()} - without_effect


def test_a_split_point_is_rejected_for_models_without_a_split():
    with pytest.raises(ValueError, match="keys without effect on APR.*MODEL.BACKBONE.CUT is 'layer3.0'"):
        check_model_keys(config_of("APR", "MODEL.BACKBONE.CUT", "layer3.0"))


def test_the_earlier_default_of_stem_pool_is_not_a_change():
    for pool, named in (("auto", False), ("ceil", False), ("padding", True)):
        cfg = read_config("MODEL.BACKBONE.NAME", "build_resnest_backbone", "MODEL.BACKBONE.STEM_POOL", pool)
        assert ("MODEL.BACKBONE.STEM_POOL" in changed(cfg)) is named
        if not named:
            check_model_keys(cfg)


@pytest.mark.parametrize(("name", "key"), [("resnet", "SIE_COE"), ("resnest", "WITH_IBN")])
def test_keys_of_other_backbones_are_rejected(name, key):
    cfg = read_config("MODEL.BACKBONE.NAME", f"build_{name}_backbone")
    check_model_keys(cfg)
    cfg.defrost()
    cfg.MODEL.BACKBONE[key] = another(key, cfg.MODEL.BACKBONE[key])
    with pytest.raises(ValueError, match=f"keys without effect on Cerberus.*MODEL.BACKBONE.{key} is"):
        check_model_keys(cfg)


@pytest.mark.parametrize(("case", "options", "message"), [
    ("IDE", ("MODEL.LOSSES.NAME", ["CrossEntropyLoss", "Triplet"]), "NAME is .*'Triplet'.*, expected any of CrossEn"),
    ("Cerberus", ("MODEL.LOSSES.CE.EPSILON", -1.0), "EPSILON is -1.0, expected 0 to 1: Cerberus does not support"),
    ("Cerberus", ("MODEL.HEADS.POOL_LAYER", "GlobalMaxPool", "MODEL.QUEUE_SIZE", 7),
     r"MODEL.QUEUE_SIZE is 7 \(default: 8192\); MODEL.HEADS.POOL_LAYER is 'GlobalMaxPool' \(default: 'GlobalAvgPool'\)"
     ". Remove them, or set them to their default. Of MODEL.HEADS and MODEL.LOSSES .* uses .*HEADS.*LOSSES.CE.EPS"),
])
def test_errors_name_keys_values_and_remedy(case, options, message):
    with pytest.raises(ValueError, match=message):
        check_model_keys(config_of(case, *options))


def test_keys_without_effect_are_rejected_in_training_but_not_in_inference(run, small_config):
    options = ("MODEL.HEADS.POOL_LAYER", "GlobalMaxPool")
    with pytest.raises(ValueError, match="MODEL.HEADS.POOL_LAYER"):
        CerberusTrainer(small_config(*options))
    cfg = run.cfg.clone()
    cfg.merge_from_list([*options, "MODEL.WEIGHTS", str(Path(cfg.OUTPUT_DIR) / "model_final.pth")])
    assert not load_model(cfg).training


def test_removed_keys_are_accepted_in_configurations_of_older_runs():
    check_model_keys(read_config("MODEL.CERBERUS.FC_BIAS", True))


def test_the_size_of_a_feature_is_that_of_the_backbone():
    with pytest.raises(ValueError, match="FEAT_DIM is 2048, but build_resnet_backbone at depth 18x has 512 output"):
        CerberusTrainer.build_model(read_config(*RESNET, "MODEL.BACKBONE.FEAT_DIM", 2048,
                                                file="configs/PRCC/cssc_demo.yml"))


def test_models_of_fastreid_are_not_checked():
    cfg = read_config("MODEL.LOSSES.FL.GAMMA", 5, file="configs/Market1501/bot_demo.yml")
    assert cfg.MODEL.META_ARCHITECTURE not in MODEL_KEYS
    check_model_keys(cfg)
