"""Checkpoints: atomic writes, the best score restored on resume, and errors for wrong files and optimizer states."""

import contextlib
import glob
import io
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from ..utils.files import ENDING, open_whole
from .patching import replace
from .weights import read_tensors

logger = logging.getLogger("fastreid.cerberus.host")


@contextlib.contextmanager
def whole_file(path: str, mode: str, **kwargs) -> Iterator[IO]:
    """Open a file for writing, and move it to `path` only after all of it is on disk.

    Args:
        path: file to replace.
        mode: "w" for text, or "wb".
        **kwargs: options of text files, such as `encoding`.

    Raises:
        OSError: if writing fails; the old file is unchanged.
    """
    try:
        with open_whole(path) as file:
            if "b" in mode:
                yield file
                return
            text = io.TextIOWrapper(file, **kwargs)
            yield text
            text.detach()  # flushes, and leaves the file open
    except OSError as error:
        if Path(error.filename or "") != Path(path):  # the error is about another file
            raise
        raise OSError(error.errno, f"{error.strerror}; the previous checkpoint and last_checkpoint are intact. Free "
                      "space in that folder, then run again with --resume", path) from error


def remove_partial_files(folder: str) -> None:
    """Remove partly written checkpoints of a training that was killed."""
    for name in (f"*.pth*{ENDING}", f"last_checkpoint*{ENDING}"):
        for path in glob.glob(os.path.join(glob.escape(folder), name)):
            logger.info(f"{path}: removed this partly written file of an interrupted training")
            os.remove(path)


def write_whole_files() -> None:
    """Write weights and `last_checkpoint` atomically.

    FastReID writes in place (utils/checkpoint.py:98, :197): a kill or a full disk leaves a truncated file under the
    name that --resume reads. Only the PathManager of that module is replaced, and only for local paths.
    """
    from fastreid.utils import checkpoint, file_io

    class WholeFiles(file_io.PathManager):
        @staticmethod
        def open(path: str, mode: str = "r", buffering: int = -1, **kwargs):
            remote = any(path.startswith(prefix) for prefix in file_io.PathManager._PATH_HANDLERS)
            if remote or "w" not in mode:
                return file_io.PathManager.open(path, mode, buffering, **kwargs)
            return whole_file(path, mode, **kwargs)

    checkpoint.PathManager = WholeFiles


def remember_best() -> None:
    """Restore the best score when a run is resumed.

    FastReID starts every run with -1 (utils/checkpoint.py:307), so after --resume the first evaluation would overwrite
    model_best.pth even with a worse model.
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
    """Return the score stored in `folder`/model_best.pth, or -1, FastReID's initial value, if there is none."""
    path = os.path.join(folder, "model_best.pth")
    if not os.path.isfile(path):
        return -1.0
    try:
        # With mmap the weights are not read.
        return float(read_tensors(path, map_location="cpu", mmap=True)["metric"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.warning(f"{path}: the score cannot be read ({error}); the next evaluation replaces this file")
        return -1.0


def refuse_other_files() -> None:
    """Raise a clear error for a file that is not a checkpoint or contains weights that are not finite.

    utils/checkpoint.py:225 takes the key "model" of any loaded object, so ImageNet weights given as MODEL.WEIGHTS end
    in `KeyError: 'model'`.
    """
    from fastreid.utils.checkpoint import Checkpointer

    def build(host_load):
        def _load_file(self, f: str):
            checkpoint = host_load(self, f)
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), Mapping):
                found = list(checkpoint)[:3] if isinstance(checkpoint, dict) else type(checkpoint).__name__
                raise ValueError(
                    f"{f}: not a training checkpoint: the key 'model' with its tensors is missing, got {found}. "
                    "MODEL.WEIGHTS takes a checkpoint written in training; set MODEL.BACKBONE.PRETRAIN_PATH for the "
                    "weights of a backbone."
                )
            refuse_not_finite(f, checkpoint["model"])
            return checkpoint

        return _load_file

    replace(Checkpointer, "_load_file", build)


# Keys that are added to an optimizer's parameter groups and stored in checkpoints.
PARAMETERS = "parameters"
OPTIMIZER = "optimizer"
# Settings by which the kind of optimizer is recognised in a checkpoint without the key OPTIMIZER.
_TELLING = {"betas", "momentum"}


def refuse_other_optimizers(optimizer: torch.optim.Optimizer, model: nn.Module, name: str) -> None:
    """Make `optimizer` raise ValueError before it loads the state of other parameters or of another kind of optimizer.

    FastReID gives the optimizer one flat buffer per parameter group (utils/params.py), and torch compares only the
    number of groups and tensors. Moments of another size, or of parameters in another order, would load silently, and
    a fused step would then read out of bounds. Therefore each group stores the names and shapes of its parameters in
    order, also in the checkpoint. For older checkpoints without these entries, the sizes are compared.

    Args:
        optimizer: its parameters are those of `model`, or flat buffers of which these are views.
        model: the model that is trained.
        name: kind of optimizer, SOLVER.OPT.
    """
    own = [{PARAMETERS: parameters, OPTIMIZER: name} for parameters in _parameters_of(optimizer, model)]

    def remember(optimizer) -> None:
        for group, entries in zip(optimizer.param_groups, own):
            group.update(entries)

    def refuse(optimizer, state: dict) -> None:
        difference = _difference(state, optimizer)
        if difference:
            raise ValueError(f"the optimizer state does not belong to this run: {difference}. Resume with the "
                             "config.yaml of the run folder and the same data: the model, the number of identities, "
                             "MODEL.FREEZE_LAYERS and the keys of SOLVER determine the groups of parameters.")

    remember(optimizer)
    optimizer.register_load_state_dict_pre_hook(refuse)
    optimizer.register_load_state_dict_post_hook(remember)  # loading replaces the groups by those of the checkpoint


def _parameters_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list]:
    """Return, for each group, [name, shape] of its parameters in memory order."""
    views: dict[int, list] = {}
    for name, parameter in model.named_parameters():
        memory = parameter.untyped_storage().data_ptr()
        views.setdefault(memory, []).append((parameter.storage_offset(), name, list(parameter.shape)))
    return [[[name, shape] for tensor in group["params"]
             for _, name, shape in sorted(views.get(tensor.untyped_storage().data_ptr(), []))]
            for group in optimizer.param_groups]


def _difference(state: dict, optimizer: torch.optim.Optimizer) -> str | None:
    """Return the first difference between a checkpoint's state and the optimizer, or None if there is none."""
    saved, own = state["param_groups"], optimizer.param_groups
    for i, (theirs, ours) in enumerate(zip(saved, own)):
        optimizers = theirs.get(OPTIMIZER, ours[OPTIMIZER]), ours[OPTIMIZER]
        if optimizers[0] != optimizers[1] or _TELLING & theirs.keys() != _TELLING & ours.keys():
            return (f"it was saved with SOLVER.OPT {theirs.get(OPTIMIZER, 'of another kind')}, this run has "
                    f"{ours[OPTIMIZER]}")
        pairs = itertools.zip_longest(theirs.get(PARAMETERS, ours[PARAMETERS]), ours[PARAMETERS])
        for there, here in pairs:
            if there != here:
                return f"group {i} has {_named(there)} where this run has {_named(here)}"
    sizes = [[len(group["params"]) for group in groups] for groups in (saved, own)]
    if sizes[0] != sizes[1]:
        return f"it has {len(saved)} groups of {sizes[0]} tensors, this run has {len(own)} of {sizes[1]}"
    tensors = [tensor for group in own for tensor in group["params"]]
    for key, tensor in zip((key for group in saved for key in group["params"]), tensors):
        for name, value in state["state"].get(key, {}).items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != tensor.shape:
                return f"'{name}' of tensor {key} has the shape {tuple(value.shape)}, in this run {tuple(tensor.shape)}"
    return None


def _named(entry: list | None) -> str:
    """Format an entry (name, shape) for a message."""
    return f"{entry[0]} {tuple(entry[1])}" if entry else "nothing"


def refuse_not_finite(path: str, state: Mapping[str, Any]) -> None:
    """Check that all tensors are finite, because NaN could go unnoticed in predictions and metrics.

    Args:
        path: file of the tensors, for the error message.
        state: tensors by name.

    Raises:
        ValueError: if a tensor contains NaN or infinite values; names one of them.
    """
    tensors = {key: value for key, value in state.items() if torch.is_tensor(value) and value.is_floating_point()}
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {len(broken)} of {len(tensors)} tensors contain NaN or infinite values, such as "
                         f"'{broken[0]}': the training diverged, or the file is damaged. Use an earlier checkpoint of "
                         "the run, or train again with a lower SOLVER.BASE_LR.")
