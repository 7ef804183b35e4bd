"""`cerberus train`: metrics, report and calibration from a folder and a spreadsheet; errors; interruptions."""

import json
import logging
import re
import shlex

from cerberus_plugin import CerberusPredictor, cli
from cerberus_plugin.own_data.recipe import MODELS, OF_ATTRIBUTES, SIZES
from cerberus_plugin.workflow import training
from cerberus_plugin.workflow.log import short_log
from cerberus_plugin.workflow.page import next_commands

import pytest
import torch
from support.own_data import write_people
from support.own_runs import figures, train_own
from support.training import model_of


def test_a_run_prints_its_choices_and_ends_with_metrics_and_baselines(printed_run):
    run, printed = printed_run
    assert "SOLVER.MAX_EPOCH" in printed and "given by --epochs" in printed and "eta:" in printed
    assert "Attribute recognition" in printed and "before training" in printed
    assert "Running with full config" not in printed
    wanted = {"report.html", "results.txt", "results.json", "config.yaml", "train.json", "model_final.pth", "log.txt"}
    assert wanted <= {path.name for path in run.iterdir()}
    assert not list(run.glob("model_0*.pth")), "checkpoints to resume from are deleted at the end"
    assert "PAR/mA_official" in figures(run) and "APS/mAP" in figures(run)
    assert json.loads((run / "results.json").read_text())["before training"]
    assert json.loads((run / "train.json").read_text())["choices"][0][:2] == ["model", "plus"]


def test_the_log_ends_with_the_block_and_writes_long_texts_only_to_its_file(tmp_path, capsys):
    root = logging.getLogger("fastreid")
    before = list(root.handlers), root.level, root.propagate
    with short_log(tmp_path):
        root.info("Running with full config:\nMODEL")
        root.info("eta: 0:00:01")
    printed = capsys.readouterr().out
    assert "eta" in printed and "MODEL" not in printed and "MODEL" in (tmp_path / "log.txt").read_text()
    assert (list(root.handlers), root.level, root.propagate) == before


def test_the_report_is_one_page_with_examples_and_a_list_of_what_was_not_measured(run, crops):
    page = (run / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page and not re.search(r"(src|href)=\"(?!data:)", page)
    for text in ("hat", "vest", "SOLVER.IMS_PER_BATCH", "cerberus audit", "cerberus search", "not abstained", "seeds"):
        assert text in page
    assert "crops &lt;b&gt;" in page and "<b>" not in page


def test_the_next_commands_use_the_folder_of_a_table_and_quote_names(run, crops):
    commands = dict(next_commands(run, str(crops / "metadata.csv"), CerberusPredictor(run)))
    index, search, *rest = (shlex.split(command) for command in commands)
    assert [words[1] for words in rest] == ["serve", "audit", "evaluate", "export"]
    assert index[index.index("--images") + 1] == str(crops) and search[3] == "hat=yes"
    for words in (index, search, *rest):
        cli.parse(words[1:])  # exits if an option is missing


def test_the_contact_sheet_has_names_of_people_and_cameras(run, monkeypatch):
    from cerberus_plugin.workflow import page

    from matplotlib.figure import Figure

    rows = []
    monkeypatch.setattr(page, "sheet", lambda found, top: rows.extend(found) or Figure())
    page._contact_sheet(CerberusPredictor(run))
    assert len(rows) == page.QUERIES + page.SEARCHES
    assert all(re.fullmatch(r"person p\d+, camera [01]", row.title) for row in rows[:page.QUERIES])


def test_probabilities_are_calibrated_if_there_are_enough_people(run):
    record = json.loads((run / "calibration/calibration.json").read_text())
    assert record["fitted on"] == "46 of the test identities" and set(record["columns"]) == {"hat", "vest"}
    assert CerberusPredictor(run).calibration is not None


def test_data_without_attributes_and_cameras_trains_only_identities(plain_run):
    assert figures(plain_run)["mAP"] > 0 and "PAR/mA_official" not in figures(plain_run)
    page = (plain_run / "report.html").read_text()
    assert "reID across cameras" in page and "the model learns no attributes" in page and "cerberus search" not in page
    assert "calibrated probabilities: calibration needs 45 people" in page


def test_errors_of_the_check_end_the_command_before_anything_is_written(tmp_path, capsys):
    crops = write_people(tmp_path / "crops", people=2)
    with pytest.raises(SystemExit) as ended:
        train_own(crops, tmp_path / "run")
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and "error: the split has no query images" in printed and "column 'split'" in printed
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_skipped_with_the_option(tmp_path, monkeypatch):
    crops = write_people(tmp_path / "crops", people=8)
    (crops / "img/0_0.png").write_bytes(b"not an image")
    with pytest.raises(SystemExit):
        train_own(crops, tmp_path / "run", epochs=1)
    started = []
    monkeypatch.setattr(training, "train", lambda folder, record: started.append(folder))
    monkeypatch.setattr(training, "figures_of", lambda folder: "")
    train_own(crops, tmp_path / "run", "DATALOADER.ON_UNREADABLE", "skip", epochs=1)
    assert started == [tmp_path / "run"]


@pytest.mark.parametrize("arguments, reason", [
    (["--model", "plus"], "needs attributes, but the data has none"),
    (["--weights", "no.pth"], "no.pth: no such file. Give a file by --weights.*MODEL.BACKBONE.PRETRAIN False"),
    (["--epochs", "0"], "expected 1 or more"),
    (["SOLVER.MAX_EPOCH"], "expected KEY VALUE pairs"),
    (["SEED", "1", "SEED", "2"], "given twice"),
    (["SOLVER.NO_SUCH", "1"], "SOLVER.NO_SUCH"),
    (["--epochs", "3", "SOLVER.MAX_EPOCH", "2"], "conflict"),
])
def test_wrong_options_raise_errors_with_a_remedy(tmp_path, arguments, reason):
    crops = write_people(tmp_path / "crops", people=8, attributes=False)
    with pytest.raises(SystemExit, match=reason):
        cli.main(["train", str(crops), "--out", str(tmp_path / "run"), *arguments])
    assert not (tmp_path / "run").exists(), "the corrected command can use the same folder"


def test_an_existing_folder_is_neither_overwritten_nor_continued_with_other_options(run, crops, tmp_path):
    with pytest.raises(SystemExit, match="continue it with --resume"):
        train_own(crops, run)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SystemExit, match="was not made by cerberus train"):
        cli.main(["train", str(crops), "--out", str(tmp_path), "--resume"])
    with pytest.raises(SystemExit, match="epochs is 9 and was 2"):
        cli.main(["train", str(crops), "--out", str(run), "--resume", "--epochs", "9"])
    with pytest.raises(SystemExit, match="OUTPUT_DIR .*give --out"):
        cli.main(["train", str(crops), "--out", str(tmp_path / "run"), "OUTPUT_DIR", "elsewhere"])


def test_a_run_that_was_killed_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    """Also if the folder has been moved. --resume in an empty folder starts a run."""
    crops = write_people(tmp_path / "crops", people=8)
    monkeypatch.setattr(training, "write_page", lambda *args: None)  # it takes a second
    whole = train_own(crops, tmp_path / "whole", "--resume")

    def kill(self) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(training.LastCheckpoint, "after_epoch", kill)
        with pytest.raises(SystemExit, match="killed"):
            train_own(crops, tmp_path / "killed")
    assert (tmp_path / "killed/model_0000.pth").is_file() and not (tmp_path / "killed/results.json").is_file()
    moved = (tmp_path / "killed").rename(tmp_path / "moved")
    cli.main(["train", str(crops), "--out", str(moved), "--resume"])
    assert figures(moved) == figures(whole)
    assert json.loads((moved / "results.json").read_text())["training"]["resumed after epochs"] == [1]
    (moved / "results.json").unlink()
    cli.main(["train", str(crops), "--out", str(moved), "--resume"])  # training is complete: evaluates again
    assert figures(moved) == figures(whole) and not (tmp_path / "killed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_on_own_data(tmp_path, model):
    crops = write_people(tmp_path / "crops", people=12)
    run = tmp_path / "run"
    cli.main(["train", str(crops), "--out", str(run), "--model", model, "--epochs", "1"])
    assert ("PAR/mA_official" in figures(run)) == (model in OF_ATTRIBUTES) and (run / "report.html").is_file()


@pytest.mark.parametrize("ibn", [False, True])
@pytest.mark.parametrize("depth, features", [("18x", 512), ("50x", 2048)])
def test_weights_tell_their_resnet_and_whether_it_has_ibn(tmp_path, depth, features, ibn):
    options = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.BACKBONE.NAME", "build_resnet_backbone",
               "MODEL.BACKBONE.DEPTH", depth, "MODEL.BACKBONE.FEAT_DIM", features, "MODEL.BACKBONE.WITH_IBN", ibn,
               "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.EMBEDDING_DIM", 0)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in model_of(*options).backbone.state_dict(
        ).items()}}, path)
    assert training.pretrained_weights(str(path), False, {}) == (str(path), {
        "NAME": "build_resnet_backbone", "DEPTH": depth, "FEAT_DIM": str(features), "WITH_IBN": str(ibn)})


def test_weights_of_torchvision_tell_their_backbone(tmp_path):
    from torchvision.models import mobilenet_v2, resnet34

    for model, found in ((resnet34(), ("build_resnet_backbone", "34x", "512")),
                         (mobilenet_v2(), ("build_mobilenetv2_backbone", "1.0x", "1280"))):
        path = tmp_path / "weights.pth"
        torch.save(model.state_dict(), path)
        assert training.pretrained_weights(str(path), False, {})[1] == {
            **dict(zip(("NAME", "DEPTH", "FEAT_DIM"), found)), "WITH_IBN": "False"}


@pytest.mark.parametrize("width, features, ibn", [("x0_25", 128, False), ("x1_0", 512, True)])
def test_weights_tell_their_osnet(tmp_path, width, features, ibn):
    path = tmp_path / "osnet.pth"
    options = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.BACKBONE.NAME", "build_osnet_backbone",
               "MODEL.BACKBONE.DEPTH", width, "MODEL.BACKBONE.FEAT_DIM", features, "MODEL.BACKBONE.WITH_IBN", ibn,
               "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.EMBEDDING_DIM", 0)
    torch.save(model_of(*options).backbone.state_dict(), path)
    assert training.pretrained_weights(str(path), False, {})[1] == {
        "NAME": "build_osnet_backbone", "DEPTH": width, "FEAT_DIM": str(features), "WITH_IBN": str(ibn)}


@pytest.mark.slow
@pytest.mark.parametrize("size, ibn", [("tiny", False), ("small", True)])
def test_a_size_trains_from_weights_and_exports_to_int8(tmp_path, size, ibn, capsys):
    """MobileNetV2, and a ResNet-18 whose IBN blocks `--weights` finds: every tensor of the file is used."""
    crops = write_people(tmp_path / "crops", people=12)
    name, depth, features, _ = SIZES[size]
    options = ("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.DEPTH", depth,
               "MODEL.BACKBONE.FEAT_DIM", features, "MODEL.BACKBONE.WITH_IBN", ibn, "MODEL.HEADS.NAME", "EmbeddingHead",
               "MODEL.HEADS.EMBEDDING_DIM", 0)
    weights = tmp_path / "weights.pth"
    torch.save(model_of(*options).backbone.state_dict(), weights)
    run = tmp_path / "run"
    cli.main(["train", str(crops), "--out", str(run), "--size", size, "--weights", str(weights), "--epochs", "1"])
    said = capsys.readouterr().out
    assert "backbone of the weights" in said and name in said
    cfg = CerberusPredictor(run).cfg
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.WITH_IBN) == (name, depth, ibn)
    assert cfg.INPUT.SIZE_TEST == [96, 48]
    log = (run / "log.txt").read_text()
    matched, total = re.search(r"(\d+) of (\d+) tensors matched", log).groups()
    assert matched == total
    with pytest.raises(SystemExit, match="size is 'base' and was "):
        cli.main(["train", str(crops), "--out", str(run), "--resume", "--size", "base"])
    cli.main(["export", "--run", str(run), "--images", str(crops), "--int8", "--output", str(tmp_path / "int8.onnx")])
    assert "reID mAP" in capsys.readouterr().out


def test_on_a_gpu_weights_are_downloaded_once_or_it_is_said_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    tried = []

    def download(url, path, hash_prefix):
        tried.append(url)
        torch.save({"conv1.weight": torch.zeros(1)}, path)

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ValueError, match=r"no network.*--weights, such as http.*MODEL.BACKBONE.PRETRAIN False"):
        training.pretrained_weights("", True, {})
    assert training.pretrained_weights("", True, {"MODEL.BACKBONE.PRETRAIN": "False"}) == ("", {})
    assert training.pretrained_weights("", False, {}) == ("", {})
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first, second = (training.pretrained_weights("", True, {}) for _ in range(2))
    assert first == second and len(tried) == 1 and first[0].endswith("checkpoints/resnet50-0676ba61.pth")
    for size, name in (("tiny", "mobilenet_v2-b0353104.pth"), ("small", "resnet18-f37072fd.pth")):
        assert training.pretrained_weights("", True, {}, size)[0].endswith(name) and tried[-1].endswith(name)


def test_data_without_identities_trains_and_reports_only_attributes(tmp_path):
    crops = write_people(tmp_path / "crops", people=12)
    lines = [line.split(",") for line in (crops / "metadata.csv").read_text().splitlines()]
    (crops / "metadata.csv").write_text("\n".join(",".join([line[0], *line[3:]]) for line in lines) + "\n")
    run = train_own(crops, tmp_path / "run", model="", epochs=1)
    page = (run / "report.html").read_text()
    assert "mAP" not in figures(run) and "reID, percent" not in page
    for text in ("Attributes as yes/no labels", "identities are unknown", "calibrated probabilities"):
        assert text in page
    cli.main(["evaluate", str(run), str(crops), str(write_people(tmp_path / "known", people=8))])
    own, other = json.loads((run / "evaluation/summary.json").read_text())
    assert set(own["figures"]) == {"PAR accuracy", "balanced"} and "reID mAP" in other["figures"]
