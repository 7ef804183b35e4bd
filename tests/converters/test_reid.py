"""Converted Market-1501 and DukeMTMC-reID: the same items, labels and metrics as with FastReID's classes."""

import gzip
import json
import os
import shutil

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.attributes import SIDTable
from cerberus_plugin.converters import convert
from cerberus_plugin.data.build import build_test_set
from cerberus_plugin.data.datasets import DukeMTMCAttributes, Market1501Attributes
from cerberus_plugin.data.own import OwnDataset
from cerberus_plugin.evaluation import manifest
from cerberus_plugin.synthetic.dataset import draw_dataset

import pytest
import torch
from support.data import write_duke_folder
from support.published_sets import rows, touch
from support.training import read_config


def check_same(original, converted) -> None:
    """Compare items in order, people and cameras up to their numbering, and labels by meaning."""
    assert converted.units == {} and {column.name: column.answers for column in converted.schema.columns} == {
        column.name: column.answers for column in original.schema.columns}
    assert len(converted.schema.fields) == len(original.schema.fields)
    for part in ("train", "query", "gallery"):
        one, other = getattr(original, part), getattr(converted, part)
        assert [os.path.basename(path) for path, *_ in one] == [os.path.basename(path) for path, *_ in other]
        assert all(os.path.realpath(mine[0]) == os.path.realpath(yours[0]) for mine, yours in zip(one, other))
        for k in (1, 2):
            pairs = {(mine[k], yours[k]) for mine, yours in zip(one, other)}
            assert len(pairs) == len({mine for mine, _ in pairs}) == len({yours for _, yours in pairs})
        for pid, own in {(mine[1], yours[1]) for mine, yours in zip(one, other)}:
            described = original.schema.describe(original.labels_of(pid))
            assert converted.schema.describe(converted.labels_of(own)) == described


def account(name: str) -> dict:
    """The manifest's record of a test set."""
    return manifest.of_test(*build_test_set(read_config(), name), 0)


def sizes(data) -> tuple[int, ...]:
    return SIDTable.build(data.schema, torch.stack(list(data.annotations.train.values()))).sizes


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """A synthetic dataset in the format of Market-1501 with distractors and junk, and its conversion in `out`."""
    root = tmp_path_factory.mktemp("market")
    draw_dataset(root, train_ids=4, test_ids=4, images_per_id=3, distractors=3, junk=2, seed=1, workers=1)
    convert("market1501", root, root / "out", allow_subset=True)
    return root


def test_a_converted_market_1501_has_the_same_items_labels_and_distractors(synthetic, use_root):
    original, converted = Market1501Attributes(root=str(synthetic)), OwnDataset(str(synthetic / "out"))
    check_same(original, converted)
    assert sizes(original) == sizes(converted) and converted.schema.groups == original.schema.groups
    use_root(synthetic)
    host, own = account("Market1501Attributes"), account(str(synthetic / "out"))
    assert host["gallery"]["distractors"] == 3 and (host["query"], host["gallery"]) == (own["query"], own["gallery"])
    written = rows(synthetic / "out")
    assert [row["person"] for row in written if row["split"] == "gallery"].count("0000") == 3  # without junk
    assert "0000" not in {row["person"] for row in rows(synthetic / "out", "people.csv")}
    assert json.loads((synthetic / "out/source.json").read_text())["distractors"] == "3 pictures, person 0000"


def test_a_model_has_the_same_metrics_on_both(synthetic, run, use_root, tmp_path):
    use_root(synthetic)
    figures = []
    for name in ("Market1501Attributes", str(synthetic / "out")):
        cfg = read_config("DATASETS.TESTS", (name,), "OUTPUT_DIR", str(tmp_path / os.path.basename(name)))
        figures.append(CerberusTrainer.test(cfg, run.model))
    assert {"mAP", "PAR/mA_official", "APS/mAP"} <= set(figures[0])
    assert figures[0].keys() == figures[1].keys()
    for key, value in figures[0].items():
        assert figures[1][key] == pytest.approx(value, abs=1e-9, nan_ok=True), key


def test_a_converted_dukemtmc_has_the_same_items_and_labels(tmp_path, market_people):
    from cerberus_plugin.attributes import DUKEMTMC

    from support.data import random_labels

    labels = random_labels(DUKEMTMC, 14, seed=3)
    write_duke_folder(tmp_path, dict(zip(range(1, 9), labels)), dict(zip(range(11, 17), labels[8:])))
    convert("dukemtmc", tmp_path, tmp_path / "out", allow_subset=True)
    original, converted = DukeMTMCAttributes(root=str(tmp_path)), OwnDataset(str(tmp_path / "out"))
    check_same(original, converted)
    assert sizes(original) == sizes(converted)


def test_an_identity_in_both_parts_or_without_labels_raises_an_error(synthetic, tmp_path):
    folder = next(synthetic.glob("Market*"))
    for number, (part, message) in enumerate((("bounding_box_train", "no train labels for identity"),
                                              ("query", "no test labels for identity 1400"))):
        shutil.copytree(folder, tmp_path / str(number))
        name = "1400_c1s1_000001_00.jpg" if part == "query" else next((folder / "query").iterdir()).name
        touch(tmp_path / str(number) / part, [name])
        with pytest.raises(ValueError, match=message):
            convert("market1501", tmp_path / str(number), tmp_path / "out", allow_subset=True)


@pytest.mark.slow  # makes 72,000 files
@pytest.mark.parametrize("name, lists, annotations, counts", [
    ("market1501", "market1501", "market_attribute.mat", (12_936, 3_368, 15_913, 751, 750, 12, 30)),
    ("dukemtmc", "dukeMTMC", "duke_attribute.mat", (16_522, 2_228, 17_661, 702, 1_110, 10, 23))])
def test_the_published_lists_of_files_give_the_published_counts(real_data, tmp_path, name, lists, annotations, counts):
    """With the published lists of files and annotations, and empty images."""
    for part in ("train", "query", "test"):
        text = gzip.decompress((real_data / f"{lists}_{part}.csv.gz").read_bytes()).decode()
        touch(tmp_path / "set", [line.partition(",")[2] for line in text.split()])
    shutil.copy(real_data / annotations, tmp_path / "set")
    done = convert(name, tmp_path / "set", tmp_path / "out")  # raises an error for other counts
    assert tuple(found for _, found, _ in done.counts) == counts
    converted = OwnDataset(str(tmp_path / "out"))
    original = {"market1501": Market1501Attributes, "dukemtmc": DukeMTMCAttributes}[name]
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / original.folder_name).symlink_to(tmp_path / "set")
    check_same(original(root=str(tmp_path / "root")), converted)
