"""Checkpoints: written whole or not at all, the best one kept over a resume, wrong files and states refused."""

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
    """Open a file for writing, text or binary, that takes the place of `path` only once all of it is on the disk."""
    try:
        with open_whole(path) as file:
            if "b" in mode:
                yield file
                return
            text = io.TextIOWrapper(file, **kwargs)
            yield text
            text.detach()  # flushes, and leaves the file open
    except OSError as error:
        if Path(error.filename or "") != Path(path):  # of another file that was read for this one
            raise
        raise OSError(error.errno, f"{error.strerror}; the previous checkpoint and last_checkpoint are intact. Free "
                      "space in that folder, then run again with --resume", path) from error


def remove_partial_files(folder: str) -> None:
    """Remove what a killed training has left of the checkpoint that it was writing."""
    for name in (f"*.pth*{ENDING}", f"last_checkpoint*{ENDING}"):
        for path in glob.glob(os.path.join(glob.escape(folder), name)):
            logger.info(f"{path}: removed; a training was stopped while it wrote this file")
            os.remove(path)


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
            return whole_file(path, mode, **kwargs)

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


# Keys of an optimiser's parameter groups, in checkpoints as well.
PARAMETERS = "parameters"
OPTIMIZER = "optimizer"
# Settings that tell torch's optimisers apart in a checkpoint without OPTIMIZER.
_TELLING = {"betas", "momentum"}


def refuse_other_optimizers(optimizer: torch.optim.Optimizer, model: nn.Module, name: str) -> None:
    """Let `optimizer` refuse the state of other parameters or of another optimiser, before it loads any of it.

    The host gives the optimiser one flat buffer a group (utils/params.py), and torch compares the number of groups and
    of tensors only: moments of another size, or of parameters in another order, load without a word, and a fused step
    then reads behind their end. Each group remembers what its buffer consists of, as (name, shape) in order, and the
    checkpoint with it. Of a checkpoint from before this was kept, the sizes are compared.

    Args:
        optimizer: whose parameters are those of `model`, or flat buffers that these are views of.
        name: of the optimiser, SOLVER.OPT.
    """
    own = [{PARAMETERS: parameters, OPTIMIZER: name} for parameters in _parameters_of(optimizer, model)]

    def remember(optimizer) -> None:
        for group, entries in zip(optimizer.param_groups, own):
            group.update(entries)

    def refuse(optimizer, state: dict) -> None:
        difference = _difference(state, optimizer)
        if difference:
            raise ValueError(f"the state of the optimiser is not this run's: {difference}. Resume with the config.yaml "
                             "of the run folder and the data it began with: model, number of identities, "
                             "MODEL.FREEZE_LAYERS and the keys of SOLVER decide which parameters go together.")

    remember(optimizer)
    optimizer.register_load_state_dict_pre_hook(refuse)
    optimizer.register_load_state_dict_post_hook(remember)  # loading puts the checkpoint's groups in their place


def _parameters_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list]:
    """[name, shape] of the parameters behind each group's tensors, in the order of memory."""
    views: dict[int, list] = {}
    for name, parameter in model.named_parameters():
        memory = parameter.untyped_storage().data_ptr()
        views.setdefault(memory, []).append((parameter.storage_offset(), name, list(parameter.shape)))
    return [[[name, shape] for tensor in group["params"]
             for _, name, shape in sorted(views.get(tensor.untyped_storage().data_ptr(), []))]
            for group in optimizer.param_groups]


def _difference(state: dict, optimizer: torch.optim.Optimizer) -> str | None:
    """The first difference between the state of a checkpoint and what `optimizer` can load; None without one."""
    saved, own = state["param_groups"], optimizer.param_groups
    for i, (theirs, ours) in enumerate(zip(saved, own)):
        optimizers = theirs.get(OPTIMIZER, ours[OPTIMIZER]), ours[OPTIMIZER]
        if optimizers[0] != optimizers[1] or _TELLING & theirs.keys() != _TELLING & ours.keys():
            return f"it is of SOLVER.OPT {theirs.get(OPTIMIZER, 'of another kind')}, here {ours[OPTIMIZER]}"
        pairs = itertools.zip_longest(theirs.get(PARAMETERS, ours[PARAMETERS]), ours[PARAMETERS])
        for there, here in pairs:
            if there != here:
                return f"group {i} has {_named(there)} where this run has {_named(here)}"
    sizes = [[len(group["params"]) for group in groups] for groups in (saved, own)]
    if sizes[0] != sizes[1]:
        return f"it has {len(saved)} groups of {sizes[0]} tensors, here {len(own)} of {sizes[1]}"
    tensors = [tensor for group in own for tensor in group["params"]]
    for key, tensor in zip((key for group in saved for key in group["params"]), tensors):
        for name, value in state["state"].get(key, {}).items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != tensor.shape:
                return f"'{name}' of tensor {key} has the shape {tuple(value.shape)}, here {tuple(tensor.shape)}"
    return None


def _named(entry: list | None) -> str:
    return f"{entry[0]} {tuple(entry[1])}" if entry else "nothing"


def refuse_not_finite(path: str, state: Mapping[str, Any]) -> None:
    """Raise ValueError where tensors hold NaN or infinity, which answers and figures can hide."""
    tensors = {key: value for key, value in state.items() if torch.is_tensor(value) and value.is_floating_point()}
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {len(broken)} of {len(tensors)} tensors hold NaN or infinite values, such as "
                         f"'{broken[0]}': the training diverged, or the file is damaged. Use an earlier checkpoint of "
                         "the run, or train again with a lower SOLVER.BASE_LR.")
