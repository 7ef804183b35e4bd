"""Pretrained weights: matching and counting of tensors, rejected files, and the settings that weights require."""

import argparse
import logging
import sys
import types

from cerberus_plugin import add_cerberus_config
from cerberus_plugin.host import settle

import fastreid.data.build
import fastreid.engine.defaults
import fastreid.evaluation.rank
import fastreid.solver
import numpy
import pytest
import torch
from fastreid.config import get_cfg
from safetensors.torch import save_file
from torch import nn


def backbone_cfg(path, pretrain=True, **options):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.MODEL.BACKBONE.DEPTH = "18x"
    cfg.MODEL.BACKBONE.PRETRAIN = pretrain
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = str(path)
    for key, value in options.items():
        section = cfg.MODEL if key.startswith("PIXEL") else cfg.MODEL.BACKBONE
        section[key] = value
    return cfg


def build_backbone(path, pretrain=True, **options):
    from fastreid.modeling.meta_arch import baseline

    return baseline.build_backbone(backbone_cfg(path, pretrain, **options))


@pytest.fixture(scope="module")
def state():
    """State of a ResNet-18, with the tensor names of torchvision."""
    return build_backbone("", pretrain=False).state_dict()


def saved(path, content):
    torch.save(content, path)
    return path


def test_all_tensors_of_a_complete_file_are_counted(tmp_path, log, state):
    loaded = build_backbone(saved(tmp_path / "r18.pth", state)).state_dict()
    assert torch.equal(loaded["conv1.weight"], state["conv1.weight"])
    # 20 convolutions, and 20 BatchNorms of 4 tensors without their counters.
    assert "r18.pth, read as " in log.text and ": 100 of 100 tensors matched" in log.text
    assert log.records[-1].levelno == logging.INFO


def test_safetensors_are_read_and_a_damaged_file_is_named(tmp_path, log, state):
    save_file(state, tmp_path / "r18.safetensors")
    loaded = build_backbone(tmp_path / "r18.safetensors").state_dict()
    assert torch.equal(loaded["conv1.weight"], state["conv1.weight"]) and "100 of 100" in log.text
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "r18.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut.safetensors: cannot be read as weights"):
        build_backbone(tmp_path / "cut.safetensors")


WRAPPED = {"state_dict of DataParallel": ("module.", "state_dict"), "FastReID": ("backbone.", "model"),
           "CION": ("module.backbone.", "teacher"), "MoCo": ("module.encoder_q.", "state_dict")}


@pytest.mark.parametrize("form", WRAPPED)
def test_a_wrapped_file_fills_the_backbone(tmp_path, log, state, form):
    prefix, key = WRAPPED[form]
    content = {key: {f"{prefix}{name}": value for name, value in state.items()}, "epoch": 3}
    loaded = build_backbone(saved(tmp_path / "r18.pth", content)).state_dict()
    assert torch.equal(loaded["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])
    assert torch.equal(loaded["conv1.weight"], state["conv1.weight"]) and "100 of 100" in log.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript:UserWarning")
def test_options_stored_with_the_weights_are_accepted_and_other_objects_rejected(tmp_path, state):
    content = {"teacher": {f"module.backbone.{name}": value for name, value in state.items()}}
    build_backbone(saved(tmp_path / "dino.pth", content | {"args": argparse.Namespace(arch="resnet18")}))
    with pytest.raises(ValueError, match="other.pth: cannot be read as weights.*weights_only=False"):
        build_backbone(saved(tmp_path / "other.pth", content | {"args": types.SimpleNamespace(arch="resnet18")}))
    with pytest.raises(ValueError, match="numpy.pth: cannot be read as weights"):
        build_backbone(saved(tmp_path / "numpy.pth", content | {"rank1": numpy.float64(0.9)}))
    module = torch.jit.trace(nn.Linear(1, 1), torch.ones(1))
    torch.jit.save(module, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"clip.pt: is a TorchScript archive.*torch.jit.load"):
        build_backbone(tmp_path / "clip.pt")


def test_a_file_with_too_few_matching_tensors_needs_the_key_pretrain_partial(tmp_path, log):
    path = saved(tmp_path / "part.pth", {"bn1.weight": torch.full((64,), 3.0), "fc.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"part.pth.*: 1 of 100 tensors matched.*not in the model: fc \(1\).*"
                                         r"like \['bn1.weight', 'fc.weight'\], build_resnet.* 18x like .*PARTIAL"):
        build_backbone(path)
    assert build_backbone(path, PRETRAIN_PARTIAL=True).bn1.weight[0] == 3.0
    assert log.records[-1].levelno == logging.WARNING
    with pytest.raises(ValueError, match=": 0 of 100 tensors matched"):
        build_backbone(saved(tmp_path / "none.pth", {"encoder.weight": torch.ones(1)}), PRETRAIN_PARTIAL=True)


def test_a_file_without_instance_norms_does_not_match_a_backbone_with_them(tmp_path, state):
    with pytest.raises(ValueError, match=r"76 of 112 tensors matched.*18x with IBN like.*check .*WITH_IBN"):
        build_backbone(saved(tmp_path / "r18.pth", state), WITH_IBN=True)


def test_non_local_blocks_do_not_count_as_missing(tmp_path, log):
    torch.manual_seed(0)
    plain = build_backbone("", pretrain=False, DEPTH="50x").state_dict()
    build_backbone(saved(tmp_path / "r50.pth", plain), DEPTH="50x", WITH_NL=True)
    assert "265 of 265 tensors matched; new, in no published file: NL_2.0 (12)" in log.text


FORMS = {"imagenet": lambda state: state | {"fc.weight": torch.zeros(1000, 512)},
         "fastreid": lambda state: {"model": {f"backbone.{name}": value for name, value in state.items()}
                                    | {"heads.weight": torch.zeros(1)}},
         "cion": lambda state: {"teacher": {f"module.backbone.{name}": value for name, value in state.items()}}}


@pytest.mark.parametrize("form, pool", [("imagenet", "padding"), ("fastreid", "ceil"), ("cion", "padding")])
def test_the_stem_pools_as_the_weights_were_trained_unless_the_key_is_set(tmp_path, state, form, pool):
    path = saved(tmp_path / "r18.pth", FORMS[form](state))
    settled, notes = settle(backbone_cfg(path))
    assert settled.MODEL.BACKBONE.STEM_POOL == pool and f"STEM_POOL is {pool}" in "".join(notes)
    assert build_backbone(path).maxpool.padding == (1 if pool == "padding" else 0)
    for given in ("ceil", "padding"):
        assert settle(backbone_cfg(path, STEM_POOL=given))[0].MODEL.BACKBONE.STEM_POOL == given
        assert build_backbone(path, STEM_POOL=given).maxpool.ceil_mode is (given == "ceil")


def test_without_pretrained_weights_the_stem_pools_like_fastreids():
    assert build_backbone("", pretrain=False).maxpool.ceil_mode
    assert settle(backbone_cfg("", pretrain=False))[0].MODEL.BACKBONE.STEM_POOL == "ceil"


MEAN, STD = [89.896, 79.2, 80.073], [63.872, 64.305, 63.839]


def test_the_normalisation_that_weights_require_is_set_and_others_are_rejected(tmp_path, state):
    path = saved(tmp_path / "lup_r18.pth", state)
    settled, notes = settle(backbone_cfg(path))
    assert (settled.MODEL.PIXEL_MEAN, settled.MODEL.PIXEL_STD) == (MEAN, STD)
    assert "LUPerson's or LUPerson-NL's ResNet (for research only)" in notes[0]
    assert "PIXEL_MEAN is [89.896" in notes[1]
    build_backbone(path, PIXEL_MEAN=MEAN, PIXEL_STD=STD)
    with pytest.raises(ValueError, match=r"set MODEL.PIXEL_MEAN to \[89.896.* and MODEL.PIXEL_STD to \[63.872"):
        build_backbone(path)  # `settle` was not called
    with pytest.raises(ValueError, match=r"LUPerson.*MEAN \[89.896.*configuration has \[127.5, .*PRETRAIN_SOURCE"):
        settle(backbone_cfg(path, PIXEL_MEAN=[127.5] * 3, PIXEL_STD=[127.5] * 3))
    assert settle(backbone_cfg(path, PRETRAIN_SOURCE="imagenet"))[0].MODEL.PIXEL_MEAN == get_cfg().MODEL.PIXEL_MEAN


def test_an_image_size_other_than_that_of_the_authors_is_reported(tmp_path, state):
    cfg = backbone_cfg(saved(tmp_path / "lup_r18.pth", state))
    assert not any("SIZE_TRAIN" in note for note in settle(cfg)[1])
    cfg.INPUT.SIZE_TRAIN = [64, 32]
    assert "fine-tune with INPUT.SIZE_TRAIN [384, 128], not [64, 32]" in settle(cfg)[1][1]


def test_each_published_normalisation_is_accepted(tmp_path, state):
    path = saved(tmp_path / "r18.pth", FORMS["cion"](state))
    for value in (get_cfg().MODEL.PIXEL_MEAN, get_cfg().MODEL.PIXEL_STD), ([127.5] * 3, [127.5] * 3):
        settled, _ = settle(backbone_cfg(path, PIXEL_MEAN=value[0], PIXEL_STD=value[1]))
        assert (settled.MODEL.PIXEL_MEAN, settled.MODEL.PIXEL_STD) == value


def test_a_resnet_without_classifier_is_reported_as_possibly_from_luperson(tmp_path, state):
    _, notes = settle(backbone_cfg(saved(tmp_path / "r18.pth", state)))
    assert "set MODEL.BACKBONE.PRETRAIN_SOURCE to luperson" in notes[-1]


SMALL = {"blocks.0.attn.qkv.weight": torch.zeros(1), "pos_embed": torch.zeros(1, 129, 4)}
NEEDS = [("CONV_STEM", SMALL | {"patch_embed.conv.0.weight": torch.zeros(1)}, True, None),
         ("EXTRA_TOKENS", SMALL | {"part_token1": torch.zeros(1)}, 3, 1),
         ("SEMANTIC_WEIGHT", {"backbone.semantic_embed_w.0.weight": torch.zeros(1)}, 0.2, None)]


@pytest.mark.parametrize("key, content, value, other", NEEDS, ids=[need[0] for need in NEEDS])
def test_the_keys_of_timm_models_that_weights_require_are_set(tmp_path, key, content, value, other):
    path = saved(tmp_path / "a.pth", content)
    timm = {"NAME": "build_timm_backbone", "DEPTH": "vit_small_patch16_224"}
    settled, notes = settle(backbone_cfg(path, **timm))
    assert settled.MODEL.BACKBONE[key] == value and settled.MODEL.PIXEL_MEAN == [127.5] * 3
    assert any(f"MODEL.BACKBONE.{key} is {value}" in note for note in notes)
    with pytest.raises(ValueError, match="MODEL.BACKBONE.NAME build_timm_backbone, not build_resnet_backbone"):
        settle(backbone_cfg(path))
    if other is not None:
        with pytest.raises(ValueError, match=f"MODEL.BACKBONE.{key} {value}, not {other}"):
            settle(backbone_cfg(path, **timm, **{key: other}))
    elif key == "SEMANTIC_WEIGHT":  # other weights of the semantics are accepted
        assert settle(backbone_cfg(path, **timm, **{key: 0.7}))[0].MODEL.BACKBONE[key] == 0.7


def test_the_normalisation_of_timm_weights_follows_from_the_model_name(tmp_path):
    path = saved(tmp_path / "a.pth", {"blocks.0.attn.qkv.weight": torch.zeros(1), "pos_embed": torch.zeros(1, 197, 4)})
    for depth, mean in (("vit_small_patch16_224", 127.5), ("deit_small_patch16_224", 123.675)):
        settled, _ = settle(backbone_cfg(path, NAME="build_timm_backbone", DEPTH=depth))
        assert settled.MODEL.PIXEL_MEAN[0] == pytest.approx(mean)
    other = backbone_cfg(path, NAME="build_timm_backbone", DEPTH="deit_small_patch16_224", PIXEL_MEAN=[127.5] * 3,
                         PIXEL_STD=[127.5] * 3)
    settled, notes = settle(other)  # accepted with a message, since others train so too
    assert settled.MODEL.PIXEL_MEAN == [127.5] * 3 and "timm trained the weights of this name with" in notes[0]


def test_a_path_that_is_not_a_file_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.BACKBONE.PRETRAIN_PATH '.*none.pth'"):
        build_backbone(tmp_path / "none.pth")


@pytest.mark.parametrize("offline", [False, True])
def test_pretraining_without_a_path_or_a_download_names_the_keys_to_set(tmp_path, monkeypatch, offline):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=unreachable) if offline else None)
    with pytest.raises(ValueError, match="PRETRAIN is True without a PRETRAIN_PATH.*could not be downloaded.*resnet50"):
        build_backbone("")


def test_a_backbone_that_loads_its_weights_itself_is_not_changed(tmp_path, monkeypatch, log):
    from fastreid.modeling.backbones import BACKBONE_REGISTRY

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "own", lambda cfg: nn.Linear(1, 1))
    cfg = backbone_cfg(tmp_path / "any.pth")
    cfg.MODEL.BACKBONE.NAME = "own"
    (tmp_path / "any.pth").touch()
    assert settle(cfg)[0].MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_MEAN
    fastreid.modeling.build_backbone(cfg)
    assert "any.pth: the tensors that own loads cannot be counted" in log.text
