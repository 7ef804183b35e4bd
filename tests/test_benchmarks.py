"""The benchmarks run, compare what they say they compare, and are all described."""

import gc
import json
import logging
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
from run import NAMES  # noqa: E402

TINY = ["--depth", "18x", "--height", "48", "--batch", "8", "--people", "8"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "figure"), [
    ("losses", [*TINY, "--iterations", "2"], "added_percent"),
    ("cpu", [*TINY, "--iterations", "2", "--busy", "0"], "times_faster"),
    ("ranking", ["--queries", "40", "--gallery", "400", "--repeats", "1"], "host_over_ours_per_query"),
    ("gallery", ["--rows", "600", "--size", "80", "--queries", "5"], "largest_loss_of_exact_ways"),
    ("backbones", ["--names", "MobileNetV2", "ViT-tiny", "--height", "64", "--batch", "2", "--repeats", "1"],
     "fastest"),
    ("indexing", ["--images", "8", "--batch", "4", "--rounds", "1"], "index_of_alone"),
])
def test_a_benchmark_writes_its_figures_with_versions_and_hardware(tmp_path, name, options, figure):
    path = tmp_path / "figures.json"
    done = subprocess.run([sys.executable, "-W", "ignore", str(FOLDER / f"{name}.py"), *options, "--output", str(path)],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(FOLDER.parent)})
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(path.read_text())
    assert isinstance(record[figure], float)
    assert "torch" in record["versions"] and record["hardware"]["cores"] >= 1
    assert "|--" in done.stdout


def test_a_benchmarks_trainer_leaves_no_memory_to_the_next_one(small_config):
    names = ("engine", "data", "evaluation", "cerberus")
    levels = {name: logging.getLogger(f"fastreid.{name}").level for name in names}
    gc.disable()
    try:
        from setting import trainer

        first = weakref.ref(trainer(small_config()))
        assert first() is not None  # it and its hooks refer to each other
        trainer(small_config())
        assert first() is None
    finally:
        gc.enable()
        for name, level in levels.items():
            logging.getLogger(f"fastreid.{name}").setLevel(level)


def test_one_command_runs_every_benchmark_and_the_page_describes_it():
    helpers, apart = {"common", "setting", "run"}, {"edits", "audit"}  # one needs a trained run, one trains for long
    assert {path.stem for path in FOLDER.glob("*.py")} - helpers - apart == set(NAMES)
    page = (FOLDER / "README.md").read_text()
    assert [name for name in (*NAMES, *apart) if f"`{name}.py`" not in page] == []
