"""Tests of the counted costs (the paper's for Cerberus and MGN) and of the measured times."""

from pathlib import Path

from cerberus_plugin import add_cerberus_config
from cerberus_plugin.experiments.costs import counts, times

import pytest
from fastreid.config import get_cfg

CONFIGS = Path(__file__).parents[2] / "configs/Market1501"


def config(name: str, *options):
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yml"))
    cfg.merge_from_list(list(options))
    return cfg


def test_cerberus_has_the_parameters_and_operations_of_the_paper():
    found = counts(config("cerberus_R50"))
    assert found["parameters"] == 49_306_688
    assert found["multiply-adds, paper"] == 10_055_750_656  # 10.06 G
    assert found["values an embedding"] == 2560
    # two per multiply-add without batch normalisation, and the product that aligns each of 2,048 channels
    assert 0 < found["operations, torch"] - 2 * 10_023_600_128 < 1e6


def test_mgn_has_the_parameters_and_operations_of_the_paper():
    found = counts(config("mgn_R50"))
    assert found["parameters"] - 8 == 68_807_744  # FastReID's pooling has one exponent per head
    assert round(found["multiply-adds, paper"] / 1e9, 2) == 14.00


@pytest.mark.parametrize("name", ["apr_demo", "ide_demo"])
def test_classifiers_of_identities_and_attributes_are_not_counted(name):
    # ResNet-18 without its classifier of 1,000 classes
    assert counts(config(name))["parameters"] == 11_689_512 - 512 * 1000 - 1000


def test_costs_do_not_depend_on_prototypes_or_the_number_of_identities():
    few, many = (counts(config("cerberus_demo", "MODEL.HEADS.NUM_CLASSES", number)) for number in (10, 700))
    assert few == many


def test_times_are_measured_with_batch_sizes_precisions_and_hardware(small_config, monkeypatch):
    monkeypatch.setattr("cerberus_plugin.modeling.precision.computes_in_half", lambda device: True)
    cfg = small_config("SOLVER.AUTOCAST", "bfloat16", "TEST.AUTOCAST", "")
    found = times(cfg, warm=0, steps=1)
    measured = {"seconds a training step", "milliseconds a training image", "images a second, extraction"}
    assert all(found[name] > 0 for name in measured)
    assert found["milliseconds a training image"] == pytest.approx(1000 * found["seconds a training step"] / 16)
    assert (found["images a step"], found["images a batch, extraction"]) == (16, cfg.TEST.IMS_PER_BATCH)
    assert (found["precision of a step"], found["precision of extraction"]) == ("bfloat16", "float32")
    monkeypatch.setattr("cerberus_plugin.modeling.precision.computes_in_half", lambda device: False)
    assert times(cfg, warm=0, steps=1)["precision of a step"] == "float32"
    assert "core(s)" in found["machine"]
    assert not Path(cfg.OUTPUT_DIR).exists()  # the run folder is not used
