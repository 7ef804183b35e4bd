"""Files of weights are read as tensors and plain values alone, whatever torch's environment variables say."""

import sys
import types
from typing import Any

import torch
from safetensors.torch import load_file


def read_tensors(path, *args, **kwargs) -> Any:
    """`torch.load` of a file that may hold nothing but tensors and plain values, which can run no code.

    A file whose name ends in .safetensors is read as that format, tensors by name.

    Raises:
        ValueError: naming the file, if it is damaged or holds more. torch has no error of its own for these: a damaged
            file ends in one of many, from its zip, pickle or storage code.
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
            raise ValueError(f"{path}: is a TorchScript archive, as CLIP's own files are: a program. If you trust it, "
                             "save torch.jit.load(path, map_location='cpu').state_dict() by torch.save, and "
                             "use that file.") from error
        raise ValueError(f"{path}: cannot be read as weights ({reason}). The file is damaged, cut short or of another "
                         "kind, or it holds more than tensors and plain values, which could run any code. Use another "
                         "checkpoint of the run; if you trust the file, load it by torch.load(..., weights_only=False) "
                         "and save its state dict again.") from error


class _TensorsAlone(types.ModuleType):
    """Stands for torch in one of the host's modules; `load` is `read_tensors`."""

    load = staticmethod(read_tensors)

    def __getattr__(self, name: str):
        return getattr(torch, name)


def load_tensors_alone() -> None:
    """Let the host's modules that read weights run no code from them.

    utils/checkpoint.py:216 and each of the host's backbones leave that to torch's default: with
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD set, a file of weights runs whatever code it holds. The name `torch` of these
    modules is rebound once; torch itself stays as it is, for every thread.
    """
    for name, module in list(sys.modules.items()):
        reads = name == "fastreid.utils.checkpoint" or name.startswith("fastreid.modeling.backbones.")
        if reads and vars(module).get("torch") is torch:
            module.torch = _TensorsAlone("torch")
