"""A gallery with real attribute tables and the real image reader: equal to the search with torch."""

import hashlib
import json
import math
import shutil
from pathlib import Path

from cerberus_plugin.attributes import GROUPS, MARKET1501, SIDTable
from cerberus_plugin.inference import PrototypeReader
from cerberus_plugin.modeling.sid_prototypes import SIDPrototypes
from cerberus_plugin.search.gallery import Damaged, GalleryIndex, Pace, Prefilter, Query

import numpy as np
import pytest
import torch
from support.data import random_labels
from support.galleries import draw_many
from support.processes import command, imported

D, COUNT = 16, 40
DESCRIPTION = {"gender": "female", "upper colour": "red", "backpack": "yes"}


class RandomEncoder:
    """Computes deterministic embeddings that are unrelated to the contents of the images."""

    fingerprint, dim, groups, metric = "c" * 64, 5 * D, GROUPS, "cosine"
    lasting_groups, verification = (), None

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary
        self.count = 0  # of encoded images

    def encode(self, images):
        self.count += len(images)
        seeds = [int(np.asarray(image).sum()) for image in images]
        return np.stack([np.random.default_rng(seed).standard_normal(5 * D) for seed in seeds]).astype(np.float32)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """An index opened from its files, the reader with torch, and the embeddings by name."""
    torch.manual_seed(0)
    table = SIDTable.build(MARKET1501, random_labels(MARKET1501, 8), space="observed")
    prototypes = SIDPrototypes(table.sizes, MARKET1501.group_bits, num_classes=1, dim=D)
    prototypes.fill(table, torch.zeros(1, 5, dtype=torch.int64), tuple(torch.zeros(k) for k in table.sizes))
    reader = PrototypeReader(table, [prototypes.rows[g].detach() for g in GROUPS], prototypes.synthesise)
    folder = tmp_path_factory.mktemp("joined")
    draw_many(folder / "crops", COUNT)
    (folder / "crops/broken.jpg").write_bytes(b"\xff\xd8\xff cut")
    encoder = RandomEncoder(reader.attribute_model(prototypes.synthesis))
    index = GalleryIndex.build(folder / "index", folder / "crops", encoder, dtype="float32",
                               pace=Pace(progress=False))
    index.close()
    index = GalleryIndex.open(folder / "index")
    by_name = dict(zip((row.path for row in index.store.rows(index.store.ids)),
                       torch.from_numpy(index.store.embeddings(index.store.ids))))
    return index, reader, by_name


@pytest.mark.parametrize("words", [DESCRIPTION, {"gender": "male"}, {"hat": "yes", "hair": "long", "age": "old"}],
                         ids=str)
def test_attributes_have_the_ranking_and_scores_of_the_reader_with_torch(joined, words):
    index, reader, by_name = joined
    scores = reader.search(MARKET1501.parse(words)[None], torch.stack(list(by_name.values())))[0]
    hits = index.search(Query(words=words), top=COUNT)
    found = {Path(hit.path).name: hit.score for hit in hits}
    assert [found[name] for name in by_name] == pytest.approx(scores.tolist(), abs=1e-5)
    assert [hit.score for hit in hits] == sorted(found.values(), reverse=True)


def test_predicted_attributes_are_those_of_the_reader_with_torch(joined):
    index, reader, by_name = joined
    answers = reader.confidences(torch.stack(list(by_name.values())))[0].tolist()
    expected = {name: [column.classes[k] if k >= 0 else "none" for column, k in zip(MARKET1501.columns, row)]
                for name, row in zip(by_name, answers)}
    hits = index.search(Query(words={"gender": "male"}), top=COUNT)
    assert {Path(hit.path).name: [answer.value for answer in hit.attributes.values()] for hit in hits} == expected


def test_the_prefilter_keeps_images_that_match_the_description(joined):
    index, _, _ = joined
    hits = index.search(Query(words={"gender": "male"}), COUNT, Prefilter(0.6))
    every = index.search(Query(words={"gender": "male"}), COUNT)
    kept = [hit for hit in every if hit.attributes["gender"].value == "male" or hit.attributes["gender"].probability
            <= 0.6]
    assert hits == kept and 0 < len(kept) < COUNT


def test_new_abstention_thresholds_apply_without_predicting_attributes_again(joined, tmp_path):
    index = GalleryIndex.open(shutil.copytree(joined[0].folder, tmp_path / "index"))
    encoder = RandomEncoder(index.vocabulary.calibrated({"gender": 1.0}))
    index.update(encoder, pace=Pace(progress=False))
    before = index.search(Query(words={"gender": "male"}), 1)[0].attributes["gender"]
    encoder.vocabulary = index.vocabulary.calibrated({"gender": 1.0}, {"gender": float("inf")})
    kept = [path.stat().st_mtime_ns for path in (index.folder / "parts").iterdir()]
    index.update(encoder, pace=Pace(progress=False))
    assert [path.stat().st_mtime_ns for path in (index.folder / "parts").iterdir()] == kept
    after = index.search(Query(words={"gender": "male"}), 1)[0].attributes["gender"]
    assert after.abstained and not before.abstained and after[:2] == before[:2]


def test_broken_images_are_listed_with_the_reason_of_the_reader(joined):
    index, _, _ = joined
    assert index.unreadable == [("broken.jpg", "is not an image of a supported format (JPEG, PNG, BMP, WEBP)")]


# TEST.READING probability.

WORDS = [DESCRIPTION, {"hat": "no"}, {"upper colour": "none", "age": "old"}, {"lower colour": "black and white"},
         MARKET1501.describe(random_labels(MARKET1501, 1, seed=9)[0])]


@pytest.fixture(scope="module")
def by_probability(tmp_path_factory):
    """An index of a model with TEST.READING probability, its reader with torch, and the embeddings by name."""
    from cerberus_plugin.modeling.sid_prototypes import ComposedPrototypes

    torch.manual_seed(0)
    table = SIDTable.build(MARKET1501, random_labels(MARKET1501, 30))
    prototypes = ComposedPrototypes(table.sizes, MARKET1501.group_bits, num_classes=1, dim=D)
    prototypes.fill(table, torch.zeros(1, 5, dtype=torch.int64), tuple(torch.zeros(k) for k in table.sizes))
    scales = {column.name: 8.0 + m for m, column in enumerate(MARKET1501.columns)}
    reader = PrototypeReader(table, [prototypes.prototypes(g).detach() for g in GROUPS], prototypes.synthesise,
                             reading="probability", cosine_scale=scales)
    folder = tmp_path_factory.mktemp("by_probability")
    draw_many(folder / "crops", COUNT)
    encoder = RandomEncoder(reader.attribute_model(prototypes.synthesis))
    GalleryIndex.build(folder / "index", folder / "crops", encoder, dtype="float32", pace=Pace(progress=False)).close()
    index = GalleryIndex.open(folder / "index")
    ids = index.store.ids
    return index, reader, {row.path: torch.from_numpy(index.embedding(int(i)))
                           for i, row in zip(ids, index.store.rows(ids))}


@pytest.mark.parametrize("words", WORDS, ids=("partial", "one", "none", "two colours", "full"))
@pytest.mark.parametrize("form", ["exact", "int8"])
def test_the_inner_product_with_log_probabilities_equals_the_reader(by_probability, words, form):
    index, reader, by_name = by_probability
    index.faiss(form)
    scores = reader.search(MARKET1501.parse(words)[None], torch.stack(list(by_name.values())))[0]
    hits = index.search(Query(words=words), top=COUNT)
    found = {Path(hit.path).name: hit.score for hit in hits}
    assert [found[name] for name in by_name] == pytest.approx(scores.tolist(), rel=1e-6, abs=1e-6)
    assert [hit.score for hit in hits] == sorted(found.values(), reverse=True)
    groups = {column.group for column in index.vocabulary.columns if column.name in words}
    assert set(hits[0].similarities) == groups
    assert np.prod(list(hits[0].similarities.values())) == pytest.approx(np.exp(hits[0].score), rel=1e-4)


def test_log_likelihood_ratios_of_image_and_attributes_are_added(by_probability):
    index, reader, by_name = by_probability
    index.faiss()
    rows = torch.stack(list(by_name.values()))
    picture, words = rows[3].numpy(), {"backpack": "no", "bag": "yes"}
    hits = index.search(Query(picture, words, weights={"upper": 2, "carrying": 3}, leave_out=["lower"]), top=COUNT)
    cosines = (rows.unflatten(1, (5, D)) * rows[3].view(5, D)).sum(dim=2)  # (N, 5)
    person = 16 * (cosines[:, 0] + 2 * cosines[:, 1] + cosines[:, 3]) / 4
    prior = dict(zip([column.name for column in MARKET1501.columns], reader.marginals.held))
    log_p = dict(zip(prior, reader.log_probabilities(rows)))
    people = reader.table.counts[4].double().clamp(min=0.5).numpy()
    ratio = sum(log_p[name][:, k] - math.log(people @ prior[name][:, k] / people.sum())
                for name, k in (("backpack", 0), ("bag", 1)))
    expected = dict(zip(by_name, (person + 3 * ratio).tolist()))
    assert [hit.score for hit in hits] == pytest.approx([expected[Path(hit.path).name] for hit in hits], abs=1e-4)
    assert [Path(hit.path).name for hit in hits[:5]] == sorted(expected, key=expected.get, reverse=True)[:5]


def test_image_queries_do_not_use_log_probabilities(by_probability):
    index, _, by_name = by_probability
    rows = torch.stack(list(by_name.values()))
    hits = index.search(Query(rows[5].numpy()), top=COUNT)
    expected = dict(zip(by_name, (rows @ rows[5] / 5).tolist()))
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-6)
    assert index.recall(index.faiss("int8"), k=5) > 0.8
    index.faiss()


@pytest.mark.parametrize(("what", "embedded"), [("embeddings", COUNT), ("answers", 0)])
def test_damaged_log_probabilities_are_repaired_and_attributes_are_predicted_from_embeddings(
        by_probability, tmp_path, what, embedded):
    whole = by_probability[0]
    whole.faiss()
    shutil.copytree(whole.folder, tmp_path / "index")
    path = next((tmp_path / "index/parts").glob(f"*.{what}.npy"))
    content = bytearray(path.read_bytes())
    content[-60] ^= 1  # in the log-probabilities of the last row
    path.write_bytes(content)
    index = GalleryIndex.open(tmp_path / "index")
    with pytest.raises(Damaged, match=f"{what}.npy: was modified near row"):
        index.search(Query(words=DESCRIPTION), top=COUNT)
    encoder = RandomEncoder(whole.vocabulary)
    index = GalleryIndex.build(tmp_path / "index", whole.images, encoder, pace=Pace(progress=False))
    assert [error.path for error in index.lost] == [path] and encoder.count == embedded
    found, expected = ({hit.path: hit for hit in own.search(Query(words=DESCRIPTION), top=COUNT)}
                       for own in (index, whole))
    assert set(found) == set(expected)
    for path, hit in found.items():
        assert hit.score == pytest.approx(expected[path].score, abs=1e-5)
        for name, answer in expected[path].attributes.items():
            assert hit.attributes[name].value == answer.value
            assert hit.attributes[name].probability == pytest.approx(answer.probability, abs=1e-5)


@pytest.mark.parametrize("made_by", [2, 3])
def test_an_older_index_without_log_probabilities_is_searched_by_the_nearest_prototypes(joined, tmp_path, made_by):
    index = joined[0]
    shutil.copytree(index.folder, tmp_path / "index")
    path = tmp_path / "index/index.json"
    values = json.loads(path.read_text()) | {"format": made_by}
    for name in ("values", "checksum"):
        del values[name]
    if made_by == 3:
        values["checksum"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(values))
    found, expected = ([(hit.path, hit.score) for hit in own.search(Query(words=DESCRIPTION), top=5)]
                       for own in (GalleryIndex.open(tmp_path / "index"), index))
    assert found == expected


def test_the_command_searches_by_attributes_without_importing_torch(joined):
    packages = imported(command("search", joined[0].folder, "upper colour=red", "gender=female"), "upper colour")
    assert "faiss" in packages and not packages & {"torch", "torchvision", "fastreid"}
