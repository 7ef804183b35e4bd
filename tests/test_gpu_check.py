"""tools/gpu_check.py: a failed stage does not affect others, results are kept, and targets are compared with them."""

import contextlib
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_rehearsal import soft_cuda
from support.processes import until

ROOT = Path(__file__).parents[1]
CHECK = runpy.run_path(str(ROOT / "tools" / "gpu_check.py"), run_name="tools")
STAGE = "import json, sys, time; path = sys.argv[1]; open(path, 'w').write(json.dumps({'failed': 0})); "


def run_stages(folder: Path, programs: dict[str, str], tiny: bool = False, first: float = 60.0) -> dict:
    """Run stages that are short programs, given the file of their results; the first has a limit of `first` seconds."""
    limits = dict.fromkeys(programs, 60.0) | {next(iter(programs)): first}
    return CHECK["run_stages"](folder, tiny, lambda name, seconds: [
        sys.executable, "-S", "-c", STAGE + programs[name], str(folder / f"{name}.json")], limits)


def test_a_stage_that_hangs_or_crashes_does_not_affect_others_and_keeps_its_results(tmp_path):
    record = run_stages(tmp_path, {"tests": "time.sleep(600)", "environment": "import os; os.abort()", "loader": ""},
                        first=4.0)
    assert [stage["status"] for stage in record["stages"].values()] == ["stopped", "failed", "ran"]
    assert record["stages"]["tests"]["figures"] == {"failed": 0}
    assert json.loads((tmp_path / "gpu.json").read_text())["stages"].keys() == {"environment", "tests", "loader"}
    assert "| tests marked gpu that did not pass" in (tmp_path / "gpu.md").read_text()


def test_child_processes_of_a_stopped_stage_are_killed(tmp_path):
    program = "import subprocess; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    code = f"import time; {program}"
    status, reason, seconds = CHECK["run_bounded"]([sys.executable, "-S", "-c", code], 2, tmp_path / "log")
    assert status == "stopped" and "2 s" in reason
    until(lambda: not holders(tmp_path / "log"))  # the log is the output of both


def holders(path: Path) -> list[str]:
    """Processes that write their output to a file; empty if the system does not list them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "fd" / "1") == str(path):
                found.append(process.name)
    return found


def test_the_files_are_written_after_every_stage(tmp_path):
    found = []

    def command(name, seconds):
        found.append(sorted(json.loads((tmp_path / "gpu.json").read_text())["stages"]) if found else [])
        return [sys.executable, "-S", "-c", ""]

    CHECK["run_stages"](tmp_path, False, command, {"environment": 60.0, "tests": 60.0})
    assert found == [[], ["environment"]]


def test_results_of_other_stages_are_kept_if_the_sizes_are_equal(tmp_path):
    run_stages(tmp_path, {"environment": "", "tests": ""})
    assert run_stages(tmp_path, {"tests": ""})["stages"].keys() == {"environment", "tests"}
    assert run_stages(tmp_path, {"tests": ""}, tiny=True)["stages"].keys() == {"tests"}


def test_an_interrupted_synthetic_dataset_is_completed_before_the_stages(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command: commands.append(command) or SimpleNamespace(returncode=3))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path), "--stages", "environment"])
    assert CHECK["main"]() == 3
    assert [command[2] for command in commands] == ["draw"] and str(tmp_path / "data") in commands[0]
    assert not (tmp_path / "gpu.json").exists()


def test_the_error_names_a_damaged_file_of_earlier_stages(tmp_path):
    (tmp_path / "gpu.json").write_text('{"tiny": ')
    with pytest.raises(ValueError, match="gpu.json: not valid JSON .*; delete it, or run all stages"):
        run_stages(tmp_path, {"tests": ""})


def test_targets_are_met_not_met_or_not_measured_and_tiny_sizes_have_no_speed_targets():
    rows = {"Cerberus, all speed options": {"img/s": 2100.0, "waits per step": None},
            "FastReID MGN, float32": {"img/s": 1000.0},
            "FastReID BoT, float32": {"not measured": "no time was left"}}
    stages = {"speed": {"figures": {"rows": rows}},
              "tests": {"figures": {"selected": 9, "passed": 8, "failed": 0, "skipped": 1}},
              "training": {"figures": {"reload_difference": 0.0, "cpu_difference": 0.01}}}
    found = {row["target"]: row for row in CHECK["verdicts"]({"tiny": False, "stages": stages})}
    assert found["images per second in training (batch 64 of 384x128)"]["verdict"] == "met"
    assert found["speed relative to the fastest MGN"] == {
        "target": "speed relative to the fastest MGN", "measured": 2.1, "limit": ">= 2.2", "verdict": "not met"}
    assert found["minutes for 24,000 iterations"]["measured"] == pytest.approx(24_000 * 64 / 2100 / 60)
    assert found["waits for the device in a step"]["verdict"] == "not measured"
    assert found["difference between evaluations on the GPU and on the CPU"]["verdict"] == "not met"
    assert math.isnan(found["GiB of device memory for a million gallery images"]["measured"])
    tiny = {row["target"]: row["verdict"] for row in CHECK["verdicts"]({"tiny": True, "stages": stages})}
    assert tiny["speed relative to the fastest MGN"] == "not measured"
    assert tiny["tests marked gpu that did not pass"] == "met"


@pytest.mark.parametrize(("figures", "verdict"), [
    ({"selected": 9, "passed": 8, "failed": 1, "skipped": 0}, "not met"),
    ({"selected": 9, "passed": 5, "failed": 0, "skipped": 0}, "not met"),  # stopped
    ({"selected": 9, "passed": 0, "failed": 0, "skipped": 9}, "not measured"), ({}, "not measured")])
def test_stopped_or_skipped_tests_do_not_count_as_passed(figures, verdict):
    found = CHECK["verdicts"]({"tiny": False, "stages": {"tests": {"figures": figures}}})
    assert {row["verdict"] for row in found if "tests" in row["target"]} == {verdict}


def test_the_stages_take_at_most_eight_minutes_and_the_page_names_the_command():
    assert sum(CHECK["LIMITS"].values()) <= 480
    assert "`make gpu`" in (ROOT / "benchmarks" / "README.md").read_text()


@pytest.fixture(scope="module")
def stages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        return runpy.run_path(str(ROOT / "tools" / "gpu_stages.py"), run_name="tools")


def test_a_failed_or_late_row_has_a_reason_and_other_rows_are_written(stages, tmp_path):
    task = stages["Task"](stages["TINY"], tmp_path, tmp_path, "speed", seconds=30.0)
    task.row("broken", lambda: {"img/s": 1 / 0})
    task.row("late", dict, seconds=60.0)
    task.row("good", lambda: {"img/s": 8.0})
    assert json.loads((tmp_path / "speed.json").read_text())["rows"] == {
        "broken": {"not measured": "ZeroDivisionError: division by zero"}, "late": {"not measured": "no time was left"},
        "good": {"img/s": 8.0}}


def test_overlapping_work_of_two_streams_counts_once(stages):
    events = [{"cat": "kernel", "name": "a", "ts": 0, "dur": 10},
              {"cat": "gpu_memcpy", "name": "b", "ts": 5, "dur": 10},
              {"cat": "kernel", "name": "a", "ts": 20, "dur": 10}, {"cat": "cpu_op", "name": "c", "ts": 0, "dur": 99},
              {"name": "no category"}]
    assert stages["device_time"](events) == (25, 3, [("a", 2 / 3), ("b", 1 / 3)])


def test_differences_of_evaluations_are_fractions_and_nan_if_a_metric_is_missing(stages):
    assert stages["largest_difference"]({"mAP": 50.0, "mA": None}, {"mAP": 50.1, "mA": None}) == pytest.approx(1e-3)
    assert math.isnan(stages["largest_difference"]({"mAP": 50.0, "mA": None}, {"mAP": 50.0, "mA": 1.0}))


def test_a_test_set_of_any_size_is_made_of_links_to_few_images(stages, tmp_path):
    source = tmp_path / "data" / "Market-1501-v15.09.15"
    for folder, names in (("query", ["0002_c1s1_000451_03.jpg"]), ("bounding_box_train", ["0001_c1s1_000001_00.jpg"]),
                          ("bounding_box_test", ["0002_c2s1_000451_03.jpg", "-1_c3s1_000001_01.jpg"])):
        (source / folder).mkdir(parents=True)
        for name in names:
            (source / folder / name).write_text(name)
    stages["link_test_images"](tmp_path / "data", tmp_path / "large", {"query": 3, "bounding_box_test": 4})
    made = tmp_path / "large" / source.name
    assert sorted(path.name[:7] for path in (made / "query").iterdir()) == ["0002_c1"] * 3
    assert sorted(path.read_text() for path in (made / "bounding_box_test").iterdir()) == [
        *["-1_c3s1_000001_01.jpg"] * 2, *["0002_c2s1_000451_03.jpg"] * 2]
    assert (made / "bounding_box_train" / "0001_c1s1_000001_00.jpg").is_file()


def test_every_stage_has_a_limit(stages):
    assert list(stages["STAGES"]) == list(CHECK["LIMITS"])


@pytest.mark.slow
def test_every_stage_runs_to_its_end_on_a_software_device(tmp_path):
    try:
        soft_cuda.build()
    except soft_cuda.Unavailable as error:
        pytest.skip(str(error))
    environment = {key: value for key, value in soft_cuda.environment().items() if not key.startswith("PYTEST_")}
    # One test stands for those marked gpu, which the rehearsal runs.
    environment |= {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "-k every_parameter_is_updated_with_amp_on_a_gpu"}
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
    judged = {row["target"]: row["verdict"] for row in record["verdicts"] if row["verdict"] != "not measured"}
    assert set(judged.values()) == {"met"} and len(judged) == 4
