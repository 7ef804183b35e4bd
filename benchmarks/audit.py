"""`cerberus audit`: how many planted label and identity errors in synthetic data are found, and how early.

    python benchmarks/audit.py                                     three rates of wrong labels, one seed
    python benchmarks/audit.py --rates 0.05 --seeds 0 1 2          several seeds

Labels are per person. The errors: a share of the labels is changed to another value, images of two people are
exchanged, the images of one person are split into two names, and the images of two people get one name. Findings are
sorted by confidence. n is the number of errors; a random order has the precision n / number of labels, images, pairs of
people, or people. Datasets and trained models are stored in --folder and reused.
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
from cerberus_plugin.audit.predictions import predict_by_folds  # noqa: E402
from cerberus_plugin.own_data.people import read_people, read_wording  # noqa: E402
from cerberus_plugin.own_data.schema_file import Wording, schema_text  # noqa: E402
from cerberus_plugin.synthetic.dataset import ANNOTATIONS, FOLDER, TRAIN, draw_dataset  # noqa: E402

import numpy as np  # noqa: E402
from common import table, write  # noqa: E402

MIXED = 0.04  # share of people with each of: exchanged images, two names, one name
# Small images, to train on two cores.
OPTIONS = {"INPUT.SIZE_TRAIN": "[48, 24]", "INPUT.SIZE_TEST": "[48, 24]"}
DIFFICULTY = 0.2  # of the synthetic images


@dataclass
class Planted:
    """The planted errors."""

    labels: dict[str, str] = field(default_factory=dict)  # "person, column": the true value
    swapped: dict[str, str] = field(default_factory=dict)  # image: its true person
    two_names: list[list[str]] = field(default_factory=list)
    one_name: list[str] = field(default_factory=list)
    cells: int = 0


def plant(folder: Path, people: int, images: int, rate: float, seed: int) -> Planted:
    """Write a synthetic dataset in the form of own data, with planted errors."""
    source = folder.parent / f"drawn_{people}_{images}_{seed}"
    draw_dataset(source, train_ids=people, test_ids=1, images_per_id=images, distractors=0, junk=0, seed=seed,
                 difficulty=DIFFICULTY)
    labels = read_annotations(next(source.rglob(ANNOTATIONS)), MARKET1501).train
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "img").mkdir(parents=True)
    rng, made = np.random.default_rng(seed), Planted()
    rows: list[list[str]] = []  # file, person, camera
    for path in sorted((source / FOLDER / TRAIN).glob("*.jpg")):
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


def hits(found: Audit, made: Planted) -> dict[str, tuple[list[bool], int, float]]:
    """For each kind: which findings are right, most confident first; the number of errors; their share of all items.

    Labels of attributes that are not judged count as errors that were not found. A separate row excludes them.
    """
    own = read_people(found.data)
    people = len(own.person.words)
    judged = {one.attribute for one in found.trust.attributes if one.judged}
    in_judged = [name for name in made.labels if name.split(", ")[1] in judged]
    pairs = {frozenset(pair) for pair in made.two_names}
    right = {
        "wrong labels": ("label", lambda one: f"{one.person}, {one.attribute}" in made.labels),
        "wrong labels, judged": ("label", lambda one: f"{one.person}, {one.attribute}" in made.labels),
        "exchanged images": ("other person", lambda one: one.files[0] in made.swapped),
        "two names": ("same person", lambda one: frozenset((one.label, one.proposed)) in pairs),
        "one name": ("two people", lambda one: one.person in made.one_name)}
    wrong = {"wrong labels": (len(made.labels), made.cells),
             "wrong labels, judged": (len(in_judged), max(people * len(judged), 1)),
             "exchanged images": (len(made.swapped), len(own)), "two names": (len(pairs), people * (people - 1) / 2),
             "one name": (len(made.one_name), people)}
    return {name: ([test(one) for one in found.findings if one.kind == kind], wrong[name][0],
                   wrong[name][0] / wrong[name][1]) for name, (kind, test) in right.items()}


def scores(right: list[bool], wrong: int) -> dict[str, float]:
    """Precision and recall of the first findings; a missing finding counts as wrong."""
    n = max(wrong, 1)
    return {"found": float(len(right)), "precision at 10": sum(right[:10]) / 10, "precision at n": sum(right[:n]) / n,
            "recall at 2n": sum(right[:2 * n]) / n, "recall": sum(right) / n}


def accuracy(folder: Path, made: Planted, folds: int, epochs: int) -> float:
    """Accuracy of the folds' models on people outside their training set, with the true labels; mean of attributes."""
    own = read_people(folder / "data")
    wording = read_wording(own)
    said = predict_by_folds(str(folder / "data"), own, wording, folder / "audit", folds=folds, epochs=epochs,
                            given=OPTIONS)
    shares = []
    for column, p in zip(said.columns, said.probabilities):
        words = own.attributes[column.name]
        true = [made.labels.get(f"{own.person[row]}, {column.name}", words[row]) for row in range(len(own))]
        shares.append(float(np.mean([column.answers[best] == word for best, word in zip(p.argmax(axis=1), true)])))
    return statistics.mean(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.05, 0.1], help="rates of wrong labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--images", type=int, default=4, help="per person")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/audit"))
    parser.add_argument("--output", help="JSON file for the results")
    args = parser.parse_args()
    rows, record = [], {}
    for rate in args.rates:
        runs: dict[str, list] = {}
        for seed in args.seeds:
            folder = args.folder / f"{args.people}_{args.images}_{rate}_{seed}"
            if not (folder / "planted.json").is_file():
                made = plant(folder / "data", args.people, args.images, rate, seed)
                (folder / "planted.json").write_text(json.dumps(asdict(made), default=sorted))
            start = time.monotonic()
            found = audit(str(folder / "data"), folder / "audit", folds=args.folds, epochs=args.epochs, given=OPTIONS)
            made = Planted(**json.loads((folder / "planted.json").read_text()))
            right = accuracy(folder, made, args.folds, args.epochs)
            print(f"{rate:.0%}, seed {seed}: {len(found.findings)} findings in {time.monotonic() - start:.0f} s; the "
                  f"models predict {right:.0%} of the attributes correctly", flush=True)
            for name, (own, wrong, share) in hits(found, made).items():
                runs.setdefault(name, []).append({"wrong": wrong, "random": share, "accuracy": right,
                                                  **scores(own, wrong)})
        for name, each in runs.items():
            record[f"{rate:g} {name}"] = each
            rows.append([f"{rate:.0%}", name, spread([run["wrong"] for run in each], 0),
                         *(spread([run[key] for run in each]) for key in (
                             "precision at 10", "precision at n", "recall at 2n", "recall")),
                         f"{each[0]['random']:.2g}"])
    print(table(["labels changed", "planted", "n", "precision at 10", "precision at n", "recall at 2n", "recall",
                 "precision of a random order"], rows))
    if args.output:
        write(args.output, {"figures": record, "precision_at_n": statistics.mean(
            run["precision at n"] for name, runs in record.items() if name.endswith("wrong labels") for run in runs)})


def spread(values: list[float], digits: int = 2) -> str:
    """The mean, and the range of different values."""
    low, mean, high = (f"{own:.{digits}f}" for own in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
