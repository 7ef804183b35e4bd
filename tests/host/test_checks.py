"""Settings for which FastReID divides by zero or fails without a clear message are rejected."""

from cerberus_plugin import host

import pytest
from support.training import solver_cfg


def test_the_settings_of_fastreids_configurations_are_accepted():
    host.check_config(solver_cfg(MAX_EPOCH=120, IMS_PER_BATCH=64), num_images=12936)


@pytest.mark.parametrize("node, key", [("TEST", "EVAL_PERIOD"), ("SOLVER", "CHECKPOINT_PERIOD")])
def test_a_period_of_zero_is_rejected(node, key):
    cfg = solver_cfg(MAX_EPOCH=60)
    cfg[node][key] = 0
    with pytest.raises(ValueError, match=rf"{node}.{key} is 0, expected at least 1.*MAX_EPOCH \(60\)"):
        host.check_config(cfg)


def test_a_dataset_smaller_than_a_batch_is_rejected():
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 64, expected at most the 63 images"):
        host.check_config(solver_cfg(IMS_PER_BATCH=64), num_images=63)


def test_a_cosine_schedule_without_epochs_is_rejected():
    # 2000 iterations of warm-up are 10 epochs of 202 iterations; the 11th is the first of the cosine.
    cosine = {"SCHED": "CosineAnnealingLR", "WARMUP_ITERS": 2000, "IMS_PER_BATCH": 64, "DELAY_EPOCHS": 0}
    host.check_config(solver_cfg(MAX_EPOCH=11, **cosine), num_images=12936)
    with pytest.raises(ValueError, match="MAX_EPOCH is 10, expected more than 10: Cosine.*Raise SOLVER.MAX_EPOCH"):
        host.check_config(solver_cfg(MAX_EPOCH=10, **cosine), num_images=12936)
    with pytest.raises(ValueError, match="MAX_EPOCH is 5, expected more than 6"):
        host.check_config(solver_cfg(MAX_EPOCH=5, **{**cosine, "DELAY_EPOCHS": 6}))


@pytest.mark.parametrize("height, rejected", [(64, True), (48, False), (80, False), (96, False), (384, False)])
def test_mgn_rejects_images_whose_maps_cannot_be_split_into_thirds(height, rejected):
    cfg = solver_cfg(MAX_EPOCH=60)
    cfg.INPUT.SIZE_TEST = [height, 32]
    host.check_config(cfg)  # accepted for other models
    cfg.MODEL.META_ARCHITECTURE = "MGN"
    if not rejected:
        return host.check_config(cfg)
    with pytest.raises(ValueError, match=rf"INPUT.SIZE_TEST is \[{height}, 32\]: MGN .* maps of 4.*at least 80"):
        host.check_config(cfg)
