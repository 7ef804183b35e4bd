"""Tests of studies: runs, records and hashes of configurations."""

import dataclasses
import json
from pathlib import Path

from cerberus_plugin import config
from cerberus_plugin.experiments import study
from cerberus_plugin.experiments.catalogue import MAIN, STUDIES
from cerberus_plugin.experiments.study import Study, Variant, fingerprint, plan, record

import pytest
import torch
from support.data import write_market_folder
from support.training import read_config

FIRST, LAST = STUDIES["parts"].variants[0], STUDIES["parts"].variants[-1]
SYNTHESISED = Variant("synthesised", {"TEST.APS.SYNTHESISE": True}, weights_of=LAST.name)
PARTS = dataclasses.replace(STUDIES["parts"], variants=(FIRST, LAST, SYNTHESISED), hours=0.1)
SEEDS = (1, 2)


def read(variant, seed):
    options = [item for pair in variant.options.items() for item in pair]
    return read_config("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 2,
                       "MODEL.HEADS.EMBEDDING_DIM", 16, "SEED", seed, *options)


@pytest.fixture(scope="module")
def ablation(market_root, tmp_path_factory):
    """Two variants of Table 6 and an evaluation, with two seeds: folder, record, folders whose costs were measured."""
    output, asked, threads = tmp_path_factory.mktemp("study") / "out", [], torch.get_num_threads()
    torch.set_num_threads(1)  # several threads are slow on one core

    def measure(cfg):
        asked.append(cfg.OUTPUT_DIR)
        return {"parameters": 7}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastreid.data.build._root", str(market_root))
        found = study.run(PARTS, read, SEEDS, output, command="the command", config="base.yml", measure=measure)
        yield output, found, asked
    torch.set_num_threads(threads)


def written(output) -> dict:
    return json.loads((output / "parts.json").read_text())


def test_the_record_has_every_variant_and_seed_and_how_they_were_made(ablation):
    output, found, _ = ablation
    kept = written(output)
    assert [(row["name"], [each["seed"] for each in row["runs"]]) for row in kept["variants"]] == [
        ("identity loss", [1, 2]), ("+ regulariser", [1, 2]), ("synthesised", [1, 2])]
    assert [kept[key] for key in ("study", "command", "config")] == ["parts", "the command", "base.yml"]
    assert kept["seeds"] == [1, 2] and kept["missing"] == []
    assert kept["claims"] == {"Market1501": ["2 seeds: too few to compare variants (3 are needed)"]}
    run = kept["variants"][1]["runs"][0]
    results = json.loads((output / run["folder"] / "results.json").read_text())
    assert run["results"]["Market1501"] == {key: results["results"]["Market1501Attributes"][key]
                                            for key in PARTS.figures}
    assert all(run[key] == results[key] for key in ("protocol", "training", "hardware", "versions", "image size"))
    assert run["training"]["seed"] == 1 and len(run["recipe sha256"]) == 64
    ended = run["at the end of training"]
    assert ended["loss_sem"] > 0 and 0 < ended["alignment/crop_ratio"] <= 1 and "lr" not in ended
    assert kept["variants"][1]["published"]["Market1501"]["mAP"] == 89.83
    assert set(kept["variants"][0]["runs"][0]["results"]["Market1501"]) == {"mAP", "Rank-1"}
    assert found["date"] == kept["date"]


def test_an_evaluation_of_other_weights_trains_nothing_and_has_the_same_map(ablation):
    output, found, _ = ablation
    trained, evaluated = (found["variants"][i]["runs"][0] for i in (1, 2))
    assert evaluated["weights of"] == trained["folder"] and evaluated["training"] is None
    assert evaluated["at the end of training"] == {}
    assert not list((output / evaluated["folder"]).glob("*.pth"))
    assert evaluated["results"]["Market1501"]["mAP"] == pytest.approx(trained["results"]["Market1501"]["mAP"])


def test_costs_are_measured_once_per_trained_variant(ablation):
    output, found, asked = ablation
    assert [Path(folder).parent.name.partition("-")[0] for folder in asked] == ["identity_loss", "regulariser"]
    assert [row.get("costs") for row in found["variants"]] == [{"parameters": 7}, {"parameters": 7}, None]


def test_a_finished_run_is_not_repeated_by_another_study_under_another_name(ablation, log):
    output, found, _ = ablation
    other = Study("other", "t", "q", (Variant("by another name", {}),), ("mAP",))
    before = {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("*")}
    again = study.run(other, read, SEEDS, output)
    assert {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("*")} == before
    assert [run["folder"] for run in again["variants"][0]["runs"]] == [
        run["folder"] for run in found["variants"][1]["runs"]]
    assert "other, by another name, seed 2, run 2 of 2: finished before" in [r.message for r in log.records]


def test_a_variant_of_another_reading_shares_the_run_and_shows_this_reading(ablation):
    output, found, _ = ablation
    both = Study("both", "t", "q", (LAST, Variant("by probability", LAST.options, reading="probability")), MAIN)
    rows = record(both, plan(both, read, SEEDS, output), output)["variants"]
    assert [run["folder"] for run in rows[0]["runs"]] == [run["folder"] for run in rows[1]["runs"]]
    kept = json.loads((output / rows[1]["runs"][0]["folder"] / "results.json").read_text())["results"]
    kept, shown = kept["Market1501Attributes"], rows[1]["runs"][0]["results"]["Market1501"]
    assert list(shown) == list(MAIN) and shown["mAP"] == kept["mAP"]
    assert all(shown[f"{task}/{key}"] == kept[f"{task} (probability)/{key}"]
               for task, key in (("PAR", "mA_binary"), ("PAR", "mA_official"), ("APS", "mAP"), ("APS", "Rank-1")))
    assert rows[0]["runs"][0]["results"]["Market1501"]["PAR/mA_binary"] == kept["PAR/mA_binary"]


def test_an_interrupted_study_has_a_record_of_finished_runs_and_continues(ablation, monkeypatch):
    output, found, _ = ablation
    gone = output / found["variants"][0]["runs"][1]["folder"]
    (gone / "results.json").rename(gone / "kept.json")
    partial = record(PARTS, plan(PARTS, read, SEEDS, output), output)
    folder = gone.relative_to(output).as_posix()
    assert partial["missing"] == [{"variant": "identity loss", "seed": 2, "folder": folder}]
    assert [len(row["runs"]) for row in partial["variants"]] == [1, 2, 2]
    done = []
    monkeypatch.setattr(study, "train_once", lambda cfg: done.append(cfg.OUTPUT_DIR) or (
        (gone / "kept.json").rename(gone / "results.json")))
    study.run(PARTS, read, SEEDS, output)
    assert done == [str(gone)] and written(output)["missing"] == []


def test_the_record_is_written_after_every_run(ablation, monkeypatch, tmp_path):
    seen = []

    def stop(cfg):
        if seen:
            raise KeyboardInterrupt
        seen.append(cfg.OUTPUT_DIR)
        Path(cfg.OUTPUT_DIR).mkdir(parents=True)
        source = ablation[0] / ablation[1]["variants"][0]["runs"][0]["folder"]
        (Path(cfg.OUTPUT_DIR) / "results.json").write_text((source / "results.json").read_text())

    monkeypatch.setattr(study, "train_once", stop)
    with pytest.raises(KeyboardInterrupt):
        study.run(PARTS, read, SEEDS, tmp_path)
    kept = written(tmp_path)
    assert [len(row["runs"]) for row in kept["variants"]] == [1, 0, 0] and len(kept["missing"]) == 5


def test_a_folder_with_a_run_of_another_configuration_is_rejected_before_training(ablation, tmp_path):
    (run, *_) = plan(PARTS, read, (1,), tmp_path)
    folder = Path(run.cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)
    (folder / "last_checkpoint").write_text("model_0000.pth")
    (folder / "config.yaml").write_text(read(LAST, 1).dump())
    with pytest.raises(ValueError, match="config.yaml: the run in this folder was made with .*choose another OUTPUT"):
        study.run(PARTS, read, (1,), tmp_path)


def test_the_hash_does_not_depend_on_seed_folder_and_workers():
    first = fingerprint(read(LAST, 1))
    same = read_config("SOLVER.MAX_EPOCH", 1, "SEED", 7, "OUTPUT_DIR", "elsewhere", "DATALOADER.NUM_WORKERS", 3,
                       "MODEL.HEADS.EMBEDDING_DIM", 16, "MODEL.CERBERUS.LAMBDA_REG", 0.001)
    assert fingerprint(same) == first != fingerprint(read(FIRST, 1))
    later = read(LAST, 1).clone()
    later.defrost()
    later.MODEL.CERBERUS.LATER_KEY = 1
    assert fingerprint(later) != first  # a key that is not among the defaults


def test_default_values_of_keys_of_a_later_version_do_not_change_the_hash(monkeypatch):
    first = fingerprint(read(LAST, 1))
    later = read(LAST, 1).clone()
    later.defrost()
    later.MODEL.CERBERUS.LATER_KEY = 1
    known = {**config.defaults(), "MODEL.CERBERUS.LATER_KEY": 1}
    monkeypatch.setattr(config, "defaults", lambda: known)
    assert fingerprint(later) == first


def test_a_ladder_is_compared_with_its_last_variant_and_each_variant_with_the_previous():
    names = [variant.name for variant in STUDIES["parts"].variants]
    assert STUDIES["parts"].compared() == [(names[0], names[3]), (names[1], names[3]), (names[2], names[3]),
                                           (names[1], names[0]), (names[2], names[1])]


def test_the_keys_of_single_attributes_are_those_that_were_measured(ablation):
    output, *_ = ablation
    columns = Study("columns", "t", "q", (LAST,), ("PAR/mA_official", "PAR/official/*"))
    found = record(columns, plan(columns, read, (1,), output), output)
    assert found["figures"][:3] == ["PAR/mA_official", "PAR/official/gender", "PAR/official/age"]
    assert len(found["figures"]) == 13
    assert "PAR/official/gender" in found["variants"][0]["runs"][0]["results"]["Market1501"]


def test_an_unknown_key_is_rejected_with_the_name_of_the_study():
    absent = Study("mine", "t", "q", (Variant("odd", {"MODEL.CERBERUS.NOWHERE": 1}),), ("mAP",))
    with pytest.raises(ValueError, match="study 'mine': 'odd' sets MODEL.CERBERUS.NOWHERE, which is not a"):
        study.check_keys(absent, read(LAST, 1))
    everywhere = dataclasses.replace(absent, variants=(), options={"NOWHERE": 1})
    with pytest.raises(ValueError, match="study 'mine': all variants set NOWHERE, which"):
        study.check_keys(everywhere, read(LAST, 1))


def test_runs_of_different_rules_have_a_reason_and_no_claims(ablation, tmp_path):
    output, found, _ = ablation
    folder = output / found["variants"][1]["runs"][0]["folder"]
    kept = (folder / "results.json").read_text()
    other = json.loads(kept)
    other["protocol"]["par"]["force colour"] = True
    try:
        (folder / "results.json").write_text(json.dumps(other))
        mixed = record(PARTS, plan(PARTS, read, SEEDS, output), output)
    finally:
        (folder / "results.json").write_text(kept)
    assert mixed["claims"] == {} and found["refused"] == ""
    assert "PAR force colour is False, but True in + regulariser, seed 1" in mixed["refused"]


def test_seeds_of_earlier_calls_stay_in_the_record(ablation):
    output, *_ = ablation
    again = study.run(PARTS, read, (2,), output)
    assert again["seeds"] == [1, 2] and again["missing"] == []
    assert [[each["seed"] for each in row["runs"]] for row in again["variants"]] == [[1, 2]] * 3


def test_a_seed_of_only_some_variants_is_not_in_the_record(ablation):
    output, *_ = ablation
    alone = dataclasses.replace(PARTS, variants=(LAST, Variant("other", {"MODEL.CERBERUS.SIGMA": 3.0})))
    assert study.other_seeds(PARTS, read, (1,), output) and not study.other_seeds(alone, read, (1,), output)


def test_a_finished_run_keeps_only_the_last_checkpoint(ablation):
    output, found, _ = ablation
    assert {path.name for path in (output / found["variants"][0]["runs"][0]["folder"]).glob("*.pth")} == {
        "model_final.pth"}


def test_retrained_weights_are_evaluated_again(ablation):
    output, found, _ = ablation
    folder = output / found["variants"][1]["runs"][0]["folder"]
    kept = (folder / "results.json").read_text()
    retrained = json.loads(kept)
    retrained["manifest"]["checkpoint sha256"] = "of other weights"
    try:
        (folder / "results.json").write_text(json.dumps(retrained))
        stale = [(each.variant.name, each.seed) for each in plan(PARTS, read, SEEDS, output) if not each.finished]
    finally:
        (folder / "results.json").write_text(kept)
    assert stale == [("synthesised", 1)]


def test_finished_runs_with_other_images_are_rejected(ablation, tmp_path_factory, market_people, use_root):
    output, *_ = ablation
    use_root(write_market_folder(tmp_path_factory.mktemp("elsewhere"), *market_people, images=5))
    with pytest.raises(ValueError, match="images or labels of .* have changed since this run"):
        study.run(PARTS, read, SEEDS, output)
