"""CSSC: sizes of the published code, refinement computed by hand, losses, epochs, and recipe."""

import json
import math
from pathlib import Path

from cerberus_plugin import CerberusTrainer, add_cerberus_config
from cerberus_plugin.config import flat
from cerberus_plugin.engine.trainer import evaluate
from cerberus_plugin.modeling import precision
from cerberus_plugin.modeling.build import load_model
from cerberus_plugin.modeling.cssc import CSSC, SMR
from cerberus_plugin.modeling.losses import identity_loss

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg
from fastreid.modeling.losses import cross_entropy_loss, triplet_loss
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage
from support.training import RESNET, read_config, trained
from torch import nn

CONFIGS = Path(__file__).parents[2] / "configs"
FILE = "configs/LTCC/cssc_R50.yml"
LARGE = ("MODEL.BACKBONE.DEPTH", "50x", "MODEL.BACKBONE.FEAT_DIM", 2048)
SMALL = ("INPUT.SIZE_TRAIN", [128, 32], "INPUT.SIZE_TEST", [128, 32], "DATALOADER.NUM_INSTANCE", 4,
         "DATASETS.NAMES", ["Market1501Attributes"], "DATASETS.TESTS", ["Market1501Attributes"],
         "SOLVER.AUTOCAST", "", "SOLVER.FUSED", False, "MODEL.CHANNELS_LAST", False, "DATALOADER.RESIDENT", False,
         "SOLVER.CHECKPOINT_PERIOD", 9, "TEST.EVAL_PERIOD", 9)


def model_of(*options, classes: int = 10) -> CSSC:
    """A small model in training mode."""
    torch.manual_seed(0)
    return build_model(read_config("MODEL.HEADS.NUM_CLASSES", classes, *RESNET, *options, file=FILE))


def batch(size: int = 8, height: int = 128) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"images": 255 * torch.rand(size, 3, height, 64, generator=generator), "targets": torch.arange(size) // 2}


def losses_of(model, epoch: int | None = None, **changes) -> dict[str, torch.Tensor]:
    """Losses in an epoch of a trainer, counted from 0 as in FastReID, or before the first epoch."""
    with EventStorage(0) as storage:
        if epoch is not None:
            storage.epoch = epoch
        return model(batch() | changes)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# Sizes.

def full_size(classes: int) -> CSSC:
    """The model on the meta device, without values."""
    with torch.device("meta"):
        return model_of(*LARGE, "MODEL.CSSC.FLIP_SUM", False, "MODEL.DEVICE", "meta", classes=classes)


@pytest.mark.parametrize(("classes", "total"), [(77, 54_349_376), (150, 55_694_912), (632, 64_579_136)])
def test_parameters_are_those_of_the_published_code(classes, total):
    model = full_size(classes)
    assert count(model) == total
    for smr in (*model.content_branch.smr, *model.salient_branch.smr):
        assert (count(smr.bn), count(smr.gate)) == (4_096, 526_464)
        assert smr.stripe_weight.numel() + count(smr.stripe_bn) == 4_198_400


def test_inference_takes_36_million_parameters_and_12_billion_products():
    model = full_size(77).eval()
    used, products = [], []

    def measure(module, inputs, output):
        used.append(sum(p.numel() for p in module.parameters()))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            products.append(output.numel() * module.weight[0].numel())

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(measure)
    assert model(torch.empty(1, 3, 384, 192, device="meta")).shape == (1, 2048)
    assert (sum(used), sum(products)) == (36_116_032, 12_141_854_720)


# Refinement.

def smr_by_hand(pooling: str) -> SMR:
    """16 channels. Hidden: relu(2 * channel 0 - 11) for the maximum, relu(2 * channel 0) for the mean."""
    smr = SMR(16, num_classes=3, pooling=pooling)
    with torch.no_grad():
        for p in (*smr.gate.parameters(), smr.stripe_weight, smr.classifier):
            p.zero_()
        smr.gate[0].weight[0, 0] = 2
        smr.gate[0].bias[0] = -11 if pooling == "max" else 0
        smr.gate[2].weight[0, 0] = math.log(3)  # channel 0: sigmoid(hidden * ln 3); others sigmoid(0) = 1/2
        smr.stripe_weight[:, 0, 0] = smr.stripe_weight[:, 1, 1] = 1  # channels 0 and 1 of each stripe
        for k, column in enumerate((0, 16, 31)):  # pooled channel 0; of stripe 0 channel 0; of stripe 7 channel 1
            smr.classifier[k, column] = 1
    smr.bn.eval(), smr.stripe_bn.eval()  # at initialisation these are identity mappings except for epsilon
    return smr


@pytest.mark.parametrize(("pooling", "pooled", "logits"), [
    # Mean of 18 pixels: channel 0 (2 + 7) / 18; channel 1 2 * (0 + ... + 7 + 26) / 18 = 6. Stripe 0: (2 + 7) / 2.
    ("average", [0.5, 6], [0.5, 4.5, 7]),
    # Maximum: 6 instead of 7; the value 26 is in the ninth row, which belongs to no stripe.
    ("max", [6, 26], [6, 6, 7])])
def test_refinement_matches_values_computed_by_hand(pooling, pooled, logits):
    x = torch.zeros(1, 16, 9, 2)
    x[0, 0, 0] = torch.tensor([2.0, 7]) if pooling == "average" else torch.tensor([2.0, 6])
    x[0, 1] = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 26])[:, None]
    refined, feature, scores = smr_by_hand(pooling)(x)
    assert feature[0].tolist() == pytest.approx([*pooled, *[0] * 14])
    # Hidden 2 * 0.5 = 1, or 2 * 6 - 11 = 1: channel 0 times sigmoid(ln 3) = 3/4, channel 1 times 1/2; no residual.
    assert torch.allclose(refined[0, 0], 0.75 * x[0, 0]) and torch.allclose(refined[0, 1], 0.5 * x[0, 1])
    assert scores[0].tolist() == pytest.approx(logits, rel=1e-4)


def test_stripes_equal_eight_linear_layers_and_normalisations():
    torch.manual_seed(0)
    smr, x = SMR(16, num_classes=5, pooling="max"), torch.randn(4, 16, 24, 3)
    _, feature, logits = smr(x)
    parts = [F.batch_norm(feature, None, None, training=True)]
    for i, weight in enumerate(smr.stripe_weight):
        stripe = F.adaptive_max_pool2d(x[:, :, 3 * i:3 * i + 3], 1).flatten(1)
        parts.append(F.batch_norm(F.linear(stripe, weight), None, None, training=True))
    assert torch.allclose(logits, F.linear(torch.cat(parts, dim=1), smr.classifier), atol=1e-6)
    assert torch.equal(feature, F.adaptive_max_pool2d(x, 1).flatten(1))


def test_maps_with_fewer_rows_than_stripes_are_rejected_in_training_only():
    with pytest.raises(ValueError, match="map of 7 rows cannot be divided into the 8 stripes of CSSC.*at least 128"):
        SMR(16, 3, "max")(torch.zeros(2, 16, 7, 2))
    assert SMR(16, 3, "max").eval()(torch.zeros(2, 16, 7, 2))[2] is None


def test_unused_rows_are_logged_once(log):
    model = model_of()
    losses_of(model, **batch(height=160))
    assert "the map has 10 rows, which is not a multiple of 8: the last 2 rows" in log.text
    log.clear()
    losses_of(model, **batch(height=160))
    losses_of(model_of())  # 8 rows
    assert "stripes" not in log.text


@pytest.mark.parametrize(("depth", "dim"), [("18x", 512), ("34x", 512)])
def test_branches_have_opposite_orders_and_share_the_last_block(depth, dim):
    model = model_of("MODEL.BACKBONE.DEPTH", depth).eval()
    images = torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        shared = model.trunk(images)
        maps = []
        for branch, order in ((model.content_branch, ["average", "max"]), (model.salient_branch, ["max", "average"])):
            assert [smr.pooling for smr in branch.smr] == order
            x = branch.first(shared)
            for smr, then in zip(branch.smr, (branch.rest, nn.Identity())):
                pooled = x.mean(dim=(2, 3)) if smr.pooling == "average" else x.amax(dim=(2, 3))
                x = then(smr.gate(pooled)[:, :, None, None] * x)
            maps.append(x)
        expected = model.shared(maps[0] + maps[1]).amax(dim=(2, 3))
        assert torch.allclose(model.pool(images)[0], expected, atol=1e-6) and expected.shape == (2, dim)
    assert len(model.content_branch.rest) == (1 if depth == "34x" else 0)
    for p, q in zip(model.content_branch.first.parameters(), model.salient_branch.first.parameters()):
        assert torch.equal(p, q) and p is not q


@pytest.mark.parametrize("name", ["build_resnext_backbone", "build_resnest_backbone"])
def test_other_resnets_are_split_in_the_same_way(name):
    with torch.device("meta"):
        model = model_of(*LARGE, "MODEL.BACKBONE.NAME", name, "MODEL.DEVICE", "meta").eval()
    assert model(torch.empty(2, 3, 128, 64, device="meta")).shape == (2, 2048)


# Losses.

def test_label_smoothing_equals_the_published_code_and_a_scaled_epsilon():
    torch.manual_seed(0)
    logits, y, classes, epsilon = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3]), 5, 0.1
    spread = (1 - epsilon) * F.one_hot(y, classes) + epsilon / classes
    expected = (-spread * logits.log_softmax(dim=1)).mean(dim=0).sum().item()
    assert identity_loss(logits, y, epsilon).item() == pytest.approx(expected, rel=1e-6)
    fastreid_loss = cross_entropy_loss(logits, y, epsilon * (classes - 1) / classes).item()
    assert fastreid_loss == pytest.approx(expected, rel=1e-6)
    assert cross_entropy_loss(logits, y, epsilon).item() != pytest.approx(expected, rel=1e-3)


def test_the_objective_is_the_sum_of_five_identity_and_triplet_losses():
    model = model_of()
    outputs = {}
    losses = model.losses
    model.losses = lambda given, *args: losses(outputs.setdefault("given", given), *args)
    terms = losses_of(model)
    logits, features, y = outputs["given"]["logits"], outputs["given"]["representations"], batch()["targets"]
    assert logits.shape == (5, 8, 10) and features.shape == (5, 8, 512)
    classification = sum(F.cross_entropy(scores, y, label_smoothing=0.1) for scores in logits)
    triplets = sum(triplet_loss(feature, y, 0.3, norm_feat=False, hard_mining=True) for feature in features)
    assert terms["loss_id"].item() == pytest.approx(classification.item(), rel=1e-5)
    assert terms["loss_triplet"].item() == pytest.approx(triplets.item(), rel=1e-4)


@pytest.mark.parametrize(("epoch", "mined"), [(0, False), (34, False), (35, True), (None, True)])
def test_all_parameters_are_in_the_loss_and_triplets_start_in_epoch_36(epoch, mined):
    model = model_of()
    terms = losses_of(model, epoch)
    assert (terms["loss_triplet"] > 0) == mined
    sum(terms.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(frozen) == 5 and all(name.endswith("bn.bias") and "stripe" not in name for name in frozen)


def test_triplets_are_enabled_outside_a_trainer():
    assert model_of()(batch())["loss_triplet"] > 0


def test_precise_bn_works_without_gradients_or_identities():
    model = model_of()
    before = model.bn.running_mean.clone()
    with torch.no_grad():
        terms = losses_of(model, 35, targets=torch.full((8,), -1))
    assert all(term.isfinite() for term in terms.values()) and terms["loss_triplet"] == 0
    assert not torch.equal(model.bn.running_mean, before)


def test_a_training_batch_without_identities_is_rejected():
    with pytest.raises(ValueError, match="training batch without 'targets'"):
        model_of()({"images": batch()["images"]})


def test_half_precision_and_channels_last_give_nearly_equal_float32_losses():
    model = model_of()
    expected = losses_of(model)
    seen = []
    model.shared.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    precision.cast_forward(model, "bfloat16", "bfloat16", channels_last=True)
    terms = losses_of(model)
    assert seen[0].dtype == torch.bfloat16 and seen[0].is_contiguous(memory_format=torch.channels_last)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    for name, term in terms.items():
        assert term.item() == pytest.approx(expected[name].item(), rel=0.02)
    with torch.no_grad():
        assert model.eval()(batch()).dtype == torch.float32


def test_the_model_compiles_as_two_whole_graphs_and_computes_the_same():
    model = model_of()
    model.trunk = nn.Conv2d(3, 256, 16, stride=16)  # for a shorter compilation
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = losses_of(model, 0), losses_of(model, 35)
    model.load_state_dict(state)
    precision.compile_model(model, backend="eager", fullgraph=True)  # raises an error for a graph break
    for epoch, terms in zip((0, 35), expected):
        compiled = losses_of(model, epoch)
        assert {name: term.item() for name, term in compiled.items()} == pytest.approx(
            {name: term.item() for name, term in terms.items()}, rel=1e-5)


# Embeddings.

def test_embeddings_are_normalised_sums_over_image_and_flipped_image():
    model = model_of().eval()
    images, mirrored = batch(2)["images"], batch(2)["images"].flip(3)
    with torch.no_grad():
        norm = model.preprocess_image
        feature = model.pool(norm(images))[0] + model.pool(norm(mirrored))[0]
        embedding = model({"images": images})
        assert torch.allclose(embedding, feature / feature.norm(dim=1, keepdim=True), atol=1e-6)
        assert torch.allclose(model(mirrored), embedding, atol=1e-6)
        model.flip_sum = False
        alone = model.pool(norm(images))[0]
        assert torch.allclose(model(images), F.normalize(alone), atol=1e-6)
    assert (alone >= 0).all()  # maximum after ReLU, before batch normalisation
    assert torch.equal(images, batch(2)["images"])
    assert torch.allclose(CSSC.finish_embeddings((embedding + embedding.flip(1)) / 2).norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(("options", "message"), [
    (("TEST.FLIP.ENABLED", True), "CSSC.FLIP_SUM and TEST.FLIP.ENABLED are both True"),
    (("MODEL.BACKBONE.STEM_POOL", "floor"), "STEM_POOL is 'floor', expected 'auto', 'ceil' or 'padding'"),
    (("MODEL.BACKBONE.STEM_POOL", "padding", "MODEL.BACKBONE.NAME", "build_resnest_backbone",
      "MODEL.BACKBONE.DEPTH", "50x"), "'padding', which only build_resnet_backbone supports"),
    (("MODEL.BACKBONE.WITH_NL", True), "WITH_NL is True, .*non-local blocks")])
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        model_of(*options)


def test_fastreids_flip_test_can_replace_flip_sum():
    assert not model_of("TEST.FLIP.ENABLED", True, "MODEL.CSSC.FLIP_SUM", False).flip_sum


# Training.

def test_cssc_trains_resumes_in_the_triplet_epoch_evaluates_and_reloads(small_config, tmp_path):
    options = (*SMALL, "MODEL.CSSC.TRIPLET_EPOCH", 2)
    first = trained(small_config(*options, "SOLVER.MAX_EPOCH", 1, file=FILE))
    trainer = CerberusTrainer(small_config(*options, "SOLVER.MAX_EPOCH", 2, file=FILE))
    trainer.resume_or_load(resume=True)
    results = trainer.train()
    assert {"mAP", "Rank-1"} <= set(results)
    triplets = [[value for value, _ in run.storage.history("loss_triplet").values()] for run in (first, trainer)]
    assert triplets[0] == [0, 0] and min(triplets[1]) > 0  # two steps per epoch
    still = [name for name, p in trainer.model.named_parameters() if p.requires_grad and
             torch.equal(p, first.start[name])]
    assert still == []
    record = json.loads((tmp_path / "run/results.json").read_text())
    assert record["protocol"]["reid"]["flip"] is True

    again = trainer.cfg.clone()
    again.defrost()
    again.MODEL.WEIGHTS = str(tmp_path / "run/model_final.pth")
    assert evaluate(again) == pytest.approx(dict(results))
    model = load_model(again)
    assert model.classifier.shape == (0, 16)
    with torch.no_grad():
        images = batch(2)["images"]
        assert torch.allclose(model(images), trainer.model.eval()(images), atol=1e-6)


# Recipe.

@pytest.mark.parametrize(("name", "images", "instances"), [("PRCC", 17_896, 8), ("LTCC", 9_576, 8),
                                                           ("CelebreID", 20_208, 4)])
@pytest.mark.parametrize("file", ["cssc_R50.yml", "cssc_official_R50.yml"])
def test_the_recipe_is_that_of_the_published_code(name, images, instances, file):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name / file))
    solver, data = cfg.SOLVER, cfg.INPUT
    assert (solver.OPT, solver.BASE_LR, solver.WEIGHT_DECAY, solver.MAX_EPOCH) == ("Adam", 3e-4, 5e-4, 120)
    assert (solver.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE) == (32, instances)
    assert (cfg.MODEL.LOSSES.CE.EPSILON, cfg.MODEL.LOSSES.TRI.MARGIN, cfg.MODEL.CSSC.TRIPLET_EPOCH) == (0.1, 0.3, 36)
    assert data.SIZE_TRAIN == data.SIZE_TEST == [384, 192]
    assert (data.FLIP.ENABLED, data.FLIP.PROB, data.PADDING.ENABLED, data.PADDING.SIZE) == (True, 0.5, True, 10)
    assert (data.REA.ENABLED, data.REA.PROB, data.REA.VALUE) == (True, 0.5, cfg.MODEL.PIXEL_MEAN)
    assert cfg.TEST.EVAL_PERIOD == solver.CHECKPOINT_PERIOD == 5 and cfg.MODEL.CSSC.FLIP_SUM
    rates = learning_rates(cfg, images // 32)
    assert rates[0] == pytest.approx(3e-5) and rates[5] == pytest.approx(3e-4 * 0.55)  # halfway from 0.1 to 1
    assert [epoch for epoch in range(10, 120) if rates[epoch] != pytest.approx(rates[epoch - 1])] == [10, 30, 60]
    assert [rates[epoch] for epoch in (10, 30, 60)] == pytest.approx([3e-4, 3e-5, 3e-6])


@pytest.mark.parametrize("name", ["PRCC", "LTCC", "CelebreID"])
def test_the_official_recipe_has_only_the_differences_of_the_published_code(name):
    def values(file: str) -> dict:
        cfg = get_cfg()
        add_cerberus_config(cfg)
        cfg.merge_from_file(str(CONFIGS / name / file))
        return flat(cfg)

    ours, official = values("cssc_R50.yml"), values("cssc_official_R50.yml")
    assert {key: value for key, value in official.items() if value != ours[key]} == {
        "MODEL.BACKBONE.STEM_POOL": "padding", "INPUT.INTERPOLATION": "bilinear", "INPUT.REA.SCALE": [0.02, 0.4],
        "INPUT.REA.RATIO": [0.3, 3.3333333], "DATALOADER.RESIDENT": False, "SOLVER.AUTOCAST": "",
        "TEST.BEST_EPOCH": True, "OUTPUT_DIR": f"logs/{name.lower()}/cssc_official_R50"}


def test_stem_pool_applies_to_split_backbones():
    images = batch(2)["images"]
    trunks = {}
    for pool in ("ceil", "padding"):
        model = model_of("MODEL.BACKBONE.STEM_POOL", pool).eval()
        (layer,) = [module for module in model.modules() if isinstance(module, nn.MaxPool2d)]
        assert (layer.ceil_mode, layer.padding) == ((True, 0) if pool == "ceil" else (False, 1))
        with torch.no_grad():
            trunks[pool] = model.trunk(images)
    assert trunks["ceil"].shape == trunks["padding"].shape and not torch.equal(*trunks.values())


def learning_rates(cfg, steps: int) -> list[float]:
    """At the first step of each epoch, as FastReID's hook (engine/hooks.py:254) updates its two schedules."""
    from fastreid.solver import build_lr_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    schedule = build_lr_scheduler(cfg, optimizer, steps)
    optimizer.step()
    rates = []
    for epoch in range(cfg.SOLVER.MAX_EPOCH):
        rates.append(optimizer.param_groups[0]["lr"])
        for step in range(epoch * steps, (epoch + 1) * steps):
            if step + 1 <= cfg.SOLVER.WARMUP_ITERS:
                schedule["warmup_sched"].step()
        if (epoch + 1) * steps + 1 > cfg.SOLVER.WARMUP_ITERS:
            schedule["lr_sched"].step()
    return rates
