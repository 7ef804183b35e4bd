"""Checkpoints: written whole or not at all, the best one kept over a resume, a wrong file named."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch

from .patching import replace
from .weights import read_tensors

logger = logging.getLogger("fastreid.cerberus.host")


@contextlib.contextmanager
def whole_file(path: str, mode: str, **kwargs) -> Iterator[IO]:
    """Open a file for writing that takes the place of `path` only once all of it is on the disk."""
    partial = f"{path}.tmp"
    try:
        with open(partial, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        # torch's zip writer hides the disk's error behind a RuntimeError about positions.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(reason, OSError):
            raise
        raise OSError(
            reason.errno or errno.EIO,
            f"writing failed ({reason.strerror or reason}); it was not replaced: the previous checkpoint and "
            "last_checkpoint are intact. Free space in that folder, then run again with --resume",
            path,
        ) from error


def write_whole_files() -> None:
    """Make the checkpointer's two writes, the weights and `last_checkpoint`, atomic.

    utils/checkpoint.py:98 and :197 write in place: a kill or a full disk leaves half a file under the name that
    --resume reads. Only that module's PathManager is changed, and only for paths on this machine.
    """
    from fastreid.utils import checkpoint, file_io

    class WholeFiles(file_io.PathManager):
        @staticmethod
        def open(path: str, mode: str = "r", buffering: int = -1, **kwargs):
            remote = any(path.startswith(prefix) for prefix in file_io.PathManager._PATH_HANDLERS)
            if remote or "w" not in mode:
                return file_io.PathManager.open(path, mode, buffering, **kwargs)
            return whole_file(path, mode, buffering=buffering, **kwargs)

    checkpoint.PathManager = WholeFiles


def remember_best() -> None:
    """Start a resumed run from the best score on disk.

    utils/checkpoint.py:307 starts every run at -1, so after --resume the first evaluation overwrites
    model_best.pth, however much worse it is.
    """
    from fastreid.engine import hooks

    def build(host_before_train):
        def before_train(self):
            host_before_train(self)
            if self.trainer.start_iter > 0:
                self.best_metric = max(self.best_metric, stored_metric(self.checkpointer.save_dir))

        return before_train

    replace(hooks.PeriodicCheckpointer, "before_train", build)


def stored_metric(folder: str) -> float:
    """The score stored in `folder`/model_best.pth; -1, the host's start, where there is none to read."""
    path = os.path.join(folder, "model_best.pth")
    if not os.path.isfile(path):
        return -1.0
    try:
        # mmap: the weights beside the score are not read.
        return float(read_tensors(path, map_location="cpu", mmap=True)["metric"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.warning(f"{path}: no score to read ({error}); the next evaluation replaces it")
        return -1.0


def refuse_other_files() -> None:
    """Say which file is no checkpoint, or holds weights that are not finite.

    utils/checkpoint.py:225 pops "model" from whatever was loaded: ImageNet weights given as MODEL.WEIGHTS end in
    `KeyError: 'model'`.
    """
    from fastreid.utils.checkpoint import Checkpointer

    def build(host_load):
        def _load_file(self, f: str):
            checkpoint = host_load(self, f)
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), Mapping):
                found = list(checkpoint)[:3] if isinstance(checkpoint, dict) else type(checkpoint).__name__
                raise ValueError(
                    f"{f}: not a training checkpoint: key 'model' with its tensors is missing, got {found}. "
                    "MODEL.WEIGHTS takes a checkpoint written in training; give backbone weights as "
                    "MODEL.BACKBONE.PRETRAIN_PATH."
                )
            refuse_not_finite(f, checkpoint["model"])
            return checkpoint

        return _load_file

    replace(Checkpointer, "_load_file", build)


def refuse_not_finite(path: str, state: Mapping[str, Any]) -> None:
    """Raise ValueError where tensors hold NaN or infinity, which answers and figures can hide."""
    tensors = {key: value for key, value in state.items() if torch.is_tensor(value) and value.is_floating_point()}
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {len(broken)} of {len(tensors)} tensors hold NaN or infinite values, such as "
                         f"'{broken[0]}': the training diverged, or the file is damaged. Use an earlier checkpoint of "
                         "the run, or train again with a lower SOLVER.BASE_LR.")
