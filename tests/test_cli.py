"""`train_net.py`: training, resuming after a kill, and evaluation."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONS = ["INPUT.SIZE_TRAIN", "[48,24]", "INPUT.SIZE_TEST", "[48,24]", "SOLVER.IMS_PER_BATCH", "16",
           "SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.UNTRAINED_FLOOR", "False"]


@pytest.fixture
def train_net(market_root, tmp_path):
    """Start projects/Cerberus/train_net.py on the small dataset in a separate process."""
    def start(*arguments, **changes) -> subprocess.Popen:
        options = {"SOLVER.MAX_EPOCH": "400", "TEST.EVAL_PERIOD": "400", "OUTPUT_DIR": str(tmp_path / "run"), **changes}
        command = [sys.executable, "-W", "ignore", str(ROOT / "projects/Cerberus/train_net.py"), "--config-file",
                   str(ROOT / "configs/Market1501/cerberus_demo.yml"), *arguments, *OPTIONS]
        return subprocess.Popen([*command, *(item for pair in options.items() for item in pair)], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                env={**os.environ, "FASTREID_DATASETS": str(market_root)})

    return start


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint_and_its_evaluation_is_reproducible(train_net, tmp_path):
    last = tmp_path / "run" / "last_checkpoint"
    killed = train_net()
    until = time.monotonic() + 600
    while not (last.is_file() and last.read_text() >= "model_0001.pth") and time.monotonic() < until:
        if killed.poll() is not None:
            break
        time.sleep(0.05)
    killed.kill()
    log, _ = killed.communicate()
    assert last.is_file(), log[-2000:]
    done = int(re.search(r"model_(\d+)", last.read_text())[1]) + 1

    resumed = train_net("--resume", **{"SOLVER.MAX_EPOCH": str(done + 1), "TEST.EVAL_PERIOD": str(done + 1)})
    log, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, log[-2000:]
    assert f"Starting training from epoch {done}" in log
    table = (tmp_path / "run" / "results.txt").read_text()

    config = (tmp_path / "run" / "config.yaml").read_text()
    evaluated = train_net("--eval-only", **{"MODEL.WEIGHTS": str(tmp_path / "run" / "model_final.pth")})
    log, _ = evaluated.communicate(timeout=600)
    assert evaluated.returncode == 0, log[-2000:]
    assert (tmp_path / "run" / "evaluation" / "results.txt").read_text() == table
    assert (tmp_path / "run" / "config.yaml").read_text() == config


def test_an_error_of_the_user_is_one_line(train_net):
    started = train_net(**{"DATASETS.NAMES": "('nowhere',)"})
    log, _ = started.communicate(timeout=600)
    assert started.returncode == 1 and "Traceback" not in log, log[-2000:]
    assert "'nowhere' is neither a registered dataset" in log.splitlines()[-1]
