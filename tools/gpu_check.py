"""Check and measure the plugin on a GPU, in at most eight minutes: `make gpu`.

    python tools/gpu_check.py --draw runs/gpu/data     create the synthetic dataset in advance (two minutes on a core)
    python tools/gpu_check.py                          all stages, with the dataset in runs/gpu/data
    python tools/gpu_check.py --tiny                   tiny sizes, for a small GPU or a first try; targets do not apply
    python tools/gpu_check.py --stages speed profile   run these stages again, keep the others in gpu.json

Every stage runs in a separate process, which is killed at its time limit, so that a hang or crash does not affect other
stages. OUTPUT/gpu.json and gpu.md are updated after every stage; a stopped stage keeps the results it had so far.
Without --stages, the command runs all stages again. The exit status is 0 if every stage ran to its end, whatever the
results.

`make gpu` needs no package index. It uses torch, torchvision, numpy and Pillow of the machine, and other installed
packages. `make gpu WHEELS=folder` installs missing packages from a folder of wheels. With Python 3.12 these are

- four wheels, 19 MB, if scipy, opencv-python-headless, matplotlib, scikit-learn, tensorboard, tabulate, tqdm, Jinja2,
  PyYAML, pyarrow and pytest are installed: faiss-cpu (18.8 MB), fastreid (0.25), yacs and termcolor (0.02 together);
- 35 wheels, 210 MB, if nothing but torch, torchvision, numpy and Pillow is installed: the four above,
  opencv-python-headless (61), pyarrow (47), scipy (35), matplotlib (10) with fonttools (5) and kiwisolver (1.5),
  scikit-learn (9), tensorboard (6) with grpcio (7), pygments (1.3) and 22 small ones.

Download them on a machine with a package index, the same system and the same Python; pip also downloads their
dependencies:

    pip download -d wheels --no-deps fastreid==1.4.0
    pip download -d wheels faiss-cpu yacs termcolor       or all of INSTALL_REQUIRES in setup.py but torch, and pytest
"""

import argparse
import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
# Without importing the package, since an error when torch is imported must not end this process.
FILES = runpy.run_path(str(ROOT / "cerberus_plugin" / "utils" / "files.py"))
read_json, write_json, write_text = FILES["read_json"], FILES["write_json"], FILES["write_text"]

# Seconds of each stage, eight minutes in total.
LIMITS = {"environment": 20, "tests": 85, "speed": 150, "training": 75, "evaluation": 40, "ranking": 40, "profile": 40,
          "loader": 30}


class Target(NamedTuple):
    """One target of benchmarks/README.md.

    Args:
        measured: returns the value, given the results by stage; raises KeyError or ValueError if it was not measured.
        at_least: whether the value must be at least or at most the limit.
    """

    what: str
    measured: Callable[[dict], float]
    limit: float
    at_least: bool = False


def fastest(results: dict, name: str) -> float:
    return max(row["img/s"] for key, row in results["speed"]["rows"].items() if name in key and "img/s" in row)


def cerberus(results: dict) -> float:
    return max(row["img/s"] for name, row in results["speed"]["rows"].items()
               if "FastReID" not in name and "img/s" in row)


def of_torchvision(results: dict) -> float:
    rows = results["loader"]["rows"]
    return rows["resident"]["img/s"] / max(row["img/s"] for name, row in rows.items() if name != "resident")


def not_passed(results: dict) -> float:
    tests = results["tests"]
    if not tests["passed"]:
        raise ValueError("all skipped, or none found")
    return tests["failed"] + max(0, tests["selected"] - tests["passed"] - tests["skipped"] - tests["failed"])


TARGETS = (
    Target("images per second in training (batch 64 of 384x128)", cerberus, 2000, at_least=True),
    Target("speed relative to the fastest MGN", lambda f: cerberus(f) / fastest(f, "MGN"), 2.2, at_least=True),
    Target("minutes for 24,000 iterations", lambda f: 24_000 * 64 / cerberus(f) / 60, 14),
    Target("waits for the device in a step",
        lambda f: f["speed"]["rows"]["Cerberus, all speed options"]["waits per step"], 1),
    Target("seconds for all three tasks at Market-1501's size",
        lambda f: min(row["all"] for row in f["evaluation"]["rows"].values() if "all" in row), 6),
    Target("GiB of device memory for a million gallery images",
           lambda f: f["ranking"]["rows"]["million"]["peak GiB"], 8),
    Target("difference of mAP and mINP from the CPU's ranking", lambda f: max(
        row["difference of mAP, mINP"] for name, row in f["ranking"]["rows"].items() if name != "million"), 1e-4),
    Target("tests marked gpu that did not pass", not_passed, 0),
    Target("difference between an evaluation after training and one from the checkpoint",
           lambda f: f["training"]["reload_difference"], 1e-3),
    Target("difference between evaluations on the GPU and on the CPU",
           lambda f: f["training"]["cpu_difference"], 1e-3),
    Target("images per second of the resident loader relative to torchvision's", of_torchvision, 1, at_least=True),
)
SIZE_FREE = TARGETS[-5:-1]  # targets that apply at any size


def verdicts(record: dict) -> list[dict]:
    """Each target with the measured value and a verdict: met, not met or not measured."""
    results = {name: stage["figures"] for name, stage in record["stages"].items()}
    found = []
    for target in TARGETS:
        try:
            value = float(target.measured(results))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            value = float("nan")
        judged = value == value and (not record["tiny"] or target in SIZE_FREE)
        met = value >= target.limit if target.at_least else value <= target.limit
        found.append({"target": target.what, "measured": value,
                      "limit": f"{'>=' if target.at_least else '<='} {target.limit:g}",
                      "verdict": ("met" if met else "not met") if judged else "not measured"})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of gpu.json, gpu.md and logs")
    parser.add_argument("--data", type=Path, help="folder of the synthetic dataset (default: OUTPUT/data, with --tiny "
                        "OUTPUT/data-tiny, created if it does not exist)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="create the synthetic dataset here and exit")
    parser.add_argument("--minutes", type=float, default=8, help="time limit of all stages together (default: 8)")
    parser.add_argument("--stages", nargs="+", choices=LIMITS, default=list(LIMITS))
    args = parser.parse_args()
    data = args.draw or args.data or args.output / ("data-tiny" if args.tiny else "data")

    def command(stage: str, *options: str) -> list[str]:
        return [sys.executable, str(ROOT / "tools" / "gpu_stages.py"), stage, "--output", str(args.output), "--data",
                str(data), *(["--tiny"] if args.tiny else []), *options]

    # Also completes an interrupted dataset; raises an error if the folder has a dataset of other settings.
    if args.draw or args.data is None or not data.exists():
        failed = subprocess.run(command("draw")).returncode
        if args.draw or failed:
            return failed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    record = run_stages(args.output, args.tiny,
                        lambda stage, seconds: command(stage, "--seconds", str(seconds)),
                        {stage: LIMITS[stage] * args.minutes / 8 for stage in args.stages})
    print(f"\n{verdict_table(record)}\n\nAll results: {args.output / 'gpu.md'}")
    return int(any(stage["status"] != "ran" for stage in record["stages"].values()))


def run_stages(output: Path, tiny: bool, command: Callable[[str, float], list[str]],
               limits: dict[str, float]) -> dict:
    """Run stages one after the other, each in a process; gpu.json and gpu.md are updated after each stage.

    Args:
        command: returns the command line of a stage, given its name and its time limit in seconds.
        limits: seconds by stage; unused time is added to the next stage. Results of other stages are kept from earlier
            calls.
    """
    record = {"tiny": tiny, "stages": kept_stages(output, tiny, set(LIMITS) - set(limits))}
    spare = 0.0
    for i, (name, seconds) in enumerate(limits.items(), start=1):
        limit = seconds + spare
        print(f"[{i}/{len(limits)}] {name}, at most {limit:.0f} s", flush=True)
        figures = output / f"{name}.json"
        figures.unlink(missing_ok=True)
        status, reason, took = run_bounded(command(name, limit), limit, output / f"{name}.log")
        spare = max(0.0, limit - took)
        record["stages"][name] = {
            "status": status, "reason": reason, "seconds": took, "limit": limit,
            "figures": json.loads(figures.read_text()) if figures.is_file() else {}}
        record["verdicts"] = verdicts(record)
        write_json(str(output / "gpu.json"), record)
        write_text(str(output / "gpu.md"), page(record))
        print(f"      {status} after {took:.0f} s{f': {reason}' if reason else ''}", flush=True)
    return record


def kept_stages(output: Path, tiny: bool, names: set[str]) -> dict:
    path = output / "gpu.json"
    earlier = read_json(path, "delete it, or run all stages") if names and path.is_file() else {}
    return {name: stage for name, stage in earlier.get("stages", {}).items()
            if name in names and earlier["tiny"] == tiny}


def run_bounded(command: list[str], seconds: float, log: Path) -> tuple[str, str, float]:
    """Run a program; kill it and its child processes at a time limit in seconds.

    Returns:
        "ran", "failed" or "stopped"; the reason, empty if it ran; the seconds it took.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(log, "wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    took = time.monotonic() - start
    if code is None:
        return "stopped", f"time limit of {seconds:.0f} s", took
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    return ("ran", "", took) if code == 0 else ("failed", f"exit status {code}: {''.join(last)[:300]}", took)


def verdict_table(record: dict) -> str:
    rows = [[row["target"], shown(row["measured"]), row["limit"], row["verdict"]] for row in record["verdicts"]]
    return tabulate(rows, ["target", "measured", "limit", "verdict"], tablefmt="github", disable_numparse=True)


def page(record: dict) -> str:
    """gpu.md: the verdicts, then the results of every stage."""
    gpu = record["stages"].get("environment", {}).get("figures", {}).get("gpu", "a GPU")
    parts = [f"# Results of {gpu}" + (", tiny sizes" if record["tiny"] else ""), verdict_table(record)]
    for name, stage in record["stages"].items():
        parts += [f"## {name}", f"{stage['status']}, {stage['seconds']:.0f} s"
                  + (f": {stage['reason']}" if stage["reason"] else "")]
        figures = dict(stage["figures"])
        rows = figures.pop("rows", {})
        if figures:
            parts.append(tabulate([[key, shown(value)] for key, value in figures.items()], ["result", "value"],
                                  tablefmt="github", disable_numparse=True))
        if rows:
            columns = list(dict.fromkeys(key for row in rows.values() for key in row))
            parts.append(tabulate([[row_name, *(shown(row.get(column, "")) for column in columns)]
                                   for row_name, row in rows.items()], ["", *columns], tablefmt="github",
                                  disable_numparse=True))
    return "\n\n".join(parts) + "\n"


def shown(value) -> str:
    if value is None or value != value:
        return "not measured"
    return f"{value:,.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")


if __name__ == "__main__":
    raise SystemExit(main())
