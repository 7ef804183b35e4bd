"""The manifest of an evaluation: equal hashes mean equal images, labels, configuration or weights, on any machine.

Paths of the machine enter no hash: images are named from their data set's own folder, weights by their contents.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from fastreid.config import CfgNode
from torch import nn

from ..attributes import Annotations
from ..config import FILLED
from ..data.loader import AttributeDataset
from ..metrics.outfits import SETTINGS
from ..own_data.ontology import path_of
from ..synthetic.folder import SETTINGS as DRAWN
from ..utils.distributed import unwrapped
from ..utils.files import file_sha256, json_sha256

# Where a run lies and computes; what the data set or the checkpoint says, these are hashed on their own.
NOT_HASHED = ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", *FILLED)
FILE_KEYS = ("MODEL.BACKBONE.PRETRAIN_PATH", "DATASETS.ONTOLOGY")  # hashed as the file's name, without its folder
DEEPEST = 4  # folders between the images of a synthetic dataset and the record of how they were drawn

JUNK = ("images of the query's own identity under its own camera are ignored; distractors rank as wrong answers, and "
        "images of identity -1 are not read")
COLOURS = {"official": "one answer a garment; any listed colour is right, nothing is where no colour is listed",
           "binary": "mean of each colour's yes/no accuracy",
           "balanced": "mean of (TPR + TNR) / 2 of each colour's yes/no question"}
BALANCED = "the value that exceeds its share of the training people most, (p - pi) / (pi (1 - pi))"
POOL = "query and gallery, without distractors"
PERSON = ("an identity, in one outfit where the data set has outfits, by the mean score of its images: of the pool for "
          "APS, of the gallery for PAR")


def manifest(cfg: CfgNode, results: Mapping, tests: Mapping[str, Mapping], model: nn.Module | None = None,
             train_set: AttributeDataset | None = None, checkpoint: str | None = None) -> dict:
    """What stands under "manifest" in results.json.

    Args:
        results: figures, or figures by test data set where there are several, as `CerberusTrainer.test` returns them.
        tests: `of_test` of the test data sets, by name.
        model: that has been evaluated, for the sizes of its tables.
        train_set: of the training behind the results; None for an evaluation alone.
        checkpoint: the file that has been evaluated, or the one that the training has written.
    """
    names = cfg.DATASETS.TESTS
    by_name = {names[0]: results} if len(names) == 1 else results
    served = {key.split("/")[0] for figures in by_name.values() for key in figures}
    prototypes = getattr(unwrapped(model), "prototypes", None)
    return {
        "tests": dict(tests),
        "training": None if train_set is None else of_training(cfg, train_set),
        "AP": "rectangle",
        "ranking": ranking_rules(cfg),
        "junk": JUNK + _junk_by_outfits(served),
        "colours": COLOURS | {"force colour": cfg.TEST.PAR.FORCE_COLOUR} if "PAR" in served else None,
        "pool": POOL if "APS" in served else None,
        "person": PERSON if "APS" in served else None,
        "reading": _reading(cfg, unwrapped(model)) if "PAR" in served else None,
        "mean directions": {name: {key.partition("/")[2]: length for key, length in figures.items()
                                   if key.startswith("mean direction/")} for name, figures in by_name.items()}
        if "mean direction" in served else None,
        "SID space": None if prototypes is None else {
            "name": cfg.MODEL.CERBERUS.SID_SPACE,
            "sizes": dict(zip(prototypes.groups, prototypes.sizes))},
        **({"ontology sha256": file_sha256(str(path_of(cfg.DATASETS.ONTOLOGY)))} if cfg.DATASETS.ONTOLOGY else {}),
        "config sha256": config_sha256(cfg),
        "checkpoint": os.path.basename(checkpoint or "") or None,
        "checkpoint sha256": file_sha256(checkpoint),
    }


def ranking_rules(cfg: CfgNode) -> dict[str, str | bool]:
    """What is done to distances before images are ranked; False where it is not done."""
    rerank, aqe = cfg.TEST.RERANK, cfg.TEST.AQE
    return {"re-ranking": rerank.ENABLED and f"{rerank.VARIANT}, k1 {rerank.K1}, k2 {rerank.K2}, "
                                             f"lambda {rerank.LAMBDA:g}",
            "query expansion": aqe.ENABLED and f"k {aqe.QE_K}, times {aqe.QE_TIME}, alpha {aqe.ALPHA:g}"}


def of_test(dataset: AttributeDataset, num_query: int, num_left_out: int) -> dict:
    """The account of a test data set, its queries first in order.

    "images" are those of the data set, of which `num_left_out` could not be read; "identities" are of persons, without
    the identity that stands for distractors; "cameras" count those with two or more images, 0 where none is known.
    """
    query, gallery = dataset.img_items[:num_query], dataset.img_items[num_query:]
    distractors = sum(pid in dataset.distractors for _, pid, _ in gallery)
    return {
        "query": _counts(query, dataset),
        "gallery": {**_counts(gallery, dataset), "distractors": distractors},
        "left out": num_left_out,
        "list sha256": _list_sha256({"query": query, "gallery": gallery}, dataset.folders),
        "labels": _labels(dataset.annotations),
        **_synthetic(dataset.img_items),
    }


def of_training(cfg: CfgNode, dataset: AttributeDataset) -> dict:
    """The account of a training set.

    "held out" counts identities, "without" is of DATASETS.LEAVE_OUT_SIDS, "began with" of MODEL.WEIGHTS.
    """
    weights = cfg.MODEL.WEIGHTS
    return {
        "data sets": list(cfg.DATASETS.NAMES),
        **_counts(dataset.img_items, dataset),
        "held out": cfg.DATASETS.HOLD_OUT,
        "without": dataset.without,
        "list sha256": _list_sha256({"train": dataset.img_items}, dataset.folders),
        "labels": _labels(dataset.annotations),
        "began with": {"file": os.path.basename(weights), "sha256": file_sha256(weights)} if weights else None,
        **_synthetic(dataset.img_items),
    }


def config_sha256(cfg: CfgNode) -> str:
    """Of every key but NOT_HASHED, however it was set: on the command line, in a file or by default."""
    values = yaml.safe_load(cfg.dump())
    for key in NOT_HASHED:
        node, last = _node_of(values, key)
        node.pop(last, None)
    for key in ("NAMES", "TESTS"):  # folders of own data are among them
        values["DATASETS"][key] = [os.path.basename(os.path.normpath(name)) for name in values["DATASETS"][key]]
    for key in FILE_KEYS:
        node, last = _node_of(values, key)
        node[last] = os.path.basename(node.get(last) or "")
    return json_sha256(values)


def _reading(cfg: CfgNode, model: nn.Module) -> dict:
    """How attributes were answered and searched for: of "PAR" and "APS", and of figures that name another reading."""
    test = cfg.TEST
    if cfg.MODEL.META_ARCHITECTURE != "Cerberus":
        return {"name": "classifiers", "balanced": BALANCED}
    return {"name": test.READING, "nearest": "labels of the nearest prototype; mean cosine",
            "probability": "most probable value; sum of log-probabilities of the described values",
            "balanced": f"by probability {BALANCED}", "tau": test.PAR.TAU, "unseen prior": test.PAR.UNSEEN_PRIOR,
            "cosine scales": _scales(model) or {"TEST.PAR.COSINE_SCALE": test.PAR.COSINE_SCALE}}


def _scales(model: nn.Module) -> dict | None:
    """Of each column, and whether they were learned with the weights or measured after; None where neither."""
    scales = model.prototypes.column_scales(model.schema)
    if scales is None:
        return None
    return {"how": "learned" if model.prototypes.log_scales is None else "measured", **scales}


def _junk_by_outfits(served: set[str]) -> str:
    rules = [f"under {name} {ignored}" for name, ignored in SETTINGS.items() if name in served]
    return f"; of the own identity beside that, {', '.join(rules)}" if rules else ""


def _counts(items: Sequence[tuple], dataset: AttributeDataset) -> dict[str, int]:
    people = {pid for _, pid, _ in items} - set(dataset.distractors) if dataset.identified else ()
    cameras = Counter(camid for *_, camid in items)  # an image of an unknown camera has a number of its own
    return {"images": len(items), "identities": len(people),
            "cameras": sum(images > 1 for images in cameras.values())}


def _synthetic(items: Sequence[tuple]) -> dict[str, bool]:
    """A mark of images that `cerberus_plugin.synthetic` has drawn; nothing for others."""
    folders = {Path(os.path.dirname(path)) for path, *_ in items}
    folders |= {above for folder in folders for above in list(folder.parents)[:DEEPEST]}
    return {"synthetic": True} if any((folder / DRAWN).is_file() for folder in folders) else {}


def _list_sha256(parts: Mapping[str, Iterable[tuple]], folders: Sequence[str]) -> str:
    """Of one sorted line an image: its part, its name, its identity and its camera."""
    prefixes = sorted((folder.rstrip(os.sep) + os.sep for folder in folders if folder), key=len, reverse=True)
    lines = sorted(f"{part}\t{_name(path, prefixes)}\t{pid}\t{camid}\n"
                   for part, items in parts.items() for path, pid, camid in items)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _name(path: str, prefixes: Sequence[str]) -> str:
    """The path from the innermost of these folders; the file's bare name where it lies in none."""
    inside = next((path[len(prefix):] for prefix in prefixes if path.startswith(prefix)), os.path.basename(path))
    return inside.replace(os.sep, "/").lstrip("/")


def _labels(annotations: Sequence[Annotations]) -> dict | None:
    """Name and hash of the label file; of several files, the hash of their hashes in order."""
    if not annotations:
        return None
    hashes = [part.digest or file_sha256(part.path) for part in annotations]
    whole = hashes[0] if len(hashes) == 1 or None in hashes else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"file": " and ".join(os.path.basename(part.path) for part in annotations),
            "sha256": None if None in hashes else whole}


def _node_of(values: dict, key: str) -> tuple[dict, str]:
    """Where a dotted key lies: the dictionary around it, and its last part."""
    *parts, last = key.split(".")
    for part in parts:
        values = values.get(part, {})
    return values, last
