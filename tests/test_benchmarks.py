"""The benchmarks run, compare methods correctly, and are described on their page."""

import gc
import json
import logging
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
from run import NAMES  # noqa: E402

TINY = ["--depth", "18x", "--height", "48", "--batch", "8", "--people", "8"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "figure"), [
    ("losses", [*TINY, "--iterations", "2"], "added_percent"),
    ("cpu", [*TINY, "--iterations", "2", "--busy", "0"], "times_faster"),
    ("ranking", ["--queries", "40", "--gallery", "400", "--repeats", "1"], "host_over_ours_per_query"),
    ("gallery", ["--rows", "600", "--size", "80", "--queries", "5"], "largest_loss_of_exact_ways"),
    ("backbones", ["--names", "MobileNetV2", "ViT-tiny", "--height", "64", "--batch", "2", "--rounds", "1"],
     "fastest"),
    ("indexing", ["--images", "8", "--batch", "4", "--rounds", "1"], "index_of_alone"),
])
def test_a_benchmark_writes_its_results_with_versions_and_hardware(tmp_path, name, options, figure):
    path = tmp_path / "results.json"
    done = subprocess.run([sys.executable, "-W", "ignore", str(FOLDER / f"{name}.py"), *options, "--output", str(path)],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(FOLDER.parent)})
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(path.read_text())
    assert isinstance(record[figure], float)
    assert "torch" in record["versions"] and record["hardware"]["cores"] >= 1
    assert "|--" in done.stdout


def test_the_memory_of_a_trainer_is_freed_before_the_next_one(small_config):
    names = ("engine", "data", "evaluation", "cerberus")
    levels = {name: logging.getLogger(f"fastreid.{name}").level for name in names}
    gc.disable()
    try:
        from setting import trainer

        first = weakref.ref(trainer(small_config()))
        assert first() is not None  # it and its hooks refer to each other
        trainer(small_config())
        assert first() is None
    finally:
        gc.enable()
        for name, level in levels.items():
            logging.getLogger(f"fastreid.{name}").setLevel(level)


def test_every_benchmark_is_run_by_the_command_and_described_on_the_page():
    helpers = {"common", "setting", "run"}
    apart = {"edits", "audit", "light_models"}  # the first needs a trained run, the others train for long
    assert {path.stem for path in FOLDER.glob("*.py")} - helpers - apart == set(NAMES)
    page = (FOLDER / "README.md").read_text()
    assert [name for name in (*NAMES, *apart) if f"`{name}.py`" not in page] == []


def test_models_are_timed_in_turn_and_compared_with_the_first_of_the_same_round():
    from backbones import in_turn, rates

    calls = []
    seconds = in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == list("ababab")  # the first round does not count
    assert {name: len(own) for name, own in seconds.items()} == {"a": 2, "b": 2}
    found = rates({"first": [1.0, 3.0, 1.0], "second": [0.5, 1.5, 2.0]}, batch=6)
    assert found["first"] == {"images_a_second": 6.0, "times_first": 1.0}
    assert found["second"] == {"images_a_second": 4.0, "times_first": 2.0}  # ratios 2, 2 and 0.5


HELD_OUT_RESULTS = {"slow": {"mAP": 10.0, "PAR/mA_balanced": 60.0, "APS/mAP": 20.0},  # mean 30
                    "fast": {"mAP": 16.0, "PAR/mA_balanced": 60.0, "APS/mAP": 17.0}}  # mean 31


def test_the_learning_rate_of_a_light_model_is_the_best_on_held_out_identities():
    from light_models import NAMES, best_rate, chosen_rates, models, study_of_accuracy, study_of_rates

    slow, fast = HELD_OUT_RESULTS.values()
    assert best_rate({0.1: slow, 0.2: fast}) == 0.2
    assert best_rate({0.2: fast, 0.1: fast}) == 0.1  # the smaller of equal ones
    chosen = models(NAMES, "weights.pt")
    plan = study_of_rates(chosen, [0.1, 0.2])
    assert plan.options["DATASETS.TESTS"] == ["held-out"]
    assert len({repr(sorted(variant.options.items())) for variant in plan.variants}) == 2 * (len(NAMES) + 1)
    record = {"variants": [{"name": variant.name, "runs": [{"results": {
        "held-out": fast if variant.name in ("ViT-tiny, 0.2", "Swin-tiny, 0.1") else slow}}]}
        for variant in plan.variants]}
    found = chosen_rates(record, list(chosen), [0.1, 0.2])
    assert found == dict.fromkeys(chosen, 0.1) | {"ViT-tiny": 0.2}
    trained = {variant.name: variant.options for variant in study_of_accuracy(chosen, found).variants}
    assert trained["ViT-tiny"]["SOLVER.BASE_LR"] == 0.2
    assert trained["MobileNetV2"]["SOLVER.BASE_LR"] == 0.1


def test_imagenet_weights_add_a_second_mobilenetv2_that_is_compared_with_the_first():
    from light_models import models, study_of_accuracy

    assert list(models(["ResNet-18", "MobileNetV2"], "")) == ["ResNet-18", "MobileNetV2"]
    assert list(models(["ResNet-18"], "weights.pt")) == ["ResNet-18"]
    chosen = models(["ResNet-18", "MobileNetV2"], "weights.pt")
    pretrained = chosen["MobileNetV2, ImageNet weights"]
    assert pretrained == chosen["MobileNetV2"] | {"MODEL.BACKBONE.PRETRAIN": True,
                                                  "MODEL.BACKBONE.PRETRAIN_PATH": "weights.pt"}
    assert study_of_accuracy(chosen, dict.fromkeys(chosen, 0.1)).compared() == [
        ("MobileNetV2", "ResNet-18"), ("MobileNetV2, ImageNet weights", "MobileNetV2")]


def test_the_tables_of_light_models_have_what_has_been_measured():
    from light_models import TASKS, page

    def run(seed, value):
        return {"seed": seed, "results": {"Market1501": dict.fromkeys(TASKS, value)}}

    costs = {"parameters": 7_700_000, "operations, torch": 80_000_000}
    row = {"name": "MobileNetV2", "options": {"SOLVER.BASE_LR": 0.00035}, "costs": costs}
    accuracy = {"variants": [row | {"runs": [run(1, 20.0), run(2, 22.0)]}, row | {"name": "later", "runs": []}],
                "claims": {"Market1501": ["2 seeds: too few seeds to claim an order (3 are needed)"]}}
    text = page(accuracy, None, None, 264)
    assert "seeds: 1, 2" in text and "later" not in text and "too few seeds" in text
    assert [cell.strip() for cell in text.splitlines()[4].split("|")[1:6]] == [
        "MobileNetV2", "7.7", "40", "0.00035", "21.00 ± 1.41"]
    each = {"parameters": 1, "multiply_adds": 1, **{way: {"images_a_second": 9.5, "times_first": 1.0}
                                                    for way in ("torch", "onnx")}}
    steps = {"first": [0.5, 0.25, 0.25], "second": [1.0, 1.0, 0.5]}
    speed = {"sizes": {"96x48": {"first": each}}, "step_seconds": steps, "threads": 2, "batch": 8, "rounds": 3,
             "load_before": 0.0}
    assert page(None, None, {"ViT-tiny": [0.75, 0.25]}, 240).splitlines()[-1].split("|")[2].strip() == "0.50"
    text = page(None, speed, None, 240)
    assert "96x48" in text and "9.5" in text
    assert [cell.strip() for cell in text.splitlines()[-1].split("|")[1:5]] == ["second", "1.00", "2.00", "4.0"]


def test_gradients_agree_where_noise_changes_nothing():
    import torch
    from light_models import agreement, stability

    x, y, none = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.zeros(2)
    assert agreement([x, x, none], [x, -x, y]) == 0.0  # 1 and -1; the third has no gradient
    torch.manual_seed(0)
    backbone = torch.nn.Conv2d(3, 8, 3)
    images, classes = torch.randn(8, 3, 8, 4), torch.arange(8) // 2
    assert stability(backbone, images, classes, noise=0.0) == pytest.approx(1.0)
    assert stability(backbone, images, classes, noise=10.0) < 0.9
