"""Training on synthetic people who change clothes, and the table of both settings, with the files of `make clothes`."""

from cerberus_plugin.data import resident
from cerberus_plugin.experiments import compare
from cerberus_plugin.synthetic.clothes import draw_clothes

import pytest
from support.training import read_config, trained

pytestmark = pytest.mark.slow

SIZE = ("INPUT.SIZE_TRAIN", [128, 32], "INPUT.SIZE_TEST", [128, 32], "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1)
SETTINGS = {"prcc": {"cloth-changing", "same-clothes", "single-shot"}, "ltcc": {"cloth-changing", "same-clothes"}}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Return a folder with synthetic datasets in the formats of PRCC and LTCC."""
    folder = tmp_path_factory.mktemp("synthetic")
    for form in SETTINGS:
        draw_clothes(folder, form, train_ids=6, test_ids=4, images_per_camera=1, workers=1)
    return folder


@pytest.mark.parametrize(("form", "name"), [("prcc", "PRCCAttributes"), ("ltcc", "LTCCAttributes")])
def test_models_of_synthetic_people_are_compared_in_one_table(synthetic, use_root, tmp_path, capsys, form, name):
    use_root(synthetic)
    folders = []
    for model in (("cerberus", "cssc") if form == "prcc" else ("cerberus",)):
        folders.append(str(tmp_path / model))
        cfg = read_config("DATASETS.NAMES", [name], "DATASETS.TESTS", [name], "DATASETS.HOLD_OUT", 2, "OUTPUT_DIR",
                          folders[-1], "DATALOADER.NUM_INSTANCE", 4,
                          "SOLVER.IMS_PER_BATCH", 8, *SIZE, file=f"configs/PRCC/{model}_demo.yml")
        results = trained(cfg).results
        assert {key.split("/")[0] for key in results} & SETTINGS["prcc"] == SETTINGS[form]
        assert ("PAR/mA_official" in results) == (model == "cerberus")
    resident.release()
    compare.main(folders)
    table = capsys.readouterr().out
    assert "cloth-changing" in table and all(model in table for model in ("Cerberus", "CSSC")[:len(folders)])
