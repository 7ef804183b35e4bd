"""The configuration chosen for each kind of data and hardware, and that it is valid."""

from pathlib import Path

from cerberus_plugin.own_data.recipe import (
    CALIBRATED_PEOPLE,
    FROM_SCRATCH,
    MODELS,
    SIZES,
    Facts,
    Wish,
    choose,
    model_for,
    schedule,
)
from cerberus_plugin.search.calibration.abstention import identities_to_vouch

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
MARKET = Facts(12936, 751, 750, attributes=12, size=(128, 64))
SHOP = Facts(247, 32, 32, attributes=12, size=(128, 64))


R18 = {"NAME": "build_resnet_backbone", "DEPTH": "18x", "FEAT_DIM": "512", "WITH_IBN": "False"}
R50_IBN = {"NAME": "build_resnet_backbone", "DEPTH": "50x", "FEAT_DIM": "2048", "WITH_IBN": "True"}
OSNET = {"NAME": "build_osnet_backbone", "DEPTH": "x0_25", "FEAT_DIM": "128", "WITH_IBN": "False"}


def chosen(facts: Facts, gpu: bool, *, cores: int = 4, **wish) -> dict[str, str]:
    return {choice.key: choice.value for choice in choose(facts, gpu, cores, Wish(**wish)).choices}


def rejected(facts: Facts, model: str) -> bool:
    try:
        return not model_for(facts, model)
    except ValueError:
        return True


@pytest.mark.parametrize("facts, model", [
    (SHOP, "plus"),
    (Facts(247, 32, 32), "bot"),
    (Facts(247, 32, 32, attributes=1, not_for_cerberus="one group"), "apr"),
])
def test_the_model_follows_the_attributes(facts, model):
    assert model_for(facts)[0] == model


@pytest.mark.parametrize("facts, wanted, reason", [
    (Facts(247, 32, 32), "plus", "needs attributes, but the data has none"),
    (Facts(247, 32, 32), "arn", "needs attributes, but the data has none"),
    (Facts(247, 32, 32, attributes=1, not_for_cerberus="one group"), "cerberus", "one group; or choose --model apr"),
    (Facts(247, None, 0, attributes=2), "bot", "Add the column 'person'"),
    (SHOP, "resnet", "expected one of plus, cerberus"),
])
def test_a_model_that_does_not_suit_the_data_is_rejected(facts, wanted, reason):
    with pytest.raises(ValueError, match=reason):
        model_for(facts, wanted)


@pytest.mark.parametrize("images, people, gpu, plan", [  # batch, epochs, steps, warm-up
    (12936, 751, True, (64, 30, 6060, 606)),  # 24,000 / 4 steps of 64 images: 29.7 epochs
    (1000, 100, True, (64, 120, 1800, 180)),  # at most the epochs of the recipe
    (100_000, 5000, True, (64, 20, 31240, 2000)),  # at least 20 epochs, and the warm-up of the recipe
    (247, 32, False, (64, 81, 243, 24)),  # 20,000 / 247
    (12936, 751, False, (64, 12, 2424, 242)),
    (18, 6, False, (16, 120, 120, 12)),  # a batch is at most the number of images, a multiple of four
    (30, 2, False, (8, 120, 360, 36)),  # and at most four images of each person
    (7, 4, False, (0, 0, 0, 0)),
    (100, 1, False, (0, 0, 0, 0)),
    (100, None, False, (64, 120, 120, 12)),
])
def test_batch_and_epochs_follow_from_the_number_of_images(images, people, gpu, plan):
    assert schedule(images, people, gpu) == plan


@pytest.mark.parametrize("epochs", [1, 2, 3, 50])
@pytest.mark.parametrize("images", [8, 64, 1000])
def test_at_least_one_epoch_follows_the_warm_up(images, epochs):
    plan = schedule(images, images, False, epochs=epochs)
    assert -(-plan.warmup // (images // plan.batch)) < epochs


def test_a_gpu_uses_the_recipe_of_the_paper_and_a_cpu_a_small_one():
    assert choose(MARKET, True).file == "Market1501/cerberus_plus_R50.yml"
    assert choose(MARKET, False).file == "Market1501/cerberus_plus_demo.yml"
    assert chosen(MARKET, True, weights="r50.pth")["MODEL.BACKBONE.PRETRAIN_PATH"] == "r50.pth"
    small = chosen(MARKET, False)
    assert small["MODEL.BACKBONE.PRETRAIN"] == "False" and small["DATALOADER.NUM_WORKERS"] == "0"
    assert small["MODEL.CERBERUS.ALIGN"] == "False"
    weighted = chosen(MARKET, False, weights="r18.pth", backbone=R18)
    assert (weighted["MODEL.BACKBONE.DEPTH"], weighted["MODEL.BACKBONE.FEAT_DIM"]) == ("18x", "512")
    assert weighted["MODEL.CERBERUS.SIGMA"] == "5.0" and "MODEL.CERBERUS.ALIGN" not in weighted


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gpu", [True, False])
def test_every_recipe_is_a_configuration_that_takes_its_choices(model, gpu):
    from cerberus_plugin import add_cerberus_config
    from cerberus_plugin.config import check_model_keys, configuration

    from fastreid.config import get_cfg

    for facts in (MARKET, SHOP, Facts(300, 40, 20, attributes=2, crowded=("all",), size=(100, 100))):
        recipe = choose(facts, gpu, 4, Wish(model, weights="r50.pth" if gpu else ""))
        cfg = get_cfg()
        add_cerberus_config(cfg)
        cfg.merge_from_file(str(configuration(recipe.file)))
        cfg.merge_from_list(recipe.options)
        check_model_keys(cfg)
        decays = cfg.SOLVER.STEPS if cfg.SOLVER.SCHED == "MultiStepLR" else [0]
        assert cfg.SOLVER.MAX_EPOCH > max(cfg.SOLVER.DELAY_EPOCHS, *decays)
        assert configuration(recipe.file).parent.parent == CONFIGS
        assert all(reason for _, _, reason in recipe.choices)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weights", ["", "weights.pth"])
def test_every_size_is_a_configuration_that_takes_its_choices(model, gpu, size, weights):
    from cerberus_plugin import add_cerberus_config
    from cerberus_plugin.config import check_model_keys, configuration

    from fastreid.config import get_cfg

    if model == "mgn" and size != "base":
        with pytest.raises(ValueError, match="no backbone smaller than ResNet-50.*--size base"):
            choose(MARKET, gpu, 4, Wish(model, size=size))
        return
    recipe = choose(MARKET, gpu, 4, Wish(model, size=size, weights=weights))
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(configuration(recipe.file)))
    cfg.merge_from_list(recipe.options)
    check_model_keys(cfg)
    node = cfg.MODEL.BACKBONE
    backbone = SIZES[size] if weights or size != "tiny" else FROM_SCRATCH["tiny"]
    assert (node.NAME, node.DEPTH, node.FEAT_DIM) == backbone[:3]
    assert cfg.INPUT.SIZE_TRAIN == cfg.INPUT.SIZE_TEST
    reasons = {choice.key: choice.reason for choice in recipe.choices}
    assert reasons["MODEL.BACKBONE.NAME"] == f"--size {size}: {backbone.what}"


@pytest.mark.parametrize("size, gpu, facts, pixels", [
    ("", True, MARKET, None), ("", False, MARKET, None), ("base", True, MARKET, None),  # those of the recipe
    ("tiny", True, MARKET, "[256, 128]"), ("small", True, MARKET, "[256, 128]"), ("tiny", False, MARKET, "[96, 48]"),
    ("small", False, MARKET, "[96, 48]"), ("base", False, MARKET, "[128, 64]"),
    ("tiny", True, Facts(100, 20, 10, size=(100, 100)), "[256, 192]"),
    ("base", False, Facts(100, 20, 10, size=(100, 100)), "[128, 96]"),
    ("", False, Facts(100, 20, 10, size=(100, 100)), "[96, 72]"),
])
def test_the_size_decides_about_pixels(size, gpu, facts, pixels):
    found = chosen(facts, gpu, size=size)
    assert found.get("INPUT.SIZE_TRAIN") == found.get("INPUT.SIZE_TEST") == pixels


def test_without_a_size_the_backbone_is_that_of_the_recipe():
    for gpu in (True, False):
        assert not {"MODEL.BACKBONE.NAME", "MODEL.BACKBONE.DEPTH", "INPUT.SIZE_TRAIN"} & set(chosen(MARKET, gpu))
    tiny = chosen(MARKET, False, size="tiny")
    assert (tiny["MODEL.CERBERUS.SIGMA"], tiny["MODEL.CERBERUS.SIGMA_QUANTILE"]) == ("1.0", "0.5")
    assert "MODEL.CERBERUS.SIGMA" not in chosen(MARKET, False, size="small")
    assert "MODEL.CERBERUS.SIGMA" not in chosen(MARKET, False, size="tiny", model="bot")
    assert tiny["SOLVER.BASE_LR"] == "0.003" and chosen(MARKET, True, size="tiny")["SOLVER.BASE_LR"] == "0.0015"
    assert "SOLVER.BASE_LR" not in chosen(MARKET, False, size="small")
    assert "SOLVER.BASE_LR" not in chosen(MARKET, False, size="tiny", weights="w.pth")
    own = chosen(MARKET, False, size="tiny", given={"INPUT.SIZE_TRAIN": "[64, 32]", "MODEL.BACKBONE.DEPTH": "0.5x"})
    assert (own["INPUT.SIZE_TRAIN"], own["MODEL.BACKBONE.DEPTH"]) == ("[64, 32]", "0.5x")


@pytest.mark.parametrize("backbone, size", [(R18, "small"), (R50_IBN, "base"), (OSNET, "tiny")])
@pytest.mark.parametrize("gpu", [True, False])
def test_weights_bring_their_backbone_and_go_with_its_size_alone(backbone, size, gpu):
    for said in ("", size):
        found = chosen(MARKET, gpu, weights="w.pth", backbone=backbone, size=said)
        assert {name: found[f"MODEL.BACKBONE.{name}"] for name in backbone} == backbone
        assert (found["MODEL.BACKBONE.PRETRAIN"], found["MODEL.BACKBONE.PRETRAIN_PATH"]) == ("True", "w.pth")
    for other in SIZES:
        if other != size:
            with pytest.raises(ValueError, match=f"w.pth has weights of build_.*take --size {size}, leave out --size"):
                choose(MARKET, gpu, wish=Wish(weights="w.pth", backbone=backbone, size=other))


def test_weights_that_are_not_recognised_go_to_the_backbone_of_the_size():
    assert chosen(MARKET, True, weights="w.pth")["MODEL.BACKBONE.DEPTH"] == "50x"
    assert chosen(MARKET, True, weights="w.pth", size="small")["MODEL.BACKBONE.DEPTH"] == "18x"
    assert "MODEL.BACKBONE.WITH_IBN" not in chosen(MARKET, True, weights="w.pth")
    with pytest.raises(ValueError, match="--size huge: expected one of tiny, small, base"):
        choose(MARKET, True, wish=Wish(size="huge"))
    with pytest.raises(ValueError, match="--model mgn: takes no backbone smaller than ResNet-50, not small"):
        choose(MARKET, True, wish=Wish("mgn", weights="w.pth", backbone=R18))


def test_what_a_recipe_counts_in_epochs_shrinks_with_them():
    assert chosen(MARKET, True, model="bot")["SOLVER.STEPS"] == "[11, 24]"  # 40 and 90 of 120 epochs, scaled to 33
    frozen = chosen(MARKET, True, model="sbs", epochs=6, weights="r50.pth")
    assert frozen["SOLVER.DELAY_EPOCHS"] == "3" and frozen["SOLVER.FREEZE_ITERS"] == "90"  # 6 * 181 // 12
    assert "DATALOADER.NUM_INSTANCE" not in frozen  # 17 images per person
    assert chosen(SHOP, True, model="sbs")["DATALOADER.NUM_INSTANCE"] == "4"
    assert chosen(MARKET, True, model="sbs")["MODEL.FREEZE_LAYERS"] == "[]"


@pytest.mark.parametrize("facts, held, fitted", [
    (MARKET, "75", "75 people held out of training"),
    (Facts(3000, 300, 5, attributes=1), "45", "45 people held out of training"),
    (Facts(300_000, 9000, 900), "200", "200 people held out of training"),
    (Facts(600, 299, 90), None, "half of the 90 test people"),
    (Facts(600, 299, 89), None, ""),
])
def test_people_are_held_out_for_calibration_if_there_are_enough(facts, held, fitted):
    recipe = choose(facts, True)
    assert dict(zip(recipe.options[::2], recipe.options[1::2])).get("DATASETS.HOLD_OUT") == held
    assert recipe.calibrated_on == fitted and bool(recipe.not_calibrated) != bool(fitted)
    assert CALIBRATED_PEOPLE == identities_to_vouch(0.95)


def test_options_of_the_user_take_precedence_and_determine_the_rest():
    wish = {"SOLVER.MAX_EPOCH": "4", "SOLVER.IMS_PER_BATCH": "32", "SEED": "7", "SOLVER.BASE_LR": "0.001"}
    own = chosen(SHOP, False, given=wish)
    assert {key: own[key] for key in wish} == wish
    assert own["SOLVER.WARMUP_ITERS"] == "2" and own["TEST.EVAL_PERIOD"] == "4"  # a tenth of 4 epochs of 7 steps
    assert chosen(MARKET, True, given={"DATASETS.HOLD_OUT": "10"})["DATASETS.HOLD_OUT"] == "10"
    with pytest.raises(ValueError, match="conflict"):
        choose(SHOP, False, wish=Wish(epochs=3, given={"SOLVER.MAX_EPOCH": "4"}))
    with pytest.raises(ValueError, match="SOLVER.MAX_EPOCH four: expected a whole number"):
        choose(SHOP, False, wish=Wish(given={"SOLVER.MAX_EPOCH": "four"}))
    for key, number, least in (("SOLVER.IMS_PER_BATCH", "7", 8), ("SOLVER.MAX_EPOCH", "0", 1)):
        with pytest.raises(ValueError, match=f"{key} {number}: expected a whole number, at least {least}"):
            choose(SHOP, False, wish=Wish(given={key: number}))
    with pytest.raises(ValueError, match="smaller SOLVER.IMS_PER_BATCH"):
        choose(SHOP, False, wish=Wish(given={"SOLVER.IMS_PER_BATCH": "999"}))


def test_wide_images_get_a_wide_input_size():
    assert "INPUT.SIZE_TRAIN" not in chosen(SHOP, True)
    assert chosen(Facts(100, 20, 10, size=(100, 100)), True)["INPUT.SIZE_TEST"] == "[256, 192]"


def test_too_little_data_is_rejected():
    with pytest.raises(ValueError, match="7 images of 4 people are too few"):
        choose(Facts(7, 4, 0), True)


def test_data_without_identities_is_for_models_of_attributes():
    facts = Facts(1000, None, 0, attributes=5)
    assert model_for(facts)[0] == "plus" and choose(facts, False).not_calibrated == "identities are unknown"
    assert model_for(Facts(1000, None, 0, attributes=1, not_for_cerberus="one group"))[0] == "arn"
    assert {name for name in MODELS if not rejected(facts, name)} == {"plus", "cerberus", "arn"}
