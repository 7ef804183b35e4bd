"""Synthetic datasets: files, labels, contents of the images, and completion after an interruption."""

import gzip
import json
import re
from itertools import product

from cerberus_plugin.attributes.annotations import read_annotations
from cerberus_plugin.attributes.schema import MARKET1501
from cerberus_plugin.synthetic import dataset
from cerberus_plugin.synthetic.dataset import draw_dataset, write_annotations
from cerberus_plugin.synthetic.people import TEST_ONLY, generator, make_person, sample_people
from cerberus_plugin.synthetic.scene import View, draw_person, loosen, make_camera, sample_view
from cerberus_plugin.utils import files

import cv2
import numpy as np
import pytest
from scipy.io import loadmat
from support.processes import Killed, kill_at_file

SMALL = dict(train_ids=5, test_ids=6, images_per_id=4, distractors=6, junk=4, workers=1)
PLAIN = dict(up=1, upblue=1, downgray=1, clothes=1, age=2)  # a man in a blue T-shirt and long gray trousers
FRONT, SIDE, BACK = 0.0, np.pi / 2, np.pi


def labels(**values):
    return tuple({**PLAIN, **values}.get(name, 0) for name in MARKET1501.field_names)


def root_of(folder):
    return folder / dataset.FOLDER


def images(folder):
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in root_of(folder).glob("*/*.jpg")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return folder, draw_dataset(folder, **SMALL)


def test_the_folder_has_the_form_of_market1501(drawn):
    folder, counts = drawn
    files = images(folder)
    assert all(re.fullmatch(r"\w+/(\d{4}|-1)_c[1-6]s[1-6]_\d{6}_\d\d\.jpg", name) for name in files)
    assert len(files) == counts["images"] == sum(counts[name] for name in dataset.FOLDERS)
    assert counts["bounding_box_train"] == 5 * 4 and counts["bounding_box_test"] == 6 * 4 + 6 + 4
    for content in files.values():
        assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == (128, 64, 3)


def test_train_and_test_share_no_identity_and_every_query_has_a_match_in_another_camera(drawn):
    seen = {}
    for name in images(drawn[0]):
        folder, pid, camera = re.fullmatch(r"(\w+)/(-1|\d+)_c(\d)s.*", name).groups()
        seen.setdefault((folder, int(pid)), set()).add(camera)
    pids = {folder: {pid for f, pid in seen if f == folder} for folder in dataset.FOLDERS}
    assert not pids["bounding_box_train"] & pids["bounding_box_test"]
    assert pids["query"] == pids["bounding_box_test"] - {0, -1}
    assert all(len(seen["bounding_box_test", pid]) >= 2 for pid in pids["query"])


def test_distractors_and_junk_are_in_the_gallery_only(drawn):
    outsiders = [name for name in images(drawn[0]) if name.split("/")[1].startswith(("0000", "-1"))]
    assert len(outsiders) == 6 + 4 and all(name.startswith("bounding_box_test/") for name in outsiders)


def test_annotation_file_reads_back_as_the_sampled_labels(drawn):
    path = root_of(drawn[0]) / "market_attribute.mat"
    train, test = dataset._sampled_people(5, 6, seed=0)
    given = read_annotations(path, MARKET1501)
    assert {pid: tuple(row.tolist()) for pid, row in given.train.items()} == train
    assert {pid: tuple(row.tolist()) for pid, row in given.test.items()} == test
    raw = loadmat(path, simplify_cells=True)["market_attribute"]
    assert list(raw) == ["test", "train"] and raw["train"]["gender"].dtype == np.uint8
    assert set(raw["train"]["gender"]) <= {1, 2} and list(raw["train"]["image_index"]) == [f"{p:04d}" for p in train]


def test_annotation_file_of_one_identity_reads_back(tmp_path):
    write_annotations(tmp_path / "a.mat", {7: labels()}, {8: labels(hat=1)})
    given = read_annotations(tmp_path / "a.mat", MARKET1501)
    assert tuple(given.test[8].tolist()) == labels(hat=1) and list(given.train) == [7]


def test_sampled_labels_follow_the_rules_of_the_schema():
    people = np.array(sample_people(400, 0, "test"))
    for group in ("upper colour", "lower colour"):
        colours = [MARKET1501.index(f.name) for f in MARKET1501.fields if f.column == group]
        assert set(people[:, colours].sum(axis=1)) == {0, 1}
    for names in MARKET1501.exclusive:
        assert set(people[:, [MARKET1501.index(name) for name in names]].sum(axis=1)) == {0, 1}
    dress, gender = people[:, MARKET1501.index("clothes")] == 0, people[:, MARKET1501.index("gender")]
    assert dress.any() and gender[dress].all()
    assert set(people[:, MARKET1501.index("age")]) == {0, 1, 2, 3}


def test_some_combinations_of_labels_occur_only_in_the_test_set():
    train, test = sample_people(600, 3, "train"), sample_people(64, 3, "test")
    for kind in TEST_ONLY:
        words = {key: value for key, value in kind.items() if " " not in key}
        fields = [f for f in MARKET1501.fields if f.column in kind]
        wanted = {MARKET1501.index(k): v for k, v in words.items()}
        wanted |= {MARKET1501.index(f.name): int(f.word == kind[f.column]) for f in fields}

        def has(person, wanted=wanted):
            return all(person[i] == v for i, v in wanted.items())

        assert not any(map(has, train)) and any(map(has, test))


def test_another_seed_gives_other_images(drawn, tmp_path):
    draw_dataset(tmp_path, **SMALL, seed=1)
    assert not set(images(tmp_path).values()) & set(images(drawn[0]).values())


def test_a_second_run_after_a_kill_draws_the_missing_images(drawn, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_file(patch, files, 20)
        draw_dataset(tmp_path, **SMALL)
    assert len(list(root_of(tmp_path).rglob("*.tmp"))) == 1
    finished = images(tmp_path)
    assert 0 < len(finished) < len(images(drawn[0]))
    kept = {path: path.stat().st_mtime_ns for path in root_of(tmp_path).glob("*/*.jpg")}
    draw_dataset(tmp_path, **SMALL)
    assert images(tmp_path) == images(drawn[0]) and not list(root_of(tmp_path).rglob("*.tmp"))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.parametrize("change", [{"seed": 4}, {"difficulty": 0.1}, {"train_ids": 4}])
def test_other_settings_for_an_existing_folder_are_rejected(drawn, change):
    with pytest.raises(ValueError, match=r"synthetic\.json: .*other settings \((?s:.*)another --output"):
        draw_dataset(drawn[0], **{**SMALL, **change})


def test_a_folder_with_other_files_is_rejected_and_not_changed(tmp_path):
    (root_of(tmp_path) / "query").mkdir(parents=True)
    with pytest.raises(ValueError, match="were not drawn by this command"):
        draw_dataset(tmp_path, **SMALL)
    assert [path.name for path in root_of(tmp_path).rglob("*")] == ["query"]


@pytest.mark.parametrize("name, value", [("difficulty", 1.5), ("train_ids", 0), ("images_per_id", 1), ("junk", -1)])
def test_errors_about_numbers_name_the_option(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected .* --{name.replace('_', '-')}"):
        draw_dataset(tmp_path, **{**SMALL, name: value})


def test_more_identities_than_fastreid_accepts_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="test_ids is 1000, expected 1 to 501; change --test-ids"):
        draw_dataset(tmp_path, train_ids=1000, test_ids=1000)


GIVEN = """2,bounding_box_train/0002_c1s1_000451_03.jpg
2,bounding_box_train/0002_c2s1_000301_01.jpg
"""
GIVEN_TEST = """-1,bounding_box_test/-1_c1s1_000401_03.jpg
0,bounding_box_test/0000_c3s1_000151_01.jpg
9,bounding_box_test/0009_c5s2_000151_01.jpg
9,query/0009_c1s1_000001_00.jpg
"""


@pytest.fixture
def lists(tmp_path):
    write_annotations(tmp_path / "a.mat", {2: labels(), 5: labels(hat=1)}, {9: labels(backpack=1)})
    (tmp_path / "train.csv").write_text(GIVEN)
    with gzip.open(tmp_path / "test.csv.gz", "wt") as file:
        file.write(GIVEN_TEST)
    return tmp_path


def test_exactly_the_given_names_are_drawn_with_their_labels(lists):
    out = lists / "out"
    counts = draw_dataset(out, annotations=lists / "a.mat", names=[lists / "train.csv", lists / "test.csv.gz"],
                          workers=1)
    assert set(images(out)) == {line.split(",")[1] for line in (GIVEN + GIVEN_TEST).split()}
    assert counts == {"train_ids": 1, "test_ids": 1, "bounding_box_train": 2, "bounding_box_test": 3, "query": 1,
                      "distractors": 1, "junk": 1, "images": 6}
    given = read_annotations(root_of(out) / "market_attribute.mat", MARKET1501)
    assert tuple(given.train[2].tolist()) == labels() and tuple(given.test[9].tolist()) == labels(backpack=1)
    assert list(given.train) == [2]  # 5 has no image


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.csv", "2,bounding_box_train/0002_é.jpg".encode("latin-1"), "a.csv, line 1: byte 0xe9 is not UTF-8"),
    ("a.csv.gz", b"2,bounding_box_train/0002_c1s1_000451_03.jpg", "a.csv.gz: not a readable gzip file"),
    ("a.csv.gz", gzip.compress(GIVEN.encode(), mtime=0)[:-12], "a.csv.gz: not a readable gzip file"),
])
def test_errors_about_unreadable_lists_name_the_file(lists, name, content, message):
    (lists / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        draw_dataset(lists / "out", annotations=lists / "a.mat", names=[lists / name], workers=1)


def test_errors_about_damaged_settings_name_the_file(tmp_path):
    root_of(tmp_path).mkdir()
    for content in ('{"seed": ', "7"):
        (root_of(tmp_path) / "synthetic.json").write_text(content)
        with pytest.raises(ValueError, match="synthetic.json: cannot be read .*use another --output"):
            draw_dataset(tmp_path, train_ids=2, test_ids=2, workers=1)


def test_annotations_alone_give_images_of_every_labelled_identity(lists):
    counts = draw_dataset(lists / "out", annotations=lists / "a.mat", images_per_id=3, distractors=0, junk=0, workers=1)
    assert (counts["train_ids"], counts["bounding_box_train"], counts["bounding_box_test"]) == (2, 6, 3)


@pytest.mark.parametrize("line, message", [
    ("3,bounding_box_train/0003_c1s1_000451_03.jpg", r"line 1: identity 0003 .*has no labels in .*a\.mat"),
    ("9,bounding_box_train/0009_c1s1_000451_03.jpg", r"identity 0009 .*\(train: 2 identities\)"),
    ("0,query/0000_c1s1_000451_00.jpg", "identity 0000 .*has no labels"),
    ("2,bounding_box_train/0002_c7s1_000451_03.jpg", "line 1: got .*camera 1 to 6"),
    ("5,bounding_box_train/0002_c1s1_000451_03.jpg", "id '5' but the file name says 2"),
    ("2,bounding_box_train/0002_c1s1_000451_03.jpg\n" * 2, "line 2: .*listed twice"),
])
def test_errors_about_lists_name_the_line(lists, line, message):
    (lists / "wrong.csv").write_text(line)
    with pytest.raises(ValueError, match=rf"wrong\.csv, .*{message}"):
        draw_dataset(lists / "out", annotations=lists / "a.mat", names=[lists / "wrong.csv"], workers=1)
    assert not (lists / "out").exists()


def test_names_without_annotations_are_rejected(lists):
    with pytest.raises(ValueError, match="names were given without annotations"):
        draw_dataset(lists / "out", names=[lists / "train.csv"])


def test_command_draws_and_prints_counts(tmp_path, capsys):
    dataset.main(f"--output {tmp_path} --train-ids 2 --test-ids 2 --images-per-id 2 --distractors 3 --junk 1 "
                   "--workers 1 --difficulty 0.3".split())
    out, err = capsys.readouterr()
    assert re.search(r"bounding_box_train +4 +2\n", out) and "3 distractors (0000), 1 junk (-1)" in out
    assert "100%" in err
    assert json.loads((root_of(tmp_path) / "synthetic.json").read_text())["difficulty"] == 0.3


def test_the_command_raises_the_error_of_a_wrong_setting(tmp_path):
    with pytest.raises(ValueError, match="^synthetic: difficulty is 3.0"):
        dataset.main(f"--output {tmp_path} --difficulty 3".split())


def shown(person_labels, turn, pid=1):
    """An image in a fixed view: int (128, 64, 3)."""
    camera = make_camera(1, seed=0, difficulty=0.0)
    person = make_person(person_labels, pid, seed=0, difficulty=0.0)
    return draw_person(person, camera, View(turn=turn, phase=0.15), generator("view")).astype(int)


def changed(one, other, turn, pid=1):
    """Pixels that differ clearly between two persons who differ in one attribute: bool (128, 64)."""
    return (np.abs(shown(one, turn, pid) - shown(other, turn, pid)).max(axis=2) > 24)


HEAD, TRUNK, LEGS, ALL = slice(0, 42), slice(24, 84), slice(54, 128), slice(0, 128)
SINGLE = [
    ("hat", dict(hat=1), HEAD, 30), ("hair", dict(hair=1), HEAD, 30), ("up", dict(up=0), TRUNK, 15),
    ("down", dict(down=1), LEGS, 60), ("clothes", dict(clothes=0), LEGS, 60), ("gender", dict(gender=1), TRUNK, 15),
    ("young", dict(age=0), ALL, 300), ("teenager", dict(age=1), ALL, 100), ("old", dict(age=3), ALL, 100),
    ("backpack", dict(backpack=1), TRUNK, 100), ("bag", dict(bag=1), TRUNK, 60), ("handbag", dict(handbag=1), ALL, 60),
]


@pytest.mark.parametrize("name, change, region, least", SINGLE, ids=[row[0] for row in SINGLE])
def test_each_attribute_is_visible_in_its_region(name, change, region, least):
    for pid in (1, 2, 3):
        masks = [changed(labels(), labels(**change), turn, pid) for turn in (FRONT, SIDE, BACK)]
        best = max(masks, key=lambda mask: mask[region].sum())
        assert best[region].sum() >= least
        if region is not ALL:
            assert best[region].sum() > 0.9 * best.sum()


@pytest.mark.parametrize("prefix, group, region", [("up", "upper colour", TRUNK), ("down", "lower colour", LEGS)])
def test_any_two_colours_of_a_garment_look_different(prefix, group, region):
    names = [""] + [f.name for f in MARKET1501.fields if f.column == group]
    plain = {"upblue": 0} if prefix == "up" else {"downgray": 0}
    kinds = [labels(**{**plain, **({name: 1} if name else {})}) for name in names]
    for (i, one), (j, other) in product(enumerate(kinds), repeat=2):
        if i < j:
            mask = changed(one, other, BACK)
            assert mask[region].sum() > 150, (names[i], names[j])
            assert mask[region].sum() > 0.9 * mask.sum()


def test_backpack_is_large_from_behind_and_two_straps_from_the_front():
    for pid in range(1, 6):
        front, back = (changed(labels(), labels(backpack=1), turn, pid).sum() for turn in (FRONT, BACK))
        assert 10 < front < 0.6 * back


def test_people_with_equal_labels_differ_less_at_a_higher_difficulty():
    def distance(difficulty):
        camera = make_camera(1, 0, 0.0)
        pictures = [draw_person(make_person(labels(), pid, 0, difficulty), camera, View(phase=0.15), generator("view"))
                    for pid in range(1, 13)]
        return np.mean([np.abs(a.astype(int) - b).mean() for a, b in product(pictures, repeat=2)])

    assert distance(0.0) > distance(1.0) > 1.0


def test_cameras_have_different_colours():
    person, view = make_person(labels(), 1), View()
    means = [draw_person(person, make_camera(c, 0, 0.6), view, generator("v")).mean(axis=(0, 1)) for c in range(1, 7)]
    assert min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]) > 4


def test_more_people_are_occluded_at_a_higher_difficulty():
    rng = generator("views")
    for difficulty, low, high in ((0.0, 0.0, 0.10), (1.0, 0.30, 0.50)):
        camera = make_camera(1, 0, difficulty)
        share = np.mean([sample_view(camera, rng, 0.0, 0.5).front != "" for _ in range(400)])
        assert low <= share <= high


def drawn_rows(view):
    """First and last row of a person, from the difference to the same image without the person."""
    camera, person = make_camera(1, seed=0, difficulty=0.0), make_person(labels(), 1, seed=0, difficulty=0.0)
    with_person, without = (draw_person(who, camera, view, generator("view")).astype(int) for who in (person, None))
    rows = np.flatnonzero(np.abs(with_person - without).max(axis=(1, 2)) > 40)
    return rows[0], rows[-1]


@pytest.mark.parametrize(("above", "below"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.4, 0.8)])
def test_a_loose_box_shows_the_person_as_a_larger_crop_does(above, below):
    tight = View(phase=0.15, y=0.03)
    top, bottom = drawn_rows(tight)
    scale = 1 + above + below
    expected = [(row + above * 128) / scale for row in (top, bottom)]
    assert drawn_rows(loosen(tight, above, below)) == pytest.approx(expected, abs=3)


def test_loose_boxes_change_all_images_but_no_labels_or_names(drawn, tmp_path):
    draw_dataset(tmp_path, **SMALL, loose_boxes=0.5)
    tight, loose = images(drawn[0]), images(tmp_path)
    assert tight.keys() == loose.keys() and all(tight[name] != loose[name] for name in tight)
    assert (root_of(tmp_path) / dataset.ANNOTATIONS).read_bytes() == (
        root_of(drawn[0]) / dataset.ANNOTATIONS).read_bytes()
    assert json.loads((root_of(tmp_path) / "synthetic.json").read_text())["loose_boxes"] == 0.5


def test_images_with_and_without_loose_boxes_are_not_mixed(drawn, tmp_path):
    assert "loose_boxes" not in (root_of(drawn[0]) / "synthetic.json").read_text()  # as earlier versions wrote it
    with pytest.raises(ValueError, match="loose_boxes None in the folder, 0.5 given"):
        draw_dataset(drawn[0], **SMALL, loose_boxes=0.5)
    draw_dataset(tmp_path, **SMALL, loose_boxes=0.5)
    with pytest.raises(ValueError, match="loose_boxes 0.5 in the folder, None given"):
        draw_dataset(tmp_path, **SMALL)
    with pytest.raises(ValueError, match="loose_boxes is 3, expected 0 to 2; change --loose-boxes"):
        draw_dataset(tmp_path, **SMALL, loose_boxes=3)


def histograms(pictures):
    """Colour histograms of 3 horizontal stripes of the person, 8 x 8 x 8 bins each: float (N, 1536)."""
    rows = []
    for picture in pictures:
        stripes = [picture[y:y + 40, 14:50] for y in (6, 46, 86)]
        counts = [cv2.calcHist([stripe], [0, 1, 2], None, [8] * 3, [0, 256] * 3).ravel() for stripe in stripes]
        rows.append(np.sqrt(np.concatenate(counts) / 1440))
    return np.stack(rows)


def test_colour_histograms_do_not_solve_reid_across_cameras():
    people = sample_people(60, 0, "test")
    names = [f"query/{pid:04d}_c{camera}s1_000001_00.jpg" for pid in range(1, 61) for camera in range(1, 7)]
    pictures = [dataset.draw_image(name, people[int(name[6:10]) - 1], 0, dataset.DIFFICULTY) for name in names]
    features = histograms(pictures)
    pids, cameras = np.repeat(np.arange(60), 6), np.tile(np.arange(6), 60)
    precisions, first = [], []
    for i, score in enumerate(features @ features.T):
        others = cameras != cameras[i]  # easier than the protocol, which includes other people of the same camera
        hits = (pids[others] == pids[i])[np.argsort(-score[others], kind="stable")]
        precisions.append(np.mean((np.arange(hits.sum()) + 1) / (np.flatnonzero(hits) + 1)))
        first.append(hits[0])
    assert np.mean(precisions) < 0.25 and np.mean(first) < 0.3
