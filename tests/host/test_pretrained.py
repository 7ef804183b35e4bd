"""Pretrained weights: counted, and refused where none fits."""

import logging
import sys
import types

import fastreid.data.build
import fastreid.engine.defaults
import fastreid.evaluation.rank
import fastreid.solver
import pytest
import torch
from fastreid.config import get_cfg
from torch import nn


def backbone_cfg(path, pretrain=True):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.DEPTH = "18x"
    cfg.MODEL.BACKBONE.PRETRAIN = pretrain
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = str(path)
    return cfg


def build_backbone(path, pretrain=True):
    from fastreid.modeling.meta_arch import baseline

    return baseline.build_backbone(backbone_cfg(path, pretrain))


def test_a_whole_file_is_counted_whole(tmp_path, log):
    state = build_backbone("", pretrain=False).state_dict()
    torch.save(state, tmp_path / "r18.pth")
    loaded = build_backbone(tmp_path / "r18.pth").state_dict()
    assert torch.equal(loaded["conv1.weight"], state["conv1.weight"])
    # 20 convolutions, and 20 BatchNorms of 4 tensors without their counters.
    assert "r18.pth: 100 of 100 tensors matched" in log.text
    assert log.records[-1].levelno == logging.INFO


def test_a_partial_match_is_counted_and_warned_of(tmp_path, log):
    torch.save({"bn1.weight": torch.full((64,), 3.0), "fc.weight": torch.zeros(2)}, tmp_path / "part.pth")
    assert build_backbone(tmp_path / "part.pth").bn1.weight[0] == 3.0
    assert "part.pth: 1 of 100 tensors matched" in log.text
    assert log.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize("content, key", [({"module.bn1.weight": torch.ones(64)}, "module.bn1.weight"),
                                          ({"state_dict": {"bn1.weight": torch.ones(64)}}, "state_dict")])
def test_a_file_that_fills_nothing_is_refused(tmp_path, content, key):
    torch.save(content, tmp_path / "other.pth")
    match = rf"other.pth: 0 of 100 tensors matched .*like \['{key}'\], the model like \['conv1.weight'"
    with pytest.raises(ValueError, match=match):
        build_backbone(tmp_path / "other.pth")
    assert nn.Module.load_state_dict.__name__ == "load_state_dict"
    assert nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"


def test_a_path_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.BACKBONE.PRETRAIN_PATH '.*none.pth' is no file. Set"):
        build_backbone(tmp_path / "none.pth")


@pytest.mark.parametrize("offline", [False, True])
def test_pretraining_without_a_path_or_a_download_says_what_to_set(tmp_path, monkeypatch, offline):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=refuse) if offline else None)
    with pytest.raises(ValueError, match="PRETRAIN is True without a PRETRAIN_PATH.*could not be downloaded.*resnet50"):
        build_backbone("")


def test_a_backbone_that_loads_in_its_own_way_is_left_alone(tmp_path, monkeypatch, log):
    from fastreid.modeling.backbones import BACKBONE_REGISTRY

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "own", lambda cfg: nn.Linear(1, 1))
    cfg = backbone_cfg(tmp_path / "any.pth")
    cfg.MODEL.BACKBONE.NAME = "own"
    (tmp_path / "any.pth").touch()
    fastreid.modeling.build_backbone(cfg)
    assert "own loads weights in a way that cannot be counted" in log.text
