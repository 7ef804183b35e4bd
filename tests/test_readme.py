"""What the README shows is run here, and what it names exists."""

import re
from pathlib import Path

import pytest
from fastreid.evaluation import inference_on_dataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "projects/Cerberus/README.md"]


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_notebook_lines_run_on_a_run_folder(run, market_root, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(run.cfg.OUTPUT_DIR)
    crops = tmp_path / "crops"
    crops.mkdir()
    for n, picture in enumerate(sorted((market_root / "Market-1501-v15.09.15/query").glob("*.jpg")), start=1):
        (crops / f"{n:04d}.jpg").write_bytes(picture.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(python_blocks()[0], names)
    assert len(names["embeddings"]) == 6 and len(names["matches"]) == 5
    assert "upper colour" in names["attributes"][0]


def test_the_evaluator_for_a_model_of_ones_own_is_built_as_shown(run):
    names: dict = {}
    exec(python_blocks()[1], names)
    loader, evaluator = names["build_evaluator"](run.cfg, "Market1501Attributes", run.model.attribute_reader())
    results = inference_on_dataset(run.model, loader, evaluator)
    assert {"mAP", "PAR/mA_official", "APS/mAP"} <= set(results)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_linked_and_named_files_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for config in re.findall(r"configs/(?:Market1501|DukeMTMC|PRCC|LTCC|CelebreID)/\w+\.yml", text):
        assert (ROOT / config).is_file(), config


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_keys_that_the_pages_name_exist(page, small_config):
    cfg = small_config()
    for key in set(re.findall(r"\b(?:MODEL|TEST|SOLVER|DATALOADER|DATASETS|INPUT)(?:\.[A-Z_]+)+\b", page.read_text())):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]
