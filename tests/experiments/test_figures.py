"""Tests of the figures of the paper and of the numbers in their captions."""

import copy
import hashlib
import json
from pathlib import Path

from cerberus_plugin import CerberusPredictor, CerberusTrainer
from cerberus_plugin.attributes import GROUPS, MISSING
from cerberus_plugin.experiments.figures import __main__ as command
from cerberus_plugin.experiments.figures import alignment, attention, exhibit, neighbours, rank_list, sheets
from cerberus_plugin.experiments.figures.rank_list import RIGHT, WRONG
from cerberus_plugin.utils.images import read_image

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastreid.utils.env import seed_all_rng
from matplotlib.text import Text
from PIL import Image
from support.training import read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory, market_root):
    """An untrained Cerberus whose batch normalisation is not the identity."""
    folder = tmp_path_factory.mktemp("figures") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastreid.data.build._root", str(market_root))
        seed_all_rng(1)
        trainer = CerberusTrainer(read_config("OUTPUT_DIR", str(folder), "MODEL.CERBERUS.SIGMA", 0.0,
                                              "INPUT.SIZE_TEST", [96, 48]))
    generator = torch.Generator().manual_seed(0)
    for bn in trainer.model.heads.bn.values():
        for values in (bn.running_mean, bn.weight.data, bn.bias.data):
            values.copy_(torch.rand(values.shape, generator=generator) + 0.2)
    trainer.checkpointer.save("model_final")
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return CerberusPredictor(folder, device="cpu")


@pytest.fixture
def run(predictor, market_root, use_root):
    """Tests may change the attributes of its predictor and images, and its model by `monkeypatch`."""
    use_root(market_root)
    return exhibit.TestedModel(copy.copy(predictor), "Market1501Attributes")


def changed(run, key: str, value) -> exhibit.TestedModel:
    """The run with another value of its configuration."""
    predictor = copy.copy(run.predictor)
    predictor.cfg = predictor.cfg.clone()
    predictor.cfg.defrost()
    predictor.cfg.merge_from_list([key, value])
    return exhibit.TestedModel(predictor, run.dataset)


def paths_of(run, count: int = 6) -> list[str]:
    return [path for path, *_ in run.items[:count]]


@pytest.fixture
def cropping_sigma(run, monkeypatch) -> None:
    """Set a sigma that crops about half of the images, in a wide gap between norms so that batches do not matter."""
    heat = alignment.rows_of(run, [path for path, *_ in run.items]).heat
    edges = torch.minimum(heat[:, 0], heat[:, -1])  # an image is cropped where its first or last row is below sigma
    low, high = edges.quantile(torch.tensor([1 / 3, 2 / 3]))
    norms = heat.flatten().sort().values
    middle = norms[(norms >= low) & (norms <= high)]
    widest = middle.diff().argmax()
    monkeypatch.setattr(run.predictor.model.heads, "sigma", middle[widest:widest + 2].mean().item())


@pytest.mark.parametrize("align", [True, False])
def test_the_mean_weight_over_the_input_of_a_group_is_1(run, cropping_sigma, monkeypatch, align):
    monkeypatch.setattr(run.predictor.model.heads, "align", align)
    weights, rows = attention.weights_of_places(run.predictor.model, run.predictor.load_images(paths_of(run)))
    assert weights.shape[:2] == (6, len(GROUPS)) and weights.std() > 0.01
    assert torch.allclose(rows.sum(dim=2), torch.ones(6, 5))
    assert torch.allclose((weights.mean(dim=3) * rows).sum(dim=2), torch.ones(6, 5), atol=1e-4)
    assert ((rows[:, 3:] - rows[:, 3:].mean()).abs() < 1e-6).all() and (rows[:, :3] == 0).any()


def test_a_weight_is_the_inner_product_of_output_and_representation(run):
    model, images = run.predictor.model, run.predictor.load_images(paths_of(run, 2))
    weights, _ = attention.weights_of_places(model, images)
    with torch.no_grad():
        maps = model.maps(model.preprocess_image(images))
        heads = model.heads
        layered = [heads.bn["identity"](heads.fc["identity"](x)[:, :, None, None])[:, :, 0, 0]
                   for x in (maps[0].mean(dim=(2, 3)), maps[0][:, :, 1, 0])]
    own, place = layered
    expected = (own * place).sum(dim=1) / own.square().sum(dim=1)
    assert torch.allclose(weights[:, GROUPS.index("identity"), 1, 0], expected, atol=1e-4)


def test_a_model_without_mean_pooling_is_rejected(run, monkeypatch):
    heads = run.predictor.model.heads
    pool = heads.pool

    def maximum(global_map, local_map):
        pooled, how = pool(global_map, local_map)
        return pooled | {"identity": global_map.amax(dim=(2, 3))}, how

    monkeypatch.setattr(heads, "pool", maximum)
    with pytest.raises(ValueError, match="representation 'identity', expected 1. This model does not use mean pooling"):
        attention.weights_of_places(run.predictor.model, run.predictor.load_images(paths_of(run)))


def test_a_strip_is_drawn_with_the_height_of_its_input():
    assert attention.extent(torch.tensor([0.0, 0.5, 0.5, 0.0])) == (0.25, 0.75)
    start, end = attention.extent(torch.tensor([0.0, 0.2, 0.4, 0.0]))
    assert (start, end) == (pytest.approx(0.375), pytest.approx(0.75))


def test_the_most_cropped_images_are_chosen_one_per_person(run):
    rows = alignment.Rows(torch.ones(len(run.items), 3), torch.zeros(len(run.items)).long(),
                          torch.full((len(run.items),), 2), torch.zeros(len(run.items)).bool())
    assert [run.items[i][1] for i in alignment.choose(run, rows, 5)] == [1, 3]  # no image is cropped: two of them
    distractor = next(i for i, (_, pid, _) in enumerate(run.items) if pid == 0)
    of_three = [i for i, (_, pid, _) in enumerate(run.items) if pid == 3]
    rows.bottom[[distractor, of_three[0]]] = 0
    rows.bottom[[of_three[1], 0]] = 1
    assert alignment.choose(run, rows, 5) == [of_three[0], 0]
    assert alignment.choose(run, rows, 1) == [of_three[0]]


def test_the_share_of_cropped_images_is_that_of_the_model(run, cropping_sigma, monkeypatch):
    monkeypatch.setattr(alignment, "draw", lambda *_: None)
    shown = alignment.make(run, people=3)
    model = run.predictor.model
    with torch.no_grad():
        alone = (model.preprocess_image(run.predictor.load_images([path])) for path, *_ in run.items)
        ratios = [model.heads.pool(*model.maps(image))[1]["crop_ratio"].item() for image in alone]
    cropped = sum(ratio < 1 for ratio in ratios)
    assert 0 < cropped < len(run.items) == shown.figures["images"]
    assert shown.figures["cropped"] == cropped
    assert shown.figures["rows kept, mean %"] == pytest.approx(100 * sum(ratios) / len(ratios), abs=1e-3)
    assert f"{cropped} of {len(run.items)} test images" in shown.caption and "most cropped" in shown.caption
    monkeypatch.setattr(run.predictor.model.heads, "sigma", 1e9)
    shown = alignment.make(run)
    assert shown.figures["no row above sigma"] == len(run.items)
    assert "0 of" in shown.caption and "Sigma does not fit" in shown.caption


def test_strips_are_the_thirds_of_the_rows_kept():
    picture = np.arange(24, dtype=np.uint8)[:, None, None].repeat(4, axis=1).repeat(3, axis=2)
    _, axis = plt.subplots()
    alignment.draw_strips(axis, picture, ("head", "upper", "lower"), top=0.25, end=0.5)
    assert [image.get_array()[:, 0, 0].tolist() for image in axis.images] == [[6, 7], [8, 9], [10, 11]]
    starts = [image.get_extent()[3] for image in axis.images]
    assert starts[0] == 0 and axis.images[2].get_extent()[2] == pytest.approx(24)
    plt.close()


def test_the_nearest_neighbour_is_from_another_camera():
    angles = torch.tensor([0, 1, 40, 44, 46, 90.0]).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    pids, camids = torch.tensor([1, 1, 1, 2, 2, 3]), torch.tensor([0, 0, 1, 0, 1, 1])
    # 0 and 1: nearest elsewhere is 2, right. 2: nearest elsewhere is 3, wrong. 3: 4 at 2 degrees, right. 4: 3, right.
    # 5 has no other image.
    right, chance, counted = neighbours.nearest_is_same(embeddings, pids, camids)
    assert counted == 5 and right == pytest.approx(80)
    assert chance == pytest.approx(100 * (1 / 3 + 1 / 3 + 2 / 3 + 1 / 3 + 1 / 3) / 5)


def test_the_default_semantic_id_is_the_one_with_the_most_people(run):
    shared = neighbours.shared_sid(run)
    table = run.predictor.reader.table
    sids = table.lookup(run.labels)
    people = torch.tensor([pid for _, pid, _ in run.items])
    counts = {(g, k): len(people[sids[:, i] == k].unique()) for i, g in enumerate(GROUPS)
              for k in range(table.sizes[i])}
    assert len(shared.images) == max(counts.values()) == counts[shared.group, shared.sid]
    for pid, indices in shared.images.items():
        assert {run.items[i][1] for i in indices} == {pid}
        assert {sids[i, GROUPS.index(shared.group)].item() for i in indices} == {shared.sid}
    other = next(key for key, count in counts.items() if count >= 2 and key != (shared.group, shared.sid))
    named = neighbours.shared_sid(run, *other)
    assert (named.group, named.sid) == other
    alone = next(key for key, count in counts.items() if count == 1)
    with pytest.raises(ValueError, match=f"1 people have semantic ID {alone[1]} of {alone[0]}, expected at least 2"):
        neighbours.shared_sid(run, *alone)


def test_tsne_is_reproducible():
    points = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(neighbours.embedded(points), neighbours.embedded(points))


def test_people_with_the_most_images_are_first():
    assert neighbours.most_seen({5: [1], 2: [3, 4], 1: [2]}, 2) == [2, 1]


def test_two_runs_show_the_same_people(run, monkeypatch):
    other = changed(run, "MODEL.CERBERUS.MARGIN", "constant")
    drawn = []
    monkeypatch.setattr(neighbours, "draw", lambda panels, pids, group: drawn.append((panels, pids)))
    shown = neighbours.make(run, other, people=2)
    (panels, pids), = drawn
    assert [title.split()[0] for title, *_ in panels] == ["adaptive", "margin"]
    assert len(pids.unique()) == 2 and [len(places) for _, places, _ in panels] == [len(pids)] * 2
    assert panels[0][2] == panels[1][2]  # the same checkpoint
    sharers = [pid for _, pid, _ in run.items if pid in neighbours.shared_sid(run).images]
    assert shown.figures["runs"][0]["all who share it"]["images"] == len(sharers)
    assert [name.split(":")[0] for name in neighbours.names_of([run, run])] == ["run", "run"]


def test_sheets_mark_results_that_agree_with_the_description_as_right(run, monkeypatch):
    monkeypatch.setattr(sheets, "sheet", lambda rows, top: rows)
    monkeypatch.setattr(sheets, "draw_cards", lambda cards: None)
    shown = sheets.make(run, people=3, groups=("head", "carrying"), top=5)
    assert [picture.suffix for picture in shown.pictures] == [f"_{mode}" for mode in sheets.MODES]
    drawn = dict(zip(sheets.MODES, (picture.figure for picture in shown.pictures)))
    schema, label_of = run.predictor.reader.schema, dict(zip([path for path, *_ in run.items], run.labels))
    pid_of = {path: pid for path, pid, _ in run.items}
    for row in drawn["partial"]:
        described = torch.from_numpy(schema.parse(dict(text.split(": ") for text, _ in row.words)))
        assert {f.group for f, value in zip(schema.fields, described) if value != MISSING} == {"head", "carrying"}
        for path, verdict, _ in row.found:
            known = described != MISSING
            assert (verdict == RIGHT) == torch.equal(label_of[path][known], described[known])
    for row in drawn["reid"]:
        assert all((verdict == RIGHT) == (pid_of[path] == pid_of[row.picture]) for path, verdict, _ in row.found)
        assert row.words == []
    for mode in ("reid", "aps", "partial"):
        verdicts = [verdict for row in drawn[mode] for _, verdict, _ in row.found]
        assert shown.figures[mode] == {"right": verdicts.count(RIGHT), "shown": len(verdicts)}
        assert set(verdicts) <= {RIGHT, WRONG} and f"{verdicts.count(RIGHT)} of the" in next(
            picture.caption for picture in shown.pictures if mode in picture.suffix)


def test_wrong_predictions_are_shown_with_the_label(run):
    gallery = rank_list.Gallery(run.predictor)
    schema = run.predictor.reader.schema
    path, pid, _ = gallery.queries[2]
    truth = schema.describe(gallery.dataset.known_of(path, pid)["attributes"])
    words = gallery.words(2)
    answers = run.predictor.recognise(path)[0]
    assert {verdict for _, verdict in words} == {RIGHT, WRONG}
    for (text, verdict), column in zip(words, schema.columns):
        assert (verdict == RIGHT) == (answers[column.name] == truth[column.name])
        expected = f"{column.name}: {answers[column.name]}"
        assert text == (expected if verdict == RIGHT else f"{expected} ({truth[column.name]})")


def test_right_and_wrong_differ_in_more_than_colour(run):
    _, axes = plt.subplots(1, 2)
    for axis, verdict in zip(axes, (RIGHT, WRONG)):
        rank_list.show_picture(axis, read_image(paths_of(run, 1)[0]), verdict)
    assert axes[0].spines["left"].get_linestyle() != axes[1].spines["left"].get_linestyle()
    assert len(set(rank_list.MARKS.values())) == len(rank_list.MARKS)
    plt.close()


@pytest.mark.parametrize("name", command.MAKE)
def test_the_command_writes_a_legible_figure_and_how_it_was_made(name, run, folder, tmp_path, monkeypatch, capsys):
    sizes, original = [], exhibit.write_figure

    def save(path, figure, dpi):
        sizes.extend((text.get_fontsize(), text.get_text()) for text in figure.findobj(Text) if text.get_text().strip()
                     and text.get_visible())
        original(path, figure, dpi)

    monkeypatch.setattr(exhibit, "write_figure", save)
    monkeypatch.setattr(exhibit.TestedModel, "load", lambda *_: run)
    command.main([name, str(folder), "--output", str(tmp_path), "--people", "2", "--top", "3", "--as", f"my_{name}"])
    record = json.loads((tmp_path / "figures" / f"my_{name}.json").read_text())
    assert record["exhibit"] == f"my_{name}" and record["caption"] in capsys.readouterr().out
    for picture in record["pictures"]:
        with Image.open(tmp_path / picture["file"]) as image:
            assert image.width == 1800 and image.height > 200
        assert picture["caption"]
    pixels = {text: 900 / rank_list.WIDTH * size / 72 for size, text in sizes}
    assert pixels and min(pixels.values()) >= 10
    made = record["made by"]
    assert made["command"].startswith(f"python -m cerberus_plugin.experiments.figures {name} ")
    assert made["run folders"] == [str(folder)] and made["dataset"] == "Market1501Attributes" and made["seed"] == [1]
    weights = (Path(folder) / "model_final.pth").read_bytes()
    assert made["checkpoint sha256"] == [hashlib.sha256(weights).hexdigest()]


def test_unsuitable_models_and_datasets_are_rejected(run, folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="attention needs one run, got"):
        command.main(["attention", str(folder), str(folder), "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="MODEL.CERBERUS.ALIGN is False, so there is no alignment"):
        alignment.make(changed(run, "MODEL.CERBERUS.ALIGN", False))
    fewer = exhibit.TestedModel(run.predictor, run.dataset)
    fewer.items.pop()
    with pytest.raises(ValueError, match="is tested on other images than"):
        neighbours.make(run, fewer)
    monkeypatch.setattr(neighbours, "shared_sid", lambda *_: neighbours.Shared("head", 0, "", {1: [0, 1, 2]}))
    with pytest.raises(ValueError, match="has 3 images of 1 people, expected at least 4 images"):
        neighbours.make(run)
    without = exhibit.TestedModel(copy.copy(run.predictor), run.dataset)
    without.images.labels = None
    with pytest.raises(ValueError, match="Market1501Attributes: has no attributes, so shared semantic IDs are unknown"):
        neighbours.make(without)
    with pytest.raises(ValueError, match="no sheet of par, aps, because Market1501Attributes has no attributes"):
        sheets.make(without, modes=("par", "aps"))
    without.predictor.reader = None
    with pytest.raises(ValueError, match="has no prototypes .MODEL.CERBERUS.LAMBDA_SEM is"):
        neighbours.make(without)
    with pytest.raises(ValueError, match="no sheet of partial, because the model does not predict attributes"):
        sheets.make(without, modes=("partial",))


@pytest.mark.parametrize(("make", "what"), [(alignment.make, "alignment of strips"),
                                            (attention.make, "representations of groups"),
                                            (neighbours.make, "semantic IDs")])
def test_a_model_without_groups_is_rejected(run, make, what):
    with pytest.raises(ValueError, match=f"Baseline has no {what}.*; name a run of Cerberus"):
        make(changed(run, "MODEL.META_ARCHITECTURE", "Baseline"))


def test_the_default_dataset_is_the_first_of_the_run(folder):
    assert exhibit.TestedModel.load(folder, device="cpu").dataset == "Market1501Attributes"
    assert exhibit.TestedModel.load(folder, "DukeMTMCAttributes", "cpu").dataset == "DukeMTMCAttributes"


def test_a_model_without_attributes_has_only_the_sheet_of_reid(run):
    run.predictor.reader = None
    shown = sheets.make(run, people=1, top=2)
    assert [picture.suffix for picture in shown.pictures] == ["_reid"]
