"""The stages of tools/gpu_check.py. Each runs in a separate process.

    python tools/gpu_stages.py STAGE --seconds 60 --output FOLDER --data FOLDER [--tiny]
"""

import argparse
import contextlib
import functools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import setting  # noqa: E402
from cerberus_plugin.data import resident  # noqa: E402
from cerberus_plugin.data.augment import Augmentation, Recipe, draw  # noqa: E402
from cerberus_plugin.data.build import build_train_loader  # noqa: E402
from cerberus_plugin.host import use_device  # noqa: E402
from cerberus_plugin.metrics.ranking import reid_metrics_from_features  # noqa: E402
from cerberus_plugin.modeling.precision import missing_for_compilation  # noqa: E402
from cerberus_plugin.synthetic.dataset import draw_dataset  # noqa: E402
from cerberus_plugin.utils.environment import hardware, memory_gib, timed, versions  # noqa: E402
from cerberus_plugin.utils.files import write_json  # noqa: E402
from cerberus_plugin.utils.images import read_image  # noqa: E402

import evaluation  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import training  # noqa: E402
from torchvision.transforms import InterpolationMode, v2  # noqa: E402

MARKET = {"query": 3368, "bounding_box_test": 15913}  # images of Market-1501's test set
FULL = {"depth": "50x", "height": 384, "batch": 64, "people": 751, "iterations": 40, "copy_mib": 1024,
        "test_images": MARKET, "ranked": [(3368, 15913, 2560), (3000, 200_000, 512)],
        "million": (3000, 1_000_000, 2560), "loader_batches": 100, "epochs": 2, "test_people": 100,
        "host_float16": True}
TINY = {"depth": "18x", "height": 96, "batch": 8, "people": 8, "iterations": 2, "copy_mib": 8,
        "test_images": {"query": 12, "bounding_box_test": 60}, "ranked": [(100, 400, 64), (80, 1200, 64)],
        "million": (20, 2000, 64), "loader_batches": 3, "epochs": 2, "test_people": 6,
        "host_float16": False}  # takes minutes per step on a CPU


class NotMeasured(Exception):
    """The reason why something cannot be measured on this machine or in the remaining time."""


class Task:
    """Inputs and results of a stage; each result is written to its file at once."""

    def __init__(self, sizes: dict, data: Path, output: Path, name: str, seconds: float) -> None:
        self.sizes, self.data, self.output, self.name = SimpleNamespace(**sizes), data, output, name
        self.results: dict = {}
        self._end = time.monotonic() + seconds
        self._path = output / f"{name}.json"
        write_json(str(self._path), self.results)

    def note(self, **results) -> None:
        self.results |= results
        write_json(str(self._path), self.results)

    def row(self, name: str, measure: Callable[[], dict], seconds: float = 0.0) -> None:
        """Note the results of one row of the stage's table, or the reason why there are none.

        Args:
            seconds: maximum duration of the row; it is skipped if less time is left.
        """
        try:
            if self._end - time.monotonic() < seconds:
                raise NotMeasured("no time was left")
            results = measure()
        except NotMeasured as reason:
            results = {"not measured": str(reason)}
        except Exception as error:  # an error must not affect other rows
            traceback.print_exc()
            results = {"not measured": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
        self.note(rows={**self.results.get("rows", {}), name: results})

    def benchmark_sizes(self, data: Path | None = None) -> SimpleNamespace:
        """The options that `add_size` of `benchmarks/setting.py` adds."""
        return SimpleNamespace(**vars(self.sizes), data=str(data or self.data))


def check_environment(task: Task) -> None:
    """Note GPU, driver and versions, and the bandwidth of a copy on the device (bytes read and written)."""
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device")
    properties = torch.cuda.get_device_properties(0)
    task.note(**versions(), **hardware(), capability=".".join(map(str, torch.cuda.get_device_capability())),
              memory_of_gpu_gib=properties.total_memory / 2**30, cudnn=torch.backends.cudnn.version(),
              driver=asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))
    source = torch.randint(0, 255, (task.sizes.copy_mib * 2**20,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = statistics.median(clocked(lambda: target.copy_(source)) for _ in range(12))
    task.note(copy_gb_per_second=2 * source.numel() / seconds / 1e9)


def run_tests(task: Task) -> None:
    """Run the tests marked gpu. Only files with such tests are collected; others may need missing packages."""

    class Recorder:
        """Counts outcomes after each test, so that they are stored if the stage is stopped."""

        def pytest_collection_finish(self, session):
            task.note(selected=len(session.items))

        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.outcome != "passed":
                task.note(**{report.outcome: task.results[report.outcome] + 1})
                if report.outcome != "passed":
                    task.note(**{f"not passed: {report.nodeid}": report.outcome})

        def pytest_collectreport(self, report):
            if report.outcome == "failed":
                task.note(failed=task.results["failed"] + 1, **{f"not collected: {report.nodeid}": "failed"})

    task.note(passed=0, failed=0, skipped=0)
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    os.chdir(ROOT)
    pytest.main([*files, "-m", "gpu", "-p", "no:cacheprovider", "--durations=10"], plugins=[Recorder()])


def measure_speed(task: Task) -> None:
    """Images per second of complete steps, loader included: Cerberus with one option added per row, BoT and MGN."""
    args = task.benchmark_sizes()
    args.only, args.compile = "all", True
    of_benchmark = {name: row for name, row in training.rows_of(args).items()
                    if args.host_float16 or "FastReID's float16" not in name}
    best = setting.FAST
    # The rows of the targets come first, in case the time is too short for all.
    rows = {"Cerberus, all speed options": of_benchmark.pop("+ compiled")}
    rows |= {name: row for name, row in of_benchmark.items() if "MGN" in name} | of_benchmark
    rows["Cerberus, all speed options, CUDA graphs"] = "cerberus_R50", {
        **best, "MODEL.COMPILE_MODE": "reduce-overhead"}
    rows["Cerberus, all speed options, moving average"] = "cerberus_R50", {**best, "SOLVER.EMA": 0.999}
    rows |= {f"FastReID {name} with all our speed options": (f"{name.lower()}_R50", best) for name in ("MGN", "BoT")}
    if not events_tell_time():
        task.note(speed="not measured: CUDA events do not agree with the clock")
    with setting.people(args) as folder:
        for name, (file, keys) in rows.items():
            compiled = keys.get("MODEL.COMPILE")
            task.row(name, functools.partial(steps_of, args, folder, file, keys), seconds=60 if compiled else 12)


def steps_of(args, folder, file: str, keys: dict) -> dict:
    """Speed, waits and memory of one row, and the file and line of the waits."""
    if file == "mgn_R50":  # FastReID has no other depth of MGN
        args = SimpleNamespace(**{**vars(args), "depth": "50x"})
    row = row_of(setting.config(args, folder, file, **keys))
    row.run(args.iterations)
    results = row.results()
    if not events_tell_time():
        results = {"peak GiB": results["peak GiB"]}
    waits = waits_of(lambda: row.run(3, timed=False))
    return {**results, "waits per step": sum(waits.values()) / 3 if waits is not None else None,
            "where": ", ".join(f"{place} x {count / 3:g}" for place, count in (waits or Counter()).most_common(3))}


def row_of(cfg) -> training.Row:
    """Build a trainer and run its first steps.

    Raises:
        NotMeasured: if compilation is requested but not available.
    """
    row = training.Row(cfg)
    if cfg.MODEL.COMPILE and (missing := missing_for_compilation(row.trainer.model)):
        raise NotMeasured(missing)
    return row


@functools.cache
def events_tell_time() -> bool:
    """Whether CUDA events agree with the clock. Those of a software device may not."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    data = torch.zeros(2**24, device="cuda")

    def work():
        first.record()
        for _ in range(20):
            data.add_(1)
        last.record()

    clocked(work)
    seconds = clocked(work)
    return 0.5 < first.elapsed_time(last) / 1e3 / seconds < 1.5


def waits_of(run: Callable[[], object]) -> Counter | None:
    """How often Python waited for the device, by file and line; None if PyTorch cannot report it."""
    try:
        torch.cuda.set_sync_debug_mode("warn")
    except (AttributeError, RuntimeError):  # not supported by this build
        return None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message))


def check_training(task: Task) -> None:
    """Train a small model from the command line; evaluate its checkpoint again, on the GPU and on the CPU."""
    run = task.output / "training"
    options = ["MODEL.DEVICE", "cuda", "OUTPUT_DIR", str(run), "SOLVER.MAX_EPOCH", task.sizes.epochs,
               "SOLVER.CHECKPOINT_PERIOD", task.sizes.epochs, "TEST.EVAL_PERIOD", task.sizes.epochs,
               "SOLVER.WARMUP_ITERS", 3, "SOLVER.IMS_PER_BATCH", min(32, task.sizes.batch),
               "TEST.UNTRAINED_FLOOR", False]
    again = ["--eval-only", *options, "MODEL.WEIGHTS", str(run / "model_final.pth")]
    seconds, trained = train_net(task, run, options)
    task.note(training_seconds=seconds, reid_mAP=trained["mAP"])
    for name, device in (("reload", "cuda"), ("cpu", "cpu")):
        folder = task.output / f"training_{name}"
        seconds, results = train_net(task, folder, [*again, "OUTPUT_DIR", str(folder), "MODEL.DEVICE", device])
        task.note(**{f"{name}_seconds": seconds, f"{name}_difference": largest_difference(trained, results)})


def train_net(task: Task, folder: Path, options: list) -> tuple[float, dict]:
    """Seconds, and the metrics of the test dataset in percent."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / "projects/Cerberus/train_net.py"), "--config-file",
                           str(ROOT / "configs/Market1501/cerberus_demo.yml"), *map(str, options)],
                          env={**os.environ, "FASTREID_DATASETS": str(task.data)})
    if done.returncode:
        sys.exit(f"train_net.py ended with exit status {done.returncode}; see above")
    found = next(path for path in (folder / "results.json", folder / "evaluation" / "results.json") if path.is_file())
    (results,) = json.loads(found.read_text())["results"].values()
    return time.monotonic() - start, results


def largest_difference(a: dict, b: dict) -> float:
    """Largest difference of two evaluations as a fraction: 1e-3 is 0.1 points. NaN if one of them lacks a metric."""
    if {key for key in a if a[key] is not None} != {key for key in b if b[key] is not None}:
        return float("nan")
    return max(abs(a[key] - b[key]) for key in a if a[key] is not None) / 100


def measure_evaluation(task: Task) -> None:
    """Time all three tasks at the size of Market-1501's test set; its images are links to fewer synthetic images."""
    data = task.output / "market_size"
    link_test_images(task.data, data, task.sizes.test_images)
    args = task.benchmark_sizes(data)
    with setting.people(args) as folder:
        for name, keys in (("float32", {}), ("bfloat16", {"TEST.AUTOCAST": "bfloat16"})):
            cfg = setting.config(args, folder, "cerberus_R50", **{
                "TEST.IMS_PER_BATCH": 4 * args.batch, "MODEL.CHANNELS_LAST": True, "DATALOADER.RESIDENT": True, **keys})
            task.row(name, functools.partial(seconds_of_tasks, cfg), seconds=15)


def seconds_of_tasks(cfg) -> dict[str, float]:
    resident.release()  # so that every row reads the images
    seconds = dict(evaluation.ours(cfg))
    return {**seconds, "all": sum(seconds.values())}


def link_test_images(data: Path, target: Path, counts: dict[str, int]) -> None:
    """Create a dataset with the training set of `data` and the given number of test images per folder."""
    (source,) = data.glob("Market-1501-*")
    folder = target / source.name
    folder.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        if entry.name not in counts and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry.resolve())
    for name, count in counts.items():
        (folder / name).mkdir(exist_ok=True)
        images = sorted((source / name).glob("*.jpg"))
        for i in range(count):
            image = images[i % len(images)]
            person, camera = image.name.split("_")[:2]  # 0002_c1s1_000451_03.jpg
            link = folder / name / f"{person}_{camera}_{i:06d}_00.jpg"
            if not link.exists():
                link.symlink_to(image.resolve())


def check_ranking(task: Task) -> None:
    """ReID metrics from features, on the GPU and on the CPU; a million gallery images on the GPU, for the memory."""
    for size in task.sizes.ranked:
        task.row("{:,} x {:,} of {:,}".format(*size), functools.partial(ranked, *size), seconds=5)
    task.row("million", functools.partial(ranked, *task.sizes.million, on_cpu=False), seconds=10)


def ranked(num_queries: int, num_gallery: int, size: int, on_cpu: bool = True) -> dict[str, float]:
    """Seconds and memory on the GPU; seconds on the CPU, and the largest differences of its metrics."""
    needed = 3 * 2 * num_gallery * size / 2**30  # float16; three times the size while they are generated and read
    if (memory_gib() or 0) < needed:
        raise NotMeasured(f"needs {needed:.0f} GiB of memory")
    reid_metrics_from_features(*random_features(64, 1024, size), device="cuda")  # load kernels before timing
    features = random_features(num_queries, num_gallery, size)
    torch.cuda.reset_peak_memory_stats()
    seconds, gpu = timed(reid_metrics_from_features, *features, device="cuda")
    results = {"GPU, s": seconds, "peak GiB": torch.cuda.max_memory_allocated() / 2**30, "mAP": gpu.mAP}
    if on_cpu:
        seconds, cpu = timed(reid_metrics_from_features, *features)
        results |= {"CPU, s": seconds,
                    "difference of mAP, mINP": max(abs(gpu.mAP - cpu.mAP), abs(gpu.mINP - cpu.mINP)),
                    "difference of CMC": (gpu.cmc.cpu() - cpu.cmc.cpu()).abs().max().item()}
    return results


def random_features(num_queries: int, num_gallery: int, size: int):
    """Random float16 features on the CPU, and ids: 15 similar gallery images per person, six cameras."""
    torch.manual_seed(0)

    def ids(high, count):
        return torch.randint(high, (count,), device="cuda")

    people = max(2, num_gallery // 15)
    centres = torch.randn(people, size, device="cuda")
    pids = {"query": ids(people, num_queries), "gallery": ids(people, num_gallery)}
    features = {}
    for name, of_people in pids.items():
        features[name] = torch.empty(len(of_people), size, dtype=torch.float16)
        for first in range(0, len(of_people), 50_000):
            alike = centres[of_people[first:first + 50_000]]
            features[name][first:first + 50_000] = torch.randn_like(alike).add_(alike, alpha=0.4)
    return (features["query"], features["gallery"], pids["query"].cpu(), ids(6, num_queries).cpu(),
            pids["gallery"].cpu(), ids(6, num_gallery).cpu())


def profile_steps(task: Task) -> None:
    """Profile five steps: number and time of kernels, and the share of a step in which the device is idle."""
    args = task.benchmark_sizes()
    with setting.people(args) as folder:
        for name, keys in (("all speed options but compilation", {"MODEL.COMPILE": False}), ("all speed options", {})):
            cfg = setting.config(args, folder, "cerberus_R50", **{**setting.FAST, **keys})
            task.row(name, functools.partial(profiled, cfg, task.output / "trace.json", args.iterations))


def profiled(cfg, trace: Path, iterations: int, steps: int = 5) -> dict:
    """Kernels of some steps, compared with the time of a step without the profiler."""
    row = row_of(cfg)
    row.run(iterations)
    seconds = clocked(lambda: row.run(iterations)) / iterations
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profiler:
        row.run(steps, timed=False)
    profiler.export_chrome_trace(str(trace))
    busy, launches, kernels = device_time(json.loads(trace.read_text())["traceEvents"])
    trace.unlink()
    if not launches:
        raise NotMeasured("the profiler saw no kernel on the device")
    busy /= 1e6 * steps
    return {"ms per step": 1e3 * seconds, "busy ms per step": 1e3 * busy, "idle, %": 100 * max(0.0, 1 - busy / seconds),
            "kernels per step": launches / steps,
            **{f"{i}. kernel": f"{name[:60]} ({share:.1%})" for i, (name, share) in enumerate(kernels[:6], 1)}}


def device_time(events: list[dict]) -> tuple[float, int, list[tuple[str, float]]]:
    """Busy time of the device in a trace in Chrome's format.

    Returns:
        Microseconds in which the device works (overlapping work of several streams counts once); the number of kernels
        and copies; their names with their share of the summed time, largest first.
    """
    work = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    busy, end, by_name = 0.0, float("-inf"), Counter()
    for event in sorted(work, key=lambda event: event["ts"]):
        stop = event["ts"] + event["dur"]
        busy += max(0.0, stop - max(end, event["ts"]))
        end = max(end, stop)
        by_name[event["name"]] += event["dur"]
    return busy, len(work), [(name, took / sum(by_name.values())) for name, took in by_name.most_common()]


def compare_loaders(task: Task) -> None:
    """Compare the resident loader with torchvision's batched transforms, both on uint8 images on the device."""
    args = task.benchmark_sizes()
    with setting.people(args) as folder:
        cfg = setting.config(args, folder, "cerberus_R50", **{
            "DATALOADER.RESIDENT": True, "MODEL.CHANNELS_LAST": True, "INPUT.PADDING.ENABLED": True})
        use_device(cfg.MODEL.DEVICE)
        ours = build_train_loader(cfg)
        paths = ours.resident.fields["img_paths"]
        images = [np.asarray(read_image(path)) for path in paths]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).cuda()  # (N, 3, h, w); all images have one size
    recipe = ours.recipe
    size = (recipe.height, recipe.width)
    resize = v2.Resize(size, InterpolationMode.BICUBIC)
    transform = v2.Compose([
        resize, v2.Pad(recipe.padding), v2.RandomCrop(size), v2.RandomHorizontalFlip(recipe.flip),
        v2.ToDtype(torch.float32),
        v2.RandomErasing(recipe.erase, recipe.erase_scale, recipe.erase_ratio, list(recipe.erase_value))])
    rows = torch.randint(len(pixels), (args.loader_batches + 3, args.batch))
    batches = iter(ours)

    def speed_of(batch: Callable[[int], torch.Tensor]) -> dict:
        def several(numbers: range) -> None:
            for i in numbers:
                batch(i)

        several(range(3))
        seconds = clocked(lambda: several(range(3, len(rows))))
        return {"img/s": args.batch * args.loader_batches / seconds}

    task.row("resident", lambda: speed_of(lambda i: next(batches)["images"]))
    task.row("torchvision, same random parameters for a batch",
             lambda: speed_of(lambda i: transform(pixels[rows[i].cuda()])))
    task.row("torchvision, random parameters per image", lambda: speed_of(
        lambda i: torch.stack([transform(image) for image in pixels[rows[i].cuda()]])))
    plain = Recipe(*size)
    resized, _ = Augmentation(plain, ours.resident.packed)(rows[0], draw(plain, args.batch, torch.Generator()))
    difference = (resized - resize(pixels[rows[0].cuda()]).float()).abs()
    task.note(largest_difference_of_resized_pixels=difference.max().item(),
              share_of_different_pixels=(difference > 0).float().mean().item())


def clocked(function: Callable[[], object]) -> float:
    """Seconds of a function, synchronized with the device before and after."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def asked(*command: str) -> str | None:
    """The first line of a program's output; None if the program does not exist or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0]
    return None


STAGES = {"environment": check_environment, "tests": run_tests, "speed": measure_speed, "training": check_training,
          "evaluation": measure_evaluation, "ranking": check_ranking, "profile": profile_steps,
          "loader": compare_loaders}


def draw_people(folder: Path, sizes: dict) -> None:
    """Create the dataset with four images per training identity, the minimum for batches of 16 x 4: 13 MB."""
    draw_dataset(folder, train_ids=sizes["people"], test_ids=sizes["test_people"], images_per_id=4, distractors=8,
                 junk=0, progress=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "draw"])
    parser.add_argument("--seconds", type=float, default=3600, help="time limit, after which the process ends")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of STAGE.json")
    parser.add_argument("--data", type=Path, required=True, help="folder of the synthetic dataset")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    sizes = TINY if args.tiny else FULL
    if args.stage == "draw":
        return draw_people(args.data, sizes)
    signal.alarm(math.ceil(args.seconds) + 5)  # in case the parent process was killed
    STAGES[args.stage](Task(sizes, args.data.resolve(), args.output.resolve(), args.stage, args.seconds))


if __name__ == "__main__":
    main()
