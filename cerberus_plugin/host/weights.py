"""Files of weights are read as tensors alone, whatever torch's version and its environment variables say."""

import contextlib
import pickle
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tensors_alone(path: str) -> Iterator[None]:
    """`torch.load` inside refuses what is more than tensors and plain values.

    utils/checkpoint.py:216 and each of the host's backbones leave that to torch's default: before 2.6, or with
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD set, a file of weights runs whatever code it holds.
    """
    plain = torch.load

    def load(*args, **kwargs):
        return plain(*args, **(kwargs | {"weights_only": True}))

    torch.load = load
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: not read, for it is damaged or holds more than tensors and plain values, which "
                         f"could run any code ({str(error).splitlines()[0]}). Where you trust it, load it by "
                         "torch.load(..., weights_only=False) and save its state dict anew.") from error
    finally:
        torch.load = plain
