"""reID, PAR and APS with prototypes that are small enough to compute results by hand."""

from cerberus_plugin.attributes import DUKEMTMC, GROUPS, MARKET1501, SIDTable
from cerberus_plugin.inference import PrototypeReader, blocks, image_scores
from cerberus_plugin.inference.reader import chunks
from cerberus_plugin.modeling.losses import prototype_regularisation, semantic_guidance_loss
from cerberus_plugin.modeling.sid_prototypes import INITIALISERS, SIDPrototypes, margins_from_counts

import pytest
import torch
import torch.nn.functional as F
from support.data import random_labels

DIM = 6


def prototypes_of(schema, count: int = 60, space: str = "product", init: str = "he_normal"):
    labels = random_labels(schema, count)
    table = SIDTable.build(schema, labels, labels, space)
    torch.manual_seed(0)
    module = SIDPrototypes(table.sizes, schema.group_bits, count, DIM, init)
    module.fill(table, table.lookup(labels), margins_from_counts(table.counts, 0.4, 1.8))
    return module, table, labels


def reader_of(schema, **options) -> PrototypeReader:
    module, table, _ = prototypes_of(schema)
    return PrototypeReader(table, [module.rows[g].detach() for g in GROUPS], module.synthesise, **options)


@pytest.fixture
def embeddings() -> torch.Tensor:
    torch.manual_seed(1)
    return F.normalize(torch.randn(9, 5, DIM), dim=2).flatten(1)


def test_the_cosine_of_embeddings_is_the_mean_of_five_cosines(embeddings):
    representations = torch.randn(9, 5, DIM, generator=torch.Generator().manual_seed(3))
    embedding = F.normalize(representations, dim=2).flatten(1)
    whole = F.normalize(embedding, dim=1) @ F.normalize(embedding, dim=1).T
    mean = sum(F.normalize(f, dim=1) @ F.normalize(f, dim=1).T for f in representations.unbind(1)) / 5
    assert torch.allclose(whole, mean, atol=1e-6)
    assert torch.allclose(image_scores(embedding, embedding), mean, atol=1e-6)
    raw = F.normalize(representations.flatten(1), dim=1)
    assert not torch.allclose(raw @ raw.T, mean, atol=1e-2)


def four_identities() -> PrototypeReader:
    """Example P2: the identity group has four semantic IDs in two dimensions, the other groups have one each."""
    wanted = [{"gender": gender, "age": age} for gender in ("male", "female") for age in ("young", "adult")]
    labels = torch.stack([torch.from_numpy(MARKET1501.parse(words)) for words in wanted])
    for i in range(len(MARKET1501.fields)):
        if MARKET1501.fields[i].group != "identity":
            labels[:, i] = 0
    table = SIDTable.build(MARKET1501, labels, space="observed")
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    return PrototypeReader(table, [rows if g == "identity" else torch.ones(1, 2) for g in GROUPS])


@pytest.mark.parametrize(("f", "sid", "words"), [
    ((3.0, 1.0), 0, ("male", "young")), ((-2.0, -2.0), 2, ("female", "young")), ((0.5, -0.1), 0, ("male", "young")),
    ((0.0, 0.0), 0, ("male", "young"))])
def test_recognition_predicts_the_nearest_prototype_with_ties_to_the_lowest(f, sid, words):
    reader = four_identities()
    embedding = torch.tensor([f]).repeat(1, 5)
    assert reader.sids(embedding)[0, GROUPS.index("identity")].item() == sid
    answers = reader.recognise(embedding)[0]
    names = [column.classes[k] for column, k in zip(MARKET1501.columns, answers.tolist())]
    assert (names[0], names[1]) == words


def test_recognition_equals_the_loop_over_images_and_groups(embeddings):
    reader = reader_of(MARKET1501)
    for n, image in enumerate(embeddings.unflatten(1, (5, DIM))):
        for g, prototypes in enumerate(reader.prototypes):
            cosines = [F.cosine_similarity(image[g], p, dim=0).item() for p in prototypes]
            assert reader.sids(embeddings)[n, g].item() == cosines.index(max(cosines))


def test_force_colour_never_predicts_none(embeddings):
    many = F.normalize(torch.randn(400, 5, DIM, generator=torch.Generator().manual_seed(5)), dim=2).flatten(1)
    colours = [m for m, column in enumerate(MARKET1501.columns) if column.is_colour]
    assert (reader_of(MARKET1501).recognise(many)[:, colours] == -1).any()
    assert (reader_of(MARKET1501, force_colour=True).recognise(many)[:, colours] >= 0).all()


def test_a_full_description_scores_the_mean_cosine_to_its_five_prototypes(embeddings):
    reader = reader_of(MARKET1501)
    labels = random_labels(MARKET1501, 4, seed=7)
    sids = reader.table.lookup(labels)
    for q in range(4):
        rows = torch.cat([reader.prototypes[g][sids[q, g]] for g in range(5)])
        assert torch.allclose(reader.search(labels, embeddings)[q], embeddings @ rows / 5, atol=1e-6)


def test_a_partial_description_scores_the_described_groups_only(embeddings):
    reader = reader_of(MARKET1501)
    full = random_labels(MARKET1501, 1, seed=7)
    partial = torch.full_like(full, -1)
    fields = [*MARKET1501.group_fields("upper"), *MARKET1501.group_fields("carrying")]
    partial[:, fields] = full[:, fields]
    sids = reader.table.lookup(full)[0]
    expected = sum(blocks(embeddings)[:, g] @ reader.prototypes[g][sids[g]] for g in (1, 4)) / 2
    assert torch.allclose(reader.search(partial, embeddings)[0], expected, atol=1e-6)


@pytest.mark.parametrize(("partial", "scores"), [("mean", (0.4, 0.6, 0.4)), ("max", (0.6, 0.9, 0.5))])
def test_a_partially_described_group_uses_the_matching_semantic_ids(partial, scores):
    """Example A3: hair short, hat unknown; cosines of three images with (hat, hair) of no/yes and short/long."""
    labels = torch.zeros(4, len(MARKET1501.fields), dtype=torch.int64)
    labels[:, :2] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    table = SIDTable.build(MARKET1501, labels, space="observed")
    cosines = torch.tensor([[0.6, 0.1, 0.2, 0.0], [0.3, 0.5, 0.9, 0.2], [0.5, 0.2, 0.3, 0.9]])
    rest = (1 - cosines.square().sum(dim=1)).clamp(min=0).sqrt()[:, None]
    images = torch.cat([cosines, rest], dim=1)  # rows of unit length where the cosines permit it
    scale = images.norm(dim=1)
    reader = PrototypeReader(table, [torch.eye(5)[:4]] + [torch.ones(1, 5)] * 4, partial=partial)
    query = MARKET1501.parse({"hair": "short"})[None]
    got = reader.search(query, torch.cat([images, *[torch.ones(3, 5)] * 4], dim=1))[0] * scale
    assert got.tolist() == pytest.approx(scores, abs=1e-6)
    assert got.mul(1e5).round().sort(descending=True, stable=True).indices.tolist() == [1, 0, 2]


def test_combinations_outside_the_table_use_a_synthesised_prototype(embeddings):
    reader = reader_of(DUKEMTMC)
    query = torch.from_numpy(DUKEMTMC.parse({"lower colour": "black and white", "boots": "no", "shoes": "dark"}))[None]
    assert not reader.table.consistent(query, "lower").any()
    row = F.normalize(reader.synthesise("lower", DUKEMTMC.bits(query, "lower")), dim=1)
    assert torch.allclose(reader.search(query, embeddings), row @ blocks(embeddings)[:, 2].T, atol=1e-6)
    reader.synthesise = None
    with pytest.raises(ValueError, match="black and white.*not among the semantic IDs of 'lower'"):
        reader.search(query, embeddings)


def test_chunks_of_a_gallery_do_not_change_predictions_and_scores(embeddings, monkeypatch):
    reader, labels = reader_of(MARKET1501), random_labels(MARKET1501, 3, seed=7)
    labels[1, list(MARKET1501.group_fields("upper"))] = -1
    answers, scores = reader.recognise(embeddings), reader.search(labels, embeddings)
    images = image_scores(embeddings[:2], embeddings)
    monkeypatch.setattr("cerberus_plugin.inference.reader.CHUNK_ENTRIES", 2 * embeddings.shape[1])
    assert [len(chunk) for chunk in chunks(embeddings)] == [2, 2, 2, 2, 1]
    assert torch.equal(reader.recognise(embeddings), answers)
    assert torch.allclose(reader.search(labels, embeddings), scores, atol=1e-6)
    assert torch.allclose(image_scores(embeddings[:2], embeddings), images, atol=1e-6)


def test_an_empty_description_and_an_unknown_rule_are_rejected(embeddings):
    with pytest.raises(ValueError, match="query 0 describes nothing"):
        reader_of(MARKET1501).search(MARKET1501.parse({})[None], embeddings)
    with pytest.raises(ValueError, match="partial is 'sum', expected one of mean, max"):
        reader_of(MARKET1501, partial="sum")


def test_synthesis_matches_a_value_computed_by_hand():
    module = SIDPrototypes((3, 1, 1, 1, 1), (2, 1, 1, 1, 1), 1, 2)
    with torch.no_grad():
        module.rows["head"].copy_(torch.tensor([[1.0, 0], [0, 1], [2, 2]]))
        module.residuals["head"].copy_(torch.eye(2))
        module.bits("head").copy_(torch.tensor([[1, 0], [0, 1], [1, 1]]))
        module.counts("head").fill_(1)
    assert module.synthesise("head", torch.tensor([[0, 0]]))[0].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_synthesis_minimises_the_regulariser_for_an_unseen_row():
    module, table, _ = prototypes_of(MARKET1501)
    counts = module.counts("upper")
    counts[:] = 1
    counts[[3, 5]] = 0
    row = module.rows["upper"]
    optimiser = torch.optim.SGD([row], lr=0.01)
    mask = torch.zeros_like(row)
    mask[[3, 5]] = 1
    for _ in range(500):
        optimiser.zero_grad()
        loss = prototype_regularisation(row, module.residuals["upper"].detach(), module.bits("upper"))
        loss.backward()
        row.grad *= mask / len(row)
        optimiser.step()
    expected = module.synthesise("upper", module.bits("upper")[[3, 5]])
    assert torch.allclose(row[[3, 5]], expected, atol=1e-3)


@pytest.mark.parametrize(("init", "std"), [("he_normal", 0.0625), ("normal_0.01", 0.01), ("normal_10", 10.0)])
def test_rows_have_the_standard_deviation_of_their_initialiser(init, std):
    module = SIDPrototypes((400, 8, 8, 8, 8), (2, 9, 11, 5, 3), 4, 512, init)
    assert module.rows["head"].std().item() == pytest.approx(std, rel=0.02)


def test_there_are_eight_initialisers_and_others_are_rejected():
    assert len(INITIALISERS) == 8
    for init in INITIALISERS:
        SIDPrototypes((2, 2, 2, 2, 2), (1, 1, 1, 1, 1), 3, 8, init)
    with pytest.raises(ValueError, match="INIT is 'ones', expected one of he_normal"):
        SIDPrototypes((2, 2, 2, 2, 2), (1, 1, 1, 1, 1), 3, 8, "ones")
    with pytest.raises(ValueError, match="NUM_SIDS is .*expected 5 numbers"):
        SIDPrototypes((), (1, 1, 1, 1, 1), 3)


@pytest.mark.parametrize(("space", "parameters"), [("observed", 49_152), ("union", 50_176), ("product", 53_248)])
def test_prototypes_with_residual_vectors_have_0_05_million_parameters(market, space, parameters):
    train, test = (torch.stack(list(split.values())) for split in (market.train, market.test))
    table = SIDTable.build(MARKET1501, train, test, space)
    module = SIDPrototypes(table.sizes, MARKET1501.group_bits, 751)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_the_regulariser_starts_near_2_6_on_market(market):
    train = torch.stack(list(market.train.values()))
    table = SIDTable.build(MARKET1501, train, space="observed")
    torch.manual_seed(0)
    module = SIDPrototypes(table.sizes, MARKET1501.group_bits, 751)
    module.fill(table, table.lookup(train), margins_from_counts(table.counts, 0.4, 1.8))
    assert 1.5 < 0.001 * module.regularisation().item() < 4


def test_a_checkpoint_with_another_table_is_rejected():
    module, _, _ = prototypes_of(MARKET1501)
    state = module.state_dict()
    other, _, _ = prototypes_of(MARKET1501)
    other.load_state_dict(state)
    narrow = {key: value for key, value in state.items() if key != "rows.upper"}  # FastReID skips other sizes
    with pytest.raises(ValueError, match="'rows.upper' is missing or has a different size.*EMBEDDING_DIM"):
        other.load_state_dict(narrow, strict=False)
    changed = state | {"bits_upper": 1 - state["bits_upper"]}
    with pytest.raises(ValueError, match="table 'bits_upper' differs"):
        other.load_state_dict(changed)
    without = {key: value for key, value in state.items() if key != "sid_of_class"}
    with pytest.raises(ValueError, match="'sid_of_class' is missing or has a different size"):
        other.load_state_dict(without, strict=False)


def unseen_cosines(weight: float, seed: int) -> float:
    """Synthetic example with 18 semantic IDs of "upper", whose directions are sums over bits; two are never seen."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((18, len(MARKET1501.fields)), 0)
    table = SIDTable.build(MARKET1501, labels[:1], space="product")
    bits = table.bits()[1].float()
    truth = bits @ torch.randn(9, 64, generator=generator) + torch.randn(64, generator=generator)
    torch.manual_seed(seed)
    module = SIDPrototypes((1, 18, 1, 1, 1), (2, 9, 11, 5, 3), 1, 64)
    module.bits("upper").copy_(bits)
    unseen = torch.tensor([4, 11])
    seen = torch.tensor([k for k in range(18) if k not in unseen.tolist()])
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    rows, residuals = module.rows["upper"], module.residuals["upper"]
    for _ in range(400):
        sids = seen[torch.randint(len(seen), (64,), generator=generator)]
        f = truth[sids] + 0.3 * torch.randn(64, 64, generator=generator)
        loss = 5 * semantic_guidance_loss(f, rows, sids, torch.full((18,), 0.6))
        loss = loss + weight * prototype_regularisation(rows, residuals, module.bits("upper"))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return F.cosine_similarity(rows[unseen], truth[unseen], dim=1).mean().item()


def test_the_regulariser_determines_unseen_prototypes_from_attributes():
    gaps = [unseen_cosines(0.001, seed) - unseen_cosines(0.0, seed) for seed in range(3)]
    assert min(gaps) > 0.3


@pytest.mark.parametrize("force_colour", [False, True])
def test_confidences_are_softmax_sums_over_semantic_ids(embeddings, force_colour):
    reader = reader_of(MARKET1501, cosine_scale=8.0, force_colour=force_colour)
    classes, probabilities = reader.confidences(embeddings)
    for m, column in enumerate(MARKET1501.columns):
        group = MARKET1501.fields[column.fields[0]].group
        g = GROUPS.index(group)
        answers = MARKET1501.column_answers(reader.table.labels[g])[:, m].tolist()
        for n, cosines in enumerate(reader.cosines(embeddings)[g]):
            shares = {answer: 0.0 for answer in answers}
            allowed = [k for k, row in enumerate(reader.table.labels[g]) if not force_colour or _names_colour(row, g)]
            people = reader.table.counts[g].double().clamp(min=0.5)[allowed]
            weights = (8 * cosines[allowed] + people.log()).softmax(0).tolist()
            for k, weight in zip(allowed, weights):
                shares[answers[k]] += weight
            best = max(shares, key=lambda answer: (shares[answer], -answer))
            assert classes[n, m] == best
            assert probabilities[n, m].item() == pytest.approx(shares[best], abs=1e-5)


def _names_colour(row: torch.Tensor, g: int) -> bool:
    fields = [i for c in MARKET1501.columns if c.is_colour for i in c.fields if MARKET1501.fields[i].group == GROUPS[g]]
    return not fields or bool((row[fields] == 1).any())
