"""A user-defined schema, with other groups than the paper's, from training to search."""

import json
import re
import shutil
from pathlib import Path

from cerberus_plugin import CerberusPredictor
from cerberus_plugin.attributes import AttributeSchema, Field, Group, SIDTable
from cerberus_plugin.attributes.schema import SCHEMAS
from cerberus_plugin.modeling.build import load_model
from cerberus_plugin.search.export.torch_encoder import TorchEncoder
from cerberus_plugin.search.gallery import GalleryIndex, Prefilter, Query
from cerberus_plugin.search.portable import AttributeModel

import pytest
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from support.training import read_config, trained

ROOT = Path(__file__).parents[1]
GROUPS = ("jacket", "legs", "person")


@pytest.fixture(scope="module")
def own_run(tmp_path_factory, market_root):
    """A small training run on the dataset and schema of the example in docs/extend/dataset.md."""
    patch = pytest.MonkeyPatch()
    patch.setattr("fastreid.data.build._root", str(market_root))

    page = (ROOT / "docs/extend/dataset.md").read_text().partition("## A schema of your own")[2]
    exec(re.search(r"```python\n(.*?)```", page, flags=re.S)[1], {"__name__": "shop"})
    folder = tmp_path_factory.mktemp("own") / "run"
    yield trained(read_config("OUTPUT_DIR", str(folder), "DATASETS.NAMES", ("ShopPeople",), "DATASETS.TESTS",
                              ("ShopPeople",), "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1,
                              "TEST.GROUPS", ["person"], "TEST.APS.GROUPS", ["jacket+legs"],
                              "TEST.READING", "probability"))
    patch.undo()
    del DATASET_REGISTRY._obj_map["ShopPeople"]
    SCHEMAS.pop("shop", None)


@pytest.fixture
def unregistered(own_run, monkeypatch):
    """The run, with its schema not registered."""
    monkeypatch.delitem(SCHEMAS, "shop", raising=False)
    return own_run


def test_three_groups_train_and_are_evaluated(own_run):
    results = own_run.results
    assert own_run.model.heads.num_strips == 2 and set(own_run.model.heads.fc) == set(GROUPS)
    assert own_run.model.prototypes.sid_of_class.shape[1] == 3
    assert {f"mean direction/{group}" for group in GROUPS} <= set(results)
    assert {"mAP", "PAR/mA_official", "PAR/person/mA_official", "APS/mAP", "APS/jacket+legs/mAP_given"} <= set(results)


def test_every_group_of_the_schema_is_trained(own_run):
    for name, value in own_run.model.named_parameters():
        if name.startswith(("heads.fc", "prototypes.")):
            assert not torch.equal(value, own_run.start[name]), name


def test_a_checkpoint_is_read_without_registering_its_schema(unregistered, market_root):
    predictor = CerberusPredictor(unregistered.cfg.OUTPUT_DIR, device="cpu")
    assert predictor.reader.schema == unregistered.model.schema and predictor.groups == GROUPS
    assert predictor.groups_for_changed_clothes == ("person",)
    paths = sorted(map(str, (market_root / "Market-1501-v15.09.15/query").glob("*.jpg")))[:3]
    assert predictor.embed(paths).shape == (3, 3 * unregistered.cfg.MODEL.HEADS.EMBEDDING_DIM)
    assert list(predictor.recognise(paths)[0]) == ["upper colour", "down", "gender", "age"]
    assert len(predictor.search({"trouser length": "short", "upper colour": "none"}, paths)) == 3
    assert len(predictor.search(paths[0], paths, may_have_changed_clothes=True)) == 3


def test_a_gallery_of_three_groups_is_searched_by_image_and_attributes(unregistered, market_root, tmp_path):
    encoder = TorchEncoder(CerberusPredictor(unregistered.cfg.OUTPUT_DIR, device="cpu"))
    assert (encoder.groups, encoder.lasting_groups) == (GROUPS, ("person",))
    GalleryIndex.build(tmp_path / "index", market_root / "Market-1501-v15.09.15/query", encoder).close()
    opened = GalleryIndex.open(tmp_path / "index")
    assert opened.vocabulary.schema == unregistered.model.schema
    hits = opened.search(Query(words={"gender": "female", "trouser length": "long"}), 3)
    assert len(hits) == 3 and list(hits[0].similarities) == ["legs", "person"]
    worn = hits[0].attributes["down"].value
    one, other = (opened.search(Query(words={name: worn}), 6, Prefilter(0.0)) for name in ("trouser length", "down"))
    assert one and [hit.path for hit in one] == [hit.path for hit in other]
    row = opened.sample(1)[0]
    assert opened.search(Query(opened.embedding(row), weights={"legs": 0.0}), 1)[0].path == str(opened.path(row))


@pytest.mark.slow
def test_a_model_without_prototypes_has_the_groups_of_the_dataset(own_run, market_root, use_root, tmp_path):
    use_root(market_root)
    run = trained(read_config("OUTPUT_DIR", str(tmp_path / "run"), "DATASETS.NAMES", ("ShopPeople",),
                              "DATASETS.TESTS", ("ShopPeople",), "SOLVER.MAX_EPOCH", 1,
                              "MODEL.CERBERUS.LAMBDA_SEM", 0.0, "MODEL.CERBERUS.LAMBDA_REG", 0.0,
                              "MODEL.CERBERUS.SOFTMAX", 0.0, "MODEL.CERBERUS.SOFTMAX_PRIOR", False))
    assert run.model.prototypes is None and set(run.model.heads.fc) == set(GROUPS)
    assert CerberusPredictor(run.cfg.OUTPUT_DIR, device="cpu").groups == GROUPS


def test_groups_of_another_schema_are_rejected_in_the_configuration(own_run, market_root, use_root, tmp_path):
    use_root(market_root)
    options = ("OUTPUT_DIR", str(tmp_path), "DATASETS.NAMES", ("ShopPeople",), "DATASETS.TESTS", ("ShopPeople",))
    with pytest.raises(ValueError, match="TEST.GROUPS is .'upper'., expected some of jacket, legs, person"):
        type(own_run)(read_config(*options, "TEST.GROUPS", ["upper"]))
    with pytest.raises(ValueError, match="TEST.APS.GROUPS contains 'jacket.head', .* of: jacket, legs, person"):
        type(own_run)(read_config(*options, "TEST.APS.GROUPS", ["jacket+head"]))


def test_the_error_for_a_damaged_schema_names_the_checkpoint(own_run, tmp_path):
    checkpoint = torch.load(f"{own_run.cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)
    checkpoint["model"]["held_schema.record"][5] = 0
    torch.save(checkpoint, tmp_path / "model.pth")
    cfg = own_run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth: 'held_schema.record', the attribute schema .* is damaged"):
        load_model(cfg)


def test_seven_groups_with_two_in_one_strip_have_seven_blocks():
    groups = tuple(Group(f"g{i}", strip) for i, strip in enumerate((0, 0, 1, 2, 3, None, None)))
    schema = AttributeSchema("seven", tuple(Field(f"f{i}", f"g{i}", ("no", "yes")) for i in range(7)), groups=groups)
    table = SIDTable.build(schema, torch.ones(1, 7, dtype=torch.int64))
    assert table.sizes == (2,) * 7
    from cerberus_plugin.modeling.heads import CerberusHead

    head = CerberusHead(feat_dim=3, embedding_dim=2, num_classes=4, align=False, groups=groups).eval()
    maps = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    assert head((maps, maps)).shape == (2, 14) and head.num_strips == 4
    with pytest.raises(ValueError, match="CerberusHead: the groups use .0, 1. .*expected both kinds"):
        CerberusHead(feat_dim=3, embedding_dim=2, num_classes=4, groups=groups[1:3])


@pytest.mark.slow
def test_three_groups_are_calibrated_exported_and_read_without_torch(own_run, market_root, use_root, monkeypatch,
                                                                    tmp_path):
    pytest.importorskip("onnxscript")
    from cerberus_plugin.experiments import calibrate
    from cerberus_plugin.search.export.onnx import export
    from cerberus_plugin.search.portable import ExportedEncoder

    use_root(market_root)
    schema, run = own_run.model.schema, tmp_path / "run"
    shutil.copytree(own_run.cfg.OUTPUT_DIR, run)
    calibrate.main([str(run), "--accuracy", "0.6", "--confidence", "0.6", "--false-match-rate", "0.3",
                    "--device", "cpu"])
    monkeypatch.delitem(SCHEMAS, "shop")
    assert export(run, tmp_path / "model.onnx", market_root / "Market-1501-v15.09.15/query").holds
    encoder = ExportedEncoder(tmp_path / "model.onnx")
    assert encoder.vocabulary.schema == schema and encoder.groups == GROUPS
    assert set(encoder.vocabulary.temperatures) <= {"upper colour", "down", "gender", "age"}
    assert AttributeModel.from_dict(json.loads(json.dumps(encoder.vocabulary.to_dict()))).schema == schema
