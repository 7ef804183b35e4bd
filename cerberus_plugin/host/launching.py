"""Processes of one training: started by the host's launcher, by torchrun, on GPUs or on CPUs."""

import datetime
import importlib
import os

import torch
import torch.distributed as dist

from .patching import replace

# All that torchrun sets and a launcher of another kind may set only in part.
_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

# The main process evaluates while the others wait; the default of 10 minutes would end them.
_PATIENCE = datetime.timedelta(hours=4)


def join_or_launch() -> None:
    """Let every way of starting several processes begin the same training.

    The host's launcher (engine/launch.py) starts its own processes, for NVIDIA's library and GPUs alone, lets them
    talk before each has chosen its GPU (:84), and knows nothing of torchrun, under which each process would train by
    itself. A process that torchrun has started joins its group here; `--num-gpus` starts processes on CPUs where
    there is no GPU.
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
    """Join the group, run, and leave the group in order."""
    from fastreid.utils import comm

    if torch.cuda.is_available():
        _check_devices(per_machine)
        torch.cuda.set_device(local_rank)  # before the first word to another process
        dist.init_process_group("nccl", timeout=_PATIENCE, device_id=torch.device("cuda", local_rank), **group)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE, **group)
    _know_neighbours(per_machine)
    result = main_func(*args)
    dist.barrier()  # a process that ends while another still talks to it takes that one down
    # The host keeps groups in a cache, whose threads would abort the interpreter's shutdown.
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()
    return result


def _know_neighbours(per_machine: int) -> None:
    """The group of this machine's processes, from which the host takes a process's local rank."""
    from fastreid.utils import comm

    sizes = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, per_machine)
    if set(sizes) != {per_machine}:
        raise ValueError(f"machines have {sorted(set(sizes))} processes each, expected the same number on all of them "
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
                         f"finds {found} GPU(s); expected at most one process a GPU. To train on CPUs, hide the GPUs: "
                         "CUDA_VISIBLE_DEVICES= (empty) before the command.")
