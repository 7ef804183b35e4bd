"""Safe loading of weight files: only tensors and plain values, regardless of torch's environment variables."""

import sys
import types
from typing import Any

import torch
from safetensors.torch import load_file


def read_tensors(path, *args, **kwargs) -> Any:
    """Load a file of tensors and plain values with `torch.load`, without executing code from it.

    Files ending in .safetensors are loaded by safetensors.

    Args:
        path: file to load.
        *args: passed to `torch.load`.
        **kwargs: passed to `torch.load`; `weights_only` is always True.

    Raises:
        ValueError: if the file is damaged or contains other objects; names the file. (torch raises one of many errors
            of its zip, pickle or storage code in these cases.)
    """
    try:
        if str(path).endswith(".safetensors"):
            return load_file(path)
        return torch.load(path, *args, **(kwargs | {"weights_only": True}))
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
        if "TorchScript" in str(error):
            raise ValueError(f"{path}: is a TorchScript archive (as published for CLIP), which contains code. If you "
                             "trust it, save torch.jit.load(path, map_location='cpu').state_dict() with torch.save, "
                             "and use that file.") from error
        raise ValueError(f"{path}: cannot be read as weights ({reason}). The file is damaged, truncated or of another "
                         "format, or it contains other objects than tensors and plain values, which could execute "
                         "code. Use another checkpoint of the run. If you trust the file, load it with "
                         "torch.load(..., weights_only=False) and save its state dict again.") from error


class _TensorsAlone(types.ModuleType):
    """Replacement of the name `torch` in modules of FastReID, where `load` is `read_tensors`."""

    load = staticmethod(read_tensors)

    def __getattr__(self, name: str):
        return getattr(torch, name)


def load_tensors_alone() -> None:
    """Prevent FastReID's modules from executing code in weight files.

    utils/checkpoint.py:216 and FastReID's backbones call `torch.load` with its defaults: with the environment variable
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, code in a file would be executed. The name `torch` is rebound in these modules;
    torch itself is not changed.
    """
    for name, module in list(sys.modules.items()):
        reads = name == "fastreid.utils.checkpoint" or name.startswith("fastreid.modeling.backbones.")
        if reads and vars(module).get("torch") is torch:
            module.torch = _TensorsAlone("torch")
