"""The manifest of an evaluation: equal hashes mean equal images, labels, configuration or weights, on any machine.

Hashes do not depend on where files are stored: names of images are relative to the folder of their dataset, and weights
are hashed by their contents.
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

# Keys with the location and the device of a run, and keys filled in from the dataset and the checkpoint, which have
# their own hashes.
NOT_HASHED = ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", *FILLED)
FILE_KEYS = ("MODEL.BACKBONE.PRETRAIN_PATH", "DATASETS.ONTOLOGY")  # hashed as the file's name, without its folder
DEEPEST = 4  # levels above an image folder in which the settings file of a synthetic dataset is searched

# Texts of manifests. `EARLIER_TEXTS` must contain each replaced wording, since manifests are compared as strings.
JUNK = ("gallery images with the identity and the camera of the query are ignored; distractors count as wrong results; "
        "images of identity -1 are not loaded")
COLOURS = {"official": "one predicted colour per garment; right if it is labelled, wrong without a labelled colour",
           "binary": "mean accuracy of the yes/no labels of the colours",
           "balanced": "mean of (TPR + TNR) / 2 of the yes/no labels of the colours"}
BALANCED = "the value with the largest (p - pi) / (pi (1 - pi)), where pi is its share of the training identities"
POOL = "query and gallery, without distractors"
PERSON = ("an identity, in one outfit if the dataset has outfits, by the mean score of its images: of the pool for "
          "APS, of the gallery for PAR")
ALSO_IGNORED = "; also ignored are images with the identity of the query, "

# Wordings of earlier versions and those of this version.
EARLIER_TEXTS = {
    "images of the query's own identity under its own camera are ignored; distractors rank as wrong answers, and "
    "images of identity -1 are not read": JUNK,
    "; of the own identity beside that, ": ALSO_IGNORED,
    "one answer a garment; any listed colour is right, nothing is where no colour is listed": COLOURS["official"],
    "mean of each colour's yes/no accuracy": COLOURS["binary"],
    "mean of (TPR + TNR) / 2 of each colour's yes/no question": COLOURS["balanced"],
    "the value that exceeds its share of the training people most, (p - pi) / (pi (1 - pi))": BALANCED,
    "an identity, in one outfit where the data set has outfits, by the mean score of its images: of the pool for "
    "APS, of the gallery for PAR": PERSON,
}


def manifest(cfg: CfgNode, results: Mapping, tests: Mapping[str, Mapping], model: nn.Module | None = None,
             train_set: AttributeDataset | None = None, checkpoint: str | None = None) -> dict:
    """Create the entry "manifest" of results.json.

    Args:
        cfg: configuration of the run.
        results: metrics, by test dataset if there are several, as `CerberusTrainer.test` returns them.
        tests: records of the test datasets by name, see `of_test`.
        model: the evaluated model, for the sizes of its semantic ID tables.
        train_set: the training set; None for an evaluation without training.
        checkpoint: the file that was evaluated, or that the training has written.
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


def with_current_texts(value):
    """Replace the texts of a manifest of an earlier version with those of this version.

    Args:
        value: a manifest, or any part of it.

    Examples:
        >>> with_current_texts({"colours": {"binary": "mean of each colour's yes/no accuracy"}})
        {'colours': {'binary': 'mean accuracy of the yes/no labels of the colours'}}
    """
    if isinstance(value, Mapping):
        return {key: with_current_texts(part) for key, part in value.items()}
    if isinstance(value, str):
        for earlier, current in EARLIER_TEXTS.items():
            value = value.replace(earlier, current)
    return value


def ranking_rules(cfg: CfgNode) -> dict[str, str | bool]:
    """Return the settings of re-ranking and query expansion; False if switched off."""
    rerank, aqe = cfg.TEST.RERANK, cfg.TEST.AQE
    return {"re-ranking": rerank.ENABLED and f"{rerank.VARIANT}, k1 {rerank.K1}, k2 {rerank.K2}, "
                                             f"lambda {rerank.LAMBDA:g}",
            "query expansion": aqe.ENABLED and f"k {aqe.QE_K}, times {aqe.QE_TIME}, alpha {aqe.ALPHA:g}"}


def of_test(dataset: AttributeDataset, num_query: int, num_left_out: int) -> dict:
    """Describe a test dataset: numbers of images and identities, and hashes of the image list and the labels.

    "images" counts all images of the dataset, of which `num_left_out` could not be read; "identities" does not count
    the identity of the distractors; "cameras" counts those with two or more images, 0 if cameras are unknown.
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
    """Describe a training set: numbers of images and identities, and hashes of the image list and the labels.

    "held out" is the number of held-out identities, "without" the identities that DATASETS.LEAVE_OUT_SIDS excludes,
    and "began with" the file of MODEL.WEIGHTS.
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
    """Hash all keys of a configuration but `NOT_HASHED`, whether set on the command line, in a file or by default.

    Names of folders and files are hashed without the folders above them.
    """
    values = yaml.safe_load(cfg.dump())
    for key in NOT_HASHED:
        node, last = _node_of(values, key)
        node.pop(last, None)
    for key in ("NAMES", "TESTS"):  # may be folders of own data
        values["DATASETS"][key] = [os.path.basename(os.path.normpath(name)) for name in values["DATASETS"][key]]
    for key in FILE_KEYS:
        node, last = _node_of(values, key)
        node[last] = os.path.basename(node.get(last) or "")
    return json_sha256(values)


def _reading(cfg: CfgNode, model: nn.Module) -> dict:
    """Describe how attributes were recognised and searched: for "PAR" and "APS", and for keys with another method."""
    test = cfg.TEST
    if cfg.MODEL.META_ARCHITECTURE != "Cerberus":
        return {"name": "classifiers", "balanced": BALANCED}
    return {"name": test.READING, "nearest": "labels of the nearest prototype; mean cosine",
            "probability": "most probable value; sum of log-probabilities of the described values",
            "balanced": f"by probability {BALANCED}", "tau": test.PAR.TAU, "unseen prior": test.PAR.UNSEEN_PRIOR,
            "cosine scales": _scales(model) or {"TEST.PAR.COSINE_SCALE": test.PAR.COSINE_SCALE}}


def _scales(model: nn.Module) -> dict | None:
    """Return the cosine scale of each column and whether it was learned or measured; None if neither."""
    scales = model.prototypes.column_scales(model.schema)
    if scales is None:
        return None
    return {"how": "learned" if model.prototypes.log_scales is None else "measured", **scales}


def _junk_by_outfits(served: set[str]) -> str:
    rules = [f"under {name} {ignored}" for name, ignored in SETTINGS.items() if name in served]
    return ALSO_IGNORED + ", ".join(rules) if rules else ""


def _counts(items: Sequence[tuple], dataset: AttributeDataset) -> dict[str, int]:
    people = {pid for _, pid, _ in items} - set(dataset.distractors) if dataset.identified else ()
    cameras = Counter(camid for *_, camid in items)  # each image of an unknown camera has a unique number
    return {"images": len(items), "identities": len(people),
            "cameras": sum(images > 1 for images in cameras.values())}


def _synthetic(items: Sequence[tuple]) -> dict[str, bool]:
    """Return the entry that marks images drawn by `cerberus_plugin.synthetic`; empty for other images."""
    folders = {Path(os.path.dirname(path)) for path, *_ in items}
    folders |= {above for folder in folders for above in list(folder.parents)[:DEEPEST]}
    return {"synthetic": True} if any((folder / DRAWN).is_file() for folder in folders) else {}


def _list_sha256(parts: Mapping[str, Iterable[tuple]], folders: Sequence[str]) -> str:
    """Hash sorted lines, one per image, with its part of the dataset, name, identity and camera."""
    prefixes = sorted((folder.rstrip(os.sep) + os.sep for folder in folders if folder), key=len, reverse=True)
    lines = sorted(f"{part}\t{_name(path, prefixes)}\t{pid}\t{camid}\n"
                   for part, items in parts.items() for path, pid, camid in items)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _name(path: str, prefixes: Sequence[str]) -> str:
    """Return the path relative to the innermost of these folders; the file name if it is in none of them."""
    inside = next((path[len(prefix):] for prefix in prefixes if path.startswith(prefix)), os.path.basename(path))
    return inside.replace(os.sep, "/").lstrip("/")


def _labels(annotations: Sequence[Annotations]) -> dict | None:
    """Return name and hash of the label file; for several files, the hash of their concatenated hashes."""
    if not annotations:
        return None
    hashes = [part.digest or file_sha256(part.path) for part in annotations]
    whole = hashes[0] if len(hashes) == 1 or None in hashes else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"file": " and ".join(os.path.basename(part.path) for part in annotations),
            "sha256": None if None in hashes else whole}


def _node_of(values: dict, key: str) -> tuple[dict, str]:
    """Return the dictionary that contains a dotted key, and the last part of the key."""
    *parts, last = key.split(".")
    for part in parts:
        values = values.get(part, {})
    return values, last
