"""Compile the kernels that torch.compile generates for a GPU, without a GPU; no kernel is launched.

    PYTHONPATH=tests:FOLDER_OF_TRITON python -m gpu_rehearsal -m gpu_rehearsal.inductor [KEY VALUE ...]

Inductor compiles one training step of Cerberus on the software device, and Triton compiles each kernel to a binary for
compute capability 9.0. KEY VALUE are keys of the configuration. Prints the number of kernels, and the number of kernel
launches and library calls per step.
"""

import collections
import logging
import re
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch._inductor.async_compile
import torch._inductor.config
import torch._inductor.runtime.triton_helpers
import triton
from torch._inductor.codecache import PyCodeCache
from torch._inductor.graph import GraphLowering
from triton.backends.compiler import GPUTarget

from . import budget, soft_cuda


class Driver:
    """The functions of a GPU driver that Triton calls before it compiles."""

    launcher_cls = None

    class utils:  # noqa: N801  Triton's name
        @staticmethod
        def get_device_properties(device) -> dict:
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32,
                    "sm_clock_rate": 1, "mem_clock_rate": 1, "mem_bus_width": 1}

    def get_current_target(self) -> GPUTarget:
        major, minor = soft_cuda.CAPABILITY
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device=0) -> int:
        return 0

    def get_device_interface(self):
        return torch.cuda

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def is_active(self) -> bool:
        return True

    def set_current_device(self, device) -> None:
        pass


class Kernel:
    """Replacement of a kernel that does nothing when it is launched."""

    def run(self, *args, **kwargs) -> None:
        pass

    def prepare_for_pickle(self) -> None:
        pass


def generated(*options: str) -> tuple[dict[str, str], list[str]]:
    """Return the sources of the Triton kernels of a training step by name, and the code that launches them."""
    kernels: dict[str, str] = {}
    code: list[str] = []
    compile_to_module = GraphLowering._compile_to_module

    def keep_source(self, kernel_name: str, source_code: str, device_str: str = "cuda") -> Kernel:
        kernels[kernel_name] = source_code
        return Kernel()

    def keep_code(self, *args, **kwargs):
        module = compile_to_module(self, *args, **kwargs)
        code.append(Path(module.__file__).read_text())
        return module

    torch._inductor.async_compile.AsyncCompile.triton = keep_source
    GraphLowering._compile_to_module = keep_code
    with torch._inductor.config.patch(compile_threads=1, force_disable_caches=True):
        with tempfile.TemporaryDirectory() as folder:
            try:
                budget.train(budget.trainer_of("cerberus", Path(folder), "MODEL.COMPILE", True, *options), 1)
            except FloatingPointError:  # without launched kernels there are no losses
                pass
    return kernels, code


def launches(code: list[str]) -> tuple[int, int]:
    """Count the launches of Triton kernels, and the calls of libraries such as cuDNN, in the code of a step."""
    bodies = [text[text.index("def call("):] for text in code]
    library = r"(?:extern_kernels\.\w+|torch\.ops\.[\w.]+|aten\.[\w.]+)\("
    return tuple(sum(len(re.findall(pattern, body)) for body in bodies) for pattern in (r"\.run\(", library))


def prepare() -> None:
    """Make Triton and Inductor treat the software device as a GPU."""
    triton.runtime.driver.set_active(Driver())
    for name, value in {"_cuda_getCurrentRawStream": 0, "_cuda_getDevice": 0, "_cuda_setDevice": None,
                        "_cuda_exchangeDevice": 0, "_cuda_maybeExchangeDevice": 0}.items():
        setattr(torch._C, name, lambda device=0, value=value: value)
    torch.cuda._exchange_device = lambda device: 0
    torch.cuda._maybe_exchange_device = lambda device: 0  # must be a different function for torch.compile
    torch.cuda._DeviceGuard = torch.cuda.device
    torch._C._dynamo.guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device="cuda")
    torch._inductor.runtime.triton_helpers.set_driver_to_gpu = lambda: None


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    prepare()
    kernels, code = generated(*sys.argv[1:])
    own, libraries = launches(code)
    print(f"{len(kernels)} kernels; {own} launches of them and {libraries} calls of libraries in a step", flush=True)
    torch.version.cuda = "13.0"  # set late, because torch would otherwise assume a build with CUDA
    failed = collections.Counter()
    for name, source in kernels.items():
        try:
            getattr(PyCodeCache.load(source), name).precompile(warm_cache_only=True)
        except Exception as error:  # compilers raise errors of any kind
            failed[repr(error)[:500]] += 1
    print(f"{len(kernels) - failed.total()} compiled for compute capability {soft_cuda.CAPABILITY}")
    for error, count in failed.items():
        print(f"{count} kernels: {error}")
    return int(bool(failed) or not kernels)


if __name__ == "__main__":
    sys.exit(main())
