"""IDE, ARN and APR: sizes, the re-weighting module, the objective, and predictions from the feature."""

import math
from pathlib import Path

from cerberus_plugin import CerberusTrainer, add_cerberus_config
from cerberus_plugin.attributes import DUKEMTMC, MARKET1501
from cerberus_plugin.inference import ProbabilityReader
from cerberus_plugin.modeling.apr import AttributeReweighting, ColumnAnswers, attribute_scores, num_scores
from cerberus_plugin.modeling.build import load_model
from cerberus_plugin.modeling.losses import attribute_loss
from cerberus_plugin.modeling.precision import cast_forward

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage
from support.data import random_labels
from support.training import read_config, trained

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ["paper", "bag of tricks"]
FILES = {"paper": "configs/Market1501/{}_R50.yml", "bag of tricks": "configs/Market1501/{}_bot_R50.yml"}


def model_of(name: str, *options, recipe: str = "paper", schema: str = "market1501", classes: int = 10):
    """A small model of a configuration file in training mode, with schema and classes set as by the trainer."""
    torch.manual_seed(0)
    return build_model(read_config("MODEL.APR.SCHEMA", schema, "MODEL.HEADS.NUM_CLASSES", classes, *options,
                                   file=FILES[recipe].format(name)))


def batch(schema=MARKET1501, size: int = 8) -> dict:
    torch.manual_seed(1)
    return {"images": 255 * torch.rand(size, 3, 48, 24), "targets": torch.arange(size) // 2,
            "attributes": random_labels(schema, size)}


def losses_of(model, **changes) -> dict[str, torch.Tensor]:
    with EventStorage(0):
        return model(batch() | changes)


def test_scores_are_reweighted_as_in_the_worked_example():
    arm = AttributeReweighting(2)
    with torch.no_grad():
        arm.weight.copy_(torch.tensor([[1.0, -1], [0.5, 2]]))
        arm.bias.copy_(torch.tensor([0, -0.5]))
        arm = arm.double()
        reweighted = arm(torch.tensor([[0.8, 0.2]], dtype=torch.float64))
    assert reweighted.tolist()[0] == pytest.approx([0.5165250450, 0.1148885034], abs=1e-10)


@pytest.mark.parametrize(("schema", "sizes", "m"), [(MARKET1501, (39, 30, 12), 12), (DUKEMTMC, (31, 23, 10), 10)])
def test_the_three_kinds_of_scores_have_the_sizes_of_the_paper(schema, sizes, m):
    assert len(schema.column_sizes) == m
    readings = ("probabilities", "positive", "highest")
    assert tuple(num_scores(schema.column_sizes, reading) for reading in readings) == sizes


def test_attribute_scores_match_values_computed_by_hand():
    logits = torch.tensor([[0.0, math.log(3), 0, 0, math.log(2)]])  # two classes 1/4, 3/4; three classes 1/4, 1/4, 1/2
    expected = {"probabilities": [0.25, 0.75, 0.25, 0.25, 0.5], "positive": [0.75, 0.25, 0.25, 0.5],
                "highest": [0.75, 0.5]}
    for reading, values in expected.items():
        assert attribute_scores(logits, (2, 3), reading)[0].tolist() == pytest.approx(values)


@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC])
def test_column_answers_do_not_synchronise_the_device(schema):
    labels = random_labels(schema, 200)
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.2] = -1
    labels[0] = 1  # all colours, and the second classes
    answers = ColumnAnswers(schema)
    assert torch.equal(answers(labels), schema.column_answers(labels))
    assert answers.to("meta")(labels.to("meta")).shape == (200, len(schema.columns))  # reading a value would raise


def test_an_unknown_kind_of_scores_is_rejected():
    with pytest.raises(ValueError, match="MODEL.APR.SCORES is 'all', expected one of probabilities"):
        num_scores((2, 3), "all")


@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC])
def test_column_answers_equal_those_of_the_schema(schema):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 4, (200, len(schema.fields)), generator=generator)
    assert torch.equal(ColumnAnswers(schema)(labels), schema.column_answers(labels))


def test_attribute_loss_equals_a_loop_and_skips_missing_labels():
    torch.manual_seed(0)
    logits, answers = torch.randn(4, 7), torch.tensor([[0, 2, -1], [1, -1, -1], [1, 0, -1], [0, -1, -1]])
    means = []
    for m, part in enumerate(logits.split((2, 3, 2), dim=1)):
        terms = [-part[i].log_softmax(0)[answers[i, m]] for i in range(4) if answers[i, m] >= 0]
        if terms:
            means.append(sum(terms) / len(terms))
    assert len(means) == 2
    assert attribute_loss(logits, answers, (2, 3, 2)).item() == pytest.approx(sum(means).item() / 2)
    assert attribute_loss(logits, answers, (2, 3, 2), "sum").item() == pytest.approx(sum(means).item())
    assert attribute_loss(logits, torch.full((4, 3), -1), (2, 3, 2)) == 0


@pytest.mark.parametrize(("name", "extra"), [("ide", 0), ("arn", 39 * 17), ("apr", 39 * 17 + 39 * 40)])
def test_parameters_are_those_of_the_backbone_and_the_classifiers(name, extra):
    model = model_of(name)
    joined = {"ide": 16, "arn": 0, "apr": 16 + 39}[name]
    total = sum(p.numel() for p in model.heads.parameters())
    assert total == extra + 10 * joined


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_objective_weights_identity_and_attribute_losses_by_lambda(recipe):
    """If the weights of attribute scores in the identity classifier are 0, the identity losses equal FastReID's."""
    apr = model_of("apr", "MODEL.APR.LAMBDA", 0.7, recipe=recipe)
    baseline = model_of("bot", "MODEL.HEADS.NAME", "EmbeddingHead", recipe="paper") if recipe == "bag of tricks" else (
        model_of("ide"))
    baseline.backbone.load_state_dict(apr.backbone.state_dict())
    with torch.no_grad():
        apr.heads.weight[:, 16:] = 0
        baseline.heads.weight.copy_(apr.heads.weight[:, :16])
        apr.heads.bottleneck.load_state_dict(baseline.heads.bottleneck.state_dict())
    ours, theirs = losses_of(apr), losses_of(baseline)
    assert set(ours) == {*theirs, "loss_attribute"}
    for name, value in theirs.items():
        assert ours[name].item() == pytest.approx(0.7 * value.item(), rel=1e-5)
    answers = MARKET1501.column_answers(batch()["attributes"])
    with torch.no_grad():
        outputs = apr.heads(apr.backbone(apr.preprocess_image(batch())), batch()["targets"])
    alone = attribute_loss(outputs["attribute_logits"], answers, MARKET1501.column_sizes)
    assert ours["loss_attribute"].item() == pytest.approx(0.3 * alone.item(), rel=1e-5)


def test_ide_with_the_bag_of_tricks_is_fastreids_baseline():
    """Therefore there is no ide_bot_R50.yml."""
    baseline = model_of("bot")
    ide = model_of("bot", "MODEL.META_ARCHITECTURE", "IDE", "MODEL.HEADS.NAME", "AttributeHead")
    ide.load_state_dict(baseline.state_dict())
    ours, theirs = losses_of(ide), losses_of(baseline)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_loss_of_arn_is_the_sum_over_attributes():
    model = model_of("arn")
    losses = losses_of(model)
    assert list(losses) == ["loss_attribute"]
    with torch.no_grad():
        logits = model.heads(model.backbone(model.preprocess_image(batch())), None)["attribute_logits"]
    answers = MARKET1501.column_answers(batch()["attributes"])
    expected = attribute_loss(logits, answers, MARKET1501.column_sizes, "sum").item()
    assert losses["loss_attribute"].item() == pytest.approx(expected, rel=1e-5)


def test_only_the_identity_loss_trains_the_reweighting_module():
    model = model_of("apr")
    losses = losses_of(model)
    gradients = torch.autograd.grad(losses["loss_attribute"], list(model.heads.arm.parameters()), retain_graph=True,
                                    allow_unused=True)
    assert gradients == (None, None)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(losses["loss_cls"], list(model.heads.arm.parameters())))


@pytest.mark.parametrize("name", ["ide", "arn", "apr"])
def test_every_parameter_is_in_every_steps_loss(name):
    model = model_of(name)
    sum(losses_of(model).values()).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("reading", ["probabilities", "positive", "highest"])
def test_the_key_selects_the_scores_of_the_identity_classifier(reading):
    model = model_of("apr", "MODEL.APR.SCORES", reading)
    assert model.heads.weight.shape[1] - 16 == num_scores(MARKET1501.column_sizes, reading)
    assert losses_of(model)["loss_cls"].isfinite()


def test_without_reweighting_the_scores_are_not_changed():
    with_arm, without = model_of("apr"), model_of("apr", "MODEL.APR.ARM", False)
    without.load_state_dict(with_arm.state_dict(), strict=False)
    with torch.no_grad():
        with_arm.heads.arm.weight.zero_()
        with_arm.heads.arm.bias.fill_(100)  # sigmoid of 1
    assert losses_of(with_arm)["loss_cls"].item() == pytest.approx(losses_of(without)["loss_cls"].item(), rel=1e-5)


def test_the_block_sets_the_feature_size_and_dropout_is_for_training():
    model = model_of("apr", "MODEL.APR.BLOCK_DIM", 32, "MODEL.APR.DROPOUT", 0.5)
    assert [type(part).__name__ for part in model.heads.block] == ["Conv2d", "BatchNorm", "Dropout", "ReLU"]
    maps = torch.rand(4, 16, 3, 2)
    first, second = (model.heads(maps, torch.arange(4))["features"] for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    feature = model.heads(maps)
    assert feature.shape == (4, 32)
    assert (feature >= 0).all()
    assert torch.equal(feature, model.heads(maps))


def test_inference_gives_the_pooled_feature():
    model = model_of("apr").eval()
    images = batch()["images"]
    with torch.no_grad():
        maps = model.backbone(model.preprocess_image({"images": images}))
        assert torch.allclose(model({"images": images}), maps.mean(dim=(2, 3)), atol=1e-5)


def test_invalid_keys_are_rejected():
    with pytest.raises(ValueError, match="MODEL.HEADS.NAME is 'EmbeddingHead'; APR needs AttributeHead"):
        model_of("apr", "MODEL.HEADS.NAME", "EmbeddingHead")
    with pytest.raises(ValueError, match="AttributeHead supports IDE, ARN, APR; MODEL.META_ARCHITECTURE is 'Baseline'"):
        model_of("apr", "MODEL.META_ARCHITECTURE", "Baseline")
    with pytest.raises(ValueError, match="MODEL.APR.LAMBDA is 1.5, expected a share between 0 and 1"):
        model_of("apr", "MODEL.APR.LAMBDA", 1.5)
    with pytest.raises(ValueError, match="MODEL.APR.SCHEMA is 'cuhk', expected one of market1501, dukemtmc"):
        model_of("arn", schema="cuhk")
    with pytest.raises(ValueError, match="MODEL.HEADS.NECK_FEAT is 'behind', expected one of before, after"):
        model_of("apr", "MODEL.HEADS.NECK_FEAT", "behind")
    with pytest.raises(ValueError, match="training batch without 'attributes'"):
        losses_of(model_of("apr"), attributes=None)


def reader(schema=MARKET1501) -> ProbabilityReader:
    torch.manual_seed(0)
    return ProbabilityReader(schema, torch.randn(sum(schema.column_sizes), 6), torch.randn(sum(schema.column_sizes)))


def probability(name: str, value: str, reader: ProbabilityReader, embedding) -> float:
    """Log-probability of one described value in one image, by definition."""
    columns = [column.name for column in reader.schema.columns]
    m = columns.index(name)
    start = sum(reader.schema.column_sizes[:m])
    stop = start + reader.schema.column_sizes[m]
    p = (reader.weight[start:stop] @ embedding + reader.bias[start:stop]).softmax(0)
    column = reader.schema.columns[m]
    if value == "none":
        return 1 - p.max().item()
    return sum(p[column.classes.index(word)].item() for word in value.split(" and "))


@pytest.mark.parametrize("words", [
    {"gender": "female"}, {"upper colour": "red", "age": "adult", "hat": "yes"}, {"lower colour": "none"},
    {"lower colour": "black and white", "backpack": "no"}])
def test_search_scores_are_mean_log_probabilities_of_described_columns(words):
    embeddings = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    read = reader()
    scores = read.search(MARKET1501.parse(words)[None], embeddings)[0]
    for score, embedding in zip(scores.tolist(), embeddings):
        logs = [math.log(probability(name, value, read, embedding)) for name, value in words.items()]
        assert score == pytest.approx(sum(logs) / len(logs), rel=1e-4)


def test_denying_a_colour_allows_the_others():
    embeddings = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    labels = torch.full((1, len(MARKET1501.fields)), -1)
    labels[0, MARKET1501.index("upred")] = 0
    read = reader()
    expected = [math.log(1 - probability("upper colour", "red", read, embedding)) for embedding in embeddings]
    assert read.search(labels, embeddings)[0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_batches_of_descriptions_give_the_same_scores():
    labels, embeddings = random_labels(MARKET1501, 20), torch.randn(7, 6)
    labels[::3, :9] = -1
    read = reader()
    each = torch.cat([read.search(row[None], embeddings) for row in labels])
    assert torch.allclose(read.search(labels, embeddings), each, atol=1e-6)


def test_balanced_predictions_without_training_labels_are_the_most_probable():
    draw = torch.Generator().manual_seed(0)
    size = sum(MARKET1501.column_sizes)
    reader = ProbabilityReader(MARKET1501, torch.randn(size, 8, generator=draw), torch.zeros(size),
                               train_labels=torch.full((5, len(MARKET1501.fields)), -1))
    embeddings = torch.randn(6, 8, generator=draw)
    assert torch.equal(reader.recognise_balanced(embeddings), reader.recognise(embeddings))


def test_predictions_are_the_most_probable_classes():
    embeddings = torch.randn(5, 6)
    read = reader()
    classes, probabilities = read.confidences(embeddings)
    assert torch.equal(classes, read.recognise(embeddings))
    for n, m in ((0, 0), (3, 1), (4, 8)):
        word = MARKET1501.columns[m].classes[classes[n, m]]
        value = probability(MARKET1501.columns[m].name, word, read, embeddings[n])
        assert probabilities[n, m].item() == pytest.approx(value, rel=1e-5)


def test_an_empty_description_is_rejected():
    with pytest.raises(ValueError, match="query 1 describes nothing"):
        labels = torch.full((2, len(MARKET1501.fields)), -1)
        labels[0, 0] = 1
        reader().search(labels, torch.randn(3, 6))


@pytest.mark.parametrize("name", ["ide", "arn", "apr"])
def test_each_model_trains_evaluates_and_reloads(small_config, name, tmp_path):
    cfg = small_config("SOLVER.AUTOCAST", "", "DATALOADER.RESIDENT", False, file=FILES["paper"].format(name))
    trainer = trained(cfg)
    moved = [key for key, p in trainer.model.named_parameters() if p.requires_grad and
             not torch.equal(p, trainer.start[key])]
    assert len(moved) == sum(p.requires_grad for p in trainer.model.parameters())
    assert {"mAP", "Rank-1"} <= set(trainer.results)
    assert ("PAR/mA_official" in trainer.results) == (name != "ide")
    assert ("APS/mAP" in trainer.results) == (name != "ide")

    again = cfg.clone()
    again.defrost()
    again.MODEL.WEIGHTS = str(tmp_path / "run/model_final.pth")
    results = trainer.test(again, load_model(again))
    assert {key: results[key] for key in results} == pytest.approx(dict(trainer.results), nan_ok=True)


def with_weights(cfg, path):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    return cfg


def test_a_checkpoint_with_another_schema_is_rejected(small_config, tmp_path):
    cfg = small_config("SOLVER.AUTOCAST", "", "DATALOADER.RESIDENT", False, file=FILES["paper"].format("arn"))
    trained(cfg)
    path = tmp_path / "run/model_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model"]["class_labels.schema"].fill_(7)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="'held_schema.record' is the schema market1501, but .* of another schema"):
        load_model(with_weights(cfg, path))
    del checkpoint["model"]["held_schema.record"]  # as in earlier checkpoints
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="trained with an unknown attribute schema"):
        load_model(with_weights(cfg, path))
    with pytest.raises(ValueError, match="table 'class_labels.schema' differs from that of the training dataset"):
        CerberusTrainer(cfg).resume_or_load(resume=True)


def test_training_can_start_from_the_weights_of_another_model(small_config, tmp_path):
    ide = trained(small_config("SOLVER.AUTOCAST", "", "OUTPUT_DIR", str(tmp_path / "ide"), "SOLVER.MAX_EPOCH", 1,
                               file=FILES["paper"].format("ide")))
    cfg = small_config("MODEL.WEIGHTS", str(tmp_path / "ide/model_final.pth"), file=FILES["paper"].format("apr"))
    apr = CerberusTrainer(cfg)
    apr.resume_or_load(resume=False)
    assert torch.equal(apr.model.backbone.conv1.weight, ide.model.backbone.conv1.weight)
    assert (apr.model.class_labels.labels >= 0).all()


@pytest.mark.parametrize("name", ["apr", "bot"])
def test_losses_are_computed_in_float32_under_autocast(name):
    model = model_of(name)
    cast_forward(model, "bfloat16", "", channels_last=False)
    assert {value.dtype for value in losses_of(model).values()} == {torch.float32}


@pytest.mark.parametrize("data", ["Market1501", "DukeMTMC"])
@pytest.mark.parametrize("name", ["ide", "arn", "apr"])
def test_the_configuration_has_the_recipe_of_the_paper(name, data):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{data}/{name}_R50.yml"))
    solver = cfg.SOLVER
    assert (solver.OPT, solver.MOMENTUM, solver.IMS_PER_BATCH, solver.MAX_EPOCH) == ("SGD", 0.9, 32, 60)
    assert (solver.BASE_LR, solver.STEPS, solver.GAMMA, solver.WARMUP_ITERS) == (0.01, [40], 0.1, 0)
    assert (cfg.MODEL.BACKBONE.LAST_STRIDE, cfg.MODEL.HEADS.WITH_BNNECK, cfg.MODEL.APR.LAMBDA) == (2, False, 0.9)
    assert (cfg.MODEL.LOSSES.NAME, cfg.MODEL.LOSSES.CE.EPSILON) == (("CrossEntropyLoss",), 0.0)
    assert (cfg.TEST.METRIC, cfg.INPUT.FLIP.ENABLED, cfg.INPUT.PADDING.ENABLED, cfg.INPUT.REA.ENABLED) == (
        "euclidean", True, True, False)


@pytest.mark.parametrize("data", ["Market1501", "DukeMTMC"])
@pytest.mark.parametrize("name", ["arn", "apr"])
def test_the_bag_of_tricks_recipe_differs_from_fastreids_in_model_and_head(name, data):
    def differing(file: str) -> dict:
        cfg = get_cfg()
        add_cerberus_config(cfg)
        cfg.merge_from_file(str(CONFIGS / f"{data}/{file}.yml"))
        cfg.MODEL.META_ARCHITECTURE = cfg.MODEL.HEADS.NAME = cfg.OUTPUT_DIR = ""
        if name == "arn":  # no identity classifier
            del cfg.MODEL["LOSSES"]
        return cfg

    assert differing(f"{name}_bot_R50") == differing("bot_R50")
