"""Held-out identities are not trained on, and are evaluated like a test dataset."""

from cerberus_plugin.data.build import build_test_set, build_train_set
from cerberus_plugin.data.splits import split_identities
from cerberus_plugin.own_data.split import query_and_gallery

import pytest
import torch
from support.training import trained

ITEMS = [(f"{pid}_{camera}_{k}.jpg", f"market1501_{pid}", f"market1501_{camera}")
         for pid in range(1, 9) for camera in (1, 2) for k in (1, 2)]


def test_an_identity_is_either_trained_on_or_held_out():
    kept, held = split_identities(ITEMS, 3, seed=0)
    assert sorted(kept + held) == sorted(ITEMS)
    assert len({pid for _, pid, _ in held}) == 3
    assert not {pid for _, pid, _ in held} & {pid for _, pid, _ in kept}
    assert split_identities(ITEMS, 3, seed=0)[1] == held
    assert split_identities(ITEMS, 3, seed=1)[1] != held
    assert split_identities(ITEMS, 0, seed=0) == (ITEMS, [])


def test_one_image_per_camera_is_a_query_and_the_others_are_gallery():
    query, gallery = query_and_gallery(ITEMS[::-1])
    assert len(query) == 16
    assert all(path.endswith("_1.jpg") for path, _, _ in query)
    assert sorted(query + gallery) == sorted(ITEMS)


def test_the_only_image_of_a_camera_is_a_gallery_image():
    query, gallery = query_and_gallery(ITEMS[::2])
    assert [path for path, _, _ in query] == [f"{pid}_1_1.jpg" for pid in range(1, 9)]
    assert [path for path, _, _ in gallery] == [f"{pid}_2_1.jpg" for pid in range(1, 9)]


def test_holding_out_all_identities_is_rejected():
    with pytest.raises(ValueError, match="DATASETS.HOLD_OUT is 8, but there are 8 training identities"):
        split_identities(ITEMS, 8, seed=0)
    with pytest.raises(ValueError, match="DATASETS.HOLD_OUT is -1, expected a number of identities"):
        split_identities(ITEMS, -1, seed=0)


def test_held_out_identities_have_their_labels(small_config, market_people):
    cfg = small_config("DATASETS.HOLD_OUT", 2, "DATASETS.TESTS", ["held-out"])
    train, (test, num_query) = build_train_set(cfg), build_test_set(cfg, "held-out")
    assert len(train.pids) == 6
    assert sorted({pid for _, pid, _ in test.img_items}) == [1, 2]
    assert num_query == 2
    held = {int(path.rsplit("/", 1)[1][:4]) for path, _, _ in test.img_items}
    assert held & {int(pid.rsplit("_", 1)[1]) for pid in train.pids} == set()
    for path, pid, _ in test.img_items:
        assert torch.equal(test.known_of(path, pid)["attributes"], market_people[0][int(path.rsplit("/", 1)[1][:4])])


def test_the_held_out_test_needs_held_out_identities(small_config):
    with pytest.raises(ValueError, match="DATASETS.HOLD_OUT .*DATASETS.COMBINEALL"):
        build_train_set(small_config("DATASETS.HOLD_OUT", 2, "DATASETS.COMBINEALL", True))
    with pytest.raises(ValueError, match="has 'held-out', but DATASETS.HOLD_OUT is 0"):
        build_test_set(small_config(), "held-out")


def test_held_out_identities_and_the_test_set_are_both_evaluated(small_config):
    results = trained(small_config("DATASETS.HOLD_OUT", 2, "DATASETS.TESTS", ["Market1501Attributes", "held-out"],
                                   "SOLVER.MAX_EPOCH", 1)).results
    assert set(results) == {"Market1501Attributes", "held-out"}
    assert {"mAP", "PAR/mA_official", "APS/mAP"} <= set(results["held-out"])
