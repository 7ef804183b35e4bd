"""What README and CONTRIBUTING show is run here, and what they name exists."""

import ast
import re
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
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage
from support.galleries import BandEncoder, build, draw_many
from support.training import model_of, read_config, small_batch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "projects/Cerberus/README.md",
         *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page: str = README) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.S)


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_and_named_files_and_sections_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.*)", ((page.parent / target) if target else page).read_text(), flags=re.M)
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor
    for config in re.findall(r"configs/(?:Market1501|DukeMTMC|PRCC|LTCC|CelebreID)/\w+\.yml", text):
        assert (ROOT / config).is_file(), config


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_that_the_pages_name_exist(page, small_config):
    cfg = small_config()
    for key in set(re.findall(r"\b(?:MODEL|TEST|SOLVER|DATALOADER|DATASETS|INPUT)(?:\.[A-Z_]+)+\b", page.read_text())):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def definitions(path: Path) -> set[str]:
    """Functions, classes, methods as `Class.method`, and assigned names of a module's top level."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def rows_of_files() -> list[tuple[str, str, str]]:
    """Rows of the README's tables of what is in which file, as (what, files, names)."""
    tables = re.findall(r"\|[^\n]*\| file of `cerberus_plugin/` \| name \|\n\|[-|]+\|\n((?:\|[^\n]*\|\n)+)", README)
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for table in tables for row in table.splitlines()]


@pytest.mark.parametrize("row", rows_of_files(), ids=lambda row: row[0])
def test_equations_and_figures_are_in_the_files_that_the_readme_names(row):
    _, files, names = (re.findall("`(.*?)`", cell) for cell in row)
    assert files and names
    found = set().union(*(definitions(ROOT / "cerberus_plugin" / file) for file in files))
    assert set(names) <= found


def test_the_readme_names_files_for_the_equations_of_the_losses():
    numbers = set()
    for what, _, _ in rows_of_files():
        for first, last in re.findall(r"Eq\. (\d)(?: to (\d))?", what):
            numbers |= set(range(int(first), int(last or first) + 1))
    assert numbers == set(range(2, 9))


@pytest.fixture(scope="module")
def contributing(tmp_path_factory) -> Iterator[dict]:
    """What the examples of the page define; the last of them opens an index in the folder."""
    folder = tmp_path_factory.mktemp("contributing")
    draw_many(folder / "crops", 30)
    build(folder, BandEncoder(vocabulary=False)).close()
    (folder / "index").rename(folder / "gallery")
    names: dict = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in python_blocks((ROOT / "CONTRIBUTING.md").read_text()):
            exec(block, names)
    yield names
    names["index"].close()
    for registered, name in ((SCHEMAS, "street"), (SPLITTERS, "build_small_backbone"),
                             (DATASET_REGISTRY._obj_map, "Street")):
        del registered[name]


def test_the_model_backbone_schema_and_data_set_of_the_contributing_page_work(small_config, contributing):
    cfg = small_config("MODEL.META_ARCHITECTURE", "ShortFeatures", "MODEL.BACKBONE.NAME", "build_small_backbone",
                       "MODEL.HEADS.NUM_CLASSES", 2, file="configs/Market1501/bot_demo.yml")
    batch = {"images": torch.rand(4, 3, 32, 32), "targets": torch.tensor([0, 0, 1, 1])}
    with EventStorage(0):
        losses = build_model(cfg)(batch)
    assert set(losses) == {"loss_cls", "loss_triplet", "loss_length"}
    assert contributing["Street"].schema.group_bits == (1, 1, 1, 1, 1)


def test_the_split_of_the_contributing_page_gives_a_cerberus_that_trains(contributing):
    model = model_of("MODEL.BACKBONE.NAME", "build_small_backbone", "MODEL.BACKBONE.FEAT_DIM", 64,
                     "MODEL.HEADS.EMBEDDING_DIM", 16).train()
    sum(model(small_batch(model)).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_loss_of_the_contributing_page_is_among_those_of_the_trainers_model(contributing):
    cfg = read_config("MODEL.HEADS.NUM_CLASSES", 751, "MODEL.CERBERUS.SCHEMA", "market1501",
                      "MODEL.CERBERUS.NUM_SIDS", [4, 18, 40, 8, 4])
    model = contributing["TrainerWithLength"].build_model(cfg).train()
    assert model(small_batch(model))["loss_length"].item() > 0


def test_the_engine_of_the_contributing_page_finds_what_faiss_finds(contributing, monkeypatch):
    monkeypatch.chdir(contributing["folder"])
    index, own = contributing["index"], contributing["NumpyEngine"](Space("", Path(), 20, "cosine"))
    queries = [Query(row) for row in index.store.embeddings(index.store.ids[:3])]
    found = [[hit.path for hit in hits] for hits in index.search_many(queries, 5)]
    index.use(Faiss())
    assert found == [[hit.path for hit in hits] for hits in index.search_many(queries, 5)]
    assert len(set(map(tuple, found))) == 3
    exact = FaissEngine(20)
    for engine in (own, exact):
        engine.add(np.arange(6), np.eye(6, 20, dtype=np.float32))
        engine.remove(np.array([2]))
    asked = np.arange(20, 0, -1, dtype=np.float32)[None], 4, np.array([0, 2, 5])
    for found, expected in zip(own.search(*asked), exact.search(*asked)):
        assert np.array_equal(found, expected)
    assert sorted(own.ids()) == sorted(exact.ids())
