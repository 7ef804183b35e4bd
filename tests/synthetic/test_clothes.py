"""Synthetic people who change their clothes: constant and changing attributes, the two folder forms, the command."""

import csv
import hashlib
import json
import re
from collections import Counter
from dataclasses import astuple, replace
from itertools import combinations

from cerberus_plugin.attributes.outfits import FILE_NAME, outfit_name, read_outfits
from cerberus_plugin.attributes.schema import MARKET1501
from cerberus_plugin.data.clothes import LTCC, PRCC
from cerberus_plugin.synthetic import dataset
from cerberus_plugin.synthetic import folder as drawn_folder
from cerberus_plugin.synthetic.clothes import ROOTS, draw_clothes
from cerberus_plugin.synthetic.people import BODY, DETAILS, FACE, TEST_ONLY, generator, make_person
from cerberus_plugin.synthetic.scene import View, draw_person, make_camera, sample_view
from cerberus_plugin.synthetic.wardrobe import LASTING, sample_wardrobes

import cv2
import numpy as np
import pytest

SMALL = dict(train_ids=4, test_ids=9, images_per_camera=2, workers=1)
READ = {"prcc": PRCC, "ltcc": LTCC}
PLAIN = dict(up=1, upblue=1, downgray=1, clothes=1, age=2)  # a man in a blue T-shirt and long gray trousers


def images(folder, form):
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / ROOTS[form]).rglob("*")
            if path.suffix in (".jpg", ".png")}


def read(form, folder):
    return READ[form](root=str(folder), allow_subset=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with both forms, and the counts that `draw_clothes` returned."""
    folder = tmp_path_factory.mktemp("drawn")
    return folder, {form: draw_clothes(folder, form, **SMALL) for form in ROOTS}


def test_people_and_views_of_market1501_are_those_of_the_published_results():
    def rounded(values):
        return [round(float(value), 6) for value in values]

    train, test = dataset._sampled_people(9, 17, seed=3)
    plan = dataset._sampled_plan(train, test, 4, 5, 3, seed=3)
    numbers = [sorted(train.items()), sorted(test.items()), plan.names]
    for pid in sorted(test):
        person = make_person(test[pid], pid, 3, 0.6)
        assert not person.face
        numbers.append(rounded(person.details[name] for name in DETAILS if name not in FACE))
        numbers += map(rounded, (person.upper, person.upper_second, person.lower, person.lower_second, person.skin,
                                 person.hair, person.shoes, person.bag))
    for name in plan.names[:12]:
        view = sample_view(make_camera(2, 3, 0.6), generator(3, name), 1.0, 0.5)
        numbers.append([*rounded(astuple(view)[:10]), view.smear, view.front, round(view.front_x, 6)])
    assert hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16] == "0f6912273c22c46a"


def plain(**values):
    return tuple({**PLAIN, **values}.get(name, 0) for name in MARKET1501.field_names)


def test_details_of_the_body_are_constant_and_all_others_change_with_the_outfit():
    outfits = [make_person(plain(), 7, seed=2, difficulty=0.5, outfit=k, face=True) for k in range(3)]
    for one, other in combinations(outfits, 2):
        assert {name for name in DETAILS if one.details[name] == other.details[name]} == BODY
        assert (one.skin, one.hair) == (other.skin, other.hair) and one.upper != other.upper


def test_the_first_outfit_is_that_of_market1501():
    one, other = (make_person(plain(), 7, **options) for options in ({}, {"outfit": 0, "face": True}))
    assert one == replace(other, face=False)


COUNTS = [2, 5, 1, 9] * 8


def test_gender_age_and_hair_are_constant_and_outfits_differ_in_both_garments():
    for split in ("train", "test"):
        people = sample_wardrobes(COUNTS, 5, split)
        assert [len(outfits) for outfits in people] == COUNTS
        for outfits in people:
            for name in LASTING:
                assert len({labels[MARKET1501.index(name)] for labels in outfits}) == 1
            for group in ("upper", "lower"):
                worn = {tuple(labels[i] for i in MARKET1501.group_fields(group)) for labels in outfits}
                assert len(worn) == len(outfits)
    for name in ("hat", "backpack", "bag", "handbag"):
        assert any(len({labels[MARKET1501.index(name)] for labels in outfits}) == 2 for outfits in people), name


def test_all_people_in_a_dress_are_female():
    people = np.array([labels for outfits in sample_wardrobes(COUNTS, 5, "test") for labels in outfits])
    in_dress = people[:, MARKET1501.index("clothes")] == 0
    assert in_dress.any() and people[in_dress][:, MARKET1501.index("gender")].all()


def test_some_combinations_of_labels_occur_only_in_the_test_set():
    def wears(labels, kind):
        words = dict(zip(MARKET1501.field_names, labels))
        colour = {f.column: f.word for f in MARKET1501.fields if f.column and words[f.name] == 1}
        return kind.items() <= (words | colour).items()

    train, test = ([labels for outfits in sample_wardrobes(COUNTS, 5, split) for labels in outfits]
                   for split in ("train", "test"))
    for kind in TEST_ONLY:
        assert not any(wears(labels, kind) for labels in train) and any(wears(labels, kind) for labels in test)


def test_folder_in_the_form_of_prcc_reads_back_with_its_counts(drawn):
    folder, counts = drawn
    data = read("prcc", folder)
    assert counts["prcc"] == {"train_ids": 4, "train_outfits": 8, "train_images": 4 * 3 * 2, "test_ids": 9,
                              "test_outfits": 18, "test_images": 9 * 3 * 2, "images": 78}
    assert (len(data.train), len(data.query), len(data.gallery)) == (24, 36, 18)
    assert len(set(data.outfits.values())) == 26
    assert Counter(camid for *_, camid in data.query) == {1: 18, 2: 18}
    assert all(cv2.imread(path).shape == (128, 64, 3) for path, *_ in data.train)


def test_folder_in_the_form_of_ltcc_reads_back_with_its_counts(drawn):
    folder, counts = drawn[0], drawn[1]["ltcc"]
    data = read("ltcc", folder)
    assert (len(data.train), len(data.query), len(data.gallery)) == (
        counts["train_images"], counts["queries"], counts["test_images"] - counts["queries"])
    assert counts["images"] == counts["train_images"] + counts["test_images"] == len(images(folder, "ltcc"))
    assert len(set(data.outfits.values())) == counts["train_outfits"] + counts["test_outfits"]
    assert (counts["train_ids"], counts["test_ids"]) == (4, 9)
    assert counts["changing"] == 3 + 6  # every third person has one outfit


@pytest.mark.parametrize("form", ROOTS)
def test_train_and_test_share_no_person(drawn, form):
    data = read(form, drawn[0])
    train, test = ({str(pid).rpartition("_")[2] for _, pid, _ in part} for part in (data.train, data.query))
    assert len(train) == 4 and len(test) == 9 and not train & test


def test_every_query_of_ltcc_has_the_matches_of_its_settings(drawn):
    data = read("ltcc", drawn[0])
    changing = set(map(int, (drawn[0] / "LTCC_ReID/info/cloth-change_id_test.txt").read_text().split()))
    gallery = {(pid, camid, data.outfit_of(path)) for path, pid, camid in data.gallery}
    asked = [(pid, camid, data.outfit_of(path)) for path, pid, camid in data.query]
    assert len(set(asked)) == len(asked) and set(asked) == gallery
    for pid, camid, outfit in asked:
        others = [found for found in gallery if found[0] == pid and found[1] != camid]
        assert any(found[2] == outfit for found in others)
        assert any(found[2] != outfit for found in others) == (pid in changing)


def test_lists_of_ltcc_separate_people_with_one_and_several_outfits(drawn):
    root = drawn[0] / "LTCC_ReID"
    for split in ("train", "test"):
        outfits = {}
        for path in (root / split).iterdir():
            outfits.setdefault(int(path.name[:3]), set()).add(path.name.split("_")[1])
        for kind, changes in (("change", True), ("unchange", False)):
            listed = [int(line) for line in (root / f"info/cloth-{kind}_id_{split}.txt").read_text().splitlines()]
            assert listed == sorted(pid for pid, worn in outfits.items() if (len(worn) > 1) == changes)


@pytest.mark.parametrize("form", ROOTS)
def test_labels_exist_for_exactly_the_outfits_with_images(drawn, form):
    labels = read_outfits(drawn[0] / ROOTS[form] / FILE_NAME, MARKET1501)
    photos = {("train" if part == "train" else "test", photo.pid, outfit_name(photo.outfit))
              for part, found in read(form, drawn[0]).read().items() for photo in found}
    assert set(labels) == photos
    assert all((row >= 0).all() for row in labels.values())
    with open(drawn[0] / ROOTS[form] / FILE_NAME, newline="") as file:
        outfits = {line["outfit"] for line in csv.DictReader(file)}
    assert outfits == {"A and B", "C"} if form == "prcc" else {"1", "2"} <= outfits <= {"1", "2", "3", "4"}


def test_images_in_one_outfit_look_more_alike_than_those_in_two(drawn):
    data = read("prcc", drawn[0])
    colours = {}
    for path, pid, camid in data.query + data.gallery:
        torso = cv2.imread(path)[36:62, 22:42].mean(axis=(0, 1))
        colours.setdefault((pid, camid), []).append(torso / torso.mean())  # hue: cameras differ in brightness
    means = {key: np.mean(found, axis=0) for key, found in colours.items()}
    same, other = (np.mean([np.abs(means[pid, 0] - means[pid, camid]).mean() for pid, camera in means if camera == 0])
                   for camid in (1, 2))
    assert same < 0.8 * other


def head(person, turn):
    """An image of the head in a fixed view: int (42, 64, 3)."""
    return draw_person(person, make_camera(1), View(turn=turn, phase=0.15), generator("view")).astype(int)[:42]


@pytest.mark.parametrize("name, one, other, labels, views", [
    ("face_tone", 0.02, 0.98, {}, (0.0, 1.2)), ("fringe", 0.1, 0.7, {}, (0.0, 1.2)),
    ("brows", 0.1, 0.9, {}, (0.0,)), ("glasses", 0.1, 0.9, {}, (0.0, 1.2)), ("beard", 0.1, 0.9, {}, (0.0, 1.2)),
    ("lips", 0.1, 0.9, dict(gender=1), (0.0,)), ("crown", 0.3, 0.9, dict(hair=1), (np.pi, 2.0)),
    ("crown", 0.3, 0.9, {}, (np.pi,)), ("crown", 0.5, 0.9, {}, (np.pi,)), ("crown", 0.7, 0.9, {}, (2.0, 1.2))])
def test_each_detail_of_the_face_is_visible(name, one, other, labels, views):
    person = make_person(plain(**labels), 3, face=True)
    pair = [replace(person, details=person.details | {name: value}) for value in (one, other)]
    for turn in views:
        assert (np.abs(head(pair[0], turn) - head(pair[1], turn)).max(axis=2) > 24).sum() >= 6
    hidden = [replace(person, face=False) for person in pair]
    assert (head(hidden[0], 0.0) == head(hidden[1], 0.0)).all()


def test_details_of_the_face_are_constant_and_children_have_no_beard():
    assert set(FACE) < BODY
    child = make_person(plain(age=0), 3, face=True)
    bearded, shaved = (replace(child, details=child.details | {"beard": value}) for value in (0.1, 0.9))
    assert (head(bearded, 0.0) == head(shaved, 0.0)).all()


def test_images_do_not_depend_on_the_number_of_workers(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_folder, "_CHUNK", 16)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 3)  # forking with its threads running would hang
    draw_clothes(tmp_path, "prcc", **{**SMALL, "workers": 2})
    assert images(tmp_path, "prcc") == images(drawn[0], "prcc") and cv2.getNumThreads() == 4
    cv2.setNumThreads(threads)


@pytest.mark.parametrize("form, change", [("prcc", {"seed": 4}), ("ltcc", {"outfits": 3}), ("ltcc", {"seed": 1}),
                                          ("prcc", {"difficulty": 0.1}), ("prcc", {"images_per_camera": 3})])
def test_other_settings_for_an_existing_folder_are_rejected(drawn, form, change):
    with pytest.raises(ValueError, match=r"synthetic\.json: .*other settings \((?s:.*)another --output"):
        draw_clothes(drawn[0], form, **{**SMALL, **change})


def test_a_folder_of_another_form_is_rejected(drawn, tmp_path):
    there = tmp_path / ROOTS["ltcc"]
    there.mkdir()
    settings = (drawn[0] / ROOTS["prcc"] / "synthetic.json").read_text()
    (there / "synthetic.json").write_text(settings)
    with pytest.raises(ValueError, match="form prcc in the folder, ltcc given"):
        draw_clothes(tmp_path, "ltcc", **SMALL)


@pytest.mark.parametrize("change, message", [
    ({"images_per_camera": 0}, "images_per_camera is 0, expected 1 to 600; change --images-per-camera"),
    ({"outfits": 1}, "outfits is 1, expected 2 to 9; change --outfits"),
    ({"test_ids": 0}, "test_ids is 0, .* --test-ids"), ({"difficulty": 1.5}, "difficulty is 1.5, .* --difficulty"),
    ({"train_ids": 600, "test_ids": 400}, "test_ids is 400, expected 1 to 399; change --test-ids"),
    ({"form": "celeb"}, "form is 'celeb', expected prcc or ltcc; change --form"),
    ({"form": "prcc", "outfits": 3}, "--form prcc does not support --outfits")])
def test_errors_about_numbers_name_the_option(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"synthetic: .*{message}"):
        draw_clothes(tmp_path, **{"form": "ltcc", **SMALL, **change})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given, named", [
    ("--form prcc --annotations a.mat --names b.csv", "--form prcc does not support --annotations, --names"),
    ("--form ltcc --distractors 0 --junk 1", "--form ltcc does not support --distractors, --junk"),
    ("--form prcc --outfits 3", "--form prcc does not support --outfits"),
    ("--images-per-camera 3", "--form market1501 does not support --images-per-camera")])
def test_options_of_another_form_are_rejected_by_name(tmp_path, given, named):
    with pytest.raises(ValueError, match=f"^synthetic: {named}; omit this"):
        dataset.main(["--output", str(tmp_path), *given.split()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form, line", [("prcc", r"test +1 +2 +6\n"),
                                        ("ltcc", r"\d+ test images are queries; 2 persons change clothes\n")])
def test_command_draws_and_prints_counts(tmp_path, capsys, form, line):
    dataset.main(f"--output {tmp_path} --form {form} --train-ids 1 --test-ids 1 --images-per-camera 2 --workers 1 "
                   "--difficulty 0.3".split())
    out, err = capsys.readouterr()
    assert out.startswith(str(tmp_path / ROOTS[form])) and re.search(line, out) and "100%" in err
    settings = json.loads((tmp_path / ROOTS[form] / "synthetic.json").read_text())
    assert (settings["form"], settings["difficulty"]) == (form, 0.3)
