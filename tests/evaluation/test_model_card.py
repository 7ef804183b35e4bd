"""RUN/model_card.md: written with the results, from results.json alone, in the form of Hugging Face."""

import json
import shutil
from pathlib import Path

from cerberus_plugin import cli
from cerberus_plugin.evaluation import model_card
from cerberus_plugin.evaluation.report import read_results
from cerberus_plugin.host import starting_weights

import pytest
import torch
import yaml
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from support.training import read_config

NAME = "Market1501Attributes"


@pytest.fixture
def results(run) -> dict:
    return read_results(run.cfg.OUTPUT_DIR)


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def table_rows(text: str, title: str) -> list[list[str]]:
    """Cells of the first table below a title."""
    lines = text.split(title, 1)[1].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_a_training_writes_its_card(run, results):
    text = Path(run.cfg.OUTPUT_DIR, model_card.CARD).read_text()
    assert text == model_card.text(results)
    for title in ("Model", "Data", "Metrics", "Not measured", "Intended use", "Unsuitable use", "Law", "License"):
        assert f"\n## {title}\n" in text
    made = results["manifest"]
    for fact in (made["checkpoint sha256"][:16], made["config sha256"][:16], made["training"]["labels"]["sha256"][:16],
                 made["tests"][NAME]["list sha256"][:16], "Annex III", "Article 5", "GDPR", "not legal advice"):
        assert fact in text, fact
    assert ["training: Market1501Attributes", "32", "8", "4"] == table_rows(text, "## Data")[2][:4]
    assert f"{results['results'][NAME]['mAP']:.2f}" in text and "majority-class baseline" in text
    assert "none, trained from scratch" in text and "before training" in text


def test_the_front_matter_is_that_of_hugging_face(run):
    text = Path(run.cfg.OUTPUT_DIR, model_card.CARD).read_text()
    found = front(text)
    assert found["datasets"] == [NAME]
    assert found["metrics"] == ["mAP", "rank-1", "mA"] and "person-re-identification" in found["tags"]
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(text)
    assert card.data.to_dict() == found and card.text.lstrip().startswith("# Cerberus trained on")


def test_metrics_by_value_are_of_the_images_with_it(results):
    values = results["by value"][NAME]
    overall = results["results"][NAME]
    for attribute in ("gender", "age"):
        assert sum(own["PAR"]["images"] for own in values[attribute].values()) == overall["PAR/images"]
        queries = sum(own["reID"]["queries"] for own in values[attribute].values())
        weighted = sum(own["reID"]["mAP"] * own["reID"]["queries"] for own in values[attribute].values()
                       if own["reID"]["queries"])
        assert weighted / queries == pytest.approx(overall["mAP"])
        right = sum(own["PAR"]["recall"] * own["PAR"]["images"] for own in values[attribute].values()
                    if own["PAR"]["images"])
        assert right / overall["PAR/images"] == pytest.approx(overall[f"PAR/official/{attribute}"])
    assert set(values) >= {"upper colour", "sleeve length"}


def test_values_of_few_people_have_no_metrics_on_the_card(results):
    of = {"reID": {"mAP": 50.0, "Rank-1": 60.0, "queries": 40, "people": model_card.FEW_PEOPLE},
          "PAR": {"accuracy": 70.0, "recall": None, "images": 90, "people": model_card.FEW_PEOPLE - 1}}
    unknown = {"PAR": {"accuracy": 80.0, "recall": 90.0, "images": model_card.FEW_IMAGES}}
    text = model_card.text(results | {"by value": {NAME: {"a|b": {"*x*": of, "y": unknown}}}})
    rows = table_rows(text.replace(r"\|", "!"), "#### By attribute value")[2:]
    assert rows[0] == ["a!b", r"\*x\*", "10", "40", "50.00", "60.00", "9", "90", "too few", "too few"]
    assert rows[1] == ["a!b", "y", "", "", "", "", "", "50", "80.00", "90.00"]


def test_records_of_earlier_versions_have_a_card_too(run, results, tmp_path):
    record = json.loads(Path(run.cfg.OUTPUT_DIR, "results.json").read_text())
    for key in ("by value", "backbone", "manifest"):
        record.pop(key)
    (tmp_path / "results.json").write_text(json.dumps(record))
    text = model_card.write(tmp_path).read_text()
    assert model_card.NOT_RECORDED in text and "there are no metrics by attribute value" in text


def test_synthetic_and_withdrawn_data_are_named(results):
    made = results["manifest"]
    drawn = results | {"manifest": made | {"training": made["training"] | {"synthetic": True}}}
    assert "Synthetic data" not in model_card.text(results)
    assert "**Synthetic data**" in model_card.text(drawn) and "say nothing about real people" in model_card.text(drawn)
    duke = results | {"results": {"DukeMTMCAttributes": results["results"][NAME]}}
    assert "withdrawn by its authors in 2019" in model_card.text(duke)
    assert "withdrawn" not in model_card.text(results)


def test_the_command_writes_the_card_again_and_tells_of_the_calibration(run, results, tmp_path, capsys):
    shutil.copy(Path(run.cfg.OUTPUT_DIR, "results.json"), tmp_path)
    cli.main(["card", str(tmp_path)])
    assert str(tmp_path / model_card.CARD) in capsys.readouterr().out
    assert "this run is not calibrated" in (tmp_path / model_card.CARD).read_text()
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/calibration.json").write_text("{}")
    cli.main(["card", str(tmp_path)])
    assert "is not calibrated" not in (tmp_path / model_card.CARD).read_text()
    with pytest.raises(SystemExit, match="results.json: not found"):
        cli.main(["card", str(tmp_path / "calibration")])


def test_weights_that_a_training_starts_from_are_recorded_with_their_terms(tmp_path):
    assert starting_weights(read_config())["what"].startswith("none")
    path = tmp_path / "lupws.pth"
    torch.save({"layer4.0.conv1.weight": torch.zeros(1)}, path)
    cfg = read_config("MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH", str(path),
                      "MODEL.BACKBONE.NAME", "build_resnet_backbone")
    found = starting_weights(cfg)
    assert (found["source"], found["terms"], found["file"]) == ("luperson", "for research only", "lupws.pth")
    results = {"results": {}, "backbone": {"pretrained": found}}
    assert "for research only" in model_card.text(results)


def test_weights_of_a_backbone_of_another_package_are_not_called_downloaded(monkeypatch):
    built_elsewhere = type("Elsewhere", (), {"__module__": "small_backbone"})
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "build_small_backbone", built_elsewhere)
    settings = ("MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.NAME")
    assert starting_weights(read_config(*settings, "build_small_backbone"))["what"].startswith("not known")
    assert starting_weights(read_config(*settings, "build_resnet_backbone"))["what"].startswith("downloaded")
