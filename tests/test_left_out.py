"""Semantic IDs left out of training: nobody who carries one remains, and a larger count holds a smaller one's."""

from cerberus_plugin.assembly import build_train_set, load_model, reader_of
from cerberus_plugin.attributes import GROUPS, MARKET1501, SIDTable
from cerberus_plugin.data.left_out import leave_out
from cerberus_plugin.engine import evaluate
from cerberus_plugin.report import read_results

import pytest
import torch
from conftest import random_labels

TRAIN, TEST = random_labels(MARKET1501, 60, seed=1), random_labels(MARKET1501, 30, seed=2)


def sids(labels):
    """Pairs of a group and what is labelled of it, of each person."""
    return [{(group, tuple(row[list(MARKET1501.group_fields(group))].tolist())) for group in GROUPS} for row in labels]


def test_those_who_remain_carry_none_of_what_is_left_out():
    left = leave_out(MARKET1501, TRAIN, TEST, 3, seed=0)
    assert len(left.names) == 3 and 0 < left.carried.sum() < len(TRAIN)
    everywhere, remaining = set().union(*sids(TRAIN)), set().union(*sids(TRAIN[~left.carried]))
    unseen = everywhere - remaining
    assert len(unseen & set().union(*sids(TEST))) >= 3
    one = leave_out(MARKET1501, TRAIN, TEST, 1, seed=0)
    (group, said), = [name.split(": ") for name in one.names]
    carriers = [", ".join(f"{k} {v}" for k, v in MARKET1501.describe(SIDTable.build(
        MARKET1501, row[None], space="observed").labels[GROUPS.index(group)][0]).items()) == said for row in TRAIN]
    assert one.carried.tolist() == carriers and any(carriers)


def test_a_larger_count_leaves_out_what_a_smaller_one_does():
    two, four = (leave_out(MARKET1501, TRAIN, TEST, count, seed=5) for count in (2, 4))
    assert four.names[:2] == two.names and (two.carried <= four.carried).all()
    assert leave_out(MARKET1501, TRAIN, TEST, 4, seed=6).names != four.names
    assert not leave_out(MARKET1501, TRAIN, TEST, 0, seed=5).carried.any()


@pytest.mark.parametrize(("count", "message"), [
    (-1, "LEAVE_OUT_SIDS is -1, expected a number of semantic IDs"),
    (1000, r"LEAVE_OUT_SIDS is 1000, but training and test share \d+ semantic IDs; ask for fewer")])
def test_a_count_that_cannot_be_is_refused(count, message):
    with pytest.raises(ValueError, match=message):
        leave_out(MARKET1501, TRAIN, TEST, count, seed=0)


def test_the_training_set_loses_its_carriers_and_the_log_says_whom(small_config, log, market_people):
    everybody = build_train_set(small_config())
    cfg = small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", 3)
    kept = build_train_set(cfg)
    gone = set(everybody.pids) - set(kept.pids)
    expected = leave_out(MARKET1501, everybody.labels, torch.stack(list(market_people[1].values())), 1, seed=3)
    assert gone == {pid for pid, carried in zip(everybody.pids, expected.carried) if carried} and gone
    assert f"Training without {len(gone)} of 8 identities, who carry one of 1 semantic IDs: {expected.names[0]}" in [
        record.message for record in log.records]


def test_nobody_remaining_is_refused(small_config):
    with pytest.raises(ValueError, match="each of the 8 training identities carries one of these semantic IDs"):
        build_train_set(small_config("DATASETS.LEAVE_OUT_SIDS", 10))


def test_a_data_set_without_attributes_is_refused(small_config):
    with pytest.raises(ValueError, match=r"LEAVE_OUT_SIDS is 1, but DATASETS.NAMES .*Market1501.* have no attributes"):
        build_train_set(small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.NAMES", ["Market1501"]))


def test_prototypes_that_nobody_carries_are_synthesised_and_no_others(run, small_config):
    weights = f"{run.cfg.OUTPUT_DIR}/model_final.pth"
    learned, synthesised = (load_model(small_config("MODEL.WEIGHTS", weights, "TEST.APS.SYNTHESISE", on))
                            for on in (False, True))
    for group, plain, made in zip(GROUPS, reader_of(learned).prototypes, reader_of(synthesised).prototypes):
        seen = learned.prototypes.counts(group) > 0
        rows = learned.prototypes.synthesise(group, learned.prototypes.bits(group))
        assert torch.equal(plain[seen], made[seen])
        assert torch.allclose(made[~seen], torch.nn.functional.normalize(rows, dim=1)[~seen])
        if (~seen).any():
            assert not torch.allclose(plain[~seen], made[~seen])


def test_an_evaluation_with_synthesised_prototypes_says_so(run, small_config):
    cfg = small_config("MODEL.WEIGHTS", f"{run.cfg.OUTPUT_DIR}/model_final.pth", "TEST.APS.SYNTHESISE", True)
    found = evaluate(cfg)
    assert found["mAP"] == pytest.approx(run.results["mAP"])
    assert read_results(cfg.OUTPUT_DIR)["model"] == "Cerberus, unseen prototypes synthesised"
