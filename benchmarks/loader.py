"""Images per second of FastReID's loader and of the resident loader, and how long a training step waits for each.

    python benchmarks/loader.py                                     synthetic people, half a minute on a CPU core
    python benchmarks/loader.py --data datasets --config configs/Market1501/cerberus_R50.yml --iterations 200

Loading: training batches at --size with flip, padding and random erasing. The CPU time of this process is also
comparable on a shared machine.
Training: steps of the trainer. `waiting` is FastReID's `data_time`, next to the time of the whole iteration. On a GPU
the resident loader only queues its work. The last column therefore compares each iteration with one that uses a
prepared batch: the cost of the input, waited for or not.
"""

import argparse
import logging
import os
import pathlib
import sys
import tempfile
import time

from cerberus_plugin import CerberusTrainer, add_cerberus_config, host
from cerberus_plugin.data import resident
from cerberus_plugin.data.build import build_train_loader
from cerberus_plugin.synthetic.dataset import draw_dataset
from cerberus_plugin.utils.processor import usable_cores

import torch
from common import table, write
from fastreid.config import get_cfg
from fastreid.data import build as host_build
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import EventStorage

ROOT = pathlib.Path(__file__).resolve().parents[1]
CPU_CONFIG = ROOT / "configs/Market1501/cerberus_R18_cpu.yml"
GPU_CONFIG = ROOT / "configs/Market1501/cerberus_R50.yml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--data", type=pathlib.Path,
                        help="folder with Market-1501-v15.09.15 (default: a synthetic dataset)")
    parser.add_argument("--ids", type=int, default=32,
                        help="training identities of the synthetic dataset, with 8 images each")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--size", type=int, nargs=2, default=[384, 128], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=100 if gpu else 10, help="batches to time, after 2 for warm-up")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, usable_cores()],
                        help="numbers of processes of FastReID's loader to compare")
    parser.add_argument("--config", type=pathlib.Path, default=GPU_CONFIG if gpu else CPU_CONFIG,
                        help="configuration of the training, with its image size")
    parser.add_argument("--iterations", type=int, default=50 if gpu else 3,
                        help="training steps to time, after 2 for warm-up")
    parser.add_argument("--train-batch", type=int, default=64 if gpu else 16)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the results")
    args = parser.parse_args()
    logging.getLogger("fastreid.engine").setLevel(logging.WARNING)  # hide the printed model
    host.use_device(args.device)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.data or draw(pathlib.Path(scratch), args.ids)
        host_build._root = str(root)
        loading = measure_loading(args, scratch)
        training = measure_training(args, scratch)
    print(f"\n{args.batch} images of {args.size[0]}x{args.size[1]} per batch, on {args.device}\n")
    print(table(["loader", "cores", "images/s", "images/s per core", "CPU ms per image", "start, s", "MiB"],
                [[r["loader"], r["cores"], round(r["images_per_second"]),
                  round(r["images_per_second_and_core"]) if r["images_per_second_and_core"] else "",
                  f"{r['cpu_ms_an_image']:.2f}" if r["cpu_ms_an_image"] else "", round(r["start_seconds"], 2),
                  round(r["mib"], 1) if r["mib"] else ""] for r in loading]))
    print(f"\n{args.config.name}, {args.train_batch} images per batch\n")
    print(table(["loader", "ms per iteration", "waiting, ms", "waiting, %", "cost of input, %"],
                [[r["loader"], round(r["iteration_ms"], 1), round(r["waiting_ms"], 2),
                  f"{100 * r['waiting_share']:.2f}", f"{100 * r['input_share']:.2f}"] for r in training]))
    if args.output:
        write(args.output, {"device": args.device, "size": args.size, "batch": args.batch, "loading": loading,
                            "training": training, "config": args.config.name, "train_batch": args.train_batch})


def draw(root: pathlib.Path, ids: int) -> pathlib.Path:
    draw_dataset(str(root), train_ids=ids, test_ids=2, images_per_id=8, distractors=0, junk=0)
    return root


def config(args, file: pathlib.Path, scratch: str, *options):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(file))
    cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.BACKBONE.PRETRAIN", False, "SEED", 1,
                         "DATASETS.ALLOW_SUBSET", True, "SOLVER.WARMUP_ITERS", 0,
                         "OUTPUT_DIR", os.path.join(scratch, "run"), *options])
    if args.device == "cpu":
        cfg.SOLVER.AMP.ENABLED = False
    return cfg


def measure_loading(args, scratch: str) -> list[dict]:
    rows = []
    for workers in [*args.workers, None]:  # None: resident
        cfg = config(args, GPU_CONFIG, scratch, "INPUT.SIZE_TRAIN", args.size, "INPUT.PADDING.ENABLED", True,
                     "SOLVER.IMS_PER_BATCH", args.batch, "DATALOADER.NUM_WORKERS", workers or 0,
                     "DATALOADER.RESIDENT", workers is None)
        seed_all_rng(1)
        started = time.perf_counter()
        loader = build_train_loader(cfg)
        start = time.perf_counter() - started
        check_kind(loader, workers is None)
        batches = iter(loader)
        for _ in range(2):
            next(batches)
        synchronise()
        started, computed = time.perf_counter(), time.process_time()
        for _ in range(args.batches):
            next(batches)
        synchronise()
        computed = time.process_time() - computed
        count = args.batch * args.batches
        speed = count / (time.perf_counter() - started)
        on_gpu = workers is None and args.device != "cpu"
        cores = torch.get_num_threads() if workers is None else max(workers, 1)
        rows.append({"loader": "resident" if workers is None else f"FastReID, {workers} processes",
                     "cores": 0 if on_gpu else cores, "images_per_second": speed,
                     "images_per_second_and_core": None if on_gpu else speed / cores,
                     "cpu_ms_an_image": None if workers else 1e3 * computed / count,
                     "start_seconds": start, "mib": resident.resident_bytes() / resident.MIB or None})
        del batches
    resident.release()
    return rows


def measure_training(args, scratch: str) -> list[dict]:
    rows = []
    for name in (*(f"FastReID, {workers} processes" for workers in args.workers), "resident", "one prepared batch"):
        workers = int(name.split()[1]) if name.startswith("FastReID") else 0
        cfg = config(args, args.config, scratch, "SOLVER.IMS_PER_BATCH", args.train_batch,
                     "DATALOADER.NUM_WORKERS", workers, "DATALOADER.RESIDENT", not name.startswith("FastReID"))
        seed_all_rng(1)
        trainer = CerberusTrainer(cfg)
        check_kind(trainer.data_loader, not name.startswith("FastReID"))
        steps = trainer._trainer
        if name == "one prepared batch":
            batch = next(steps._data_loader_iter)
            steps._data_loader_iter = iter(lambda batch=batch: dict(batch), None)
        waited = []
        with EventStorage() as storage:
            for step in range(2 + args.iterations):
                if step == 2:
                    synchronise()
                    started = time.perf_counter()
                trainer.iter = steps.iter = step
                steps.run_step()
                waited.append(storage.latest()["data_time"][0])
            synchronise()
        iteration = (time.perf_counter() - started) / args.iterations
        waiting = sum(waited[2:]) / args.iterations
        rows.append({"loader": name, "iteration_ms": 1e3 * iteration, "waiting_ms": 1e3 * waiting,
                     "waiting_share": waiting / iteration})
        del trainer, steps
    for row in rows:
        row["input_share"] = max(0.0, 1 - rows[-1]["iteration_ms"] / row["iteration_ms"])
    return rows


def check_kind(loader, wanted: bool) -> None:
    if isinstance(loader, resident.ResidentLoader) != wanted:
        sys.exit("the images do not fit into memory, or a transform has no batched form: see the log line above")


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
