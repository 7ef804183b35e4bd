"""Switches that make a step cheaper and leave what it computes alone: precision, memory format, compilation, optimiser.

Each acts on a model or optimiser of any kind, FastReID's own included, and is a key of the configuration.
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

logger = logging.getLogger("fastreid.cerberus")

AUTOCAST = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Small kernels are launched several at once: 481 launches in place of 864 for a step of Cerberus. Inductor's own name
# for a mode cannot be given beside options.
COMPILE_MODES = {"default": {"combo_kernels": True},
                 "reduce-overhead": {"combo_kernels": True, "triton.cudagraphs": True}}
CHANNELS_LAST = "channels_last"  # how an optimiser's groups remember the order of their moments


def cast_forward(model: nn.Module, training: str = "", evaluation: str = "", channels_last: bool = False) -> None:
    """Let `model` run under autocast, and on images in channels-last order; called with FastReID's batches as before.

    bfloat16 has float32's range, so gradients need no scaler and FastReID's plain step is left as it is. Losses leave
    autocast by themselves (`losses.py`, `host.training`).

    Args:
        training, evaluation: a key of `AUTOCAST`. "" leaves the precision of training to FastReID, and evaluates in
            float32 without TF32.
    """
    hooks = _ForwardHooks(training, evaluation, channels_last)
    model.register_forward_pre_hook(hooks.before)
    model.register_forward_hook(hooks.after, always_call=True)


class _ForwardHooks:
    """Enter autocast before a forward pass and leave it after; see `cast_forward`."""

    def __init__(self, training: str, evaluation: str, channels_last: bool) -> None:
        self.training, self.evaluation, self.channels_last = AUTOCAST[training], AUTOCAST[evaluation], channels_last
        self.entered: dict[int, list] = {}  # contexts by thread, since autocast is a state of the thread

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
_tf32: list[bool] = []  # a setting of torch to come back to, one for each pass that is under way


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolve float32 in float32: by default cuDNN rounds its inputs to TF32, 10 bits after the point in place of 23.

    The setting is one for all threads, so the last pass that ends restores it.
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
    """Refuse precisions that do not exist, or that FastReID's mixed precision would work against."""
    for key, name, allowed in (("SOLVER.AUTOCAST", training, ("", "bfloat16")),
                               ("TEST.AUTOCAST", evaluation, tuple(AUTOCAST))):
        if name not in allowed:
            hint = "; float16 needs FastReID's gradient scaler: SOLVER.AMP.ENABLED True" if name == "float16" else ""
            raise ValueError(f"{key} is '{name}', expected one of {allowed}{hint}.")
    if training and host_mixed_precision:
        raise ValueError(f"SOLVER.AUTOCAST is '{training}' and SOLVER.AMP.ENABLED True: two precisions for one "
                         "step. Set SOLVER.AMP.ENABLED False, or SOLVER.AUTOCAST '' for FastReID's float16.")


def computes_in_half(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; where it does not, autocast is slower than float32."""
    if device.type == "cuda":
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and processor_has("avx512_bf16", "amx_bf16", "bf16")


def compile_model(model: nn.Module, **options) -> None:
    """Compile the methods that a model names in `compilable`; of FastReID's models everything but the heads.

    State and checkpoints keep their names. The first step takes a minute or so.

    Each part is compiled as a whole and counts its recompilations for itself. `nn.Module.compile` compiles the blocks
    of a Sequential one by one, and by default torch counts by code, which blocks share: after the eighth graph it runs
    the others uncompiled.

    Args:
        options: of torch.compile.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # of newer releases
        options = {"isolate_recompiles": True, **options}
    methods = getattr(model, "compilable", ())
    for name in methods:
        setattr(model, name, torch.compile(getattr(model, name), dynamic=False, **options))
    if not methods:
        for name, child in model.named_children():
            if "head" not in name:
                child.forward = torch.compile(child.forward, dynamic=False, **options)


def compiler_options(mode: str, device: torch.device) -> dict:
    """Arguments of `compile_model` for MODEL.COMPILE_MODE, of `COMPILE_MODES`; none on a CPU."""
    if mode not in COMPILE_MODES:
        raise ValueError(f"MODEL.COMPILE_MODE is '{mode}', expected one of {', '.join(COMPILE_MODES)}")
    return {"options": COMPILE_MODES[mode]} if device.type == "cuda" else {}


def missing_for_compilation(model: nn.Module) -> str | None:
    """Why torch.compile would end in an error here, or gain nothing; None where nothing stands against it."""
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        return "batch statistics shared by MODEL.SYNC_BN cut the graph at every layer"
    compilers = [os.environ.get("CC", "cc"), "gcc", "clang"]
    if model.device.type == "cuda":
        if torch.cuda.get_device_capability(model.device) < (7, 0) and not torch.version.hip:
            return "the GPU is older than the compiler's"
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
            return "Python's header files are not installed"
    else:
        compilers.append(os.environ.get("CXX", "c++"))
    return None if any(map(shutil.which, compilers)) else "a C compiler is not installed"


def store_channels_last(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Store convolutions' weights and gradients in channels-last order, within FastReID's flat buffers.

    FastReID flattens parameters (utils/params.py) in their default order; here each segment is permuted where it
    lies, so that the buffer stays valid and convolutions need no reordering in every step.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = _reordered(parameter.data)
            if parameter.grad is not None:
                parameter.grad = _reordered(parameter.grad)
    for group in optimizer.param_groups:
        group[CHANNELS_LAST] = True


def check_moments(optimizer: torch.optim.Optimizer, channels_last: bool) -> None:
    """Refuse a resumed optimiser whose moments are in the other order: they would meet the wrong weights."""
    resumed = any(group.get(CHANNELS_LAST, False) for group in optimizer.param_groups)
    if resumed != channels_last:
        raise ValueError(f"the checkpoint's optimiser was trained with MODEL.CHANNELS_LAST {resumed}, this run has "
                         f"{channels_last}; resume with MODEL.CHANNELS_LAST {resumed}")


def fuse(optimizer: torch.optim.Optimizer, enabled: bool, clips: bool = False) -> None:
    """One kernel for the whole step of each group, or the default implementation; before or after resuming.

    Args:
        clips: whether the step clips gradients, so that a gradient scaler has to unscale them before the step.
    """
    if "fused" not in optimizer.defaults:
        if enabled:
            logger.info("SOLVER.FUSED: the optimiser of SOLVER.OPT has no fused step; it runs as it is")
        return
    optimizer._step_supports_amp_scaling = enabled and not clips  # as torch sets it for those that are built fused
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = enabled, False if enabled else None
        for parameter in group["params"]:
            if enabled and group.get("momentum") and optimizer.state[parameter].get("momentum_buffer") is None:
                # SGD allocates it in the first step, and leaves it uninitialised where a scaler skips that step.
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):  # the fused kernel counts steps where the parameters are
                state["step"] = state["step"].to(parameter.device if enabled else "cpu", torch.float32)


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step of every group is one kernel."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _in_channels_last(batched_inputs):
    if isinstance(batched_inputs, Tensor):
        return batched_inputs.to(memory_format=torch.channels_last)
    return {**batched_inputs, "images": batched_inputs["images"].to(memory_format=torch.channels_last)}


def _reordered(tensor: Tensor) -> Tensor:
    """The same values, OIHW to the reader, stored as OHWI in the same memory."""
    values = tensor.permute(0, 2, 3, 1).contiguous()
    return tensor.view(-1).copy_(values.view(-1)).view(values.shape).permute(0, 3, 1, 2)
