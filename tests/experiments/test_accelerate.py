"""Tests of the command that evaluates and chooses thresholds of the attribute filter."""

import json

from cerberus_plugin import CerberusPredictor
from cerberus_plugin.experiments import accelerate
from cerberus_plugin.experiments.accelerate import CriticalPairs, Retrieval
from cerberus_plugin.experiments.gathering import gather, halves

import pytest
import torch
from support.training import trained


@pytest.fixture(scope="module")
def folder(run):
    return run.cfg.OUTPUT_DIR


def test_the_command_writes_table_plot_and_record(folder, tmp_path, capsys, market_root, monkeypatch):
    monkeypatch.setattr("fastreid.data.build._root", str(market_root))
    accelerate.main([folder, "--thresholds", "0.2", "1", "--survival", "0.5", "0.99", "--device", "cpu",
                     "--output", str(tmp_path)])
    record = json.loads((tmp_path / "acceleration.json").read_text())
    assert {row["threshold"] for row in record["sweep"]} >= {None, 0.2, 1.0}
    plain, one = record["sweep"][0], record["sweep"][-1]
    same = ("Rank-1", "mAP", "speed-up", "matches kept", "survivors")
    assert [plain[key] for key in same] == [one[key] for key in same]
    results = json.load(open(f"{folder}/results.json"))["results"]["Market1501Attributes"]
    assert (plain["Rank-1"], plain["mAP"]) == (pytest.approx(results["Rank-1"]), pytest.approx(results["mAP"]))
    assert [row["wanted"] for row in record["promises"]] == [50.0], "six test identities are too few for 99 %"
    assert record["chosen on"] == "3 of the test identities"
    assert (tmp_path / "acceleration.png").stat().st_size > 10_000
    assert (tmp_path / "acceleration.txt").read_text() in capsys.readouterr().out


def test_a_table_without_rows_is_replaced_by_the_reason():
    record = {"dataset": "site", "queries": 2, "gallery": 3, "embedding size": 4, "metric": "cosine", "threads": 1,
              "sweep": [], "promises": [], "chosen on": "5 of the test identities", "measured on": "5 test identities"}
    assert "No threshold was chosen: 5 of the test identities are too few" in accelerate.tables(record)
    assert "wanted share" not in accelerate.tables(record)


def test_lower_thresholds_keep_fewer_images_and_fewer_matches(folder, market_root, monkeypatch):
    monkeypatch.setattr("fastreid.data.build._root", str(market_root))
    predictor = CerberusPredictor(folder, device="cpu")
    retrieval = Retrieval(gather(predictor, "Market1501Attributes"), predictor.reader, "cosine")
    results = [retrieval.behind(threshold) for threshold in (0, 0.1, 0.2, 0.5, 1)]
    survivors = torch.stack([result.survivors for result in results])
    assert (survivors.diff(dim=0) >= 0).all()
    kept = [result.kept_matches for result in results]
    assert kept == sorted(kept)
    pairs = retrieval.matches()
    assert [pairs.kept(threshold)[2] for threshold in (0, 0.1, 0.2, 0.5, 1)] == pytest.approx(kept)


def test_thresholds_are_chosen_on_the_held_out_identities_of_the_run(small_config, tmp_path):
    cfg = small_config("DATASETS.HOLD_OUT", 4, "SOLVER.MAX_EPOCH", 1)
    trained(cfg)
    record = accelerate.run(CerberusPredictor(tmp_path / "run", device="cpu"), "Market1501Attributes", [0.5], [0.5],
                            tmp_path)
    assert record["chosen on"] == "4 held-out training identities"
    assert record["measured on"] == "6 test identities"


def test_the_share_of_kept_matches_is_a_mean_over_identities_or_over_pairs():
    pairs = CriticalPairs(torch.tensor([0.1, 0.9, 0.9, 0.9, 0.2]), torch.tensor([1, 2, 2, 2, 3]))
    assert pairs.kept(0.5) == pytest.approx((2 / 3, 1 / 3, 2 / 5))
    assert pairs.of(torch.tensor([1, 2])).kept(0.5) == pytest.approx((1 / 2, 1 / 2, 1 / 4))
    mine, others = halves(torch.tensor([5, 5, 7, 8, 9]))
    assert sorted([*mine.tolist(), *others.tolist()]) == [5, 7, 8, 9]


def test_a_model_without_attributes_and_invalid_probabilities_are_rejected(small_config, capsys):
    cfg = small_config("SOLVER.MAX_EPOCH", 1, file="configs/Market1501/bot_R18_cpu.yml")
    trained(cfg)
    with pytest.raises(ValueError, match="this model does not predict attributes with a probability"):
        accelerate.main([cfg.OUTPUT_DIR, "--device", "cpu"])
    for option, value, message in (("--thresholds", "1.5", "--thresholds 1.5: expected probabilities"),
                                   ("--survival", "1", "--survival: 1: expected a number between")):
        with pytest.raises(SystemExit):
            accelerate.main([cfg.OUTPUT_DIR, option, value])
        assert message in capsys.readouterr().err
