"""A software device with the name cuda for the CPU build of torch, compiled from `soft_cuda.cpp`.

The CPU computes its values, and it follows the rules of a GPU: operations on tensors of two devices and `.numpy()` are
errors, autocast uses the lists of CUDA, memory can be pinned, optimizers have fused steps, and torch.compile generates
Triton code. There are two devices. The device shows on which device tensors are and where Python waits for them. It
does not test speed, race conditions between streams, NCCL, or CUDA kernels.

torch looks for the hooks of CUDA only once, so the library must be loaded before `import torch`. With the variables of
`environment`, the interpreter does this at its start, also in child processes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

HERE = Path(__file__).parent
SOURCE = HERE / "soft_cuda.cpp"
FLAGS = ("-O1", "-std=c++20", "-shared", "-fPIC")
CAPABILITY = (9, 0)  # that of an H100
MEMORY = 80 * 2**30  # bytes of each device
OPERATORS = "SOFT_CUDA_OPERATORS"  # environment variable: file to which processes append the operators that have run


class Unavailable(RuntimeError):
    """The reason why the software device is not available."""


def environment() -> dict[str, str]:
    """Return the environment variables with which a process and its children use the device."""
    path = [str(HERE / "startup"), str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def build() -> Path:
    """Compile the library, once for each version of torch and of the source (half a minute), and return its path.

    It is stored in the folder of torch's compiled extensions. Several processes can call this at the same time.

    Raises:
        Unavailable: if this build of torch supports CUDA, or there is no C++ compiler.
    """
    torch = _torch_folder()
    built_for = runpy.run_path(str(torch / "version.py"))
    if built_for.get("cuda") or built_for.get("hip"):
        raise Unavailable("the software device needs the CPU build of torch; this build supports GPUs")
    if sys.platform != "linux":
        raise Unavailable(f"the software device is built on Linux, not on {sys.platform}")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        raise Unavailable("no C++ compiler for the software device; install g++, or set CXX")
    headers = (torch / "include", torch / "include/torch/csrc/api/include")
    command = [compiler, *FLAGS, *(f"-isystem{folder}" for folder in headers), str(SOURCE),
               f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    made_of = (SOURCE.read_text(), importlib.metadata.version("torch"), str(torch), *FLAGS)
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions").expanduser() / "soft_cuda"
    library = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                whole = Path(temporary) / library.name
                done = subprocess.run([*command, "-o", str(whole)], capture_output=True, text=True)
                if done.returncode:
                    raise Unavailable(f"{shlex.join(command)} ended with status {done.returncode}:\n"
                                      + done.stderr[-4000:])
                os.replace(whole, library)
    return library


def wait_for_torch() -> None:
    """Load the device at the first `import torch` of this process."""
    sys.meta_path.insert(0, _Loading())


class _Loading:
    """Finder of torch that loads the device before torch is executed, and installs it afterwards."""

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == "torch" else None
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_with_device(module: ModuleType) -> None:
            sys.meta_path.remove(self)
            library = _load()
            execute(module)
            _install(module, library)

        spec.loader.exec_module = execute_with_device
        return spec


def _load() -> ctypes.CDLL:
    """Load the library into this process; it registers its device in torch's library."""
    library = build()
    ctypes.CDLL(str(_torch_folder() / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    loaded.soft_cuda_memory.restype = loaded.soft_cuda_peak_memory.restype = ctypes.c_size_t
    loaded.soft_cuda_write_operators.argtypes = [ctypes.c_char_p]
    return loaded


def _torch_folder() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent


# Called with a name by each function that waits for a device, a stream or an event.
on_wait: list[Callable[[str], None]] = []


def _wait(name: str) -> None:
    for told in on_wait:
        told(name)


class Stream:
    """A stream whose operations complete immediately."""

    def __init__(self, device=None, **_) -> None:
        import torch

        self.device = torch.device("cuda", torch.cuda.current_device()) if device is None else torch.device(device)
        self.cuda_stream = self.stream_id = 0

    def wait_event(self, event: Event) -> None:
        pass

    def wait_stream(self, stream: Stream) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _wait("Stream.synchronize")

    def query(self) -> bool:
        return True


class Event:
    """An event that records the time of the CPU."""

    def __init__(self, *_, **__) -> None:
        self.seconds = time.perf_counter()

    def record(self, stream: Stream | None = None) -> None:
        self.seconds = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        _wait("Event.synchronize")

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.seconds - self.seconds)


def _install(torch: ModuleType, library: ctypes.CDLL) -> None:
    """Replace the functions of torch.cuda that need a CUDA build."""
    cuda = torch.cuda

    def current_device() -> int:  # a function, because torch.compile cannot hash those of ctypes
        return library.soft_cuda_device()

    def index(device=None) -> int:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
        return current_device() if found.index is None else found.index

    def set_device(device) -> None:
        if index(device) >= 0:  # torch allows -1, for no change
            library.soft_cuda_set_device(index(device))

    class OfDevice:
        """torch.cuda.device: the current device in a `with` block."""

        def __init__(self, device) -> None:
            self.index = index(device)

        def __enter__(self) -> None:
            self.before = current_device()
            set_device(self.index)

        def __exit__(self, *_) -> None:
            set_device(self.before)

    def allocated(device=None) -> int:
        return library.soft_cuda_memory(index(device))

    def most_allocated(device=None) -> int:
        return library.soft_cuda_peak_memory(index(device))

    properties = SimpleNamespace(
        name="Software H100", major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=MEMORY, multi_processor_count=132,
        warp_size=32, max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
        L2_cache_size=50 * 2**20, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472, gcnArchName="", uuid="0", is_integrated=0, is_multi_gpu_board=0)
    nothing = contextlib.nullcontext
    replaced = {
        "is_available": lambda: True, "is_initialized": lambda: True, "init": lambda: None, "_lazy_init": lambda: None,
        "device_count": lambda: 2, "current_device": current_device, "set_device": set_device,
        "device": OfDevice, "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: CAPABILITY, "get_arch_list": lambda: ["sm_90"],
        "get_device_properties": lambda device=None: properties, "is_bf16_supported": lambda *_, **__: True,
        "Stream": Stream, "Event": Event, "stream": nothing, "current_stream": Stream, "default_stream": Stream,
        "synchronize": lambda device=None: _wait("synchronize"), "is_current_stream_capturing": lambda: False,
        "empty_cache": lambda: None, "mem_get_info": lambda device=None: (MEMORY - allocated(device), MEMORY),
        "memory_allocated": allocated, "memory_reserved": allocated, "max_memory_allocated": most_allocated,
        "max_memory_reserved": most_allocated,
        "reset_peak_memory_stats": lambda device=None: library.soft_cuda_reset_peak_memory(index(device)),
        # The device uses the generator of the CPU.
        "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8), "get_rng_state_all": lambda: [],
        "set_rng_state": lambda state, device=None: None, "set_rng_state_all": lambda states: None}
    for name, value in replaced.items():
        setattr(cuda, name, value)
    torch.Tensor.record_stream = lambda self, stream: None

    on_the_host, cloned_on_the_host = torch.UntypedStorage.to, torch.UntypedStorage.clone

    def to(self, *, device, non_blocking: bool = False):
        """Copy a storage to another device, as torch.load does for map_location."""
        if torch.device(device).type != "cuda":
            return on_the_host(self, device=device, non_blocking=non_blocking)
        copy = torch.empty(self.size(), dtype=torch.uint8, device=device)
        copy.copy_(torch.tensor([], dtype=torch.uint8, device=self.device).set_(self))
        return copy.untyped_storage()

    torch.storage._StorageBase.to = torch.UntypedStorage.to = to
    torch.UntypedStorage.clone = lambda self: to(self, device=self.device) if self.is_cuda else cloned_on_the_host(self)

    if os.environ.get(OPERATORS):
        atexit.register(library.soft_cuda_write_operators, os.environ[OPERATORS].encode())
