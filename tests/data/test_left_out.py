"""Excluded semantic IDs: no training identity has one, and a larger number includes those of a smaller one."""

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
    """Return the set of (group, labels of the group) of each person."""
    return [{(group, tuple(row[list(MARKET1501.group_fields(group))].tolist())) for group in GROUPS} for row in labels]


def test_the_remaining_identities_have_no_excluded_semantic_id():
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


def test_a_larger_number_includes_the_semantic_ids_of_a_smaller_one():
    two, four = (leave_out(MARKET1501, TRAIN, TEST, count, seed=5) for count in (2, 4))
    assert four.names[:2] == two.names and (two.carried <= four.carried).all()
    assert leave_out(MARKET1501, TRAIN, TEST, 4, seed=6).names != four.names
    assert not leave_out(MARKET1501, TRAIN, TEST, 0, seed=5).carried.any()


def test_frequent_semantic_ids_are_not_excluded_with_a_limited_share():
    frequent = [sid for sid in set().union(*sids(TRAIN)) if sum(sid in own for own in sids(TRAIN)) > 6]
    for seed in range(5):
        left = leave_out(MARKET1501, TRAIN, TEST, 8, seed=seed, share=0.1)
        remaining = set().union(*sids(TRAIN[~left.carried]))
        assert left.carried.sum() <= 8 * 6 and remaining >= {sid for sid in frequent if sid[0] == "carrying"}
        one = leave_out(MARKET1501, TRAIN, TEST, 1, seed=seed, share=0.1)
        assert 0 < one.carried.sum() <= 6  # a tenth of 60


@pytest.mark.parametrize(("count", "share", "message"), [
    (-1, 1.0, "LEAVE_OUT_SIDS is -1, expected a number of semantic IDs"),
    (1, 0.0, r"LEAVE_OUT_SHARE is 0.0, expected a share .* above 0 and at most 1"),
    (1000, 0.1, r"LEAVE_OUT_SIDS is 1000, but training and test share \d+ semantic IDs that at most 10% .*"
                r"\(DATASETS.LEAVE_OUT_SHARE\)")])
def test_invalid_counts_and_shares_are_rejected(count, share, message):
    with pytest.raises(ValueError, match=message):
        leave_out(MARKET1501, TRAIN, TEST, count, seed=0, share=share)


def test_different_seeds_exclude_different_semantic_ids(small_config):
    drawn = [build_train_set(small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", -1,
                                          "SEED", seed)).without["semantic IDs"]
             for seed in (1, 2, 3)]
    assert drawn[0] != drawn[1] != drawn[2]


def test_a_choice_with_a_random_seed_is_rejected(small_config):
    cfg = small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", -1, "SEED", -1)
    with pytest.raises(ValueError, match="LEAVE_OUT_SEED is -1.* SEED is -1"):
        start(cfg, None)


def test_the_random_control_excludes_the_same_number_of_identities(small_config, log):
    options = ["DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", 3]
    everyone = set(build_train_set(small_config()).pids)
    carriers = everyone - set(build_train_set(small_config(*options)).pids)
    kept = build_train_set(small_config(*options, "DATASETS.LEAVE_OUT_AT_RANDOM", True))
    gone = everyone - set(kept.pids)
    assert len(gone) == len(carriers) and gone != carriers
    assert f"Training without {len(gone)} of 8 identities, chosen at random" in log.text
    assert kept.without["at random"]


def test_the_manifest_lists_what_was_excluded(small_config):
    cfg = small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", 3)
    kept = build_train_set(cfg)
    account = of_training(cfg, kept)
    assert account["without"] == kept.without and account["identities"] + kept.without["identities"] == 8
    assert account["without"].keys() == {"semantic IDs", "identities", "at random"}
    assert of_training(small_config(), build_train_set(small_config()))["without"] is None


def test_identities_with_an_excluded_semantic_id_are_removed_and_logged(small_config, log, market_people):
    everyone = build_train_set(small_config())
    cfg = small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.LEAVE_OUT_SEED", 3)
    kept = build_train_set(cfg)
    gone = set(everyone.pids) - set(kept.pids)
    expected = leave_out(MARKET1501, everyone.labels, torch.stack(list(market_people[1].values())), 1, seed=3)
    assert gone == {pid for pid, carried in zip(everyone.pids, expected.carried) if carried} and gone
    assert f"Training without {len(gone)} of 8 identities, those with one of 1 semantic IDs: {expected.names[0]}" in [
        record.message for record in log.records]


def test_excluding_all_identities_is_rejected(small_config):
    with pytest.raises(ValueError, match="each of the 8 training identities has one of these semantic IDs"):
        build_train_set(small_config("DATASETS.LEAVE_OUT_SIDS", 10))


def test_a_dataset_without_attributes_is_rejected(small_config):
    with pytest.raises(ValueError, match=r"LEAVE_OUT_SIDS is 1, but DATASETS.NAMES .*Market1501.* have no attributes"):
        build_train_set(small_config("DATASETS.LEAVE_OUT_SIDS", 1, "DATASETS.NAMES", ["Market1501"]))


def test_only_prototypes_without_training_images_are_synthesised(run, small_config):
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


def test_the_results_name_synthesised_prototypes(run, small_config):
    cfg = small_config("MODEL.WEIGHTS", f"{run.cfg.OUTPUT_DIR}/model_final.pth", "TEST.APS.SYNTHESISE", True)
    found = evaluate(cfg)
    assert found["mAP"] == pytest.approx(run.results["mAP"])
    assert read_results(cfg.OUTPUT_DIR)["model"] == "Cerberus, unseen prototypes synthesised"
