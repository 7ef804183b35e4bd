"""Semantic IDs: published counts, numbering, lookup and decoding."""

from cerberus_plugin.attributes import DUKEMTMC, GROUPS, MARKET1501, AttributeSchema, Field, Group, SIDTable
from cerberus_plugin.modeling.losses import adaptive_margins

import pytest
import torch
from support.data import random_labels


def stacked(labels: dict) -> torch.Tensor:
    return torch.stack(list(labels.values()))


@pytest.mark.parametrize(("space", "sizes"), [
    ("observed", (4, 16, 34, 8, 4)), ("union", (4, 18, 34, 8, 4)), ("product", (4, 18, 40, 8, 4))])
def test_market_has_66_observed_68_union_and_74_possible_semantic_ids(market, space, sizes):
    assert SIDTable.build(MARKET1501, stacked(market.train), stacked(market.test), space).sizes == sizes


def test_market_test_has_61_semantic_ids_of_which_2_are_unseen(market):
    test = SIDTable.build(MARKET1501, stacked(market.test), space="observed")
    assert test.sizes == (4, 17, 29, 7, 4) and len(test) == 61
    union = SIDTable.build(MARKET1501, stacked(market.train), stacked(market.test), "union")
    unseen = [(group, MARKET1501.describe(row)) for group, rows, counts in zip(GROUPS, union.labels, union.counts)
              for row, count in zip(rows, counts) if count == 0]
    assert {group for group, _ in unseen} == {"upper"}
    assert {words["upper colour"] for _, words in unseen} == {"blue", "yellow"}
    assert {words["up"] for _, words in unseen} == {"long sleeve"}


@pytest.mark.parametrize(("space", "sizes"), [
    ("observed", (2, 16, 22, 2, 4)), ("union", (2, 18, 38, 2, 4)), ("product", (2, 18, 32, 2, 4))])
def test_duke_has_46_semantic_ids_in_training(duke, space, sizes):
    assert SIDTable.build(DUKEMTMC, stacked(duke.train), stacked(duke.test), space).sizes == sizes


@pytest.mark.parametrize(("name", "numbers"), [("market", (508, 484, 315)), ("duke", (300, 387, 229))])
def test_categories_are_those_of_the_search_protocol(request, name, numbers):
    annotations = request.getfixturevalue(name)
    train, test = ({tuple(row.tolist()) for row in labels.values()} for labels in (annotations.train, annotations.test))
    assert (len(train), len(test), len(test - train)) == numbers


def test_the_mean_margin_is_0_604_by_natural_logarithm_over_semantic_ids(market):
    table = SIDTable.build(MARKET1501, stacked(market.train), space="observed")
    margins = torch.cat([adaptive_margins(counts, 751) for counts in table.counts])
    assert margins.mean().item() == pytest.approx(0.6041, abs=5e-5)
    assert margins.min().item() > 0.5878 and margins.max().item() < 0.7885


def test_a_missing_label_only_affects_its_group(duke):
    table = SIDTable.build(DUKEMTMC, stacked(duke.train), space="observed")
    sids = table.lookup(duke.train[370][None])[0]
    assert (sids == -1).tolist() == [False, True, False, False, False]


def test_a_combination_outside_the_table_is_minus_one(duke):
    table = SIDTable.build(DUKEMTMC, stacked(duke.train), space="product")
    two_colours = duke.test[5951]  # black, white and red trousers
    assert table.lookup(two_colours[None])[0, GROUPS.index("lower")] == -1


@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC])
def test_decoding_inverts_the_lookup(schema):
    labels = random_labels(schema, 40)
    table = SIDTable.build(schema, labels, space="product")
    assert torch.equal(table.decode(table.lookup(labels)), labels)


def test_semantic_ids_do_not_depend_on_the_order_of_identities():
    labels = random_labels(MARKET1501, 40)
    table, reversed_table = (SIDTable.build(MARKET1501, rows, space="observed") for rows in (labels, labels.flip(0)))
    assert all(torch.equal(a, b) for a, b in zip(table.labels, reversed_table.labels))


def test_counts_are_numbers_of_training_identities():
    labels = random_labels(MARKET1501, 40)
    table = SIDTable.build(MARKET1501, labels, space="product")
    sids = table.lookup(labels)
    for g, counts in enumerate(table.counts):
        assert counts.tolist() == [(sids[:, g] == k).sum().item() for k in range(len(counts))]


def test_the_product_is_closed_under_changing_one_attribute():
    table = SIDTable.build(MARKET1501, random_labels(MARKET1501, 5), space="product")
    changed = table.decode(torch.zeros(1, 5, dtype=torch.int64))
    changed[0, MARKET1501.index("up")] = 1 - changed[0, MARKET1501.index("up")]
    assert (table.lookup(changed) >= 0).all()


def test_a_table_is_reconstructed_from_its_bits():
    table = SIDTable.build(MARKET1501, random_labels(MARKET1501, 20), space="union", test=random_labels(MARKET1501, 9))
    copy = SIDTable.from_bits(MARKET1501, table.bits(), table.counts)
    assert all(torch.equal(a, b) for a, b in zip(copy.labels, table.labels))
    record = table.to_json()["groups"]["upper"]
    assert len(record["labels"]) == len(record["counts"]) == table.sizes[1]


def test_unknown_spaces_and_a_union_without_test_labels_are_rejected():
    with pytest.raises(ValueError, match="SID_SPACE is 'all', expected one of observed, union, product"):
        SIDTable.build(MARKET1501, random_labels(MARKET1501, 5), space="all")
    with pytest.raises(ValueError, match="'union' needs the labels of the test identities"):
        SIDTable.build(MARKET1501, random_labels(MARKET1501, 5), space="union")


@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC], ids=lambda schema: schema.name)
def test_the_number_of_combinations_is_the_size_of_the_product(schema):
    sizes = SIDTable.build(schema, random_labels(schema, 3)).sizes
    assert tuple(map(schema.num_combinations, schema.group_names)) == sizes


def test_a_group_with_too_many_combinations_is_rejected_early():
    groups = (Group("one", 0), Group("two"))
    schema = AttributeSchema("wide", (*(Field(f"f{n}", "one", ("no", "yes")) for n in range(40)),
                                      Field("g", "two", ("no", "yes"))), groups=groups)
    labels = torch.ones(2, 41, dtype=torch.int64)
    with pytest.raises(ValueError, match="schema 'wide': .* 'one' have 1099511627776 combinations.* observed"):
        SIDTable.build(schema, labels)
    assert SIDTable.build(schema, labels, space="observed").sizes == (1, 1)


def test_counts_agree_with_the_lookup():
    labels = random_labels(MARKET1501, 3000)
    table = SIDTable.build(MARKET1501, labels)
    sids = table.lookup(labels)
    assert torch.equal(table.decode(sids), labels)
    for g, counts in enumerate(table.counts):
        assert torch.equal(counts, sids[:, g].bincount(minlength=len(counts)))
