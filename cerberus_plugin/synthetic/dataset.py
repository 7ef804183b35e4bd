"""Synthetic datasets with the folders and annotations of Market-1501, to try all commands without the real data.

    python -m cerberus_plugin.synthetic --output DIR
    python -m cerberus_plugin.synthetic --output DIR --annotations market_attribute.mat --names train.csv query.csv

The first command samples people; the second one draws the identities of an annotation file and, with `--names`,
exactly the images of lists with lines `id,folder/name.jpg`. `--form prcc` and `--form ltcc` draw people who change
their clothes (`clothes.py`), `--form site` a folder of crops with a spreadsheet, in the format of own data (`site.py`).
Results on synthetic images do not carry over to real data.
"""

from __future__ import annotations

import argparse
import gzip
import re
import zlib
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import pi
from pathlib import Path

import numpy as np
from scipy.io import savemat

from ..attributes.annotations import read_annotations
from ..attributes.schema import MARKET1501
from ..utils.commands import run_command
from ..utils.files import decode_text, json_sha256
from .clothes import OUTFITS, draw_clothes, table
from .folder import DIFFICULTY, VERSION, check_common, check_numbers, fill, known_person, passers
from .people import generator, make_person, sample_people
from .scene import NUM_CAMERAS, draw_person, loosen, make_camera, sample_view, spoil
from .site import IMAGES, PEOPLE, draw_site
from .site import table as site_table

FOLDER = "Market-1501-v15.09.15"
ANNOTATIONS = "market_attribute.mat"
TRAIN, GALLERY, QUERY = FOLDERS = ("bounding_box_train", "bounding_box_test", "query")
# One published file name of Market-1501 ends with .jpg.jpg.
_NAME = re.compile(rf"({'|'.join(FOLDERS)})/((-1|\d{{4}})_c([1-{NUM_CAMERAS}])s(\d)_\d{{6}}_\d{{2}}(?:\.jpg)+)")
_DISTRACTOR, _JUNK = 0, -1
_LAST_PID = 1501  # accepted by FastReID's Market1501; training and test identities are numbered together
# Options that only some forms support, by form.
_OPTIONS = {"market1501": ("train_ids", "test_ids", "images_per_id", "distractors", "junk", "loose_boxes",
                           "annotations", "names"),
            "prcc": ("train_ids", "test_ids", "images_per_camera"),
            "ltcc": ("train_ids", "test_ids", "images_per_camera", "outfits"), "site": ("people", "images_per_id")}

Labels = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Plan:
    """Contents of a dataset.

    Args:
        train: labels, ints (A,), by training identity.
        test: labels by test identity.
        names: sorted paths of the images, folder/name.jpg.
    """

    train: Labels
    test: Labels
    names: tuple[str, ...]

    def digest(self) -> str:
        """Return a hash of labels and names, 16 hexadecimal digits."""
        return json_sha256([sorted(self.train.items()), sorted(self.test.items()), self.names])[:16]

    def counts(self) -> dict[str, int]:
        """Count images by folder and kind, and identities by split."""
        folders = [name.split("/")[0] for name in self.names]
        pids = [_parse(name)[1] for name in self.names]
        return {"train_ids": len(self.train), "test_ids": len(self.test), **{f: folders.count(f) for f in FOLDERS},
                "distractors": pids.count(_DISTRACTOR), "junk": pids.count(_JUNK), "images": len(self.names)}


def draw_dataset(
    output: str | Path,
    *,
    train_ids: int = 100,
    test_ids: int = 100,
    images_per_id: int = 12,
    distractors: int = 100,
    junk: int = 50,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
    loose_boxes: float = 0.0,
    workers: int | None = None,
    annotations: str | Path | None = None,
    names: list[str | Path] | tuple = (),
    progress: bool = False,
) -> dict[str, int]:
    """Create a synthetic dataset in `output`/Market-1501-v15.09.15.

    If the command was interrupted, a second call with the same settings draws the missing images. Images depend only on
    the settings, not on the number of workers.

    Args:
        output: folder of the datasets.
        train_ids: number of training identities; unused with `annotations`.
        test_ids: number of test identities; unused with `annotations`.
        images_per_id: images of each training identity, and of each test identity in the gallery; test identities also
            have one query for each camera that sees them. Unused with `names`.
        distractors: gallery images of identity 0000; unused with `names`.
        junk: gallery images of identity -1; unused with `names`.
        seed: seed of the dataset.
        difficulty: 0 to 1; scales the colours, noise and blur of the cameras, light, occlusion and errors of the
            bounding boxes, and reduces the differences between people with equal labels.
        loose_boxes: 0 to 2, badly fitting boxes: each box is enlarged above and below by two random amounts between 0
            and this share of its height, at its aspect ratio. At 1, a person fills between one third and all of the
            height that they fill at 0.
        workers: number of processes; None for one per core.
        annotations: file in the format of market_attribute.mat to take identities and labels from.
        names: lists (.csv, .csv.gz) with lines `id,folder/name.jpg`: draw exactly these images.
        progress: show a progress bar on stderr.

    Returns:
        numbers of images and identities by name.

    Raises:
        ValueError: if a setting is out of range, a list is invalid, or the folder was created with other settings.
    """
    check_numbers(train_ids=(train_ids, 1, _LAST_PID - 1), test_ids=(test_ids, 1, _LAST_PID - train_ids),
                  images_per_id=(images_per_id, 2, 999), distractors=(distractors, 0, 99999), junk=(junk, 0, 99999))
    check_numbers(loose_boxes=(loose_boxes, 0, 2))
    check_common(seed, difficulty, workers)
    if names and annotations is None:
        raise ValueError("synthetic: names were given without annotations, but the people in them need labels; "
                         "pass the annotation file too (--annotations market_attribute.mat).")
    if annotations is not None:
        train, test = _given_people(annotations)
    else:
        train, test = _sampled_people(train_ids, test_ids, seed)
    if names:
        plan = _named_plan(names, train, test, str(annotations))
    else:
        plan = _sampled_plan(train, test, images_per_id, distractors, junk, seed)

    people = {TRAIN: plan.train, GALLERY: plan.test, QUERY: plan.test}
    settings = {"version": VERSION, "seed": seed, "difficulty": float(difficulty), **plan.counts(),
                "people_and_names": plan.digest()}
    if loose_boxes:  # folders of earlier versions have no such entry
        settings["loose_boxes"] = float(loose_boxes)
    fill(Path(output) / FOLDER, settings, FOLDERS,
         {ANNOTATIONS: lambda path: write_annotations(path, plan.train, plan.test)},
         {name: (people[name.split("/")[0]].get(_parse(name)[1]),) for name in plan.names},
         partial(draw_image, seed=seed, difficulty=float(difficulty), loose_boxes=loose_boxes), workers=workers,
         progress=progress)
    return plan.counts()


def write_annotations(path: str | Path, train: Labels, test: Labels) -> None:
    """Write labels in the format of market_attribute.mat: codes from 1, one row vector per field.

    Args:
        path: file to write.
        train: labels, values from 0, by training identity.
        test: labels by test identity.
    """
    splits = {}
    for split, people in (("test", test), ("train", train)):  # the order of the published file
        pids = sorted(people)
        codes = np.array([people[pid] for pid in pids], np.int64).reshape(len(pids), -1) + 1  # (N, A)
        fields = {name: codes[None, :, i].astype(np.uint8) for i, name in enumerate(MARKET1501.field_names)}
        cell = np.empty((1, len(pids)), object)
        cell[0, :] = [f"{pid:04d}" for pid in pids]
        splits[split] = {**fields, "image_index": cell}
    content = BytesIO()
    savemat(content, {"market_attribute": splits})
    # scipy writes the date into the first 116 bytes, a comment; equal settings should give equal files.
    Path(path).write_bytes(b"MATLAB 5.0 MAT-file, labels of drawn people".ljust(116) + content.getvalue()[116:])


def _given_people(path: str | Path) -> tuple[Labels, Labels]:
    given = read_annotations(path, MARKET1501)
    return tuple({pid: tuple(row.tolist()) for pid, row in split.items()} for split in (given.train, given.test))


def _sampled_people(train_ids: int, test_ids: int, seed: int) -> tuple[Labels, Labels]:
    """Assign numbers from 1 to the two splits at random, as in Market-1501."""
    pids = generator(seed, "pids").permutation(train_ids + test_ids) + 1
    train, test = sorted(pids[:train_ids].tolist()), sorted(pids[train_ids:].tolist())
    return (dict(zip(train, sample_people(train_ids, seed, "train"))),
            dict(zip(test, sample_people(test_ids, seed, "test"))))


def _sampled_plan(train: Labels, test: Labels, images: int, distractors: int, junk: int, seed: int) -> Plan:
    names = []
    for split, people in ((TRAIN, train), (GALLERY, test)):
        for pid in people:
            rng = generator(seed, "names", split, pid)
            seen_by = rng.permutation(NUM_CAMERAS)[: int(rng.integers(2, min(NUM_CAMERAS, images) + 1))] + 1
            frames = rng.choice(4000, len(seen_by), replace=False) * 25
            cameras = [(int(camera), int(rng.integers(1, 7)), int(frame)) for camera, frame in zip(seen_by, frames)]
            for k in range(images):
                camera, sequence, frame = cameras[k % len(cameras)]
                names.append(f"{split}/{pid:04d}_c{camera}s{sequence}_{frame + k // len(cameras) * 12 + 1:06d}_01.jpg")
            if split == GALLERY:
                names += [f"{QUERY}/{pid:04d}_c{c}s{s}_{frame + 7:06d}_00.jpg" for c, s, frame in cameras]
    for pid, count in (("0000", distractors), ("-1", junk)):
        rng = generator(seed, "names", pid)
        for k in range(count):
            camera, sequence = rng.integers(1, NUM_CAMERAS + 1), rng.integers(1, 7)
            names.append(f"{GALLERY}/{pid}_c{camera}s{sequence}_{k * 9 + 1:06d}_{1 + k % 5:02d}.jpg")
    return Plan(train, test, tuple(sorted(names)))


def _named_plan(lists, train: Labels, test: Labels, annotations: str) -> Plan:
    """Create the plan of given file names; labels of people without an image are omitted."""
    names, used = set(), {TRAIN: set(), GALLERY: set()}
    for path in map(Path, lists):
        data = path.read_bytes()
        try:
            text = decode_text(path, gzip.decompress(data) if path.suffix == ".gz" else data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a readable gzip file ({error}). Copy the list again.") from error
        for i, line in ((i, line.strip()) for i, line in enumerate(text.splitlines(), start=1) if line.strip()):
            number, _, name = line.partition(",")
            where = f"{path}, line {i}"
            if not _NAME.fullmatch(name):
                raise ValueError(f"{where}: got '{line}', expected `id,folder/PPPP_cCsS_FFFFFF_NN.jpg` with a folder "
                                 f"of {', '.join(FOLDERS)} and camera 1 to {NUM_CAMERAS}. Correct the line.")
            folder, pid, *_ = _parse(name)
            if number != str(pid) and number != f"{pid:04d}":
                raise ValueError(f"{where}: id '{number}' but the file name says {pid}: {name}. Correct the line.")
            if name in names:
                raise ValueError(f"{where}: {name} is listed twice. Remove one.")
            split, people = (TRAIN, train) if folder == TRAIN else (GALLERY, test)
            if pid not in (_DISTRACTOR, _JUNK) or folder != GALLERY:
                if pid not in people:
                    raise ValueError(f"{where}: identity {pid:04d} of {name} has no labels in {annotations} "
                                     f"({'train' if folder == TRAIN else 'test'}: {len(people)} identities). Lists and "
                                     "annotations must belong to the same dataset.")
                used[split].add(pid)
            names.add(name)
    return Plan({pid: train[pid] for pid in sorted(used[TRAIN])}, {pid: test[pid] for pid in sorted(used[GALLERY])},
                tuple(sorted(names)))


def _parse(name: str) -> tuple[str, int, int, int]:
    """Split 'query/0007_c2s1_000151_00.jpg' into ('query', 7, 2, 1): folder, pid, camera, sequence."""
    folder, _, pid, camera, sequence = _NAME.fullmatch(name).groups()
    return folder, int(pid), int(camera), int(sequence)


def draw_image(name: str, labels: tuple[int, ...] | None, seed: int, difficulty: float,
               loose_boxes: float = 0.0) -> np.ndarray:
    """Draw the image of one file name.

    Args:
        name: folder/name.jpg; it contains identity, camera and sequence, and seeds the view.
        labels: ints (A,); None for distractors and junk.
        seed: seed of the dataset.
        difficulty: 0 to 1.
        loose_boxes: 0 to 2, see `draw_dataset`.

    Returns:
        uint8 RGB (128, 64, 3).
    """
    _, pid, number, sequence = _parse(name)
    camera, rng = make_camera(number, seed, difficulty), generator(seed, name)
    walking = passers(seed, difficulty)
    others = [walking[i] for i in rng.choice(len(walking), 3, replace=False)]
    track = rng if pid <= 0 else generator(seed, "track", pid, number, sequence)
    view = sample_view(camera, rng, turn=2 * pi * track.random(), where=track.random(), others=others[:2])
    if loose_boxes:
        view = loosen(view, *(loose_boxes * generator(seed, "box", name).random(2)))
    if labels is not None:
        return draw_person(known_person(labels, pid, seed, difficulty), camera, view, rng)
    empty = pid == _DISTRACTOR and rng.random() < 0.3  # a false detection in the background
    looks = int(rng.integers(2**31))
    stranger = None if empty else make_person(sample_people(1, seed, name)[0], -1, looks, difficulty)
    return draw_person(stranger, camera, spoil(view, rng) if pid == _JUNK else view, rng)


def _market_table(counts: dict[str, int], root: Path) -> str:
    people = {TRAIN: "train_ids", GALLERY: "test_ids", QUERY: "test_ids"}
    rows = [f"{root}", f"{'folder':<20}{'images':>9}{'identities':>12}"]
    rows += [f"{folder:<20}{counts[folder]:>9,}{counts[people[folder]]:>12,}" for folder in FOLDERS]
    rows.append(f"of {GALLERY}: {counts['distractors']:,} distractors (0000), {counts['junk']:,} junk (-1)")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cerberus_plugin.synthetic", argument_default=argparse.SUPPRESS,
        description="Create a synthetic dataset with labels in the form of a published dataset.")
    parser.add_argument("--output", required=True, help="folder of the datasets, FASTREID_DATASETS of FastReID")
    parser.add_argument("--form", choices=_OPTIONS, default="market1501",
                        help="form of the folder; in prcc and ltcc, people change clothes; site is a folder of crops "
                             "with a spreadsheet (default %(default)s)")
    parser.add_argument("--train-ids", type=int, help="all but site: training identities (default 100)")
    parser.add_argument("--test-ids", type=int, help="all but site: test identities (default 100)")
    parser.add_argument("--people", type=int, help=f"site: identities, not yet split (default {PEOPLE})")
    parser.add_argument("--images-per-id", type=int, help="market1501: images of a training identity, and of a test "
                                                          "identity in the gallery (default 12); site: images of an "
                                                          f"identity (default {IMAGES})")
    parser.add_argument("--distractors", type=int, help="market1501: gallery images of 0000 (default 100)")
    parser.add_argument("--junk", type=int, help="market1501: gallery images of -1 (default 50)")
    parser.add_argument("--images-per-camera", type=int, help="prcc, ltcc: images of an outfit under each camera that "
                                                              "sees it (default 6)")
    parser.add_argument("--outfits", type=int, help=f"ltcc: largest number of outfits of a person (default {OUTFITS})")
    parser.add_argument("--seed", type=int, help="(default 0)")
    parser.add_argument("--difficulty", type=float, help=f"0 to 1 (default {DIFFICULTY})")
    parser.add_argument("--loose-boxes", type=float, help="market1501: enlarge each box above and below by random "
                                                          "amounts up to this share of its height, 0 to 2 (default 0)")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    parser.add_argument("--annotations", help="market1501: take identities and labels from this market_attribute.mat")
    parser.add_argument("--names", nargs="+", help="market1501: lists (.csv, .csv.gz) of id,folder/name.jpg to draw; "
                                                   "needs --annotations")
    options = vars(parser.parse_args(arguments))
    form, output = options.pop("form"), options["output"]
    _check_options(form, options)
    if form == "market1501":
        print(_market_table(draw_dataset(progress=True, **options), Path(output) / FOLDER))
    elif form == "site":
        print(site_table(draw_site(progress=True, **options), output))
    else:
        print(table(form, draw_clothes(form=form, progress=True, **options), output))


def _check_options(form: str, given) -> None:
    others = {name for names in _OPTIONS.values() for name in names} - set(_OPTIONS[form])
    if wrong := [f"--{name.replace('_', '-')}" for name in given if name in others]:
        raise ValueError(f"synthetic: --form {form} does not support {', '.join(wrong)}; omit this.")


if __name__ == "__main__":
    run_command(main)
