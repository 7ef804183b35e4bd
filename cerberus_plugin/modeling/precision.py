"""Options that speed up a training step without changing the algorithm: precision, memory format, compilation, fusion.

Each option is a configuration key and works for any model or optimiser, including those of FastReID.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import shutil
import sysconfig
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..utils.processor import processor_has
from .cameras import camera_embeddings

logger = logging.getLogger("fastreid.cerberus")

AUTOCAST = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# `combo_kernels` combines launches of small kernels: 481 launches instead of 864 per step of Cerberus. torch.compile
# does not accept `mode` together with `options`, so the modes are given as options.
COMPILE_MODES = {"default": {"combo_kernels": True},
                 "reduce-overhead": {"combo_kernels": True, "triton.cudagraphs": True}}
CHANNELS_LAST = "channels_last"  # key of the optimiser's groups that stores the memory format of their moments


def cast_forward(model: nn.Module, training: str = "", evaluation: str = "", channels_last: bool = False) -> None:
    """Run forward passes of `model` under autocast, and optionally with images in channels-last format.

    bfloat16 has the range of float32, so that gradients need no scaler and FastReID's training step is unchanged. The
    losses disable autocast (`losses.py`, `host.training`).

    Args:
        training: key of `AUTOCAST`, the precision of training; "" for that of FastReID.
        evaluation: key of `AUTOCAST`, the precision of evaluation; "" for float32 without TF32.
        channels_last: convert images to channels-last format.
    """
    hooks = _ForwardHooks(training, evaluation, channels_last)
    model.register_forward_pre_hook(hooks.before)
    model.register_forward_hook(hooks.after, always_call=True)


class _ForwardHooks:
    """Enter autocast before a forward pass and leave it after; see `cast_forward`."""

    def __init__(self, training: str, evaluation: str, channels_last: bool) -> None:
        self.training, self.evaluation, self.channels_last = AUTOCAST[training], AUTOCAST[evaluation], channels_last
        self.entered: dict[int, list] = {}  # contexts by thread, because autocast is thread-local

    def before(self, model: nn.Module, inputs: tuple) -> tuple:
        batch, *others = inputs
        if self.channels_last:
            batch = _in_channels_last(batch)
        dtype = self.training if model.training else self.evaluation
        if dtype:
            context = torch.autocast(model.device.type, dtype)
        else:
            context = contextlib.nullcontext() if model.training else _without_tf32()
        context.__enter__()
        self.entered.setdefault(threading.get_ident(), []).append(context)
        return batch, *others

    def after(self, model: nn.Module, inputs: tuple, output) -> None:
        self.entered[threading.get_ident()].pop().__exit__(None, None, None)


_tf32_lock = threading.Lock()
_tf32: list[bool] = []  # the setting of torch to restore, once for each active forward pass


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Disable TF32: by default cuDNN rounds the inputs of float32 convolutions to TF32 (mantissa of 10 bits, not 23).

    The setting is global, so the last of several concurrent forward passes restores it.
    """
    cudnn = torch.backends.cudnn
    with _tf32_lock:
        _tf32.append(_tf32[0] if _tf32 else cudnn.allow_tf32)
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        with _tf32_lock:
            before = _tf32.pop()
            if not _tf32:
                cudnn.allow_tf32 = before


def check_autocast(training: str, evaluation: str, host_mixed_precision: bool) -> None:
    """Check the autocast options.

    Args:
        training: SOLVER.AUTOCAST.
        evaluation: TEST.AUTOCAST.
        host_mixed_precision: SOLVER.AMP.ENABLED.

    Raises:
        ValueError: if a precision is unknown, or SOLVER.AUTOCAST is combined with FastReID's mixed precision.
    """
    for key, name, allowed in (("SOLVER.AUTOCAST", training, ("", "bfloat16")),
                               ("TEST.AUTOCAST", evaluation, tuple(AUTOCAST))):
        if name not in allowed:
            hint = "; float16 needs FastReID's gradient scaler: SOLVER.AMP.ENABLED True" if name == "float16" else ""
            raise ValueError(f"{key} is '{name}', expected one of {allowed}{hint}.")
    if training and host_mixed_precision:
        raise ValueError(f"SOLVER.AUTOCAST is '{training}' and SOLVER.AMP.ENABLED True: two precisions for one "
                         "step. Set SOLVER.AMP.ENABLED False, or SOLVER.AUTOCAST '' for FastReID's float16.")


def computes_in_half(device: torch.device) -> bool:
    """Return whether the device has bfloat16 arithmetic; without it, autocast is slower than float32."""
    if device.type == "cuda":
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and processor_has("avx512_bf16", "amx_bf16", "bf16")


def compile_model(model: nn.Module, **options) -> None:
    """Compile the methods in the attribute `compilable` of a model; of FastReID's models all children except heads.

    Names of parameters and of checkpoint tensors do not change. The first step takes about a minute.

    Each part is compiled as a whole, with a separate count of recompilations. `nn.Module.compile` would compile the
    blocks of a Sequential one by one; because torch counts recompilations by code object, which the blocks share, it
    would run all blocks after the eighth graph without compilation.

    Args:
        options: options of torch.compile.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # newer releases of torch
        options = {"isolate_recompiles": True, **options}
    methods = getattr(model, "compilable", ())
    for name in methods:
        setattr(model, name, torch.compile(getattr(model, name), dynamic=False, **options))
    if not methods:
        for name, child in model.named_children():
            if "head" not in name:
                child.forward = torch.compile(child.forward, dynamic=False, **options)


def compiler_options(mode: str, device: torch.device) -> dict:
    """Return the arguments of `compile_model` for MODEL.COMPILE_MODE; empty on a CPU.

    Raises:
        ValueError: if the mode is not in `COMPILE_MODES`.

    Examples:
        >>> compiler_options("default", torch.device("cuda"))
        {'options': {'combo_kernels': True}}
    """
    if mode not in COMPILE_MODES:
        raise ValueError(f"MODEL.COMPILE_MODE is '{mode}', expected one of {', '.join(COMPILE_MODES)}")
    return {"options": COMPILE_MODES[mode]} if device.type == "cuda" else {}


def missing_for_compilation(model: nn.Module) -> str | None:
    """Return the reason why torch.compile would fail or have no benefit for a model; None if it can be used."""
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        return "the synchronised batch statistics of MODEL.SYNC_BN cause a graph break at each layer"
    if camera_embeddings(model):
        return "camera embeddings (MODEL.BACKBONE.SIE_CAMERAS) are not supported by MODEL.COMPILE"
    compilers = [os.environ.get("CC", "cc"), "gcc", "clang"]
    if model.device.type == "cuda":
        if torch.cuda.get_device_capability(model.device) < (7, 0) and not torch.version.hip:
            return "the compiler does not support this GPU, which is too old"
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
            return "Python's header files are not installed"
    else:
        compilers.append(os.environ.get("CXX", "c++"))
    return None if any(map(shutil.which, compilers)) else "a C compiler is not installed"


def store_channels_last(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Store weights and gradients of convolutions in channels-last format, within FastReID's flat buffers.

    FastReID flattens parameters (utils/params.py) in their default format. This function permutes each segment in
    place, so that the buffer remains valid and convolutions do not convert their weights in each step.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = _reordered(parameter.data)
            if parameter.grad is not None:
                parameter.grad = _reordered(parameter.grad)
    for group in optimizer.param_groups:
        group[CHANNELS_LAST] = True


def check_moments(optimizer: torch.optim.Optimizer, channels_last: bool) -> None:
    """Check that the moments of a resumed optimiser have the memory format of the weights.

    Raises:
        ValueError: if they do not; the moments would otherwise be applied to the wrong weights.
    """
    resumed = any(group.get(CHANNELS_LAST, False) for group in optimizer.param_groups)
    if resumed != channels_last:
        raise ValueError(f"the optimiser of the checkpoint was trained with MODEL.CHANNELS_LAST {resumed}, this run "
                         f"has {channels_last}; resume with MODEL.CHANNELS_LAST {resumed}")


def fuse(optimizer: torch.optim.Optimizer, enabled: bool, clips: bool = False) -> None:
    """Switch an optimiser to its fused implementation or to the default one; before or after resuming.

    Args:
        enabled: True for the fused implementation, one kernel per parameter group and step.
        clips: whether the step clips gradients, so that a gradient scaler must unscale them before the step.
    """
    if "fused" not in optimizer.defaults:
        if enabled:
            logger.info("SOLVER.FUSED has no effect: the optimiser of SOLVER.OPT has no fused implementation")
        return
    optimizer._step_supports_amp_scaling = enabled and not clips  # as set by torch for fused optimisers
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = enabled, False if enabled else None
        for parameter in group["params"]:
            if enabled and group.get("momentum") and optimizer.state[parameter].get("momentum_buffer") is None:
                # SGD allocates the buffer in its first step, and does not initialise it if a scaler skips this step.
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):  # the fused kernel needs the counter on the parameter's device
                state["step"] = state["step"].to(parameter.device if enabled else "cpu", torch.float32)


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether all parameter groups use the fused implementation."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _in_channels_last(batched_inputs):
    if isinstance(batched_inputs, Tensor):
        return batched_inputs.to(memory_format=torch.channels_last)
    return {**batched_inputs, "images": batched_inputs["images"].to(memory_format=torch.channels_last)}


def _reordered(tensor: Tensor) -> Tensor:
    """The same values with the shape OIHW, stored as OHWI in the same memory."""
    values = tensor.permute(0, 2, 3, 1).contiguous()
    return tensor.view(-1).copy_(values.view(-1)).view(values.shape).permute(0, 3, 1, 2)
