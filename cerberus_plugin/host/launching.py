"""Processes of one training: started by the host's launcher, by torchrun, on GPUs or on CPUs."""

import importlib
import os

import torch
import torch.distributed as dist

from .patching import replace


def join_or_launch() -> None:
    """Let every way of starting several processes begin the same training.

    The host's launcher (engine/launch.py) starts its own processes, for NVIDIA's library and GPUs alone, and knows
    nothing of torchrun, under which each process would train by itself. A process that torchrun has started joins
    its group here; `--num-gpus` starts processes on CPUs where there is no GPU.
    """
    module = importlib.import_module("fastreid.engine.launch")  # the package has the function under that name

    def build(host_launch):
        def launch(main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url=None, args=()):
            processes = num_gpus_per_machine * num_machines
            if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
                return _joined(main_func, args)
            if processes <= 1 or torch.cuda.is_available():
                _check_devices(num_gpus_per_machine)
                return host_launch(main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args)
            return _spawn_on_cpu(main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args)

        return launch

    replace(module, "launch", build)


def wrap_models_on_cpu() -> None:
    """Distributed training of a model on CPUs: engine/defaults.py:210 names a device, which only GPUs have."""
    import fastreid.engine.defaults as defaults
    from torch.nn.parallel import DistributedDataParallel

    class DistributedOnAnyDevice(DistributedDataParallel):
        def __init__(self, module, device_ids=None, **kwargs):
            on_cpu = next(module.parameters()).device.type == "cpu"
            super().__init__(module, device_ids=None if on_cpu else device_ids, **kwargs)

    # Not by `replace`: it would rebind the name in torch as well.
    defaults.DistributedDataParallel = DistributedOnAnyDevice


def _joined(main_func, args):
    """Run in a process that torchrun has started."""
    local_rank, local_size = (int(os.environ[key]) for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        _check_devices(local_size)
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    _know_neighbours(local_size)
    return _ended(main_func, args)


def _spawn_on_cpu(main_func, per_machine, num_machines, machine_rank, dist_url, args) -> None:
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise ValueError("--dist-url is 'auto', expected tcp://ADDRESS:PORT of the first machine with "
                             f"--num-machines {num_machines}.")
        dist_url = f"tcp://127.0.0.1:{importlib.import_module('fastreid.engine.launch')._find_free_port()}"
    torch.multiprocessing.spawn(_cpu_worker, (main_func, per_machine, num_machines, machine_rank, dist_url, args),
                                nprocs=per_machine)


def _cpu_worker(local_rank, main_func, per_machine, num_machines, machine_rank, dist_url, args) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // per_machine))
    dist.init_process_group("gloo", init_method=dist_url, world_size=per_machine * num_machines,
                            rank=machine_rank * per_machine + local_rank)
    _know_neighbours(per_machine)
    _ended(main_func, args)


def _know_neighbours(per_machine: int) -> None:
    """The group of this machine's processes, from which the host takes a process's local rank."""
    from fastreid.utils import comm

    for first in range(0, dist.get_world_size(), per_machine):
        ranks = list(range(first, first + per_machine))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def _ended(main_func, args):
    """Run, and leave the group in order: the host keeps groups in a cache, whose threads would abort the shutdown."""
    from fastreid.utils import comm

    result = main_func(*args)
    dist.barrier()  # a process that ends while another still talks to it takes that one down
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()
    return result


def _check_devices(wanted: int) -> None:
    found = torch.cuda.device_count()
    if wanted > max(1, found):
        raise ValueError(f"{wanted} processes on this machine (--num-gpus, or --nproc-per-node of torchrun), but torch "
                         f"finds {found} GPU(s); expected at most one process a GPU.")
