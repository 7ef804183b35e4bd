"""`cerberus audit`: of wrong labels and mixed-up people planted among drawn ones, how many are found, and how early.

    python benchmarks/audit.py                                     three shares of wrong labels, one seed
    python benchmarks/audit.py --rates 0.05 --seeds 0 1 2          several seeds

What is drawn and trained is kept in --folder and not done again. Labels are those of people. A share of them is changed to another value; pictures of two people are exchanged, people
are given two names, and two people one name. Findings are in the order of their confidence; in a random order the
precision would be the share of what is wrong among all labels, pictures or people.
"""

import argparse
import csv
import json
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin.attributes.annotations import read_annotations  # noqa: E402
from cerberus_plugin.attributes.schema import MARKET1501  # noqa: E402
from cerberus_plugin.audit import Audit, audit  # noqa: E402
from cerberus_plugin.own_data.schema_file import Wording, schema_text  # noqa: E402
from cerberus_plugin.synthetic.dataset import ANNOTATIONS, FOLDER, TRAIN, draw_dataset  # noqa: E402

import numpy as np  # noqa: E402
from common import table, write  # noqa: E402

MIXED = 0.04  # of people: each of exchanged pictures, two names, and one name
# Small pictures, for two busy cores.
OPTIONS = {"INPUT.SIZE_TRAIN": "[48, 24]", "INPUT.SIZE_TEST": "[48, 24]"}
DIFFICULTY = 0.2  # of the drawing


@dataclass
class Planted:
    """What is wrong on purpose."""

    labels: dict[str, str] = field(default_factory=dict)  # "person, column": the true value
    swapped: dict[str, str] = field(default_factory=dict)  # picture: its true person
    two_names: list[list[str]] = field(default_factory=list)
    one_name: list[str] = field(default_factory=list)
    cells: int = 0


def plant(folder: Path, people: int, images: int, rate: float, seed: int) -> Planted:
    """Draw people in the form of own data, with mistakes."""
    drawn = folder.parent / f"drawn_{people}_{images}_{seed}"
    draw_dataset(drawn, train_ids=people, test_ids=1, images_per_id=images, distractors=0, junk=0, seed=seed,
                 difficulty=DIFFICULTY)
    labels = read_annotations(next(drawn.rglob(ANNOTATIONS)), MARKET1501).train
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "img").mkdir(parents=True)
    rng, made = np.random.default_rng(seed), Planted()
    rows: list[list[str]] = []  # file, person, camera
    for path in sorted((drawn / FOLDER / TRAIN).glob("*.jpg")):
        person, camera = path.name.split("_")[0], path.name.split("_c")[1][0]
        name = f"img/{len(rows):05}.jpg"
        shutil.copyfile(path, folder / name)
        rows.append([name, person, camera])
    words = {f"{pid:04}": MARKET1501.describe(row) for pid, row in labels.items()}
    names = sorted({person for _, person, _ in rows})
    drawn_names = rng.permutation(names).tolist()
    count = max(2, round(MIXED * len(names)))
    exchanged, doubled, merged = (drawn_names[2 * k * count:2 * (k + 1) * count] for k in range(3))

    def of(person: str) -> list[list[str]]:
        return [row for row in rows if row[1] == person]

    for one, other in zip(exchanged[::2], exchanged[1::2]):
        first, second = (of(person)[int(rng.integers(images - 1))] for person in (one, other))
        made.swapped |= {first[0]: one, second[0]: other}
        first[1], second[1] = other, one
    for person in doubled[:count]:
        second, own = f"9{person[1:]}x", of(person)
        for place in rng.permutation(len(own))[:len(own) // 2].tolist():
            own[place][1] = second
        words[second] = dict(words[person])
        made.two_names.append([person, second])
    for one, other in zip(merged[::2], merged[1::2]):
        for row in of(other):
            row[1] = one
        del words[other]
        made.one_name.append(one)
    cells = [(person, column) for person in sorted(words) for column in words[person]]
    made.cells = len(cells)
    for place in rng.permutation(len(cells))[:round(rate * len(cells))].tolist():
        person, name = cells[place]
        made.labels[f"{person}, {name}"] = words[person][name]
        others = [word for word in MARKET1501.column(name).answers if word != words[person][name]]
        words[person][name] = others[int(rng.integers(len(others)))]
    _write(folder / "metadata.csv", ["file_name", "person", "camera"], rows)
    columns = [column.name for column in MARKET1501.columns]
    _write(folder / "people.csv", ["person", *columns],
           [[person, *(own.get(name, "") for name in columns)] for person, own in sorted(words.items())])
    none = {column.name: ("none",) for column in MARKET1501.columns if column.is_colour}
    (folder / "schema.yaml").write_text(schema_text(Wording(MARKET1501, none)))
    return made


def _write(path: Path, header: list[str], rows: list) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.05, 0.1], help="shares of wrong labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--images", type=int, default=8, help="of each person")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/audit"))
    parser.add_argument("--output", help="file for the figures as JSON")
    args = parser.parse_args()
    for rate in args.rates:
        for seed in args.seeds:
            folder = args.folder / f"{args.people}_{args.images}_{rate}_{seed}"
            if not (folder / "planted.json").is_file():
                made = plant(folder / "data", args.people, args.images, rate, seed)
                (folder / "planted.json").write_text(json.dumps(asdict(made), default=sorted))
            start = time.monotonic()
            found = audit(str(folder / "data"), folder / "audit", folds=args.folds, epochs=args.epochs, given=OPTIONS)
            print(f"{rate:.0%}, seed {seed}: {len(found.findings)} findings, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
