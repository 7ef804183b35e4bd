"""Tests of the choice of APR's lambda on held-out identities."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

from cerberus_plugin.experiments import study
from cerberus_plugin.experiments.choose_lambda import best_lambda, choose, main, prepare
from cerberus_plugin.experiments.running import check_same_run

import pytest
from support.training import read_config

ROOT = Path(__file__).parents[2]
APR = "configs/Market1501/apr_R18_cpu.yml"
OPTIONS = ["INPUT.SIZE_TRAIN", "[48,24]", "INPUT.SIZE_TEST", "[48,24]", "SOLVER.IMS_PER_BATCH", "12",
           "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_ITERS", "0", "DATALOADER.NUM_INSTANCE", "2", "TEST.UNTRAINED_FLOOR",
           "False", "TEST.APS.GROUPS", "[]", "SOLVER.AUTOCAST", "", "DATASETS.HOLD_OUT", "2"]


@pytest.fixture(scope="module")
def command(market_root, tmp_path_factory):
    """Function that runs the command on the small dataset in a separate process, with its output and folder."""
    folder = tmp_path_factory.mktemp("sweep") / "out"

    def start(*options) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "cerberus_plugin.experiments.choose_lambda", "--config-file",
             str(ROOT / APR), *options, *OPTIONS, "OUTPUT_DIR", str(folder)], text=True, capture_output=True, cwd=ROOT,
            env={**os.environ, "FASTREID_DATASETS": str(market_root)}, timeout=600)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout

    start.folder = folder
    start.output = start("--by", "PAR/mA_binary", "--lambdas", "0", "1")  # KEY VALUE right after the numbers
    return start


def run_folder(command, value: float) -> Path:
    record = json.loads((command.folder / "lambda.json").read_text())
    return command.folder / next(run["folder"] for run in record["runs"] if run["lambda"] == value)


@pytest.mark.slow
def test_the_command_trains_a_run_per_lambda_and_prints_the_best(command):
    record = json.loads((command.folder / "lambda.json").read_text())
    figures = {run["lambda"]: run["results"]["PAR/mA_binary"] for run in record["runs"]}
    assert set(figures) == {0, 1} and figures[record["chosen"]] == max(figures.values())
    last = command.output.splitlines()[-1]
    assert last.startswith(f"chosen: lambda = {record['chosen']:g} (highest PAR/mA_binary on 2 held-out identities: ")
    assert "PAR mA (official)" in command.output
    text = (command.folder / "report.md").read_text()
    assert "python -m cerberus_plugin.experiments.choose_lambda --config-file" in text
    assert "| lambda 0 |" in text and "PAR mA (official)" in text and "One option at a time" in text
    for run in record["runs"]:
        config = (command.folder / run["folder"] / "config.yaml").read_text()
        assert f"LAMBDA: {run['lambda']:.1f}" in config and f"SEED: {record['seed']}" in config and record["seed"] >= 0
        tested = json.loads((command.folder / run["folder"] / "results.json").read_text())
        assert set(tested["results"]) == {"held-out"} and tested["training"]["seed"] == record["seed"]
    assert re.search(r"lambda 0, seed \d+, run 1 of 2: [\d.]+ minutes, about \d+ minutes to go", command.output)


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_an_interrupted_one_continues(command):
    finished, killed = (run_folder(command, value) for value in (0, 1))
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    record = (command.folder / "lambda.json").read_text()
    (killed / "results.json").unlink()  # interrupted between the last checkpoint and the evaluation
    output = command("--by", "PAR/mA_binary", "--lambdas", "1", "0")
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before
    assert "Already trained for 1 epochs" in output and "finished before" in output
    assert (command.folder / "lambda.json").read_text() == record


@pytest.mark.slow
def test_a_folder_with_a_run_of_another_configuration_is_rejected(command):
    cfg = read_config()
    cfg.defrost()
    cfg.merge_from_file(str(run_folder(command, 0) / "config.yaml"))
    cfg.LOG_PERIOD, cfg.MODEL.APR.SCHEMA = 7, ""  # neither changes the results
    check_same_run(cfg)
    cfg.SOLVER.BASE_LR = 1.0
    with pytest.raises(ValueError, match="lambda_0.*/config.yaml: .*SOLVER.BASE_LR .* instead of 1.0; choose another"):
        check_same_run(cfg)


def test_options_set_by_pretrained_weights_do_not_make_another_configuration(small_config, tmp_path):
    run = small_config().clone()
    run.defrost()
    run.MODEL.BACKBONE.STEM_POOL, run.MODEL.PIXEL_MEAN = "padding", [127.5, 127.5, 127.5]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    (tmp_path / "run" / "config.yaml").write_text(run.dump())
    check_same_run(small_config())
    with pytest.raises(ValueError, match="made with MODEL.BACKBONE.STEM_POOL padding instead of ceil"):
        check_same_run(small_config("MODEL.BACKBONE.STEM_POOL", "ceil"))


def test_a_run_without_a_configuration_is_rejected(small_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="config.yaml: not found, so the configuration of the run"):
        check_same_run(small_config())


@pytest.mark.parametrize(("options", "message"), [
    (["--lambdas", "0.5", "1.5"], "--lambdas has 1.5, expected numbers between 0 and 1"),
    (["--lambdas", "0.3", "0.30", "1"], "--lambdas has 0.3 more than once"),
    (["MODEL.META_ARCHITECTURE", "ARN"], "META_ARCHITECTURE is 'ARN', which has no lambda; expected APR"),
])
def test_invalid_lambdas_and_models_are_rejected_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        main(["--config-file", str(ROOT / APR), *options])


@pytest.mark.parametrize(("options", "message"), [
    (["--lambdas", "0", "0,5"], "--lambdas: could not convert string to float: '0,5'"),
    (["--by", "PAR"], "argument --by: invalid choice: 'PAR'")])
def test_text_among_the_numbers_and_an_unknown_metric_are_rejected(options, message, capsys):
    with pytest.raises(SystemExit):
        main(["--config-file", str(ROOT / APR), *options])
    assert message in capsys.readouterr().err


def test_a_dataset_without_attributes_is_rejected(small_config):
    cfg = prepare(small_config("DATASETS.NAMES", ["Market1501"], "DATASETS.HOLD_OUT", 2, file=APR))
    with pytest.raises(ValueError, match="Market1501.* have no attributes, which APR needs"):
        choose(cfg, [0.5])


def test_no_lambda_is_chosen_if_runs_were_tested_differently(small_config, monkeypatch):
    cfg = prepare(small_config("DATASETS.HOLD_OUT", 2, file=APR))
    rows = [{"x": value, "runs": [{"seed": cfg.SEED, "folder": "runs", "results": {"held-out": {"mAP": 50 * value}}}]}
            for value in (0.0, 1.0)]
    monkeypatch.setattr(study, "run", lambda *_, **__: {"variants": rows, "refused": "PAR force colour is False here"})
    with pytest.raises(ValueError, match="lambda cannot be chosen: PAR force colour is False here"):
        choose(cfg, [0.0, 1.0])
    assert not Path(cfg.OUTPUT_DIR, "lambda.json").exists()


def test_the_folder_of_a_training_run_is_rejected(run, small_config):
    with pytest.raises(ValueError, match="contains a training run, whose config.yaml would be overwritten"):
        prepare(small_config("OUTPUT_DIR", run.cfg.OUTPUT_DIR, file=APR))


def test_100_identities_are_held_out_by_default_and_the_seed_of_existing_runs_is_reused(small_config, tmp_path):
    cfg = prepare(small_config("SEED", -1, file=APR))
    assert (cfg.DATASETS.HOLD_OUT, cfg.DATASETS.TESTS, cfg.SEED) == (100, ("held-out",), -1)
    assert prepare(small_config("DATASETS.HOLD_OUT", 3, file=APR)).DATASETS.HOLD_OUT == 3
    (tmp_path / "run" / "runs" / "lambda_0.5-0123abcd" / "seed_77").mkdir(parents=True)
    assert prepare(small_config("SEED", -1, file=APR)).SEED == 77


def test_the_best_lambda_has_the_highest_metric_and_is_the_largest_of_equal_ones():
    assert best_lambda({0.1: 30.0, 0.9: 40.0, 1.0: 35.0}, "mAP") == 0.9
    assert best_lambda({0.9: 40.0, 0.8: 40.0, 0.1: 30.0}, "mAP") == 0.9
    with pytest.raises(ValueError, match="--by mAP is undefined for lambda 0.1, 1: the held-out"):
        best_lambda({0.1: math.nan, 0.9: 40.0, 1.0: math.nan}, "mAP")
