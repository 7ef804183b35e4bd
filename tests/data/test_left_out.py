"""Semantic IDs left out of training: nobody who carries one remains, and a larger count holds a smaller one's."""

from cerberus_plugin.attributes import GROUPS, MARKET1501, SIDTable
from cerberus_plugin.data.build import build_train_set
from cerberus_plugin.data.splits import leave_out
from cerberus_plugin.engine.trainer import evaluate, start
from cerberus_plugin.evaluation.manifest import of_training
from cerberus_plugin.evaluation.report import read_results
from cerberus_plugin.modeling.build import load_model, reader_of

import pytest
import torch
from support.data import random_labels

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


def test_a_share_keeps_frequent_semantic_ids_in_training():
    frequent = [sid for sid in set().union(*sids(TRAIN)) if sum(sid in own for own in sids(TRAIN)) > 6]
    for seed in range(5):
        left = leave_out(MARKET1501, TRAIN, TEST, 8, seed=seed, share=0.1)
        remaining = set().union(*sids(TRAIN[~left.carried]))
        assert left.carried.sum() <= 8 * 6 and remaining >= {sid for sid in frequent if sid[0] == "carrying"}
        one = leave_out(MARKET1501, TRAIN, TEST, 1, seed=seed, share=0.1)
        assert 0 < one.carried.sum() <= 6  # a tenth of 60


@pytest.mark.parametrize(("count", "share", "message"), [
    (-1, 1.0, "LEAVE_OUT_SIDS is -1, expected a number of semantic IDs"),
    (1, 0.0, r"LEAVE_OUT_SHARE is 0.0, expected a share of the training people: above 0, at most 1"),
    (1000, 0.1, r"LEAVE_OUT_SIDS is 1000, but training and test share \d+ semantic IDs that at most 10% of the "
                r"training people carry \(DATASETS.LEAVE_OUT_SHARE\); ask for fewer")])
def test_a_choice_that_cannot_be_is_refused(count, share, message):
    with pytest.raises(ValueError, match=message):
        leave_out(MARKET1501, TRAIN, TEST, count, seed=0, share=share)


def test_several_seeds_of_training_are_several_draws(small_config):
    drawn = [build_train_set(small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", -1,
                                          "SEED", seed)).without["semantic IDs"]
             for seed in (1, 2, 3)]
    assert drawn[0] != drawn[1] != drawn[2]


def test_a_draw_by_a_seed_that_is_drawn_itself_is_refused(small_config):
    cfg = small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", -1, "SEED", -1)
    with pytest.raises(ValueError, match="LEAVE_OUT_SEED is -1, to draw by SEED, but SEED is -1 too"):
        start(cfg, None)


def test_as_many_people_at_random_are_left_out_in_place_of_the_carriers(small_config, log):
    options = ["DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", 3]
    everybody = set(build_train_set(small_config()).pids)
    carriers = everybody - set(build_train_set(small_config(*options)).pids)
    kept = build_train_set(small_config(*options, "DATASETS.LEAVE_OUT_AT_RANDOM", True))
    gone = everybody - set(kept.pids)
    assert len(gone) == len(carriers) and gone != carriers
    assert f"Training without {len(gone)} of 8 identities, drawn at random, as many as carry" in log.text
    assert kept.without["at random"]


def test_the_manifest_says_who_was_left_out(small_config):
    cfg = small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", 3)
    kept = build_train_set(cfg)
    account = of_training(cfg, kept)
    assert account["without"] == kept.without and account["identities"] + kept.without["identities"] == 8
    assert account["without"].keys() == {"semantic IDs", "identities", "at random"}
    assert of_training(small_config(), build_train_set(small_config()))["without"] is None


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
