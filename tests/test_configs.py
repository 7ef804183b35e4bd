"""Configuration files: each loads, and says what its bases do not."""

import functools
from pathlib import Path

from cerberus_plugin import add_cerberus_config
from cerberus_plugin.config import check_model_keys, flat, merge_file
from cerberus_plugin.pretrained import recognise, unwrap

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY

CONFIGS = Path(__file__).parents[1] / "configs"
SIZES = ("Market1501/{}_R50", "DukeMTMC/{}_R50", "Market1501/{}_demo", "Market1501/{}_R18_cpu")
FILES = sorted(path for path in CONFIGS.rglob("*.yml") if path.parent != CONFIGS)


@functools.cache
def read(path: Path):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    merge_file(cfg, path)
    return cfg


def changes(path: Path, base: Path) -> dict:
    """Keys whose values differ between two files, with those of the first."""
    others = flat(read(base))
    return {key: value for key, value in flat(read(path)).items() if value != others[key]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_configuration_has_the_data_set_of_its_folder_and_no_key_without_effect(path):
    cfg = read(path)
    check_model_keys(cfg)
    (name,) = cfg.DATASETS.NAMES
    assert cfg.DATASETS.TESTS == (name,) and DATASET_REGISTRY.get(name)
    assert name.removesuffix("Attributes").lower() == path.parent.name.lower()
    assert len(path.read_text().splitlines()) <= 12, "what several files share belongs in a base"


def test_each_configuration_has_a_folder_of_its_own():
    folders = [read(path).OUTPUT_DIR for path in FILES]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", SIZES)
def test_cerberus_plus_differs_from_cerberus_by_its_options_alone(name):
    plus, cerberus = (CONFIGS / f"{name.format(model)}.yml" for model in ("cerberus_plus", "cerberus"))
    options = {f"MODEL.CERBERUS.{key}" for key in ("PROTOTYPES", "SOFTMAX", "SOFTMAX_PRIOR", "LAMBDA_SEM",
                                                   "LAMBDA_REG")}
    if name.endswith("R18_cpu"):
        options |= {"MODEL.CERBERUS.AGREEMENT", "MODEL.LOSSES.CE.EPSILON"}
    assert set(changes(plus, cerberus)) == options | {"TEST.READING", "OUTPUT_DIR"}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("model", ["arn", "ide"])
def test_arn_and_ide_differ_from_apr_by_the_model_alone(name, model):
    path, apr = (CONFIGS / f"{name.format(each)}.yml" for each in (model, "apr"))
    assert set(changes(path, apr)) == {"MODEL.META_ARCHITECTURE", "OUTPUT_DIR"}


WEIGHTS = sorted(path for path in FILES if read(path).MODEL.BACKBONE.PRETRAIN_SOURCE)


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_file_with_weights_of_people_has_what_they_need_and_a_baseline_on_the_same(path):
    cfg = read(path)
    source = recognise(unwrap({"any": torch.zeros(1)}), cfg.MODEL.BACKBONE.PRETRAIN_SOURCE)
    given = [*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD]
    assert any(given == pytest.approx([*mean, *std]) for mean, std in source.normalisations)
    assert cfg.MODEL.BACKBONE.PRETRAIN and cfg.MODEL.BACKBONE.PRETRAIN_PATH
    assert {key: cfg.MODEL.BACKBONE[key] for key in source.needs} == source.needs
    method, _, name = path.stem.partition("_")
    baseline = read(path.with_name(f"bot_{name}.yml"))
    assert dict(baseline.MODEL.BACKBONE) == dict(cfg.MODEL.BACKBONE)
    assert (baseline.MODEL.PIXEL_MEAN, baseline.SOLVER.BASE_LR) == (cfg.MODEL.PIXEL_MEAN, cfg.SOLVER.BASE_LR)
    assert path.parent.name == "DukeMTMC" or (CONFIGS / "DukeMTMC" / path.name).exists()


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_of_several_bases_later_ones_override_earlier_ones_and_the_file_overrides_all(tmp_path):
    write(tmp_path, "root.yml", "SEED: 1\nSOLVER: {MAX_EPOCH: 1, BASE_LR: 0.1}")
    write(tmp_path, "first.yml", "_BASE_: root.yml\nSOLVER: {MAX_EPOCH: 2, GAMMA: 0.2}")
    write(tmp_path, "second.yml", "SOLVER: {MAX_EPOCH: 3, MOMENTUM: 0.3}")
    cfg = read(write(tmp_path, "own.yml", "_BASE_: [first.yml, second.yml]\nSOLVER: {MOMENTUM: 0.4}"))
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA) == (1, 0.1, 0.2)
    assert (cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.MOMENTUM) == (3, 0.4)
    plain = get_cfg()
    add_cerberus_config(plain)
    plain.merge_from_file(str(tmp_path / "own.yml"))
    assert plain.SOLVER.MAX_EPOCH == 3, "the host's own method reads it too"


def test_a_file_that_two_bases_share_is_no_circle_and_a_circle_is_refused(tmp_path):
    write(tmp_path, "root.yml", "SEED: 1")
    write(tmp_path, "left.yml", "_BASE_: root.yml")
    write(tmp_path, "right.yml", "_BASE_: root.yml")
    assert read(write(tmp_path, "own.yml", "_BASE_: [left.yml, right.yml]")).SEED == 1
    write(tmp_path, "left.yml", "_BASE_: [root.yml, circle.yml]")
    with pytest.raises(ValueError, match="_BASE_ includes .*circle.yml recursively"):
        read(write(tmp_path, "circle.yml", "_BASE_: [left.yml, right.yml]"))
