"""The examples of docs/extend run without changes, and are short."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

from cerberus_plugin.attributes import SCHEMAS
from cerberus_plugin.modeling.backbones import SPLITTERS
from cerberus_plugin.search.gallery import Query
from cerberus_plugin.search.gallery.engines import Faiss, FaissEngine, Space

import numpy as np
import pytest
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.evaluation import inference_on_dataset
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, build_model
from fastreid.utils.events import EventStorage
from support.galleries import BandEncoder, build, draw_many
from support.training import SMALL, model_of, small_batch

ROOT = Path(__file__).parents[1]
# Options of a training of two steps, as on the command line.
SHORT = ("MODEL.DEVICE", "cpu", "INPUT.SIZE_TRAIN", "[48,24]", "INPUT.SIZE_TEST", "[48,24]", "SOLVER.IMS_PER_BATCH", 16,
         "SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 1, "TEST.UNTRAINED_FLOOR", False)


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / f"docs/extend/{page}.md").read_text(), flags=re.S)


def test_each_example_has_fewer_than_40_lines():
    for path in (ROOT / "docs/extend").glob("*.md"):
        for block in blocks(path.stem):
            assert len(block.splitlines()) < 40, path.name


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Iterator[dict]:
    """The names that the examples define. The example of a search engine opens an index in the folder."""
    folder = tmp_path_factory.mktemp("extend")
    draw_many(folder / "crops", 30)
    build(folder, BandEncoder(vocabulary=False)).close()
    (folder / "index").rename(folder / "gallery")
    names: dict = {"folder": folder, "__name__": "examples"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for page in ("model", "backbone", "dataset", "loss", "engine"):
            for block in blocks(page):
                exec(block, names)
    yield names
    names["index"].close()
    for registered, name in ((SCHEMAS, "street"), (SCHEMAS, "shop"), (SPLITTERS, "build_small_backbone"),
                             (DATASET_REGISTRY._obj_map, "Street"), (DATASET_REGISTRY._obj_map, "ShopPeople"),
                             (BACKBONE_REGISTRY._obj_map, "build_small_backbone"),
                             (META_ARCH_REGISTRY._obj_map, "ShortFeatures")):
        del registered[name]


def test_the_model_with_the_backbone_returns_losses(small_config, examples):
    cfg = small_config("MODEL.META_ARCHITECTURE", "ShortFeatures", "MODEL.BACKBONE.NAME", "build_small_backbone",
                       "MODEL.HEADS.NUM_CLASSES", 2, file="configs/Market1501/bot_demo.yml")
    batch = {"images": torch.rand(4, 3, 32, 32), "targets": torch.tensor([0, 0, 1, 1])}
    with EventStorage(0):
        losses = build_model(cfg)(batch)
    assert set(losses) == {"loss_cls", "loss_triplet", "loss_length"}


def test_the_script_of_the_first_page_trains_the_model(small_config, examples, monkeypatch, tmp_path):
    script = tmp_path / "train_short.py"
    script.write_text(blocks("index")[0])
    (tmp_path / "short_features.py").write_text("")  # registered by the fixture
    monkeypatch.syspath_prepend(tmp_path)
    small_config()
    out = tmp_path / "run"
    monkeypatch.setattr("sys.argv", list(map(str, (
        script, "--config-file", ROOT / "configs/Market1501/bot_demo.yml", "MODEL.META_ARCHITECTURE", "ShortFeatures",
        "MODEL.BACKBONE.NAME", "build_small_backbone", "MODEL.BACKBONE.FEAT_DIM", 16, *SHORT, "OUTPUT_DIR", out))))
    runpy.run_path(str(script), run_name="__main__")
    assert (out / "model_final.pth").is_file()


def test_the_evaluator_for_a_new_model_scores_three_tasks(run, examples):
    loader, evaluator = examples["build_evaluator"](run.cfg, "Market1501Attributes", run.model.attribute_reader())
    results = inference_on_dataset(run.model, loader, evaluator)
    assert {"mAP", "PAR/mA_official", "APS/mAP"} <= set(results)


def test_cerberus_trains_with_the_split_backbone(examples):
    model = model_of("MODEL.BACKBONE.NAME", "build_small_backbone", "MODEL.BACKBONE.FEAT_DIM", 64,
                     "MODEL.HEADS.EMBEDDING_DIM", 16).train()
    sum(model(small_batch(model)).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_dataset_has_one_bit_per_group(examples):
    assert examples["Street"].schema.group_bits == (1, 1, 1, 1, 1)


def test_the_script_with_a_loss_trains_with_it(small_config, monkeypatch, tmp_path):
    script = tmp_path / "train_length.py"
    script.write_text(blocks("loss")[0])
    small_config()
    out = tmp_path / "run"
    monkeypatch.setattr("sys.argv", list(map(str, (
        script, "--config-file", ROOT / "configs/Market1501/cerberus_demo.yml", *SMALL, *SHORT, "OUTPUT_DIR", out))))
    runpy.run_path(str(script), run_name="__main__")
    assert '"loss_length"' in (out / "metrics.json").read_text()


def test_the_search_engine_has_the_same_results_as_faiss(examples, monkeypatch):
    monkeypatch.chdir(examples["folder"])
    index, own = examples["index"], examples["NumpyEngine"](Space("", Path(), 20, "cosine"))
    queries = [Query(row) for row in index.store.embeddings(index.store.ids[:3])]
    found = [[hit.path for hit in hits] for hits in index.search_many(queries, 5)]
    index.use(Faiss())
    assert found == [[hit.path for hit in hits] for hits in index.search_many(queries, 5)]
    assert len(set(map(tuple, found))) == 3
    exact = FaissEngine(20)
    for engine in (own, exact):
        engine.add(np.arange(6), np.eye(6, 20, dtype=np.float32))
        engine.remove(np.array([2]))
    arguments = np.arange(20, 0, -1, dtype=np.float32)[None], 4, np.array([0, 2, 5])
    for found, expected in zip(own.search(*arguments), exact.search(*arguments)):
        assert np.array_equal(found, expected)
    assert sorted(own.ids()) == sorted(exact.ids())
