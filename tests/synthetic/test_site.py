"""The synthetic building site: a folder of crops with a spreadsheet, in the format of own data."""

import csv
import shutil
from collections import Counter

from cerberus_plugin.own_data.people import labels_of, read_people, read_wording
from cerberus_plugin.synthetic import dataset
from cerberus_plugin.synthetic.site import ATTRIBUTES, NAME_PATTERN, draw_site, sample_worn

import numpy as np
import pytest
from PIL import Image

PEOPLE, IMAGES = 6, 4


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    counts = draw_site(folder, people=PEOPLE, images_per_id=IMAGES, workers=1)
    assert counts["people"] == PEOPLE and counts["images"] == PEOPLE * IMAGES
    return folder / "site"


def words_of(own) -> dict[str, dict[str, str]]:
    """Attributes of each person."""
    return {own.person[row]: {name: column[row] for name, column in own.attributes.items()} for row in range(len(own))}


def test_own_data_reads_the_folder_with_cameras_times_and_attributes(site):
    own = read_people(site)
    assert Counter(own.person.to_list()) == dict.fromkeys((f"w{n:04d}" for n in range(1, PEOPLE + 1)), IMAGES)
    assert {Image.open(own.path(row)).size for row in range(len(own))} == {(64, 128)}
    worn = sample_worn(PEOPLE, 0)
    assert words_of(own) == {f"w{n:04d}": dict(zip(ATTRIBUTES, words)) for n, words in enumerate(worn, start=1)}
    assert own.camera is not None and own.time is not None and own.split is None
    wording = read_wording(own)
    assert [column.name for column in wording.schema.columns] == list(ATTRIBUTES)
    assert (labels_of(own, wording) >= 0).all()


def test_file_names_contain_the_values_of_metadata_csv(site, tmp_path):
    shutil.copytree(site, tmp_path / "site")
    (tmp_path / "site" / "metadata.csv").unlink()
    by_names, table = read_people(tmp_path / "site", NAME_PATTERN), read_people(site)
    order = [table.files.index(name) for name in by_names.files]
    assert by_names.person.to_list() == [table.person[row] for row in order]
    assert by_names.camera.to_list() == [table.camera[row] for row in order]
    assert by_names.time.to_list() == [table.time[row].replace(":", "") for row in order]
    assert words_of(by_names) == words_of(table) == words_of(read_people(tmp_path / "site"))


def test_images_depend_on_the_settings_only(site, tmp_path):
    draw_site(tmp_path / "again", people=PEOPLE, images_per_id=IMAGES, workers=2)
    files = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert all((site / name).read_bytes() == (tmp_path / "again/site" / name).read_bytes() for name in files)
    draw_site(tmp_path / "other", people=PEOPLE, images_per_id=IMAGES, workers=1, seed=1)
    with open(site / "people.csv") as one, open(tmp_path / "other/site/people.csv") as other:
        assert list(csv.reader(one)) != list(csv.reader(other))


@pytest.mark.parametrize("name, words, rows", [("helmet", ("blue", "white"), slice(0, 40)),
                                               ("vest", ("orange", "green"), slice(30, 75)),
                                               ("tool", ("none", "backpack"), slice(20, 90))])
def test_each_attribute_is_visible_in_its_region(name, words, rows):
    from cerberus_plugin.synthetic.site import draw_shot

    def crop(word: str) -> np.ndarray:
        worn = {"helmet": "none", "vest": "none", "tool": "none"} | {name: word}
        return draw_shot("w0001/gate_0700_1.jpg", 1, tuple(worn.values()), 1, 0, 0, 0.0).astype(int)

    changed = np.abs(crop(words[0]) - crop(words[1])).max(axis=2) > 40
    assert changed[rows].sum() > 60 and changed[rows].sum() > 0.9 * changed.sum()


def test_command_prints_counts_and_rejects_options_of_other_forms(tmp_path, capsys):
    dataset.main(["--output", str(tmp_path), "--form", "site", "--people", "2", "--images-per-id", "2"])
    assert "4 crops of 2 people" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--form site does not support --train-ids"):
        dataset.main(["--output", str(tmp_path), "--form", "site", "--train-ids", "2"])
    with pytest.raises(ValueError, match="--form ltcc does not support --people"):
        dataset.main(["--output", str(tmp_path), "--form", "ltcc", "--people", "2"])
    with pytest.raises(ValueError, match="people is 0.*--people"):
        draw_site(tmp_path, people=0)
