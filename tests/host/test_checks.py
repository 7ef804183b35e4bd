"""Settings on which the host divides by zero, or fails without saying why, are refused."""

from cerberus_plugin import host

import pytest
from support.training import solver_cfg


def test_settings_of_the_host_pass_the_check():
    host.check_config(solver_cfg(MAX_EPOCH=120, IMS_PER_BATCH=64), num_images=12936)


@pytest.mark.parametrize("node, key", [("TEST", "EVAL_PERIOD"), ("SOLVER", "CHECKPOINT_PERIOD")])
def test_a_period_of_zero_is_refused(node, key):
    cfg = solver_cfg(MAX_EPOCH=60)
    cfg[node][key] = 0
    with pytest.raises(ValueError, match=rf"{node}.{key} is 0, expected 1 or more epochs.*MAX_EPOCH \(60\)"):
        host.check_config(cfg)


def test_a_dataset_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 64, expected at most the 63 images"):
        host.check_config(solver_cfg(IMS_PER_BATCH=64), num_images=63)


def test_a_cosine_schedule_without_epochs_is_refused():
    # 2000 iterations of warm-up are 10 epochs of 202 iterations; the 11th is the first of the cosine.
    cosine = {"SCHED": "CosineAnnealingLR", "WARMUP_ITERS": 2000, "IMS_PER_BATCH": 64, "DELAY_EPOCHS": 0}
    host.check_config(solver_cfg(MAX_EPOCH=11, **cosine), num_images=12936)
    with pytest.raises(ValueError, match="MAX_EPOCH is 10, expected more than 10: Cosine.*Raise SOLVER.MAX_EPOCH"):
        host.check_config(solver_cfg(MAX_EPOCH=10, **cosine), num_images=12936)
    with pytest.raises(ValueError, match="MAX_EPOCH is 5, expected more than 6"):
        host.check_config(solver_cfg(MAX_EPOCH=5, **{**cosine, "DELAY_EPOCHS": 6}))


@pytest.mark.parametrize("height, refused", [(64, True), (48, False), (80, False), (96, False), (384, False)])
def test_mgn_on_pictures_too_low_to_be_cut_into_thirds_is_refused(height, refused):
    cfg = solver_cfg(MAX_EPOCH=60)
    cfg.INPUT.SIZE_TEST = [height, 32]
    host.check_config(cfg)  # another model
    cfg.MODEL.META_ARCHITECTURE = "MGN"
    if not refused:
        return host.check_config(cfg)
    with pytest.raises(ValueError, match=rf"INPUT.SIZE_TEST is \[{height}, 32\]: MGN needs .* have 4. Take a height"):
        host.check_config(cfg)
