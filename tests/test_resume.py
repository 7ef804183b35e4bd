"""A resumed training equals the undisturbed one, and a checkpoint that is not of this run is refused."""

import json
import math
from pathlib import Path

from cerberus_plugin import CerberusTrainer

import pytest
import torch
from conftest import Killed
from fastreid.utils.env import seed_all_rng

RANDOM = ("INPUT.PADDING.ENABLED", True, "INPUT.REA.ENABLED", True, "INPUT.REA.PROB", 0.5, "SOLVER.AUTOCAST", "",
          "SOLVER.WARMUP_ITERS", 3, "SOLVER.MAX_EPOCH", 4, "TEST.EVAL_PERIOD", 2)


def run_until(cfg, kill_at: float = math.inf, seed: int = 1):
    """A trainer after its run; the run resumes where it can, and is killed before the step of this number."""
    seed_all_rng(seed)
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=True)
    step = trainer.run_step

    def run_step():
        if trainer.iter >= kill_at:
            raise Killed
        step()

    trainer.run_step = run_step
    trainer.results = trainer.train()
    return trainer


def record_of(cfg) -> dict:
    return json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())


@pytest.mark.parametrize(("name", "resident", "workers", "options"), [
    ("ide", False, 2, ("SOLVER.EMA", 0.9, "INPUT.AUTOAUG.ENABLED", True, "INPUT.AUTOAUG.PROB", 1.0)),
    ("cerberus", True, 0, ("TEST.UNTRAINED_FLOOR", True, "DATALOADER.SAMPLER_TRAIN", "BalancedIdentitySampler")),
    pytest.param("ide", True, 0, (), marks=pytest.mark.slow),
    pytest.param("cerberus", False, 0, (), marks=pytest.mark.slow),
    pytest.param("cerberus", False, 2, ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2,
                                        "TEST.PRECISE_BN.DATASET", "Market1501Attributes"), marks=pytest.mark.slow),
    pytest.param("apr", True, 0, ("MODEL.APR.DROPOUT", 0.5), marks=pytest.mark.slow),
    pytest.param("bot", False, 2, ("DATALOADER.SAMPLER_TRAIN", "ImbalancedDatasetSampler"), marks=pytest.mark.slow),
])
def test_a_killed_and_resumed_run_equals_the_undisturbed_one_bit_by_bit(
        small_config, tmp_path, name, resident, workers, options):
    def config(folder: str):
        return small_config(*RANDOM, "DATALOADER.RESIDENT", resident, "DATALOADER.NUM_WORKERS", workers, *options,
                            "OUTPUT_DIR", str(tmp_path / folder), file=f"configs/Market1501/{name}_demo.yml")

    whole = run_until(config("whole"))
    with pytest.raises(Killed):
        run_until(config("parts"), kill_at=5)  # in the third epoch, after the checkpoint of the second
    resumed = run_until(config("parts"), seed=7)
    assert resumed.start_epoch == 2
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    ours, theirs = (torch.load(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")["optimizer"]["state"]
                    for run in (resumed, whole))
    assert all(torch.equal(value, theirs[i][key]) for i, state in ours.items() for key, value in state.items())
    assert resumed.results == pytest.approx(whole.results, abs=0, nan_ok=True)
    records = record_of(resumed.cfg), record_of(whole.cfg)
    assert records[0]["evaluations"] == records[1]["evaluations"]
    assert records[0].get("before training") == records[1].get("before training")
    assert [record["training"]["resumed after epochs"] for record in records] == [[2], []]
