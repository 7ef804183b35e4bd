"""tools/gpu_check.py: a stage costs only itself, what is found is kept, and aims are judged by what was measured."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = runpy.run_path(str(ROOT / "tools" / "gpu_check.py"), run_name="tools")
STAGE = "import json, sys, time; path = sys.argv[1]; open(path, 'w').write(json.dumps({'failed': 0})); "


def run_stages(folder: Path, programs: dict[str, str], tiny: bool = False, first: float = 60.0) -> dict:
    """Stages that are short programs, given the file of their figures; the first one may take `first` seconds."""
    limits = dict.fromkeys(programs, 60.0) | {next(iter(programs)): first}
    return CHECK["run_stages"](folder, tiny, lambda name, seconds: [
        sys.executable, "-S", "-c", STAGE + programs[name], str(folder / f"{name}.json")], limits)


def test_a_stage_that_hangs_or_crashes_costs_only_itself_and_leaves_its_figures(tmp_path):
    record = run_stages(tmp_path, {"tests": "time.sleep(600)", "environment": "import os; os.abort()", "loader": ""},
                        first=4.0)
    assert [stage["status"] for stage in record["stages"].values()] == ["stopped", "failed", "ran"]
    assert record["stages"]["tests"]["figures"] == {"failed": 0}
    assert json.loads((tmp_path / "gpu.json").read_text())["stages"].keys() == {"environment", "tests", "loader"}
    assert "| tests marked gpu that failed" in (tmp_path / "gpu.md").read_text()


def test_a_stopped_stage_takes_the_programs_with_it_that_it_has_started(tmp_path):
    program = "import subprocess; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    code = f"import time; {program}"
    status, reason, seconds = CHECK["run_bounded"]([sys.executable, "-S", "-c", code], 2, tmp_path / "log")
    assert status == "stopped" and "2 s" in reason
    # The log is the output of both; nobody holds it open any more.
    holders = [path for path in Path("/proc").glob("[0-9]*/fd/1") if reads(path) == str(tmp_path / "log")]
    assert holders == []


def reads(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def test_the_files_are_written_after_every_stage(tmp_path):
    found = []

    def command(name, seconds):
        found.append(sorted(json.loads((tmp_path / "gpu.json").read_text())["stages"]) if found else [])
        return [sys.executable, "-S", "-c", ""]

    CHECK["run_stages"](tmp_path, False, command, {"environment": 60.0, "tests": 60.0})
    assert found == [[], ["environment"]]


def test_named_stages_run_again_and_the_others_are_kept_at_equal_sizes_only(tmp_path):
    run_stages(tmp_path, {"environment": "", "tests": ""})
    assert run_stages(tmp_path, {"tests": ""})["stages"].keys() == {"environment", "tests"}
    assert run_stages(tmp_path, {"tests": ""}, tiny=True)["stages"].keys() == {"tests"}


def test_aims_are_met_not_met_or_not_measured_and_tiny_sizes_judge_no_speed():
    rows = {"Cerberus, all switches": {"img/s": 2100.0, "waits a step": None}, "host MGN, float32": {"img/s": 1000.0},
            "host BoT, float32": {"not measured": "no time was left"}}
    stages = {"speed": {"figures": {"rows": rows}}, "tests": {"figures": {"failed": 0}},
              "training": {"figures": {"reload_difference": 0.0, "cpu_difference": 0.01}}}
    found = {row["aim"]: row for row in CHECK["verdicts"]({"tiny": False, "stages": stages})}
    assert found["images a second in training (batch 64 of 384x128)"]["verdict"] == "met"
    assert found["times the fastest MGN"] == {"aim": "times the fastest MGN", "measured": 2.1, "wanted": ">= 2.2",
                                              "verdict": "not met"}
    assert found["minutes for 24,000 iterations"]["measured"] == pytest.approx(24_000 * 64 / 2100 / 60)
    assert found["waits for the device in a step"]["verdict"] == "not measured"
    assert found["difference of an evaluation and the CPU's"]["verdict"] == "not met"
    assert math.isnan(found["GiB of device memory for a million gallery images"]["measured"])
    tiny = {row["aim"]: row["verdict"] for row in CHECK["verdicts"]({"tiny": True, "stages": stages})}
    assert tiny["times the fastest MGN"] == "not measured" and tiny["tests marked gpu that failed"] == "met"


def test_the_stages_take_at_most_eight_minutes_and_the_benchmarks_page_names_the_command():
    assert sum(CHECK["LIMITS"].values()) <= 480
    assert "`make gpu`" in (ROOT / "benchmarks" / "README.md").read_text()


@pytest.mark.slow
def test_every_stage_runs_to_its_end_on_a_software_device(tmp_path):
    soft_cuda = pytest.importorskip("gpu_rehearsal.soft_cuda")
    try:
        soft_cuda.build()
    except soft_cuda.Unavailable as error:
        pytest.skip(str(error))
    environment = {key: value for key, value in soft_cuda.environment().items() if not key.startswith("PYTEST_")}
    # One test stands for those marked gpu, which the rehearsal runs.
    environment |= {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "-k every_parameter_moves_under_amp_on_a_gpu"}
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--tiny", "--minutes", "80",
                           "--output", str(tmp_path)], env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-5000:]
    record = json.loads((tmp_path / "gpu.json").read_text())
    figures = {name: stage["figures"] for name, stage in record["stages"].items()}
    assert figures.keys() == CHECK["LIMITS"].keys()
    assert (figures["tests"]["passed"], figures["tests"]["failed"]) == (1, 0)
    reasons = {reason for stage in figures.values() for row in stage.get("rows", {}).values()
               if (reason := row.get("not measured"))}
    assert reasons <= {"Triton is not installed", "the profiler saw no kernel on the device"}
    judged = {row["aim"]: row["verdict"] for row in record["verdicts"] if row["verdict"] != "not measured"}
    assert set(judged.values()) == {"met"} and len(judged) == 4
