"""Tests of the studies: variants, published results, and the command that runs them."""

from itertools import pairwise
from pathlib import Path

from cerberus_plugin.config import flat
from cerberus_plugin.experiments import catalogue, reproduce, study
from cerberus_plugin.experiments.catalogue import STUDIES
from cerberus_plugin.experiments.reproduce import available, file_of, main, reader, split_words
from cerberus_plugin.experiments.study import Variant, fingerprint
from cerberus_plugin.modeling import backbones
from cerberus_plugin.modeling.sid_prototypes import INITIALISERS

import pytest

CONFIGS = Path(__file__).parents[2] / "configs/Market1501"
DEMO = CONFIGS / "cerberus_demo.yml"


@pytest.mark.parametrize("name", ["parts", "initialisers", "margins", "plus", "choices", "options", "alignment",
                                  "vit_split", "unseen", "sensitivity"])
def test_options_are_set_in_the_configurations_and_differ_between_variants(name):
    read = reader(STUDIES[name], DEMO, ["SOLVER.MAX_EPOCH", "12"])
    found = [read(variant, 3) for variant in STUDIES[name].trained]
    assert {cfg.SOLVER.MAX_EPOCH for cfg in found} == {12} and {cfg.SEED for cfg in found} == {3}
    distinct = {fingerprint(cfg) for cfg in found}
    # Sensitivity: the demo has another SIGMA. Plus: the weights of the paper's model are read in two ways.
    assert len(distinct) == len(found) - {"sensitivity": 3, "plus": 1}.get(name, 0)


def test_studies_share_the_run_of_the_papers_configuration():
    base = [(STUDIES[name], variant) for name, variant in (
        ("parts", "+ regulariser"), ("initialisers", "he_normal"), ("margins", "adaptive margin"),
        ("comparison", "Cerberus"), ("unseen", "with regulariser, 0 excluded"))]
    hashes = {fingerprint(reader(each, DEMO, [])(next(v for v in each.variants if v.name == name), 0))
              for each, name in base}
    assert len(hashes) == 1


def test_only_trained_variants_are_compared():
    for each in STUDIES.values():
        names = {variant.name for variant in each.trained}
        assert len(names) == len(each.trained) and each.compared(), each.name
        assert {name for pair in each.compared() for name in pair} <= names
        assert {variant.weights_of for variant in each.variants} <= names | {""}


def test_parts_are_those_of_table_6_with_its_results():
    assert [(v.name, v.published["Market1501"]["mAP"]) for v in STUDIES["parts"].variants] == [
        ("identity loss", 88.34), ("+ alignment", 89.47), ("+ semantic guidance", 89.68), ("+ regulariser", 89.83)]
    assert [variant.name for variant in STUDIES["initialisers"].variants] == list(INITIALISERS)


def test_each_row_from_the_paper_to_cerberus_plus_changes_only_what_it_names():
    read = reader(STUDIES["plus"], DEMO, [])
    rows = [flat(read(variant, 1)) for variant in STUDIES["plus"].trained]
    node, same = "MODEL.CERBERUS.", {"OUTPUT_DIR", "TEST.READING"}  # the first two are one run, read in both ways
    assert [{key for key in row if row[key] != above[key]} - same for above, row in pairwise(rows)] == [
        set(), {f"{node}SOFTMAX"}, {f"{node}SOFTMAX_PRIOR", f"{node}LAMBDA_SEM"},
        {f"{node}PROTOTYPES", f"{node}LAMBDA_REG"}]


def test_published_columns_have_the_published_mean():
    for model, rule in ((catalogue.OURS, "binary"), (catalogue.ARN, "official"), (catalogue.APR, "official")):
        for test, figures in model.items():
            columns = [figures[f"PAR/{rule}/{name}"] for name in catalogue.COLUMNS[test]]
            assert sum(columns) / len(columns) == pytest.approx(figures[f"PAR/mA_{rule}"], abs=0.051), test


def test_alignment_is_compared_without_with_a_constant_and_with_the_maps_own_norms():
    read = reader(STUDIES["alignment"], CONFIGS / "cerberus_osnet.yml", ["MODEL.DEVICE", "cpu"])
    nodes = [read(variant, 0).MODEL.CERBERUS for variant in STUDIES["alignment"].trained]
    assert [(node.ALIGN, node.SIGMA, node.SIGMA_QUANTILE) for node in nodes[1:]] == [
        (True, 5.0, 0.0), (True, 1.0, 0.5), (True, 1.05, 0.5), (True, 1.2, 0.5)]
    assert not nodes[0].ALIGN


def test_split_points_of_a_vision_transformer_include_the_default():
    variants = STUDIES["vit_split"].trained
    assert [variant.options["MODEL.BACKBONE.CUT"] for variant in variants] == [
        "blocks.3", "blocks.5", "blocks.7", "blocks.9"]
    assert STUDIES["vit_split"].against == variants[2].name
    assert round(catalogue.VIT_BLOCKS * backbones.SHARED_BLOCKS) == 8


def test_semantic_ids_are_excluded_with_and_without_the_regulariser_and_at_random():
    trained = [variant for variant in STUDIES["unseen"].variants if not variant.weights_of]
    points = [(v.curve, v.x, v.options["DATASETS.LEAVE_OUT_SIDS"]) for v in trained]
    kinds = ("with regulariser", "without regulariser")
    assert points == [(kind, k, k) for kind in kinds for k in (0, 2, 4, 8)] + [
        ("random control", k, k) for k in (2, 4, 8)]
    read = reader(STUDIES["unseen"], DEMO, [])
    assert [read(v, 0).MODEL.CERBERUS.LAMBDA_REG for v in trained] == [0.001] * 4 + [0.0] * 4 + [0.001] * 3
    assert [read(v, 0).DATASETS.LEAVE_OUT_AT_RANDOM for v in trained] == [False] * 8 + [True] * 3
    drawn = ("DATASETS.LEAVE_OUT_SHARE", "DATASETS.LEAVE_OUT_SEED")
    assert {tuple(v.options.get(key) for key in drawn) for v in trained if v.x} == {(0.05, -1)}


def test_sensitivity_is_measured_on_held_out_people_only():
    cfg = reader(STUDIES["sensitivity"], DEMO, ["DATASETS.HOLD_OUT", "60"])(STUDIES["sensitivity"].variants[0], 0)
    assert (cfg.DATASETS.HOLD_OUT, cfg.DATASETS.TESTS, cfg.MODEL.CERBERUS.SIGMA) == (60, ("held-out",), 2.0)


def test_the_files_of_other_models_have_the_suffix_of_the_base_file():
    for variant in STUDIES["comparison"].trained:
        assert file_of(variant, DEMO).is_file() and file_of(variant, CONFIGS / "cerberus_R50.yml").is_file()
    with pytest.raises(ValueError, match="the file of variant 'BoT' is found by the name of this one, which must"):
        file_of(Variant("BoT", file="bot"), CONFIGS / "apr_R50.yml")


def test_models_without_a_file_are_skipped_and_keep_their_published_results(log):
    chosen = available(STUDIES["comparison"], CONFIGS / "cerberus_R18_cpu.yml")
    assert [variant.name for variant in chosen.trained] == [
        "BoT", "IDE", "ARN", "APR", "Cerberus", "Cerberus, by probability", "cerberus_plus"]
    assert any("comparison: MGN is skipped: " in record.message for record in log.records)
    assert chosen.note.endswith("Not trained (no configuration file): AGW, SBS, MGN.")
    assert "MGN" in [variant.name for variant in chosen.variants]


def test_every_model_is_trained_for_the_same_epochs_with_steps_in_proportion():
    options = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_EPOCH", "30"]
    read = reader(STUDIES["comparison"], CONFIGS / "cerberus_R50.yml", options)
    by_name = {variant.name: read(variant, 0).SOLVER for variant in STUDIES["comparison"].trained}
    assert {solver.MAX_EPOCH for solver in by_name.values()} == {30}
    assert (list(by_name["BoT"].STEPS), list(by_name["APR"].STEPS)) == ([10, 22], [20])  # of 120: 40, 90; of 60: 40
    assert by_name["SBS"].DELAY_EPOCHS == 15  # 30 of 60


def test_arguments_after_the_studies_are_keys_and_values():
    assert split_words(["parts", "margins", "SOLVER.MAX_EPOCH", "12"]) == (["parts", "margins"],
                                                                           ["SOLVER.MAX_EPOCH", "12"])
    assert split_words(["parts", "LOG_PERIOD", "5"]) == (["parts"], ["LOG_PERIOD", "5"])


def test_the_list_has_the_runs_of_each_study(capsys):
    main(["--list", "--seeds", "0", "1", "2"])
    rows = {line.split()[0]: line.split()[-2:] for line in capsys.readouterr().out.splitlines()[2:] if line[0] != " "}
    assert list(rows) == list(STUDIES)
    assert rows["parts"] == ["12", "6"]
    assert rows["sensitivity"][0] == "48"  # of 16 configurations: the paper's own is a point of all five curves


def test_a_dry_run_trains_nothing_and_counts_shared_runs_once(tmp_path, capsys):
    main(["parts", "margins", "--dry-run", "--config-file", str(DEMO), "--seeds", "0", "1", "--output", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("to train") for line in lines) == 12  # 2 seeds of 4 + 3 - 1 configurations
    assert lines[-1] == "about 6.0 hours remaining for a ResNet-50 with the paper's schedule on one H100"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "message"), [
    (["prats"], "study 'prats' is not known, expected some of comparison, parts, "),
    ([], "study '' is not known"),
    (["parts", "--seeds", "1", "1"], "--seeds are 1, 1, expected different numbers"),
    (["parts", "SEED", "3"], "SEED is set by the study; set seeds"),
    (["sensitivity", "DATASETS.HOLD_OUT", "0"], "DATASETS.HOLD_OUT is set by the study")])
def test_invalid_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        main(arguments)


def test_the_folder_of_a_training_run_is_rejected(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(ValueError, match="contains a training run, whose config.yaml would be overwritten"):
        main(["parts", "--output", str(tmp_path)])


def test_the_command_runs_each_study_with_its_options_and_writes_the_report(tmp_path, monkeypatch, capsys):
    asked = []

    def fake(chosen, read, seeds, output, **kwargs):
        asked.append((chosen.name, seeds, read(chosen.trained[0], 1).SOLVER.MAX_EPOCH, kwargs))
        return study.record(chosen, [], output)

    monkeypatch.setattr(study, "run", fake)
    monkeypatch.setattr(reproduce, "start", lambda cfg, args: cfg)
    monkeypatch.setattr(reproduce.page, "text", lambda file: f"text of {file.name}")
    monkeypatch.setattr(reproduce.page, "write", lambda output: (output / "report.html", output / "report.md"))
    arguments = ["margins", "comparison", "--config-file", str(DEMO), "--seeds", "1", "2", "--output", str(tmp_path),
                 "SOLVER.MAX_EPOCH", "12"]
    main(arguments)
    assert [each[:3] for each in asked] == [("margins", [1, 2], 12), ("comparison", [1, 2], 12)]
    assert [each[3]["measure"] is None for each in asked] == [True, False]
    assert asked[0][3]["command"].endswith(f"--output {tmp_path} SOLVER.MAX_EPOCH 12")
    shown = capsys.readouterr().out
    assert "text of margins.json" in shown and f"Report: {tmp_path}/report.html, {tmp_path}/report.md" in shown
