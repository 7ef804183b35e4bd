"""The Cerberus meta-architecture: sizes of the paper, losses, and supported backbones."""

import inspect

from cerberus_plugin import add_cerberus_config
from cerberus_plugin.attributes import GROUPS
from cerberus_plugin.modeling.backbones import SPLITTERS, Split, register_split
from cerberus_plugin.modeling.losses import soft_triplet_loss

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg
from fastreid.utils.events import EventStorage
from support.training import CONFIGS, PLUS, SMALL, model_of, small_batch
from torch import nn


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("pool", ["ceil", "padding"])
def test_parameters_and_map_sizes_match_the_paper(pool):
    model = model_of("MODEL.BACKBONE.STEM_POOL", pool).eval()
    assert count(model.trunk) == 2_957_376
    assert count(model.global_branch) == count(model.local_branch) == 20_550_656
    assert count(model.heads.fc) + count(model.heads.bn) == 5_248_000
    assert count(model.heads.classifiers) == 5 * 512 * 751
    with torch.no_grad():
        assert [maps.shape for maps in model.maps(torch.rand(1, 3, 384, 128))] == [(1, 2048, 24, 8)] * 2


def test_both_branches_start_equal_and_are_not_shared():
    model = model_of(*SMALL)
    for a, b in zip(model.global_branch.parameters(), model.local_branch.parameters()):
        assert torch.equal(a, b) and a is not b


@pytest.mark.parametrize(("name", "depth", "dim", "ibn"), [
    ("build_resnet_backbone", "18x", 512, False), ("build_resnet_backbone", "34x", 512, True),
    ("build_resnet_backbone", "50x", 2048, True), ("build_resnext_backbone", "50x", 2048, False),
    ("build_resnest_backbone", "50x", 2048, False)])
def test_resnet_family_backbones_split_alike(name, depth, dim, ibn):
    model = model_of("MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.DEPTH", depth, "MODEL.BACKBONE.FEAT_DIM", dim,
                     "MODEL.BACKBONE.WITH_IBN", ibn, "MODEL.HEADS.EMBEDDING_DIM", 16).eval()
    with torch.no_grad():
        assert model({"images": torch.rand(2, 3, 96, 48) * 255}).shape == (2, 80)


@pytest.mark.parametrize(("options", "message"), [
    (("MODEL.BACKBONE.FEAT_DIM", 512), "FEAT_DIM is 512, but build_resnet_backbone at depth 50x has 2048"),
    (("MODEL.BACKBONE.WITH_NL", True), "WITH_NL is True, .*non-local blocks"),
    (("MODEL.CERBERUS.SCHEMA", ""), "SCHEMA is '', expected one of market1501, dukemtmc"),
])
def test_unsupported_values_of_keys_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        model_of(*options)


def test_a_custom_backbone_trains_with_a_registered_split(monkeypatch):
    monkeypatch.setattr("cerberus_plugin.modeling.backbones.SPLITTERS", dict(SPLITTERS))

    @register_split("build_osnet_backbone")
    def split_osnet(backbone, options, cut):
        assert cut == "conv4_2"
        return Split(nn.Sequential(backbone.conv1, backbone.maxpool, backbone.conv2, backbone.conv3),
                     nn.Sequential(backbone.conv4, backbone.conv5), 512)

    model = model_of("MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x1_0",
                     "MODEL.BACKBONE.FEAT_DIM", 512, "MODEL.HEADS.EMBEDDING_DIM", 16).train()
    sum(model(small_batch(model)).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_custom_losses_can_be_appended():
    model = model_of(*SMALL).train()
    model.criteria.append(lambda outputs, targets: {"loss_norm": outputs["representations"].norm() / len(targets.sids)})
    terms = model(small_batch(model))
    assert list(terms) == ["loss_id", "loss_triplet", "loss_sem", "loss_reg", "loss_norm"]
    assert terms["loss_norm"].item() > 0


def test_losses_are_weighted_means_over_the_five_groups():
    model = model_of(*SMALL).train()
    batch = small_batch(model)
    outputs = {}
    model.heads.register_forward_hook(lambda module, inputs, output: outputs.update(output))
    terms = model(batch)
    y = batch["targets"]
    identity = sum(F.cross_entropy(logits, y) for logits in outputs["logits"]) / 5
    assert terms["loss_id"].item() == pytest.approx(identity.item(), rel=1e-5)
    guidance = 0
    for g, group in enumerate(GROUPS):
        sids = batch["sids"][:, g]
        known = sids >= 0
        cosine = F.cosine_similarity(outputs["representations"][g][known], model.prototypes.rows[group][sids[known]])
        guidance = guidance + (1 - 0.6 - cosine).clamp(min=0).mean() / 5
    assert terms["loss_sem"].item() == pytest.approx(5 * guidance.item(), rel=1e-5)
    regularisation = model.prototypes.regularisation()
    assert terms["loss_reg"].item() == pytest.approx(0.001 * regularisation.item(), rel=1e-6)
    triplet = sum(soft_triplet_loss(f, y) for f in outputs["representations"]) / 5
    expected = identity + triplet + 5 * guidance + 0.001 * regularisation  # Eq. 2
    assert sum(terms.values()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_disabled_extensions_do_not_change_the_model():
    model = model_of(*SMALL).train()
    assert set(model(small_batch(model))) == {"loss_id", "loss_triplet", "loss_sem", "loss_reg"}
    added = set(model_of(*SMALL, *PLUS).state_dict()) - set(model.state_dict())
    assert added == {"heads.exponents.global", "heads.exponents.local"}


@pytest.mark.parametrize(("align", "logged"), [(True, {"alignment/crop_ratio", "alignment/fallback"}), (False, set())])
def test_alignment_statistics_are_logged_with_alignment(align, logged):
    model = model_of(*SMALL, "MODEL.CERBERUS.ALIGN", align).train()
    with EventStorage(0) as storage:
        model(small_batch(model))
    assert {name for name in storage.latest() if name.startswith("alignment")} == logged


def test_softmax_classes_are_seen_prototypes_and_split_triplets_precede_bn():
    model = model_of(*SMALL, *PLUS).train()
    batch = small_batch(model)
    outputs = {}
    model.heads.register_forward_hook(lambda module, inputs, output: outputs.update(output))
    terms, y = model(batch), batch["targets"]
    softmax = 0
    for g, group in enumerate(GROUPS):
        sids = batch["sids"][:, g]
        rows = model.prototypes.rows[group][:4]  # no class has one of the other semantic IDs
        cosines = F.normalize(outputs["representations"][g], dim=1) @ F.normalize(rows, dim=1).T
        softmax = softmax + F.cross_entropy(16 * cosines, sids, ignore_index=-1) / 5
    assert terms["loss_softmax"].item() == pytest.approx(2 * softmax.item(), rel=1e-5)
    triplet = sum(soft_triplet_loss(f, y) for f in outputs["before"]) / 5
    assert terms["loss_triplet"].item() == pytest.approx(triplet.item(), rel=1e-5)
    assert soft_triplet_loss(outputs["representations"], y).item() != pytest.approx(triplet.item(), rel=0.01)
    smoothed = F.cross_entropy(outputs["logits"].flatten(0, 1), y.repeat(5), label_smoothing=0.1)
    assert terms["loss_id"].item() == pytest.approx(smoothed.item(), rel=1e-5)


@pytest.mark.parametrize("options", [{"SOFTMAX": -1.0}, {"SOFTMAX_SCALE": 0.0}])
def test_a_softmax_of_negative_weight_or_without_scale_is_rejected(options):
    with pytest.raises(ValueError, match="SOFTMAX is .* and SOFTMAX_SCALE .*, expected a weight of at least 0"):
        model_of(*SMALL, *(item for key, value in options.items() for item in (f"MODEL.CERBERUS.{key}", value)))


@pytest.mark.parametrize("weights", [(5.0, 0.001, 0.0), (5.0, 0.0, 0.0), (0.0, 0.001, 0.0), (0.0, 0.0, 1.0)])
def test_all_parameters_are_in_the_loss_for_all_weights(weights):
    model = model_of(*SMALL, "MODEL.CERBERUS.LAMBDA_SEM", weights[0], "MODEL.CERBERUS.LAMBDA_REG", weights[1],
                     "MODEL.CERBERUS.SOFTMAX", weights[2], "MODEL.CERBERUS.POOL", "gem").train()
    sum(model(small_batch(model)).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_without_guidance_there_is_no_reader():
    model = model_of(*SMALL, "MODEL.CERBERUS.LAMBDA_SEM", 0.0, "MODEL.CERBERUS.LAMBDA_REG", 0.0)
    assert model.prototypes is None and model.attribute_reader() is None


def test_preprocessing_does_not_modify_the_batch():
    model = model_of(*SMALL).eval()
    images = torch.rand(2, 3, 96, 48) * 255
    before = images.clone()
    with torch.no_grad():
        model({"images": images})
    assert torch.equal(images, before)


def test_batches_of_precise_bn_with_targets_minus_one_are_accepted():
    model = model_of(*SMALL).train()
    batch = small_batch(model)
    batch["targets"] = torch.full_like(batch["targets"], -1)
    del batch["sids"]
    assert all(term.isfinite() for term in model(batch).values())
    assert (batch["targets"] == -1).all()


@pytest.mark.parametrize("key", ["targets", "sids"])
def test_a_training_batch_without_identities_or_semantic_ids_is_rejected(key):
    model = model_of(*SMALL).train()
    batch = small_batch(model)
    del batch[key]
    with pytest.raises(ValueError, match=f"training batch without '{key}'"):
        model(batch)


@pytest.mark.parametrize(("name", "images"), [("Market1501", 12_936), ("DukeMTMC", 16_522)])
def test_the_recipe_is_that_of_the_paper(name, images):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name / "cerberus_R50.yml"))
    solver, node = cfg.SOLVER, cfg.MODEL.CERBERUS
    assert solver.OPT == "Adam" and solver.BASE_LR == 3.5e-4 and solver.WEIGHT_DECAY == 5e-4
    assert solver.BASE_LR * solver.WARMUP_FACTOR == pytest.approx(3.5e-6) and solver.WARMUP_ITERS == 2000
    assert solver.IMS_PER_BATCH // cfg.DATALOADER.NUM_INSTANCE == 16 and cfg.DATALOADER.NUM_INSTANCE == 4
    assert abs(solver.MAX_EPOCH * (images // 64) - 24_000) < 130
    assert cfg.INPUT.SIZE_TRAIN == [384, 128] and cfg.INPUT.FLIP.ENABLED and cfg.INPUT.REA.ENABLED
    assert not cfg.INPUT.PADDING.ENABLED and not cfg.INPUT.AUTOAUG.ENABLED and not cfg.MODEL.FREEZE_LAYERS
    assert (node.LAMBDA_ID, node.LAMBDA_SEM, node.LAMBDA_REG, node.ALPHA, node.BETA, node.SIGMA) == (
        1.0, 5.0, 0.001, 0.4, 1.8, 5.0)


def test_each_key_of_the_plugin_has_a_comment():
    source = inspect.getsource(add_cerberus_config).splitlines()
    for i, line in enumerate(source):
        if " = " in line and ("node." in line or "cfg." in line) and "CN()" not in line:
            block = [line]
            for before in reversed(source[:i]):
                if not before.strip():
                    break
                block.append(before)
            assert any("#" in text for text in block), line
