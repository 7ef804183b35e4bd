"""File names of Market-1501 and DukeMTMC-reID, read by the plugin's datasets and by FastReID's own."""

import csv
import gzip
from pathlib import Path

from cerberus_plugin import host
from cerberus_plugin.data.clothes import CelebReID
from cerberus_plugin.data.listing import list_images, list_market_images

import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from support.clothes_folders import write_celeb
from support.data import write_duke_folder, write_market_folder

WRITE = {"Market1501": write_market_folder, "DukeMTMC": write_duke_folder}
FORM = {"Market1501": "{:04d}_c{}s1_000151_00.jpg", "DukeMTMC": "{:04d}_c{}_f0000151.jpg"}


@pytest.fixture(params=["Market1501", "DukeMTMC"])
def own(request, tmp_path):
    """Return the folder of a dataset that a test may change, a function that reads it, and FastReID's class name."""
    from cerberus_plugin.attributes import SCHEMAS

    from support.data import random_labels

    plain = request.param
    labels = random_labels(SCHEMAS["market1501" if plain == "Market1501" else "dukemtmc"], 6)
    root = tmp_path / "[lab] site_1_c2" / "data"
    WRITE[plain](root, dict(zip((1, 2, 3), labels)), dict(zip((4, 5, 6), labels[3:])))

    def read(kind: str = ""):
        return DATASET_REGISTRY.get(plain + kind)(root=str(root))

    return next(path for path in root.iterdir() if path.is_dir()), read, plain


def without_folders(items):
    return [(Path(path).name, *ids) for path, *ids in items]


def lists(data):
    return [without_folders(items) for items in (data.train, data.query, data.gallery)]


def test_fastreids_datasets_and_the_plugins_read_the_same_files(own):
    folder, read, plain = own
    for k, image in enumerate(sorted((folder / "bounding_box_train").iterdir())):
        image.rename(image.with_suffix((".jpg", ".jpeg", ".JPG", ".PNG", ".webp", ".bmp")[k % 6]))
    host_lists, own_lists = lists(read()), lists(read("Attributes"))
    assert host_lists == own_lists
    assert [len(items) for items in host_lists] == ([12, 3, 10] if plain == "Market1501" else [12, 2, 12])


def test_brackets_and_camera_numbers_in_folder_names_have_no_effect(own):
    _, read, plain = own
    data = read()
    assert {pid for _, pid, _ in data.train} == {f"{data.dataset_name}_{pid}" for pid in (1, 2, 3)}
    assert {camid for *_, camid in data.gallery} == ({1, 2, 3} if plain == "Market1501" else {1, 2, 3, 4})


@pytest.mark.parametrize(("pid", "camera"), [(4, 12), (4, 7), (4, 0), (1600, 1), (12345, 345)])
def test_numbers_of_identities_and_cameras_may_have_several_digits(own, pid, camera):
    folder, read, plain = own
    (folder / "bounding_box_test" / FORM[plain].format(pid, camera)).touch()
    assert (pid, camera - 1) in {item[1:] for item in read().gallery}


@pytest.mark.parametrize("name", ["Copy of 2.jpg", "0004_c2s1_000151_00 (1).jpg", "0004_c2s1_000151_00_mask.png",
                                  "x0004_c2s1_000151_00.jpg", "-2_c2s1_000151_00.jpg", "0004.jpg",
                                  f"{'9' * 30}_c1s1_000151_00.jpg"])
def test_an_image_with_another_form_of_name_is_an_error_that_names_it(own, name):
    folder, read, _ = own
    (folder / "bounding_box_test" / name).touch()
    with pytest.raises(ValueError) as caught:
        read().gallery  # noqa: B018  FastReID lists the images at the first access
    assert str(caught.value).startswith(f"{folder / 'bounding_box_test' / name}: the name does not have the form ID")


def test_other_files_give_a_warning_and_system_files_do_not(own, log):
    folder, read, _ = own
    for name in ("Thumbs.db", "._0004_c2s1_000151_00.jpg", ".DS_Store"):
        (folder / "bounding_box_test" / name).touch()
    read().gallery  # noqa: B018
    assert not log.messages
    (folder / "bounding_box_test" / "0004_c2s1_000151_00.tif").touch()
    (folder / "bounding_box_test" / "more.jpg").mkdir()
    read().gallery  # noqa: B018
    assert "bounding_box_test: 2 other file(s) or folder(s) are skipped, such as '0004_c2s1_" in log.messages[0]


def test_two_files_that_differ_only_in_the_suffix_are_rejected(tmp_path):
    for name in ("0004_c2s1_000151_00.jpg", "0004_c2s1_000151_00.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="000151_00.png: '0004_c2s1_000151_00.jpg' has the same name"):
        list_images(str(tmp_path))


def test_names_are_sorted_and_junk_images_are_excluded(tmp_path):
    for name in ("0010_c2s1_000151_00.jpg.jpg", "-1_c2s1_000151_00.jpg", "0002_c2s1_000151_00.jpg",
                 "0000_c1s1_1_1.jpg"):
        (tmp_path / name).touch()
    assert without_folders(list_market_images(str(tmp_path))) == [
        ("0000_c1s1_1_1.jpg", 0, 0), ("0002_c2s1_000151_00.jpg", 2, 1), ("0010_c2s1_000151_00.jpg.jpg", 10, 1)]
    assert list_market_images(str(tmp_path), "own")[2][1:] == ("own_10", "own_1")


def test_the_cloth_changing_datasets_accept_every_suffix(tmp_path):
    folder = write_celeb(tmp_path)
    image = folder / "gallery" / "1_0_0.jpg"
    image.rename(image.with_suffix(".WEBP"))
    assert str(image.with_suffix(".WEBP")) in {path for path, *_ in CelebReID(root=str(tmp_path)).gallery}


@pytest.mark.parametrize(("plain", "prefix"), [("Market1501", "market1501"), ("DukeMTMC", "dukeMTMC")])
def test_published_file_lists_give_the_same_items_as_in_fastreid(real_data, tmp_path, plain, prefix):
    """Use every 40th name of each list, and those ending in .jpg.jpg."""
    if not (real_data / f"{prefix}_train.csv.gz").is_file():
        pytest.skip("published file lists not found")
    data_class = DATASET_REGISTRY.get(plain)
    for part in ("train", "query", "test"):
        with gzip.open(real_data / f"{prefix}_{part}.csv.gz", "rt") as file:
            names = [name.split("/") for _, name in csv.reader(file)]
        for k, (folder, name) in enumerate(names):
            if k % 40 == 0 or name.endswith(".jpg.jpg"):
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / name).touch()
        folder = tmp_path / names[0][0]
        for training in (True, False):
            reader = data_class.__new__(data_class)
            expected = host.original(data_class.process_dir)(reader, str(folder), is_train=training)
            assert reader.process_dir(str(folder), is_train=training) == sorted(expected) != []
