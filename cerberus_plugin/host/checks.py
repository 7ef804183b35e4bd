"""Checks, before training starts, of settings for which FastReID divides by zero or fails without a clear message."""

import math


def check_config(cfg, num_images: int | None = None) -> None:
    """Check the settings that FastReID does not check itself.

    Args:
        cfg: configuration.
        num_images: number of training images. If None, settings that depend on the length of an epoch are not checked.

    Raises:
        ValueError: with the key, its value and what to change.
    """
    solver = cfg.SOLVER
    periods = {"TEST.EVAL_PERIOD": cfg.TEST.EVAL_PERIOD, "SOLVER.CHECKPOINT_PERIOD": solver.CHECKPOINT_PERIOD}
    for key, period in periods.items():  # engine/hooks.py:382, utils/checkpoint.py:331
        if period < 1:
            raise ValueError(
                f"{key} is {period}, expected at least 1 (epochs). To run it only at the end, set it to "
                f"SOLVER.MAX_EPOCH ({solver.MAX_EPOCH})."
            )
    if num_images is not None and num_images < solver.IMS_PER_BATCH:  # engine/defaults.py:218
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, expected at most the {num_images} images of the "
            "training set: an epoch would have no iterations. Lower SOLVER.IMS_PER_BATCH."
        )
    _check_height(cfg)
    if solver.SCHED != "CosineAnnealingLR":
        return
    warmup_epochs = 0
    if num_images is not None:
        warmup_epochs = math.ceil(solver.WARMUP_ITERS / (num_images // solver.IMS_PER_BATCH))
    before = max(warmup_epochs, solver.DELAY_EPOCHS)
    if solver.MAX_EPOCH <= before:  # solver/build.py:313
        raise ValueError(
            f"SOLVER.MAX_EPOCH is {solver.MAX_EPOCH}, expected more than {before}: CosineAnnealingLR starts after "
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} (epochs: {warmup_epochs}) and SOLVER.DELAY_EPOCHS "
            f"{solver.DELAY_EPOCHS}. Raise SOLVER.MAX_EPOCH or lower those two."
        )


def _check_height(cfg) -> None:
    """Check the image height for MGN, which splits its maps into three horizontal parts.

    This is impossible for maps of 1, 2 or 4 rows.
    """
    if cfg.MODEL.META_ARCHITECTURE != "MGN" or cfg.MODEL.BACKBONE.LAST_STRIDE != 1:
        return
    for key in ("SIZE_TRAIN", "SIZE_TEST"):
        rows = math.ceil(cfg.INPUT[key][0] / 16)
        if math.ceil(rows / math.ceil(rows / 3)) < 3:  # modeling/meta_arch/mgn.py:209
            raise ValueError(f"INPUT.{key} is {list(cfg.INPUT[key])}: MGN needs maps of 3 rows, or of 5 rows or more, "
                             f"and images {cfg.INPUT[key][0]} pixels high have maps of {rows}. Set a height of at "
                             "least 80, such as 96.")
