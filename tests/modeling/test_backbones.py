"""Backbones: split and unsplit outputs are equal; each one trains, evaluates, is saved, resumed and exported."""

import gc

from cerberus_plugin import CerberusPredictor, CerberusTrainer
from cerberus_plugin.config import check_model_keys
from cerberus_plugin.engine.hooks import frozen_layers
from cerberus_plugin.experiments.figures.attention import weights_of_places
from cerberus_plugin.modeling import precision
from cerberus_plugin.modeling.backbones import CUTS, SPLITTERS, split_backbone, split_chain, split_vit
from cerberus_plugin.modeling.chains import chain_of
from cerberus_plugin.modeling.tokens import ClassToken, Grid, MapOfTokens, OnMap
from cerberus_plugin.search.export.onnx import export

import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.backbones.vision_transformer import VisionTransformer
from fastreid.modeling.meta_arch import build_model
from support.training import model_of, read_config, small_batch, trained
from timm.models import build_model_with_cfg, register_model
from timm.models.swin_transformer import SwinTransformer
from torch import nn


@register_model
def tiny_swin(pretrained: bool = False, **options) -> SwinTransformer:
    return build_model_with_cfg(SwinTransformer, "tiny_swin", pretrained, embed_dim=8, depths=(1, 2, 3, 2),
                                num_heads=(1, 1, 2, 2), window_size=4, **options)


# The smallest model of each family, with the number of channels and the height of its map for images of 128 x 64.
BACKBONES = {
    "resnet": ("18x", 512, 8), "resnext": ("50x", 2048, 8), "resnest": ("50x", 2048, 8), "osnet": ("x0_25", 128, 8),
    "mobilenetv2": ("0.1x", 1280, 4), "mobilenetv3": ("Small", 1024, 4), "shufflenetv2": ("0.5x", 1024, 4),
    "effnet": ("b0", 1280, 8), "regnet": ("200x", 368, 8), "repvgg": ("A0", 1280, 8), "vit": ("small", 768, 8)}
OF_TIMM = {"test_vit": (64, 8), "test_vit2": (64, 8), "tiny_swin": (64, 4), "test_convnext": (64, 4),
             "mobilenetv4_conv_small_035": (336, 4), "repvit_m0_9": (384, 4)}
CASES = {**{name: (f"build_{name}_backbone", *values) for name, values in BACKBONES.items()},
         **{name: ("build_timm_backbone", name, *values) for name, values in OF_TIMM.items()}}
LARGE = ("resnext", "resnest", "effnet", "regnet", "repvgg", "vit", "repvit_m0_9", "mobilenetv3")

SMALL_HEADS = ("MODEL.HEADS.EMBEDDING_DIM", 16, "MODEL.CERBERUS.SIGMA", 1.0, "MODEL.CERBERUS.SIGMA_QUANTILE", 0.5)
MODELS = {"Cerberus": ("configs/Market1501/cerberus_demo.yml", SMALL_HEADS),
          "CSSC": ("configs/PRCC/cssc_demo.yml", ("DATASETS.NAMES", ("Market1501",), "DATASETS.TESTS", ("Market1501",),
                                                  "DATASETS.HOLD_OUT", 0)),
          "APR": ("configs/Market1501/apr_demo.yml", ())}
# An ONNX export takes ten seconds and is only tested in slow tests.
FAST = [("osnet", "Cerberus"), ("mobilenetv2", "CSSC"), ("test_vit", "Cerberus"), ("tiny_swin", "CSSC"),
        ("test_convnext", "APR")]
SLOW = [*((case, "Cerberus") for case in CASES),
        *((case, "CSSC") for case in ("osnet", "mobilenetv2", "regnet", "repvgg", "tiny_swin", "test_vit")),
        *((case, "APR") for case in ("effnet", "vit", "test_vit2", "tiny_swin"))]
RUNS = [*((*run, False) for run in FAST), *(pytest.param(*run, True, marks=pytest.mark.slow) for run in SLOW)]


def options_of(case: str, *options, size: tuple[int, int] = (128, 64)) -> list:
    name, depth, channels, _ = CASES[case]
    return ["MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.DEPTH", depth, "MODEL.BACKBONE.FEAT_DIM", channels,
            "INPUT.SIZE_TRAIN", list(size), "INPUT.SIZE_TEST", list(size), *options]


def config_of(case: str, *options):
    return read_config(*options_of(case, *options))


def with_statistics(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with random statistics and weights of batch normalisation."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


@pytest.mark.parametrize("cut", ["conv4_2", "conv5_1"])
@pytest.mark.parametrize("case", [case if case not in LARGE else pytest.param(case, marks=pytest.mark.slow)
                                  for case in CASES])
@torch.no_grad()
def test_a_split_backbone_computes_the_same_output(case, cut):
    cfg = config_of(case)
    backbone = with_statistics(build_backbone(cfg))
    images = torch.randn(2, 3, 128, 64)
    expected = backbone(images)
    split = split_backbone(backbone, cfg, cut)
    given = split.branch(split.trunk(images))
    by_place = split.to_map(given)
    assert by_place.shape[:3] == (2, split.channels, CASES[case][3])
    if cut == "conv4_2" or not has_tokens(case):
        assert torch.allclose(split.to_global(given), expected, atol=1e-5)
        assert expected.abs().max() > 0.01


def has_tokens(case: str) -> bool:
    return case == "vit" or case.startswith("test_vit")


def weights_of(model: nn.Module) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def resumed(cfg) -> CerberusTrainer:
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.restored = weights_of(trainer.model)
    trainer.results = trainer.train()
    return trainer


@pytest.mark.parametrize(("case", "model", "exported"), RUNS)
def test_each_backbone_trains_evaluates_resumes_and_exports(small_config, market_root, tmp_path, case, model,
                                                                  exported):
    file, options = MODELS[model]
    size = (256, 64) if model == "CSSC" and CASES[case][3] < 8 else (128, 64)  # for eight stripes

    def config(epochs: int):
        cfg = small_config(*options_of(case, *options, size=size), "SOLVER.MAX_EPOCH", epochs, "TEST.EVAL_PERIOD", 1,
                           "SOLVER.IMS_PER_BATCH", 8, "SOLVER.WARMUP_ITERS", 0, file=file)
        check_model_keys(cfg)
        return cfg

    first = trained(config(1))
    still = [name for name, p in first.model.named_parameters() if torch.equal(p.detach(), first.start[name])]
    assert len(still) < 0.1 * len(first.start), still
    left = weights_of(first.model)
    second = resumed(config(2))
    assert second.start_epoch == 1 and all(torch.equal(value, left[name]) for name, value in second.restored.items())
    assert second.results["mAP"] > 0 and ("PAR/images" in second.results) == (model != "CSSC")
    run_folder = second.cfg.OUTPUT_DIR
    predictor = CerberusPredictor(run_folder, device="cpu", precise=True)
    images = torch.rand(2, 3, *size) * 255
    with torch.no_grad():
        assert torch.allclose(predictor.model({"images": images}), second.model.eval()({"images": images}), atol=1e-5)
    if not exported:
        return
    del first, second, predictor
    gc.collect()  # trainer and hooks reference each other; garbage collection during an export has crashed torch 2.13
    images = market_root / "Market-1501-v15.09.15" / "query"
    assert export(run_folder, tmp_path / "model.onnx", images).holds


@pytest.mark.parametrize("case", ["test_vit", pytest.param("osnet", marks=pytest.mark.slow),
                                  pytest.param("tiny_swin", marks=pytest.mark.slow)])
def test_it_compiles_without_a_break_and_runs_in_bfloat16_and_channels_last(case):
    def losses(channels_last: bool = False, autocast: str = "", backend: str | None = None) -> float:
        model = model_of(*options_of(case), "MODEL.HEADS.EMBEDDING_DIM", 16, "MODEL.BACKBONE.DROP_PATH_RATIO", 0.0)
        batch = small_batch(model.train())
        batch["images"] = F.interpolate(batch["images"], (128, 64))
        if channels_last:
            model.to(memory_format=torch.channels_last)
        if backend:
            precision.compile_model(model, backend=backend, fullgraph=True)
        precision.cast_forward(model, autocast, channels_last=channels_last)
        total = sum(model(batch).values())
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        return total.item()

    expected = losses()
    assert losses(backend="aot_eager") == pytest.approx(expected, rel=1e-4)
    assert losses(channels_last=True) == pytest.approx(expected, rel=1e-4)
    assert losses(channels_last=True, autocast="bfloat16") == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("case", "model"), [("mobilenetv2", "CSSC"), ("test_vit", "CSSC"), ("test_vit", "Cerberus"),
                                             ("tiny_swin", "Cerberus")])
def test_freezing_the_backbone_freezes_all_of_its_parameters_only(case, model):
    file, options = MODELS[model]
    cfg = read_config(*options_of(case, *options), "MODEL.HEADS.NUM_CLASSES", 4, "MODEL.CERBERUS.SCHEMA", "market1501",
                      "MODEL.CERBERUS.NUM_SIDS", [4, 18, 40, 8, 4], file=file)
    whole = build_model(cfg)
    frozen = [whole.get_submodule(path) for path in frozen_layers(whole, ["backbone"])]
    found = {p for module in frozen for p in module.parameters()}
    split = split_backbone(build_backbone(cfg), cfg, CUTS[model == "CSSC"])
    copied = [*split.branch] if model == "Cerberus" else [*split.branch][:-1]  # the last module of CSSC is shared
    trunk, branch, copied = (sum(p.numel() for module in modules for p in module.parameters())
                             for modules in ([split.trunk], [split.branch], copied))
    assert sum(p.numel() for p in found) == trunk + branch + copied


@pytest.mark.parametrize(("case", "model", "cut", "trunk"), [
    ("resnet", "Cerberus", "layer3.1", 7), ("resnet", "Cerberus", "layer4.0", 8), ("osnet", "Cerberus", "conv2.1", 4),
    ("mobilenetv2", "Cerberus", "features.2", 5), ("mobilenetv2", "CSSC", "features.15", 18),
    ("test_vit", "Cerberus", "blocks.0", 1), ("test_vit", "CSSC", "blocks.1", 2)])
def test_the_trunk_ends_with_the_module_that_the_key_names(case, model, cut, trunk):
    cfg = config_of(case, "MODEL.BACKBONE.CUT", cut)
    split = split_backbone(build_backbone(cfg), cfg, CUTS[model == "CSSC"])
    parts = split.trunk
    if case == "test_vit":
        parts = (parts if model == "Cerberus" else parts[0]).vit.blocks
    assert len(parts) == trunk


@pytest.mark.parametrize(("case", "cut", "options", "message"), [
    ("resnet", "conv4_2", ("MODEL.BACKBONE.CUT", "layer2"),
     r"CUT is 'layer2', .* after layer3.0, layer3.1, layer4.0;"),
    ("resnet", "conv5_1", ("MODEL.BACKBONE.CUT", "layer3.0"), "CUT is 'layer3.0', .* after layer3.1;"),
    ("test_vit", "conv4_2", ("MODEL.BACKBONE.CUT", "blocks.5"), "after blocks.0, .*, blocks.4;"),
    ("test_vit", "conv5_1", ("MODEL.BACKBONE.CUT", "blocks.4"), "after blocks.0, .*, blocks.3;"),
    ("osnet", "conv5_1", ("MODEL.BACKBONE.CUT", "conv4.0"), r"after .*, conv3\.2\.1;"),  # the branch has two
    ("mobilenetv2", "conv5_1", ("MODEL.BACKBONE.CUT", "features.16"), r"after .*, features\.15;"),
    ("osnet", "conv4_2", ("MODEL.BACKBONE.FEAT_DIM", 512), "FEAT_DIM is 512, but build_osnet_backbone .* has 128 "),
    ("test_vit", "conv4_2", ("MODEL.BACKBONE.DEPTH", "vit_smal_patch16_224"),
     "'vit_smal_patch16_224', .* similar names: .*vit_small_patch16_224"),
    ("test_vit", "conv4_2", ("MODEL.BACKBONE.DEPTH", "hf-hub:me/mine"), "'hf-hub:me/mine', which is not a model"),
    ("test_vit", "conv4_2", ("MODEL.BACKBONE.PRETRAIN", True), "weights of timm are not"),
    ("test_vit", "conv4_2", ("INPUT.SIZE_TEST", [96, 48]), r"SIZE_TEST is \[96, 48\] and SIZE_TRAIN \[128, 64\]"),
    ("test_vit", "conv4_2", ("MODEL.BACKBONE.DEPTH", "eva02_tiny_patch14_224"), "Eva returns no feature map"),
    ("test_convnext", "conv4_2", ("MODEL.BACKBONE.STRIDE_SIZE", [12, 12]), r"STRIDE_SIZE is \[12, 12\], which"),
    ("mobilenetv4_conv_small_035", "conv4_2", ("MODEL.SYNC_BN", True), "SYNC_BN is True, .* would lose the activation"),
    ("test_vit", "conv5_1", ("MODEL.BACKBONE.DEPTH", "test_efficientnet", "MODEL.BACKBONE.FEAT_DIM", 256),
     "no two consecutive blocks with the same number of channels"),
])
def test_unsupported_backbones_and_split_points_are_rejected(case, cut, options, message):
    cfg = config_of(case, *options)
    with pytest.raises(ValueError, match=message):
        split_backbone(build_backbone(cfg), cfg, cut)


def test_the_error_for_an_unsupported_backbone_lists_the_supported_ones(monkeypatch):
    monkeypatch.delitem(SPLITTERS, "build_osnet_backbone")
    with pytest.raises(ValueError, match="'build_osnet_backbone', expected one of build_resnet_.* register a function"):
        model_of(*options_of("osnet"))


def test_split_chain_supports_a_custom_backbone(monkeypatch):
    monkeypatch.setitem(SPLITTERS, "build_chain", split_chain)
    chain = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU()) for _ in range(5)), nn.Conv2d(3, 3, 1))
    cfg = read_config("MODEL.BACKBONE.NAME", "build_chain", "MODEL.BACKBONE.FEAT_DIM", 3)
    split = split_backbone(chain, cfg, "conv4_2")
    images = torch.randn(1, 3, 32, 16)
    assert len(split.trunk) == 7 and torch.equal(split.branch(split.trunk(images)), chain(images))
    with pytest.raises(ValueError, match="build_chain .* has no two consecutive blocks"):
        split_backbone(chain, cfg, "conv5_1")


@torch.no_grad()
def test_fastreids_vision_transformer_is_split_without_cameras():
    def vit(camera: int) -> VisionTransformer:
        return VisionTransformer(img_size=(64, 32), stride_size=16, embed_dim=32, depth=3, num_heads=2, camera=camera)

    options = read_config("MODEL.BACKBONE.NAME", "build_vit_backbone").MODEL.BACKBONE
    whole, images = vit(camera=0).eval(), torch.randn(2, 3, 64, 32)
    nn.init.normal_(whole.pos_embed)
    split = split_vit(whole, options, "conv4_2")
    tokens = split.branch(split.trunk(images))
    assert torch.allclose(split.to_global(tokens), whole(images), atol=1e-5)
    assert split.to_map(tokens).shape == (2, 32, 4, 2) and len(split.trunk.blocks) == 2
    with pytest.raises(AssertionError, match="doesn't match model"):  # the patch embedding still checks the size
        split.trunk(torch.randn(1, 3, 64, 48))
    with pytest.raises(ValueError, match="has camera embeddings"):
        split_vit(vit(camera=2), options, "conv4_2")


def test_tokens_become_the_map_of_their_patches_row_by_row():
    tokens = torch.arange(2 * 8 * 3.0).view(2, 8, 3)  # class token, an extra token, 3 x 2 patches
    grid = Grid(rows=3, columns=2, prefix=2, class_token=True)
    given = MapOfTokens(grid)(tokens)
    assert given.shape == (2, 3, 3, 2) and torch.equal(ClassToken()(tokens)[..., 0, 0], tokens[:, 0])
    for row in range(3):
        for column in range(2):
            assert torch.equal(given[:, :, row, column], tokens[:, 2 + 2 * row + column])
    assert torch.equal(OnMap(nn.Identity())(given), given)


def test_a_class_token_gives_uniform_attention_maps():
    model = with_statistics(model_of(*options_of("test_vit"), "MODEL.HEADS.EMBEDDING_DIM", 16))
    weights, rows = weights_of_places(model, torch.rand(2, 3, 128, 64) * 255)
    assert weights.shape == (2, 5, 8, 4) and rows.shape == (2, 5, 8)
    of_token = weights[:, [3, 4]]  # identity and carrying
    assert torch.allclose(of_token, torch.ones_like(of_token), atol=1e-4)
    assert weights[:, 0].std() > 0.01


@torch.no_grad()
def test_overlapping_patches_have_matching_position_embeddings():
    cfg = config_of("test_vit", "MODEL.BACKBONE.STRIDE_SIZE", [12, 12])
    backbone = build_backbone(cfg)
    assert backbone.grid == Grid(10, 5, 1, True)  # (128 - 16) // 12 + 1 and (64 - 16) // 12 + 1
    assert backbone.timm_model.pos_embed.shape == (1, 51, 64)
    split = split_backbone(backbone, cfg, "conv4_2")
    images = torch.randn(1, 3, 128, 64)
    assert split.to_map(split.branch(split.trunk(images))).shape == (1, 64, 10, 5)
    embedding = split.trunk.vit.patch_embed(images)[0]
    by_hand = split.trunk.vit.patch_embed.proj.weight.flatten(1) @ images[0, :, 24:40, 12:28].flatten()
    assert torch.allclose(embedding[2 * 5 + 1], by_hand + split.trunk.vit.patch_embed.proj.bias, atol=1e-5)


def test_unused_layers_of_timm_models_are_removed():
    names = dict(build_backbone(config_of("mobilenetv4_conv_small_035")).timm_model.named_parameters())
    assert not any(name.startswith(("conv_head", "norm_head", "classifier")) for name in names) and len(names) > 50


def test_regnets_with_and_without_squeeze_and_excitation_are_independent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # their files must be found from any working directory
    first, with_se, again = (build_backbone(config_of("regnet", "MODEL.BACKBONE.DEPTH", depth))
                             for depth in ("200x", "200y", "200x"))
    assert list(first.state_dict()) == list(again.state_dict())
    assert any(".se." in name for name in with_se.state_dict())
    assert not any(".se." in name for name in again.state_dict())


def test_chains_are_detected_and_operations_between_modules_too():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return x + self.conv(x)

    chain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Sequential(Residual(), nn.MaxPool2d(2)))
    names = [(step.name, tuple(step.shape)) for step in chain_of(chain, (8, 4))]
    assert names == [("0", (1, 4, 8, 4)), ("1", (1, 4, 8, 4)), ("2.0", (1, 4, 8, 4)), ("2.1", (1, 4, 4, 2))]
    with pytest.raises(ValueError, match="Between computes something between its modules"):
        chain_of(Between(), (8, 4))


class Between(nn.Module):
    """Returns a map of half the size instead of the input map."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(self.first(x) / 2)
