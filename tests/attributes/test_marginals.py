"""Attribute probabilities from prototypes, balanced predictions, and search by log-probability."""

import copy
import itertools
import math
import pickle
from pathlib import Path
from types import SimpleNamespace

from cerberus_plugin.attributes import DUKEMTMC, GROUPS, MARKET1501, AttributeSchema, Field, Group, SIDTable
from cerberus_plugin.attributes.marginals import LOWEST, balanced_answers, held_classes, prior_of
from cerberus_plugin.engine.label_tables import measure_scales
from cerberus_plugin.evaluation.embeddings import Gathered
from cerberus_plugin.evaluation.tasks import DirectionTask
from cerberus_plugin.inference import PrototypeReader, blocks
from cerberus_plugin.modeling.build import load_model
from cerberus_plugin.modeling.checkpoint_tables import begin_from_other_weights
from cerberus_plugin.modeling.losses import agreement_weights, prototype_softmax_loss
from cerberus_plugin.modeling.sid_prototypes import ComposedPrototypes, SIDPrototypes
from cerberus_plugin.search.calibration import fit_scale
from cerberus_plugin.search.portable import AttributeModel

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.data import random_labels

D = 8
IDENTITY = GROUPS.index("identity")

SCALES = {column.name: 8.0 + m for m, column in enumerate(MARKET1501.columns)}


def filled(schema, kind=ComposedPrototypes, count: int = 40, space: str = "product", learned_scale=None):
    """Random prototypes with the tables of random labels."""
    labels = random_labels(schema, count)
    table = SIDTable.build(schema, labels, labels, space)
    torch.manual_seed(0)
    module = kind(table.sizes, schema.group_bits, count, D, learned_scale=learned_scale)
    module.fill(table, table.lookup(labels), tuple(torch.zeros(k) for k in table.sizes))
    return module, table


def reader_of(schema=MARKET1501, space: str = "product", **options) -> PrototypeReader:
    module, table = filled(schema, space=space)
    return PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], module.synthesise,
                           **{"reading": "probability", **options})


@pytest.fixture
def embeddings() -> torch.Tensor:
    return blocks(torch.randn(30, 5 * D, generator=torch.Generator().manual_seed(1))).flatten(1)


def four_identities(**options) -> PrototypeReader:
    """(male, young), (male, adult), (female, young), (female, adult) along the axes, with 6, 3, 1 and 0 identities."""
    people = [("male", "young")] * 6 + [("male", "adult")] * 3 + [("female", "young")]
    people = [*people, ("female", "adult")]
    labels = torch.tensor(np.stack([MARKET1501.parse({"gender": gender, "age": age}) for gender, age in people]))
    labels[:, [i for i, field in enumerate(MARKET1501.fields) if field.group != "identity"]] = 0
    table = SIDTable.build(MARKET1501, labels[:-1], labels[-1:], space="union")
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    return PrototypeReader(table, [rows if g == "identity" else torch.ones(1, 2) for g in GROUPS],
                           **{"cosine_scale": 2.0, "reading": "probability", **options})


@pytest.mark.parametrize(("tau", "male", "young"), [
    # exp(2 cos) with cos (0.6, 0.8, -0.6, -0.8): 3.320117, 4.953032, 0.301194, 0.201897; priors 6, 3, 1, 0.5 of 10.5.
    # tau 1: 19.920701, 14.859097, 0.301194, 0.100948; the sum is 35.181941.
    (1.0, 34.779798 / 35.181941, 20.221896 / 35.181941),
    # tau 0: softmax of the scaled cosines without prior; the sum is 8.776240.
    (0.0, 8.273149 / 8.776240, 3.621311 / 8.776240),
    # tau 0.5: with square roots 2.449490, 1.732051, 1, 0.707107: 8.132593, 8.578904, 0.301194, 0.142763; sum 17.155454.
    (0.5, 16.711497 / 17.155454, 8.433787 / 17.155454)])
def test_probabilities_of_four_semantic_ids_match_values_computed_by_hand(tau, male, young):
    reader = four_identities(tau=tau)
    embedding = torch.tensor([[0.6, 0.8]]).repeat(1, 5)
    found = dict(zip((column.name for column in MARKET1501.columns), reader.log_probabilities(embedding)))
    assert found["gender"].exp()[0].tolist() == pytest.approx([male, 1 - male], abs=1e-6)
    assert found["age"].exp()[0, [0, 2]].tolist() == pytest.approx([young, 1 - young], abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, math.inf, SCALES | {"age": math.nan}])
def test_invalid_cosine_scales_are_rejected(scale):
    with pytest.raises(ValueError, match="cosine scales are .*expected numbers above 0.*TEST.PAR.COSINE_SCALE"):
        four_identities(cosine_scale=scale)


def test_the_prior_is_the_share_of_identities_with_a_minimum_for_unseen_ones():
    assert prior_of(np.array([6, 3, 1, 0]), 0.5).tolist() == pytest.approx([6 / 10.5, 3 / 10.5, 1 / 10.5, 0.5 / 10.5])
    for unseen in (0, -1, math.nan):
        with pytest.raises(ValueError, match="UNSEEN_PRIOR is .*, expected a number of identities above 0"):
            prior_of(np.array([1, 0]), unseen)
    assert (torch.cat(four_identities().log_probabilities(torch.ones(1, 10)), dim=1)[0, :2]).isfinite().all()


@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC], ids=lambda schema: schema.name)
def test_the_probability_of_a_value_is_the_sum_over_its_semantic_ids(schema, embeddings):
    labels = random_labels(schema, 20)
    two = torch.from_numpy(schema.parse({"lower colour": "black and white"}))
    labels[0] = torch.where(two >= 0, two, labels[0])  # trousers with two colours
    table = SIDTable.build(schema, labels, space="observed")
    rows = [torch.randn(k, D, generator=torch.Generator().manual_seed(k)) for k in table.sizes]
    reader = PrototypeReader(table, rows, cosine_scale=9.0, tau=0.7)
    for column, group, log_p in zip(schema.columns, schema.column_groups, reader.log_probabilities(embeddings)):
        g = GROUPS.index(group)
        counts = table.counts[g].double()
        for n in (0, 7):
            cosine = F.cosine_similarity(blocks(embeddings)[n, g], rows[g]).double()
            p = (9 * cosine + 0.7 * (counts / counts.sum()).log()).softmax(0)
            for c, word in enumerate(["none"] * column.is_colour + list(column.classes)):
                held = [schema.describe(row).get(column.name) for row in table.labels[g]]
                brute = sum(p[k] for k, words in enumerate(held) if word in words.split(" and "))
                assert log_p[n, c].exp().item() == pytest.approx(float(brute), abs=1e-6)


def test_readers_can_be_pickled_and_copied_after_use(embeddings):
    reader = four_identities()
    images = embeddings[:, :10]
    expected = reader.log_probabilities(images)
    for other in (pickle.loads(pickle.dumps(reader)), copy.deepcopy(reader)):
        assert all(map(torch.equal, other.log_probabilities(images), expected))


def test_recognition_predicts_the_most_probable_value_and_force_colour_never_none(embeddings):
    reader = reader_of()
    log_p = reader.log_probabilities(embeddings)
    for m, (column, answers) in enumerate(zip(MARKET1501.columns, reader.recognise(embeddings).T)):
        assert (answers == log_p[m].argmax(dim=1) - int(column.is_colour)).all()
    forced = reader_of(force_colour=True)
    colours = [m for m, column in enumerate(MARKET1501.columns) if column.is_colour]
    for recognise in (forced.recognise, forced.recognise_balanced):
        assert (recognise(embeddings)[:, colours] >= 0).all()


def test_balanced_answers_have_the_highest_expected_balanced_accuracy():
    rng = np.random.default_rng(0)
    for size, none_first in itertools.product((2, 4, 6), (False, True)):
        p, prior = rng.dirichlet(np.ones(size), 50), rng.dirichlet(np.ones(size))
        questions = range(none_first, size)
        for row, answer in zip(p, balanced_answers(p, prior, none_first)):
            gain = [sum(row[c] / prior[c] if said == c else (1 - row[c]) / (1 - prior[c]) for c in questions)
                    for said in range(size)]
            assert answer == int(np.argmax(gain))
            if size == 2 and not none_first:
                assert answer == int(np.argmax(row / prior))


@pytest.mark.parametrize(("p", "prior", "options", "answer"), [
    ((0.1, 0.9), (1, 0), (False,), 0),  # no training identity has the second value
    ((0.9, 0.1), (0, 1), (False,), 1),
    ((0.1, 0.9, 0), (0, 1, 0), (True,), 1),  # all training identities have the first colour
    ((0.9, 0.1, 0), (0, 1, 0), (True, True), 1),
    ((0.1, 0.3, 0.6), (1, 0, 0), (True,), 0),  # no training identity has a listed colour
    ((0.5, 0.1, 0.4), (1, 0, 0), (True, True), 2),
    ((0.1, 0.3, 0.6), (math.nan,) * 3, (False,), 2),  # no training identity is labelled
    ((0.1, 0.3, 0.6), (0, 0, 0), (True,), 2)])
def test_balanced_predictions_in_degenerate_columns(
        p, prior, options, answer):
    assert balanced_answers(np.array([p]), np.array(prior, dtype=float), *options).tolist() == [answer]


@pytest.mark.parametrize("words", [
    {"hat": "yes"}, {"upper colour": "none", "backpack": "no"}, {"upper colour": "red and blue", "age": "old"},
    MARKET1501.describe(random_labels(MARKET1501, 1, seed=5)[0])], ids=("partial", "none", "two colours", "full"))
def test_search_scores_are_inner_products_with_log_probabilities(words, embeddings):
    module, table = filled(MARKET1501)
    reader = PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], module.synthesise,
                             reading="probability", cosine_scale=SCALES)
    vocabulary = reader.attribute_model(module.synthesis)
    scores = reader.search(MARKET1501.parse(words)[None], embeddings)[0].numpy()
    stored = vocabulary.log_probabilities(embeddings.numpy())
    assert stored.shape[1] == 41
    assert stored @ vocabulary.wanted_classes(words) == pytest.approx(scores, abs=1e-6, rel=1e-6)
    by_name = {column.name: (column, log_p) for column, log_p in zip(MARKET1501.columns,
                                                                      reader.log_probabilities(embeddings))}
    brute = 0
    for name, value in words.items():
        column, log_p = by_name[name]
        classes = ["none"] * column.is_colour + list(column.classes)
        parts = value.split(" and ")
        brute = brute + sum(log_p[:, classes.index(part)] for part in parts) / len(parts)
    assert scores == pytest.approx(brute.numpy(), abs=1e-5)


def test_tiny_probabilities_agree_between_numpy_and_torch(embeddings):
    module, table = filled(MARKET1501)
    reader = PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], module.synthesise,
                             reading="probability", cosine_scale=80.0)
    found = torch.cat(reader.log_probabilities(embeddings), dim=1).numpy()
    assert ((found > LOWEST) & (found < -90)).any()
    without_torch = reader.attribute_model(module.synthesis).log_probabilities(embeddings.numpy())
    assert without_torch == pytest.approx(found, abs=1e-3)


def test_attribute_models_round_trip_and_older_records_load(embeddings):
    module, table = filled(MARKET1501)
    reader = PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], reading="probability",
                             cosine_scale=SCALES, tau=0.8, unseen_prior=0.2)
    vocabulary = reader.attribute_model(module.synthesis)
    record = vocabulary.to_dict()
    copy = AttributeModel.from_dict(record)
    rows = embeddings.numpy()
    assert (copy.log_probabilities(rows) == vocabulary.log_probabilities(rows)).all()
    assert (copy.answers(rows) == reader.recognise(embeddings).numpy() + np.array(reader.marginals.colours)).all()
    for group in record["groups"]:
        group["scale"] = 10.0 + GROUPS.index(group["name"])
    del record["scales"]
    of_groups = AttributeModel.from_dict(record)  # format of earlier versions, with scales of groups
    assert of_groups.scales == {column.name: 10.0 + GROUPS.index(group)
                                for column, group in zip(MARKET1501.columns, MARKET1501.column_groups)}
    for group in record["groups"]:
        del group["counts"], group["scale"]
    del record["tau"], record["unseen_prior"], record["reading"]
    old = AttributeModel.from_dict(record | {"cosine_scale": 16.0})
    plain = PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], tau=0)
    assert (old.answers(rows) == old.nearest(rows)).all()
    for shares, log_p in zip(old.probabilities(rows), plain.log_probabilities(embeddings)):
        assert shares == pytest.approx(log_p.exp().numpy(), abs=1e-6)


def test_values_without_a_semantic_id_give_equal_scores(embeddings):
    reader = reader_of(space="observed")
    reader.table.labels[1][:, MARKET1501.index("upred")] = 0
    reader = PrototypeReader(reader.table, reader.prototypes, reading="probability")
    scores = reader.search(MARKET1501.parse({"upper colour": "red"})[None], embeddings)
    assert scores.isfinite().all() and len(scores.unique()) == 1


def test_checkpoints_without_scales_support_both_methods(run, small_config, tmp_path):
    """Checkpoints of earlier versions, before scales were measured."""
    path = Path(run.cfg.OUTPUT_DIR) / "model_final.pth"
    state = torch.load(path)["model"]
    measured = state.pop("prototypes.log_scales").exp().tolist()
    torch.save({"model": state}, tmp_path / "old.pth")
    rows = blocks(torch.randn(20, 5 * run.cfg.MODEL.HEADS.EMBEDDING_DIM)).flatten(1)
    answers = {}
    for reading, weights in itertools.product(("nearest", "probability"), (path, tmp_path / "old.pth")):
        cfg = small_config("MODEL.WEIGHTS", str(weights), "TEST.READING", reading, "TEST.PAR.COSINE_SCALE", 12.0)
        reader = load_model(cfg).attribute_reader()
        expected = measured if weights == path else [12.0] * 12
        assert reader.reading == reading and list(reader.scales.values()) == pytest.approx(expected)
        answers[reading, weights] = reader.recognise(rows)
    assert torch.equal(answers["nearest", path], answers["nearest", tmp_path / "old.pth"])
    assert not torch.equal(answers["nearest", path], answers["probability", path])


# Collapsed embeddings.


def test_the_length_of_the_mean_direction_is_reported_and_a_collapse_logged(log):
    spread = torch.randn(200, 5, D, generator=torch.Generator().manual_seed(0))
    spread[:, 2] += 40  # lower: all in the same direction
    known = torch.arange(200)
    found = DirectionTask()(Gathered(blocks(spread.flatten(1)).flatten(1), known, known, None, 100))
    expected = (spread / spread.norm(dim=2, keepdim=True)).mean(dim=0).norm(dim=1)
    assert list(found) == [f"mean direction/{group}" for group in GROUPS]
    assert list(found.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert found["mean direction/lower"] > 0.99 and found["mean direction/head"] < 0.3
    assert "have collapsed: the mean direction of lower 1.00 is longer than 0.7" in log.text
    assert "TEST.PRECISE_BN" in log.text
    log.clear()
    DirectionTask()(Gathered(blocks(torch.randn(200, 5 * D)).flatten(1), known, known, None, 100))
    assert "collapsed" not in log.text


# Composed prototypes.


def test_composed_prototypes_minimise_the_regulariser_in_closed_form():
    composed, table = filled(MARKET1501)
    free, _ = filled(MARKET1501, SIDPrototypes)
    with torch.no_grad():
        for group in GROUPS:
            free.residuals[group].copy_(composed.values[group])
            free.rows[group].copy_(composed.prototypes(group))
            free.rows[group][free.counts(group) == 0] = 7.0  # do not affect the optimum
    for group in GROUPS:
        bits = composed.bits(group)
        assert torch.allclose(free.synthesise(group, bits), composed.prototypes(group), atol=1e-5)
        assert torch.allclose(composed.synthesise(group, bits), composed.prototypes(group), atol=1e-6)
        assert torch.allclose(composed.with_synthesised(group), composed.prototypes(group), atol=1e-6)
        free.rows[group].data.copy_(composed.prototypes(group))
    assert free.regularisation().item() == pytest.approx(0, abs=1e-6) and composed.regularisation() is None


def test_changing_one_attribute_adds_one_vector():
    composed, table = filled(MARKET1501)
    with_it, without = (MARKET1501.parse({"backpack": word, "bag": "no", "handbag": "no"})[None]
                        for word in ("yes", "no"))
    rows = composed.prototypes("carrying")
    both = [rows[table.consistent(labels, "carrying")[0]][0] for labels in (with_it, without)]
    assert torch.allclose(both[0] - both[1], composed.values["carrying"][0], atol=1e-6)


def test_the_softmax_adds_the_log_prior_to_scaled_cosines():
    module, table = filled(MARKET1501, learned_scale=16.0)
    f = torch.randn(5, 6, D, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(6)
    with torch.no_grad():
        module.learned_log_scales.copy_(torch.tensor([8.0, 10, 12, 14, 16]).log())
    module.set_scales([1] * 12)  # used in inference, not in training
    learned = module.learned_log_scales.exp()
    expected = 0
    for g, group in enumerate(GROUPS):
        counts = module.counts(group).double()
        seen = counts > 0
        cosines = F.normalize(f[g], dim=1) @ F.normalize(module.prototypes(group)[seen], dim=1).T
        logits = learned[g].item() * cosines + (counts[seen] / counts.sum()).log()
        rank = seen.cumsum(0) - 1
        expected = expected + F.cross_entropy(logits, rank[module.sid_of_class[targets, g]]) / 5
    loss = module.softmax(f, module.sid_of_class[targets], scale=99.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    flat = prototype_softmax_loss(f[0], module.prototypes("head"), module.sid_of_class[targets, 0], 8.0)
    assert prototype_softmax_loss(f[0], module.prototypes("head"), module.sid_of_class[targets, 0], 8.0,
                                  log_prior=torch.zeros(4)).item() == pytest.approx(flat.item())


@pytest.mark.parametrize("kind", [SIDPrototypes, ComposedPrototypes])
def test_the_softmax_computes_in_float32_under_autocast(kind):
    module, _ = filled(MARKET1501, kind, learned_scale=16.0)
    f, found = torch.randn(5, 6, D, generator=torch.Generator().manual_seed(2)), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = module.softmax(f, module.sid_of_class[:6], 16.0)
        found.append([loss, *torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)])
    for plain, cast in zip(*found):
        assert plain is cast is None or torch.equal(plain, cast)


def test_measured_scales_maximise_the_likelihood_and_are_saved():
    generator = torch.Generator().manual_seed(0)
    cosines, prior = 2 * torch.rand(4000, 5, generator=generator) - 1, torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1]).log()
    sids = torch.multinomial((7 * cosines + prior).softmax(dim=1), 1, generator=generator)[:, 0]
    assert fit_scale(cosines, F.one_hot(sids, 5).bool(), prior, 16.0) == pytest.approx(7, rel=0.05)
    pairs = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]).bool()[(sids > 1).long()]  # for values of several IDs
    assert fit_scale(cosines, pairs, prior, 16.0) == pytest.approx(7, rel=0.1)
    assert fit_scale(torch.eye(3), torch.eye(3).bool(), torch.zeros(3), 16.0) > 40  # all predictions are correct
    assert fit_scale(1 - torch.eye(3), torch.eye(3).bool(), torch.zeros(3), 16.0) < 0.06  # all predictions are wrong
    assert fit_scale(torch.eye(3), torch.zeros(3, 3).bool(), torch.zeros(3), 16.0) == 16.0  # no image is labelled
    module, _ = filled(MARKET1501, SIDPrototypes)
    assert module.column_scales(MARKET1501) is None and "log_scales" not in module.state_dict()
    without = {name: value.clone() for name, value in module.state_dict().items()}
    module.set_scales(list(SCALES.values()))
    other, _ = filled(MARKET1501, SIDPrototypes)
    other.load_state_dict(module.state_dict())
    assert other.column_scales(MARKET1501) == pytest.approx(SCALES)
    other.load_state_dict(without)
    assert other.column_scales(MARKET1501) is None
    learning, _ = filled(MARKET1501, learned_scale=16.0)
    assert learning.column_scales(MARKET1501) == pytest.approx(dict.fromkeys(SCALES, 16.0))
    learning.set_scales(list(SCALES.values()))
    assert learning.column_scales(MARKET1501) == pytest.approx(SCALES)
    assert learning.learned_log_scales.exp().tolist() == pytest.approx([16.0] * 5)  # training continues from these


def test_scales_of_groups_in_older_checkpoints_apply_to_their_columns():
    module, _ = filled(MARKET1501, SIDPrototypes)
    state = module.state_dict() | {"log_scales": torch.tensor([2.0, 3, 4, 5, 6]).log()}
    module.load_state_dict(state)
    assert module.column_scales(MARKET1501) == pytest.approx({
        column.name: 2.0 + GROUPS.index(group) for column, group in zip(MARKET1501.columns, MARKET1501.column_groups)})


def test_a_scale_near_0_gives_the_shares_of_training_identities(embeddings):
    module, table = filled(MARKET1501)
    reader = PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], reading="probability",
                             cosine_scale=SCALES | {"gender": 1e-9})
    names = [column.name for column in MARKET1501.columns]
    for name, log_p, prior in zip(names, reader.log_probabilities(embeddings), reader.marginals.priors):
        same = torch.allclose(log_p.exp().double(), torch.from_numpy(prior).expand(len(log_p), -1), atol=0.01)
        assert same == (name == "gender"), name


@pytest.mark.parametrize("kind", [SIDPrototypes, ComposedPrototypes])
@pytest.mark.parametrize("learned", [None, 16.0])
def test_training_from_other_weights_does_not_load_measured_scales(kind, learned):
    given, _ = filled(MARKET1501, kind, learned_scale=learned)
    given.set_scales(list(SCALES.values()))
    other = SIDTable.build(MARKET1501, random_labels(MARKET1501, 25, seed=1), space="observed")
    vectors = {"rows", "residuals", "base", "values", "learned_log_scales"}
    for own, gone in ((other.schema, {"rows"}), (DUKEMTMC, vectors)):
        torch.manual_seed(1)
        module = kind(other.sizes, MARKET1501.group_bits, 25, D, learned_scale=learned and 9.0)
        module.fill(other, other.lookup(random_labels(MARKET1501, 25, seed=1)), [torch.zeros(k) for k in other.sizes])
        module.schema.fill_(own.fingerprint)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        begin_from_other_weights(module, True)
        shapes = {name: value.shape for name, value in before.items()}
        module.load_state_dict({name: value for name, value in given.state_dict().items()
                                if shapes.get(name, value.shape) == value.shape}, strict=False)  # as in FastReID
        parameters = dict(given.named_parameters())
        for name, value in module.state_dict().items():
            table, _, group = name.partition(".")
            same = table == "rows" and own is other.schema and torch.equal(given.bits(group), module.bits(group))
            taken = name in parameters and (same or table not in gone)
            assert torch.equal(value, parameters[name] if taken else before[name]), name
        assert (module.column_scales(MARKET1501) is None) == (learned is None)


def found_among_unseen(kind, seed: int) -> float:
    """Synthetic example with 18 semantic IDs of "upper", whose directions are sums over bits; two are not in training.

    Returns the share of images of the two unseen IDs that rank first for their full descriptions.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(16, len(MARKET1501.fields), dtype=torch.int64)
    every = SIDTable.build(MARKET1501, labels, space="product").labels[1]
    fields = list(MARKET1501.group_fields("upper"))
    unseen = torch.tensor([4, 11])
    seen = torch.tensor([k for k in range(18) if k not in unseen.tolist()])
    labels[:, fields] = every[seen][:, fields]
    table = SIDTable.build(MARKET1501, labels, space="product")
    torch.manual_seed(seed)
    module = kind(table.sizes, MARKET1501.group_bits, 16, 32, learned_scale=16.0)
    module.fill(table, table.lookup(labels), tuple(torch.full((k,), 0.6) for k in table.sizes))
    truth = table.bits()[1].float() @ torch.randn(9, 32, generator=generator) + torch.randn(32, generator=generator)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(60):
        classes = torch.randint(16, (64,), generator=generator)
        f = truth[module.sid_of_class[classes, 1]] + 0.3 * torch.randn(64, 32, generator=generator)
        optimiser.zero_grad()
        module.softmax(f.expand(5, -1, -1), module.sid_of_class[classes], 16.0).backward()
        optimiser.step()
    reader = PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], module.synthesise,
                             reading="probability", cosine_scale=module.column_scales(MARKET1501))
    images = truth.repeat_interleave(5, dim=0) + 0.3 * torch.randn(90, 32, generator=generator)
    queries = torch.full((2, len(MARKET1501.fields)), -1)
    queries[:, fields] = every[unseen][:, fields]
    best = reader.search(queries, blocks(images.repeat(1, 5)).flatten(1)).topk(5, dim=1).indices // 5
    return (best == unseen[:, None]).float().mean().item()


def test_composed_prototypes_generalise_to_unseen_combinations():
    assert [found_among_unseen(ComposedPrototypes, seed) for seed in range(2)] == [1.0, 1.0]


def test_semantic_ids_have_all_of_their_colours():
    held = held_classes(np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1]]), 4, True)
    assert held.tolist() == [[True, False, False, False], [False, True, False, False], [False, True, False, True]]
    assert held_classes(np.array([[1], [0]]), 2, False).tolist() == [[False, True], [True, False]]


# Degenerate training sets.


def module_of(labels: torch.Tensor, kind, space: str = "product"):
    table = SIDTable.build(MARKET1501, labels, space=space)
    torch.manual_seed(0)
    module = kind(table.sizes, MARKET1501.group_bits, len(labels), D, learned_scale=16.0)
    module.fill(table, table.lookup(labels), tuple(torch.zeros(k) for k in table.sizes))
    return module, table


@pytest.mark.parametrize("kind", [SIDPrototypes, ComposedPrototypes])
def test_a_group_without_labels_has_finite_losses_gradients_and_predictions(kind, embeddings):
    labels = random_labels(MARKET1501, 10)
    labels[:, list(MARKET1501.group_fields("upper"))] = -1
    module, table = module_of(labels, kind)
    f = torch.randn(5, 10, D, generator=torch.Generator().manual_seed(3)).requires_grad_()
    weights = agreement_weights(f, torch.arange(10), module.sid_of_class.T)  # one image per identity
    assert torch.equal(weights, torch.ones(5, 10))
    loss = module.softmax(f, module.sid_of_class, 16.0, weights)
    loss.backward()
    assert loss.isfinite() and f.grad.isfinite().all() and f.grad[1].abs().max() == 0
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    reader = PrototypeReader(table, [module.with_synthesised(g).detach() for g in GROUPS], module.synthesise,
                             reading="probability")
    assert torch.cat(reader.log_probabilities(embeddings), dim=1).isfinite().all()
    upper = [m for m, group in enumerate(MARKET1501.column_groups) if group == "upper"]
    assert torch.equal(reader.recognise_balanced(embeddings)[:, upper], reader.recognise(embeddings)[:, upper])


def test_identical_labels_of_all_identities_are_predicted(embeddings):
    labels = random_labels(MARKET1501, 1).expand(4, -1)
    module, table = module_of(labels, ComposedPrototypes, "observed")
    reader = PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], reading="probability")
    assert table.sizes == (1,) * 5
    for recognise in (reader.recognise, reader.recognise_balanced):
        assert (recognise(embeddings) == MARKET1501.column_answers(labels[:1])).all()
    assert torch.equal(reader.confidences(embeddings)[1], torch.ones(30, 12))


@pytest.mark.parametrize("reading", ["nearest", "probability"])
def test_force_colour_has_no_effect_without_colours(reading, embeddings):
    labels = random_labels(MARKET1501, 20)
    labels[:, [i for column in MARKET1501.columns if column.is_colour for i in column.fields]] = 0
    module, table = module_of(labels, ComposedPrototypes, "observed")
    forced, free = (PrototypeReader(table, [module.prototypes(g).detach() for g in GROUPS], module.synthesise,
                                    reading=reading, force_colour=force) for force in (True, False))
    assert torch.equal(forced.recognise(embeddings), free.recognise(embeddings))
    assert torch.equal(forced.confidences(embeddings)[1], free.confidences(embeddings)[1])
    vocabulary = forced.attribute_model(module.synthesis)
    colours = np.array(forced.marginals.colours)
    assert (vocabulary.answers(embeddings.numpy()) == free.recognise(embeddings).numpy() + colours).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_processed_in_float32(dtype, embeddings):
    reader, half = reader_of(cosine_scale=30.0), embeddings.to(dtype)
    words = MARKET1501.parse({"hat": "yes", "upper colour": "red"})[None]
    assert torch.equal(reader.search(words, half), reader.search(words, half.float()))
    for found, expected in zip(reader.log_probabilities(half), reader.log_probabilities(half.float())):
        assert torch.equal(found, expected)


def test_learned_scales_are_assigned_by_group_not_by_column():
    schema = AttributeSchema("two", (Field("a", "x", ("no", "yes")), Field("b", "y", ("no", "yes"))),
                             column_order=("b", "a"), groups=(Group("x", 0), Group("y")))
    module = ComposedPrototypes((2, 2), schema.group_bits, 2, D, learned_scale=16.0, groups=schema.group_names)
    module.learned_log_scales.data = torch.tensor([2.0, 3.0]).log()
    assert module.column_scales(schema) == pytest.approx({"a": 2, "b": 3})
    module.set_scales([4.0, 5.0])  # of the columns b and a
    assert module.column_scales(schema) == pytest.approx({"b": 4, "a": 5})


class Embeds(torch.nn.Module):
    """A model whose images are embeddings."""

    device = torch.device("cpu")

    def __init__(self, prototypes, table) -> None:
        super().__init__()
        self.prototypes, self.table = prototypes, table

    def forward(self, batch):
        return batch["images"]

    def attribute_reader(self):
        return PrototypeReader(self.table, [self.prototypes.prototypes(g).detach() for g in GROUPS],
                               cosine_scale=self.prototypes.column_scales(MARKET1501))


def test_a_column_without_a_labelled_image_keeps_its_learned_scale(small_config, embeddings):
    module, table = filled(MARKET1501, learned_scale=9.0)
    labels = random_labels(MARKET1501, 30)
    labels[:, MARKET1501.index("age")] = -1
    held_out = [{"images": embeddings[i], "targets": i, "attributes": labels[i]} for i in range(30)]
    measure_scales(Embeds(module, table), small_config(), SimpleNamespace(held_out=(held_out, 10)))
    found = module.column_scales(MARKET1501)
    assert found["age"] == pytest.approx(9) and found["gender"] != pytest.approx(9, rel=0.01)
