"""Distributed training, started by `--num-gpus` or by torchrun, on GPUs or on CPUs."""

import datetime
import importlib
import os

import torch
import torch.distributed as dist

from .patching import replace

# Set by torchrun. Other launchers may set some of them.
_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

# The other processes wait while the main process evaluates; the default timeout of 10 minutes would be too short.
_PATIENCE = datetime.timedelta(hours=4)


def join_or_launch() -> None:
    """Make FastReID's launcher support torchrun and CPUs.

    FastReID's launcher (engine/launch.py) supports only NCCL and GPUs, communicates before each process has selected
    its GPU (:84), and ignores torchrun, so that each process would train a separate model. Here, a process started
    by torchrun joins its process group, and `--num-gpus` starts CPU processes on a machine without a GPU.
    """
    module = importlib.import_module("fastreid.engine.launch")  # the package has the function under that name

    def build(host_launch):
        def launch(main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url=None, args=()):
            if _TORCHRUN <= set(os.environ):
                return _joined(main_func, args)
            if num_gpus_per_machine * num_machines <= 1:
                return host_launch(main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args)
            return _spawn(main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args)

        return launch

    replace(module, "launch", build)


def wrap_models_on_cpu() -> None:
    """Allow DistributedDataParallel on CPUs: engine/defaults.py:210 passes device_ids, which CPUs do not have."""
    import fastreid.engine.defaults as defaults
    from torch.nn.parallel import DistributedDataParallel

    class DistributedOnAnyDevice(DistributedDataParallel):
        def __init__(self, module, device_ids=None, **kwargs):
            on_cpu = next(module.parameters()).device.type == "cpu"
            super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)

    # `replace` would also rebind the name in torch.
    defaults.DistributedDataParallel = DistributedOnAnyDevice


def _joined(main_func, args):
    """Run in a process started by torchrun."""
    return _run(main_func, args, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))


def _spawn(main_func, per_machine, num_machines, machine_rank, dist_url, args) -> None:
    if torch.cuda.is_available():
        _check_devices(per_machine)
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise ValueError("--dist-url is 'auto', expected tcp://ADDRESS:PORT of the first machine with "
                             f"--num-machines {num_machines}.")
        dist_url = f"tcp://127.0.0.1:{importlib.import_module('fastreid.engine.launch')._find_free_port()}"
    torch.multiprocessing.spawn(_worker, (main_func, per_machine, num_machines, machine_rank, dist_url, args),
                                nprocs=per_machine)


def _worker(local_rank, main_func, per_machine, num_machines, machine_rank, dist_url, args) -> None:
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // per_machine))
    _run(main_func, args, local_rank, per_machine, init_method=dist_url, world_size=per_machine * num_machines,
         rank=machine_rank * per_machine + local_rank)


def _run(main_func, args, local_rank: int, per_machine: int, **group):
    """Join the process group, run `main_func`, and leave the group."""
    from fastreid.utils import comm

    if torch.cuda.is_available():
        _check_devices(per_machine)
        torch.cuda.set_device(local_rank)  # before any communication
        dist.init_process_group("nccl", timeout=_PATIENCE, device_id=torch.device("cuda", local_rank), **group)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE, **group)
    _know_neighbours(per_machine)
    result = main_func(*args)
    dist.barrier()  # a process that exits while another communicates with it makes that one fail
    # FastReID caches process groups; their threads would abort the shutdown of the interpreter.
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()
    return result


def _know_neighbours(per_machine: int) -> None:
    """Create the group of the processes on this machine, from which FastReID gets the local rank of a process."""
    from fastreid.utils import comm

    sizes = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, per_machine)
    if set(sizes) != {per_machine}:
        raise ValueError(f"the machines run {sorted(set(sizes))} processes, expected the same number on each "
                         "(--num-gpus, or --nproc-per-node of torchrun).")
    for first in range(0, dist.get_world_size(), per_machine):
        ranks = list(range(first, first + per_machine))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def _check_devices(wanted: int) -> None:
    found = torch.cuda.device_count()
    if wanted > found:
        raise ValueError(f"{wanted} processes on this machine (--num-gpus, or --nproc-per-node of torchrun), but torch "
                         f"finds {found} GPU(s); expected at most one process per GPU. To train on CPUs, hide the "
                         "GPUs: set CUDA_VISIBLE_DEVICES= (empty) before the command.")
