"""Nearly identical images: which pairs are found, and how `cerberus check` reports them."""

from cerberus_plugin.own_data.check import check
from cerberus_plugin.own_data.near_duplicates import BITS, NEAR, near_duplicates, near_pairs, picture_hash
from cerberus_plugin.synthetic.people import make_person, sample_people
from cerberus_plugin.synthetic.scene import draw_person, make_camera, sample_view

import numpy as np
from PIL import Image


def synthetic(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    camera = make_camera(number % 3)
    person = make_person(sample_people(number + 1, 0, "train")[number], number)
    return Image.fromarray(draw_person(person, camera, sample_view(camera, rng, 0.0, 0.5), rng))


def test_the_pairs_equal_those_of_a_brute_force_comparison():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (40, BITS // 8)).astype(np.uint8)
    hashes[20:35] = hashes[:15]
    for row in range(20, 35):  # 0, 2, ... bits differ
        bits = np.unpackbits(hashes[row])
        bits[rng.permutation(BITS)[:2 * (row - 20)]] ^= 1
        hashes[row] = np.packbits(bits)
    distance = np.unpackbits(hashes[:, None] ^ hashes[None], axis=2).sum(axis=2)
    expected = {(i, j, int(distance[i, j])) for i in range(40) for j in range(i + 1, 40) if distance[i, j] <= NEAR}
    found = [tuple(pair) for pairs in near_pairs(hashes) for pair in pairs.tolist()]
    assert len(found) == len(expected) == 9 and set(found) == expected


def test_images_with_the_same_hash_are_each_paired_once():
    hashes = np.zeros((1000, BITS // 8), np.uint8)
    people = np.arange(1000) // 500
    found = near_duplicates(hashes, people, np.zeros(1000))
    assert len(found.pairs) == 500 and found.others == 499
    assert set(found.pairs[:, 0].tolist()) == {0} and not found.pairs[:, 2].any()


def test_scaled_cropped_or_compressed_copies_are_near_and_other_people_are_not(tmp_path):
    images = [synthetic(number) for number in range(6)]
    for number, image in enumerate(images):
        width, height = image.size
        image.save(tmp_path / "saved.jpg", quality=60)
        changed = [image.resize((round(1.08 * width), round(1.08 * height))), Image.open(tmp_path / "saved.jpg"),
                   image.crop((1, 2, width, height))]
        others = [np.unpackbits(picture_hash(image) ^ picture_hash(other.convert("RGB"))).sum() for other in changed]
        assert max(others) <= NEAR
        for other in images[number + 1:]:
            assert np.unpackbits(picture_hash(image) ^ picture_hash(other)).sum() > NEAR


def test_check_lists_near_copies_between_people_and_parts_and_counts_the_others(tmp_path):
    lines = ["file_name,person,camera,split"]
    for number in range(6):
        for camera, part in ((0, "train" if number < 3 else "query"), (1, "train" if number < 3 else "gallery")):
            name = f"{number}_{camera}.png"
            lines.append(f"{name},p{number},{camera},{part}")
            synthetic(2 * number + camera).save(tmp_path / name)
    synthetic(0).resize((70, 140)).save(tmp_path / "1_0.png")  # p0 and p1, both in training
    synthetic(0).resize((60, 120)).save(tmp_path / "0_1.png")  # one person
    synthetic(2 * 2).resize((66, 130)).save(tmp_path / "4_1.png")  # p2 in training and p4 in the test
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    report = check(tmp_path)
    near = next(section for section in report.sections if section.title == "Nearly identical images")
    assert set(near.rows) == {
        ("0_0.png (p0), 1_0.png (p1)", "several people"),
        ("2_0.png (p2), 4_1.png (p4)", "several people and training and test")}
    assert any(each.startswith("2 pairs of nearly identical images are listed under two") for each in report.warnings)
    assert any(each.startswith("1 pair of nearly identical images is divided between") for each in report.warnings)
    assert any(each.startswith("1 pair of images of the same person is nearly identical") for each in report.notes)
