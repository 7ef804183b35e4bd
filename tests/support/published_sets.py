"""Small files in the formats of published datasets, with empty images; and reading the converted files."""

import csv
import json
from pathlib import Path

from cerberus_plugin.converters import agreid, pa100k, peta, rap, upar
from cerberus_plugin.own_data.schema_file import encode, read_schema
from cerberus_plugin.own_data.tables import Words

import numpy as np
from scipy.io import savemat


def touch(folder: Path, names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def cells(values) -> np.ndarray:
    """A MATLAB cell array of one column."""
    column = np.empty((len(values), 1), object)
    column[:, 0] = values
    return column


def drawn_labels(count: int, wide: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, wide)).astype(np.uint8)


def write_peta(root: Path, labels: np.ndarray, names=None, partitions=None) -> Path:
    """Write five partitions; the training images of the k-th one start at image k."""
    count = len(labels)
    names = names or [*peta.EVALUATED, *(f"further{i}" for i in range(peta.ALL - len(peta.EVALUATED)))]
    extra = drawn_labels(count, len(names) - labels.shape[1], 1)
    numbers = np.tile(np.arange(1, count + 1)[:, None], (1, 4))
    orders = [np.roll(np.arange(1, count + 1), -k)[:, None] for k in range(5)]
    partitions = partitions or [{"train_index": order[:count // 2], "val_index": order[count // 2:count // 2 + 1],
                                 "test_index": order[count // 2 + 1:]} for order in orders]
    savemat(root / "PETA.mat", {"peta": {
        "data": np.concatenate([numbers, labels, extra], axis=1).astype(np.float64), "attribute": cells(names),
        "selected_attribute": np.arange(1, 36)[None], "partion_attribute": cells(partitions)}}, do_compression=True)
    touch(root / "images", [f"{n:05d}.png" for n in range(1, count + 1)])
    return root


def write_pa100k(root: Path, labels: np.ndarray, parts=(4, 2, 2), pictures: str = "data", **changes) -> Path:
    names = [f"{n:06d}.jpg" for n in range(1, len(labels) + 1)]
    record = {"attributes": cells(list(pa100k.QUESTIONS.published))}
    first = 0
    for part, count in zip(pa100k.PARTS, parts):
        record[f"{part}_images_name"] = cells(names[first:first + count])
        record[f"{part}_label"] = labels[first:first + count]
        first += count
    savemat(root / "annotation.mat", {**record, **changes})
    touch(root / pictures, names)
    return root


def write_rapv1(root: Path, labels: np.ndarray) -> Path:
    names = [f"CAM01_{n:04d}.png" for n in range(len(labels))]
    count = len(labels)
    orders = [np.roll(np.arange(1, count + 1), -k)[None] for k in range(5)]
    (root / "RAP_annotation").mkdir()
    savemat(root / "RAP_annotation/RAP_annotation.mat", {"RAP_annotation": {
        "partion": cells([{"train_index": order[:, 2:], "test_index": order[:, :2]} for order in orders]),
        "label": np.concatenate([labels, np.zeros((count, 41))], axis=1).astype(np.int32),
        "attribute_chs": cells(["?"] * 92),
        "attribute_eng": cells([*rap.V1.published, *(f"further{i}" for i in range(41))]),
        "position": np.zeros((count, 16), np.int32), "imagesname": cells(names)}})
    touch(root / "RAP_dataset", names)
    return root


def write_rapv2(root: Path, labels: np.ndarray) -> Path:
    """The evaluated labels stand among others, in reverse order."""
    names = [f"CAM31-2014_{n:04d}.png" for n in range(len(labels))]
    count, wide = labels.shape
    orders = [np.roll(np.arange(1, count + 1), -k)[None] for k in range(5)]
    (root / "RAP_annotation").mkdir()
    savemat(root / "RAP_annotation/RAP_annotation.mat", {"RAP_annotation": {
        "name": cells(names), "data": np.concatenate([labels[:, ::-1], np.full((count, 152 - wide), 7)], axis=1),
        "attribute": cells([*(f"{name} " for name in rap.V2.published[::-1]),  # one reader strips them
                            *(f"further{i}" for i in range(152 - wide))]),
        "selected_attribute": np.arange(wide, 0, -1)[None],
        "partition_attribute": cells([{"train_index": order[:, :count - 3], "test_index": order[:, -2:],
                                       "val_index": order[:, -3:-2]} for order in orders]).T}})
    touch(root / "RAP_dataset", names)
    return root


def write_upar(root: Path, tables: dict[str, np.ndarray], header: str = "# image,") -> Path:
    """Write CSV files by path, with images named after them."""
    for path, labels in tables.items():
        names = [f"PETA/images/{path.replace('/', '_')}_{n}.png" for n in range(len(labels))]
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with open(root / path, "w", newline="") as file:
            file.write(header + ",".join(upar.QUESTIONS.published) + "\n")
            csv.writer(file).writerows([name, *row] for name, row in zip(names, labels.tolist()))
        touch(root, names)
    return root


def write_agreid(root: Path, people: dict[str, dict[str, dict[str, str]]], change=None) -> Path:
    """Write labels by part (train, test), person such as P0001T02140A0, and column; missing columns are unknown.

    Each person has two images under each of the cameras 0 and 3. `change` can modify the contents of the file.
    """
    record = {}
    for part, own in people.items():
        numbers = ["".join(name.translate(str.maketrans("PTA", "   ")).split()) for name in own]
        record[part] = {"image_index": np.array(numbers, float) if part == "train" else cells(numbers)}
        for column, _, begin, listed in agreid.ATTRIBUTES:
            for ending, word in {**agreid.words_of(listed), "unknown": None}.items():
                record[part][begin + ending] = np.array([2 if words.get(column) == word else 1
                                                         for words in own.values()])
        folders = (("bounding_box_train", (0, 3)),) if part == "train" else (
            ("query_all_c0", (0,)), ("bounding_box_test_all_c3", (3,)), ("query_all_c3", (3,)),
            ("bounding_box_test_all_c0", (0,)))
        for folder, cameras in folders:
            touch(root / folder, [f"{name}C{camera}F{frame}.jpg" for name in own for camera in cameras
                                  for frame in (31, 61)])
    if change:
        change(record)
    savemat(root / "qut_attribute_v4_88_attributes.mat", {"qut_attribute": record})
    return root


def rows(folder, name: str = "metadata.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_back(folder, table: str = "metadata.csv") -> np.ndarray:
    """Labels (N, A) of a written table under the written schema; checks that each attribute has a column."""
    wording = read_schema(folder / "schema.yaml")
    written = rows(folder, table)

    def refuse(*why):
        raise AssertionError(why)

    return encode(wording, {column.name: Words.of([row[column.name] for row in written])
                            for column in wording.schema.columns}, refuse)


def binaries_of(folder, table: str = "metadata.csv") -> np.ndarray:
    """Published labels (N, B) in the order of `source.json`, from the written values only."""
    schema = read_schema(folder / "schema.yaml").schema
    labels = read_back(folder, table)
    columns = []
    for _, column, word in json.loads((folder / "source.json").read_text())["labels"]:
        own = schema.column(column)
        place = own.classes.index(word)
        values = labels[:, own.fields[place] if own.is_colour else own.fields[0]]
        columns.append(np.where(values < 0, -1, values == (1 if own.is_colour else place)))
    return np.stack(columns, axis=1)
