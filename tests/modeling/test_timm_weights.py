"""Published weights in timm's models: build, load, split, train one step, and build again without the file."""

from cerberus_plugin import add_cerberus_config
from cerberus_plugin.host import settle
from cerberus_plugin.pretrained import names_of

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.backbones import build_backbone
from support import published_names
from timm.models import build_model_with_cfg, register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer


@register_model
def vit_of_two_blocks(pretrained: bool = False, **options) -> VisionTransformer:
    return build_model_with_cfg(VisionTransformer, "vit_of_two_blocks", pretrained, embed_dim=16, depth=2, num_heads=2,
                                **options)


@register_model
def swin_of_five_blocks(pretrained: bool = False, **options) -> SwinTransformer:
    return build_model_with_cfg(SwinTransformer, "swin_of_five_blocks", pretrained,
                                **{"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), **options})


VIT, SWIN = ("vit_of_two_blocks", [64, 32]), ("swin_of_five_blocks", [64, 32])
FORMS = {
    "person_vit": (*VIT, published_names.vit(16, 2, 129), "teacher", "module.backbone."),
    "ics_vit": (*VIT, published_names.vit_with_stem(16, 2), "teacher", "module.backbone."),
    "pass": (*VIT, published_names.vit_with_parts(16, 2), "", ""),
    "solider": (*SWIN, published_names.mmcv_swin(8, (1, 1, 2, 1), (1, 1, 2, 2)), "teacher", "backbone.")}


def config(depth: str, size: list, path: str = ""):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.DEPTH", depth,
                         "MODEL.BACKBONE.PRETRAIN", bool(path), "MODEL.BACKBONE.PRETRAIN_PATH", str(path),
                         "INPUT.SIZE_TRAIN", size, "INPUT.SIZE_TEST", size])
    return cfg


@pytest.mark.parametrize("form", FORMS)
def test_person_pretrained_weights_fill_all_tensors_of_timm_models(tmp_path, log, form):
    depth, size, shapes, outer, prefix = FORMS[form]
    tensors = {f"{prefix}{name}": 0.2 * torch.rand(shape) for name, shape in shapes.items()}
    torch.save({outer: tensors} if outer else tensors, tmp_path / "weights.pth")
    settled, _ = settle(config(depth, size, tmp_path / "weights.pth"))
    backbone = build_backbone(settled).eval()
    count = len(names_of(backbone))
    assert f"{count} of {count} tensors matched" in log.text
    settled.MODEL.BACKBONE.PRETRAIN, settled.MODEL.BACKBONE.PRETRAIN_PATH = False, "gone.pth"
    again = build_backbone(settled).eval()
    again.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(again(images), backbone(images))


@pytest.mark.parametrize("key, value, name", [("WINDOW_SIZE", 8, "window_size"), ("EXTRA_TOKENS", 3, "reg_tokens")])
def test_options_that_a_timm_model_lacks_are_rejected(key, value, name):
    cfg = config("resnet18", [64, 32])
    cfg.MODEL.BACKBONE[key] = value
    with pytest.raises(ValueError, match=f"'resnet18', which does not support {name}: set"):
        build_backbone(cfg)


def test_a_window_size_is_kept_for_smaller_maps():
    cfg = config(*SWIN)
    cfg.MODEL.BACKBONE.WINDOW_SIZE = 8
    tables = [value.shape[0] for name, value in build_backbone(cfg).state_dict().items() if "bias_table" in name]
    assert set(tables) == {15 * 15}
