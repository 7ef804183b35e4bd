"""Build the datasets of a configuration for training, evaluation and experiments."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from fastreid.config import CfgNode
from fastreid.data import build as host_build
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader

from ..attributes import MISSING, Annotations, AttributeSchema, SIDTable
from ..attributes.matching import Readings, merge
from ..metrics.counting import Identities
from ..metrics.outfits import CHANGES, SETTINGS, Outfits
from ..own_data.ontology import read_ontology
from ..own_data.people import infer_together
from ..own_data.schema_file import NoAttributes
from ..own_data.split import query_and_gallery
from ..utils.images import SUFFIXES
from .loader import UNKNOWN_CAMERA, AttributeDataset, SeededBatches, SeparateGenerators
from .own import OwnDataset
from .resident import NotResident, ResidentLoader
from .splits import HELD_OUT, at_random, leave_out, split_identities

logger = logging.getLogger("fastreid.cerberus")


def build_dataset(cfg: CfgNode, name: str, schema: AttributeSchema | None = None, number: int = 0):
    """Build a dataset of FastReID's registry, below FASTREID_DATASETS, or the user's own from a folder or table.

    Args:
        cfg: configuration.
        name: registered name, or path of the folder or table.
        schema: convert the labels to this schema; the `matching` of the annotations lists what it lacks.
        number: see `OwnDataset`.

    Raises:
        FileNotFoundError: if `name` is neither registered nor a path.
    """
    options = {"allow_subset": True} if cfg.DATASETS.ALLOW_SUBSET else {}
    ontology = read_ontology(cfg.DATASETS.ONTOLOGY) if cfg.DATASETS.ONTOLOGY else None
    try:
        registered = DATASET_REGISTRY.get(name)
    except KeyError:
        if os.path.exists(name):
            return OwnDataset(name, cfg.DATASETS.NAME_PATTERN, schema, ontology, number, cfg.DATASETS.SPLIT_FILE,
                              combineall=cfg.DATASETS.COMBINEALL)
        raise FileNotFoundError(f"DATASETS: '{name}' is neither a registered dataset, such as "
                                "Market1501Attributes, nor a folder or table of your own data. Correct the name or the "
                                "path.") from None
    dataset = registered(root=host_build._root, combineall=cfg.DATASETS.COMBINEALL, **options)
    if ontology is not None and hasattr(dataset, "labels_of") and ontology.has(dataset.schema.name):
        dataset = read_under(dataset, ontology.schema, ontology.readings(dataset.schema.name, dataset.schema.columns))
    return read_under(dataset, schema)


def read_under(dataset, schema: AttributeSchema | None, readings: Readings | None = None):
    """Convert the labels of a dataset to a schema.

    Args:
        dataset: returned unchanged if it has no labels or already uses the schema; otherwise copied.
        schema: the new schema; None for no conversion.
        readings: mapping of the columns; matched by name if None.

    Returns:
        the dataset with the new labels.
    """
    if schema is None or getattr(dataset, "schema", None) == schema:
        return dataset
    if isinstance(dataset, OwnDataset):
        return dataset.under(schema)
    if not hasattr(dataset, "labels_of"):
        return dataset
    under = copy.copy(dataset)
    under.schema, under.annotations = schema, dataset.annotations.under(schema, readings)
    known = {tuple(before.tolist()): after for table in ("train", "test") for before, after in
             zip(getattr(dataset.annotations, table).values(), getattr(under.annotations, table).values())}
    nothing = torch.full((len(schema.fields),), MISSING)  # for distractors
    under.labels_of = lambda key: known.get(tuple(dataset.labels_of(key).tolist()), nothing)
    return under


@dataclass(frozen=True)
class TrainingData:
    """Training data of a run, built once at its start.

    Attributes:
        dataset: training images; their items contain labels, and semantic IDs if there is a `sid_table`.
        schema: attribute schema of the labels; None without labels.
        sid_table: semantic IDs of the training identities, or of their outfits; None for a model without prototypes.
        held_out: test set of the held-out identities, and the number of its queries; None without held-out identities.
        datasets: datasets by their names in DATASETS.NAMES, with labels of `schema`; tests on the same data reuse them.
    """

    dataset: AttributeDataset
    schema: AttributeSchema | None
    sid_table: SIDTable | None
    held_out: tuple[AttributeDataset, int] | None
    datasets: Mapping[str, ImageDataset]


def build_training_data(cfg: CfgNode, semantic_ids: bool) -> TrainingData:
    """Read the training set of a configuration.

    Args:
        cfg: configuration.
        semantic_ids: whether to number the semantic IDs of a labelled training set and add them to its items.
    """
    items, known, datasets = _training_items(cfg)
    dataset = _train_set(cfg, items, known)
    schema, table = dataset.annotations[0].schema if dataset.annotations else None, None
    if semantic_ids and schema is not None:
        table = SIDTable.build(schema, dataset.labels, test_labels(dataset.annotations), cfg.MODEL.CERBERUS.SID_SPACE)
        dataset.sids = table.lookup(dataset.labels)
    held_out = _test_set(cfg, *_held_out(cfg, items, known)) if cfg.DATASETS.HOLD_OUT else None
    return TrainingData(dataset, schema, table, held_out, datasets)


def build_train_set(cfg: CfgNode) -> AttributeDataset:
    """Build the training images of all DATASETS.NAMES, without held-out and excluded identities.

    They have labels if every dataset has labels; these are converted to one common schema.
    """
    items, known, _ = _training_items(cfg)
    return _train_set(cfg, items, known)


def build_train_loader(cfg: CfgNode, train_set: AttributeDataset | None = None) -> DataLoader | ResidentLoader:
    """Build an endless loader. A batch depends only on the seed and the number of the batch.

    Args:
        cfg: configuration; a negative SEED is replaced by a random one.
        train_set: training images; built from the configuration if None.
    """
    train_set = build_train_set(cfg) if train_set is None else train_set
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    with SeparateGenerators(seed):  # FastReID draws the seed of its sampler
        loader = host_build.build_reid_train_loader(_with_sampler(cfg, train_set), train_set=train_set)
    return resident_or_host(loader.with_batches(SeededBatches(loader.batch_sampler, seed)), cfg)


def _with_sampler(cfg: CfgNode, train_set: AttributeDataset) -> CfgNode:
    """Return the configuration, with TrainingSampler as the sampler if the training set has no identities."""
    if train_set.identified or cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
        return cfg
    logger.info(f"DATALOADER.SAMPLER_TRAIN: TrainingSampler instead of {cfg.DATALOADER.SAMPLER_TRAIN}, because "
                "the images have no identities")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    cfg.freeze()
    return cfg


def _train_set(cfg: CfgNode, items: list[tuple], known: Known) -> AttributeDataset:
    if cfg.DATASETS.HOLD_OUT and cfg.DATASETS.COMBINEALL:
        raise ValueError("DATASETS.HOLD_OUT cannot be combined with DATASETS.COMBINEALL, which trains on the test "
                         "identities; set one of them to its default")
    items, _ = split_identities(items, cfg.DATASETS.HOLD_OUT, cfg.DATASETS.HOLD_OUT_SEED)
    without = None
    if cfg.DATASETS.LEAVE_OUT_SIDS:
        items, without = _without_carriers(cfg, items, known)
    return AttributeDataset(items, build_transforms(cfg, is_train=True), on_unreadable=cfg.DATALOADER.ON_UNREADABLE,
                            without=without, **known._asdict())


def build_test_set(cfg: CfgNode, name: str, schema: AttributeSchema | None = None,
                   datasets: Mapping[str, ImageDataset] | None = None) -> tuple[AttributeDataset, int]:
    """Build a test set: the query images followed by the gallery images.

    Args:
        cfg: configuration.
        name: name or path of the dataset, or "held-out" for the held-out identities.
        schema: convert the labels to this schema. A dataset with none of its attributes has no labels then.
        datasets: datasets that have already been read, by name.

    Returns:
        the images, and the number of queries.
    """
    return _test_set(cfg, *_test_items(cfg, name, schema, datasets or {}))


def check_test_set(cfg: CfgNode, name: str, test_set: tuple[AttributeDataset, int]) -> None:
    """Check that reID can be evaluated on a test set.

    If no query has a match under one setting of the evaluation by outfits, this is only a warning, because the other
    settings can be evaluated.

    Args:
        cfg: configuration.
        name: name of the dataset.
        test_set: images and number of queries, as returned by `build_test_set`.

    Raises:
        ValueError: if there is no query or no gallery image, if there are not more than TEST.AQE.QE_K images for query
            expansion, or if no query has a match, which is a gallery image of its identity from another camera.
    """
    dataset, num_query = test_set
    query, gallery, settings = dataset.img_items[:num_query], dataset.img_items[num_query:], dataset.settings
    where = f"DATASETS.TESTS '{name}'" + ("" if name == HELD_OUT else f" in '{dataset.folders[0]}'")
    for what, items in (("query", query), ("gallery", gallery)):
        if not items and (dataset.identified or what == "gallery"):
            raise ValueError(f"{where}: has no {what} images, so there is nothing to evaluate. Complete the dataset"
                             + (", or raise DATASETS.HOLD_OUT." if name == HELD_OUT else
                                f": both query and gallery need images ({', '.join(SUFFIXES)})."))
    if not dataset.identified:  # only attributes are evaluated
        return
    check_expansion(cfg, len(query), len(gallery))

    def distinct(items: list[tuple]) -> Tensor:
        """Return the distinct rows (pid, camid, outfit) of images, int64 (n, 3)."""
        return torch.tensor(sorted({(pid, camid, dataset.outfit_of(path) if settings else 0)
                                    for path, pid, camid in items}))

    asked, searched = distinct(query), distinct(gallery)
    pairs = Identities(searched[:, 0], searched[:, 1]).pairs(asked[:, 0], asked[:, 1])
    if not len(pairs.query):
        raise ValueError(f"{where}: none of the {len(asked[:, 0].unique())} query identities ({query[0][1]}, ...) is "
                         f"in the gallery, which has {len(searched[:, 0].unique())} ({gallery[0][1]}, ...). Use query "
                         "and gallery of the same dataset, with the same numbering.")
    if not pairs.match.any():
        cameras = len(torch.cat([asked, searched])[:, 1].unique())
        raise ValueError(f"{where}: no query has a gallery image of its identity from another camera ({len(query)} "
                         f"queries, {len(gallery)} gallery images, {cameras} camera(s)). ReID ignores those from the "
                         "same camera, so there is nothing to evaluate. Number the cameras in the file names (_c1, "
                         "_c2, ...); if they are unknown, use another number for the queries than for the gallery.")
    for setting in (setting for setting in settings if setting in SETTINGS):
        counted = Outfits(asked[:, 2], searched[:, 2], setting).restrict(pairs, slice(None))
        if not counted.match.any() and comm.is_main_process():
            logger.warning(f"{where}: no query has a match under the setting '{setting}', so it has no results; "
                           "check the outfits if this is the complete dataset")


def _test_items(cfg: CfgNode, name: str, schema: AttributeSchema | None,
                datasets: Mapping[str, ImageDataset]) -> tuple[list[tuple], list[tuple], Known, tuple[str, ...]]:
    """Return query, gallery, their `Known`, and the settings of an evaluation by outfits (none without outfits)."""
    if name == HELD_OUT:
        if not cfg.DATASETS.HOLD_OUT:
            raise ValueError(f"DATASETS.TESTS has '{HELD_OUT}', but DATASETS.HOLD_OUT is 0, so no identity is held "
                             "out")
        return _held_out(cfg, *_training_items(cfg)[:2])
    dataset = read_under(datasets[name], schema) if name in datasets else build_dataset(cfg, name, schema)
    if comm.is_main_process():
        dataset.show_test()
        _log_matching(dataset)
    known = _known_of([dataset], with_cameras(cfg))
    return dataset.query, dataset.gallery, known, tuple(getattr(dataset, "settings", ())) if known.outfit_of else ()


def _test_set(cfg: CfgNode, query: list[tuple], gallery: list[tuple], known: Known,
              settings: tuple[str, ...]) -> tuple[AttributeDataset, int]:
    return AttributeDataset(query + gallery, build_transforms(cfg, is_train=False), relabel=False,
                            on_unreadable=cfg.DATALOADER.ON_UNREADABLE, settings=settings,
                            **known._asdict()), len(query)


def build_readable_test_set(cfg: CfgNode, name: str, schema: AttributeSchema | None = None
                            ) -> tuple[AttributeDataset, list[tuple], list[tuple]]:
    """Build a test set for code that reads the images itself.

    Args:
        cfg: configuration.
        name: see `build_test_set`.
        schema: see `build_test_set`.

    Returns:
        the dataset of `build_test_set`, and the query and the gallery items that the evaluation uses, without
        unreadable images.

    Raises:
        ValueError: if no query or no gallery image can be read.
    """
    dataset, num_query = build_test_set(cfg, name, schema)
    left_out = dataset.left_out()
    if left_out:
        logger.warning(f"{name}: {len(left_out)} of {len(dataset)} test images could not be read and are skipped")
    readable = [[dataset.img_items[index] for index in indices if index not in left_out]
                for indices in (range(num_query), range(num_query, len(dataset)))]
    if not all(readable):
        raise ValueError(f"{name}: {len(readable[0])} query and {len(readable[1])} gallery images can be read, "
                         "expected at least one of each")
    return dataset, *readable


def _log_matching(dataset) -> None:
    matching = dataset.annotations.matching if hasattr(dataset, "labels_of") else None
    if matching is not None and not matching.complete:
        logger.warning(f"{matching.data} is converted to the schema {matching.schema}: {'; '.join(matching.lines())}")


class Known(NamedTuple):
    """Arguments of `AttributeDataset` that all given datasets provide in addition to FastReID's items."""

    labels_of: Callable[[str | int], Tensor] | None
    unit_of: Callable[[str], int] | None
    annotations: list[Annotations]
    outfit_of: Callable[[str], int] | None
    folders: list[str]
    distractors: frozenset[int]
    identified: bool
    camera_of: Callable[[str], int] | None


def _training_items(cfg: CfgNode) -> tuple[list[tuple], Known, dict[str, ImageDataset]]:
    """Return the items of all DATASETS.NAMES, their `Known`, and the datasets by name, with labels of one schema."""
    names = list(cfg.DATASETS.NAMES)
    if len(set(names)) < len(names):
        raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES} has a dataset twice, whose identities would be "
                         "counted twice. Name it once.")
    datasets = {}
    for name in names:
        number = sum(isinstance(other, OwnDataset) for other in datasets.values())
        datasets[name] = build_dataset(cfg, name, number=number) if number else build_dataset(cfg, name)
    for name, dataset in datasets.items():
        if not dataset.train:
            raise ValueError(f"DATASETS.NAMES '{name}' in '{_folder_of(dataset)}': has no training images "
                             f"({', '.join(SUFFIXES)}). Complete the dataset, or put images into train.")
    unknown = [name for name, dataset in datasets.items() if not getattr(dataset, "identified", True)]
    if 0 < len(unknown) < len(datasets) and comm.is_main_process():
        logger.warning(f"DATASETS.NAMES: the identities of {', '.join(unknown)} are unknown, so the model learns only "
                       "attributes")
    datasets = _under_common(cfg, datasets) if cfg.DATASETS.ONTOLOGY else _under_one_schema(datasets)
    items = [item for dataset in datasets.values() for item in dataset.train]
    pids: dict = {}
    paths: dict[str, str] = {}
    for name, dataset in datasets.items():
        for path, pid, _ in dataset.train:
            for known, key, what in ((pids, pid, "an identity"), (paths, os.path.abspath(path), "an image")):
                if known.setdefault(key, name) != name:
                    raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES}: two of them have {what} '{key}', which "
                                     "would be counted twice. Name datasets with different people.")
    return items, _known_of(list(datasets.values()), with_cameras(cfg)), datasets


def _under_one_schema(datasets: dict[str, ImageDataset]) -> dict[str, ImageDataset]:
    """Convert the labels of several datasets to one schema, which is merged from theirs.

    If a dataset has no labels, all are returned unchanged. For datasets without a schema file, the schema is inferred
    from the values of all of them together.
    """
    own = {name: dataset for name, dataset in datasets.items() if isinstance(dataset, OwnDataset) and dataset.inferred}
    if len(datasets) < 2 or not all(hasattr(dataset, "labels_of") or name in own and dataset.own.attributes
                                    for name, dataset in datasets.items()):
        return datasets
    schemas = [dataset.schema for name, dataset in datasets.items() if name not in own]
    try:
        written = len(schemas)
        schemas += infer_together([dataset.own for dataset in own.values()]) if own else []
        schema = merge(schemas, range(written, len(schemas)))
    except NoAttributes:
        return datasets
    except ValueError as error:
        raise ValueError(f"DATASETS.NAMES {', '.join(datasets)}: {error}") from error
    read = {name: read_under(dataset, schema) for name, dataset in datasets.items()}
    if comm.is_main_process() and len(set(schemas)) > 1:
        logger.info(f"DATASETS.NAMES: one schema of {len(schema.columns)} attributes in {len(schema.groups)} groups; "
                    "an attribute that a dataset lacks is unknown and ignored by the losses")
    for dataset in read.values():
        if comm.is_main_process():
            _log_matching(dataset)
    return read


def _under_common(cfg: CfgNode, datasets: dict[str, ImageDataset]) -> dict[str, ImageDataset]:
    """Convert the labels of datasets of an ontology to those of its attributes that at least one dataset has."""
    ontology = read_ontology(cfg.DATASETS.ONTOLOGY)
    schemas = []
    for dataset in datasets.values():
        if hasattr(dataset, "labels_of"):
            if dataset.schema != ontology.schema:
                ontology.check_set(dataset.schema.name)
            schemas.append(ontology.schema.restricted(dataset.annotations.matching.columns, dataset.schema.name))
    if len(schemas) < len(datasets):
        return datasets
    schema = merge(schemas)
    read = {name: read_under(dataset, schema) for name, dataset in datasets.items()}
    for dataset in read.values():
        if comm.is_main_process():
            _log_matching(dataset)
    return read


def with_cameras(cfg: CfgNode) -> bool:
    """Return whether the model has camera embeddings, so that the items of its datasets need cameras."""
    return cfg.MODEL.BACKBONE.SIE_CAMERAS != 0


def camera_number(name: str) -> int:
    """Return the number of a camera for camera embeddings: a hash of its name, the same in each run and dataset.

    FastReID's numbers are not sufficient: in training, they are indices into the sorted names of the cameras ("10"
    before "2"), and cameras of different datasets have the same numbers in tests.

    Args:
        name: dataset and camera, such as "market1501/3".

    Examples:
        >>> camera_number("market1501/3") == camera_number("market1501/3") != camera_number("dukemtmcreid/3")
        True
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _cameras_of(dataset) -> dict[str, int]:
    """Return the number of the camera of each image of a dataset by path; images with an unknown camera are absent."""
    source = getattr(dataset, "dataset_name", "")
    names: Sequence[str] | None = getattr(dataset, "camera_names", None)
    found = {}
    for path, _, camid in dataset.train + dataset.query + dataset.gallery:
        # Training images, and test images that DATASETS.COMBINEALL adds to them, have a prefix.
        camera = str(camid).removeprefix(f"{source}_").removeprefix("test_")
        if names is None:
            found[path] = camera_number(f"{source}/{camera}")
        elif int(camera) < len(names):
            found[path] = camera_number(names[int(camera)])
    return found


def _known_of(datasets: list, cameras: bool = False) -> Known:
    """Collect the `Known` of several datasets; the numbers of outfits and units are continued over them, by path.

    Args:
        datasets: of FastReID or of the plugin.
        cameras: whether items need cameras.
    """
    outfits: dict[str, int] = {}
    units: dict[str, int] = {}
    owners: dict = {}  # identity or unit -> its dataset, and its key in that dataset
    labelled = all(map(_is_labelled, datasets))
    by_unit = labelled and any(_unit_kind(dataset) != "identities" for dataset in datasets)
    for dataset in datasets:
        _append(outfits, getattr(dataset, "outfits", {}))
        if not by_unit:
            owners |= {pid: (dataset, pid) for _, pid, _ in dataset.train + dataset.query + dataset.gallery}
        else:
            own, keys = _units_of(dataset)
            first = _append(units, own)
            owners |= {first + number: (dataset, key) for number, key in keys.items()}

    def labels_of(key: str | int) -> Tensor:
        dataset, name = owners[key]
        return dataset.labels_of(name)

    camera_of = None
    if cameras:
        numbers = {path: number for dataset in datasets for path, number in _cameras_of(dataset).items()}

        def camera_of(path: str) -> int:
            return numbers.get(path, UNKNOWN_CAMERA)

    annotations = [dataset.annotations for dataset in datasets] if labelled else []
    worn = all(getattr(dataset, "outfits", None) for dataset in datasets)
    # _junk_pids is FastReID's name for distractors. The root is used for datasets without a folder.
    distractors = frozenset().union(*(getattr(dataset, "_junk_pids", ()) for dataset in datasets))
    folders = [_folder_of(dataset) for dataset in datasets] + [host_build._root]
    return Known(labels_of if labelled else None, units.__getitem__ if by_unit else None, annotations,
                 outfits.__getitem__ if worn else None, folders, distractors,
                 all(getattr(dataset, "identified", True) for dataset in datasets), camera_of)


def _units_of(dataset) -> tuple[Mapping[str, int], Mapping[int, str | int]]:
    """Return the unit number of each image by path, and the key of its labels in the dataset by unit number.

    The images of a unit have the same labels.
    """
    if _unit_kind(dataset) != "identities":
        own = dataset.outfits if _unit_kind(dataset) == "outfits" else dataset.units
        return own, {number: number for number in own.values()}
    items = dataset.train + dataset.query + dataset.gallery
    places = {pid: place for place, pid in enumerate(dict.fromkeys(pid for _, pid, _ in items))}
    return {path: places[pid] for path, pid, _ in items}, {place: pid for pid, place in places.items()}


def _is_labelled(dataset) -> bool:
    """Return whether a dataset has labels; after a conversion, whether the schema has one of its attributes."""
    if not hasattr(dataset, "labels_of"):
        return False
    matching = dataset.annotations.matching
    return matching is None or bool(matching.columns)


def _append(numbers: dict[str, int], more: Mapping[str, int]) -> int:
    """Add `more` to `numbers` in place, shifted to follow the existing numbers, and return the shift."""
    first = max(numbers.values(), default=-1) + 1
    numbers |= {path: first + number for path, number in more.items()}
    return first


def _folder_of(dataset) -> str:
    """Return the folder of the images; Market1501 calls it data_dir, because it may be a subfolder."""
    return getattr(dataset, "data_dir", None) or getattr(dataset, "dataset_dir", None) or ""


def _unit_kind(dataset) -> str:
    """Return what the labels of a dataset belong to: images, outfits or identities."""
    if getattr(dataset, "units", None):
        return "images"
    return "outfits" if getattr(dataset, "by_outfit", False) else "identities"


def _without_carriers(cfg: CfgNode, items: list[tuple], known: Known) -> tuple[list[tuple], dict]:
    """Remove the identities with one of the excluded semantic IDs; return the other items and a record of it."""
    data = cfg.DATASETS
    if not known.annotations:
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {data.LEAVE_OUT_SIDS}, but DATASETS.NAMES {data.NAMES} have no "
                         "attributes and therefore no semantic IDs; set it to 0, or use "
                         "Market1501Attributes, DukeMTMCAttributes, PRCCAttributes or LTCCAttributes")
    seed = data.LEAVE_OUT_SEED if data.LEAVE_OUT_SEED >= 0 else cfg.SEED
    keys = {item: known.unit_of(item[0]) if known.unit_of else item[1] for item in items}
    labelled = sorted(set(keys.values()))
    left = leave_out(known.annotations[0].schema, torch.stack([known.labels_of(key) for key in labelled]),
                     test_labels(known.annotations), data.LEAVE_OUT_SIDS, seed, data.LEAVE_OUT_SHARE)
    carriers = {key for key, carried in zip(labelled, left.carried.tolist()) if carried}
    gone = {item[1] for item in items if keys[item] in carriers}
    people = sorted({item[1] for item in items})
    if len(gone) == len(people):
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {data.LEAVE_OUT_SIDS}, and each of the {len(people)} training "
                         "identities has one of these semantic IDs; exclude fewer, or others with "
                         "another DATASETS.LEAVE_OUT_SEED")
    who = f"those with one of {len(left.names)} semantic IDs"
    if data.LEAVE_OUT_AT_RANDOM:
        gone = at_random(people, len(gone), seed)
        who = f"chosen at random, the same number as have one of {len(left.names)} semantic IDs"
    logger.info(f"Training without {len(gone)} of {len(people)} identities, {who}: {'; '.join(left.names)}")
    return ([item for item in items if item[1] not in gone],
            {"semantic IDs": list(left.names), "identities": len(gone), "at random": data.LEAVE_OUT_AT_RANDOM})


def test_labels(annotations: list[Annotations]) -> Tensor:
    """Concatenate the labels of the test identities (or outfits, or images) of all annotations, int64 (M, A)."""
    return torch.cat([a.lookup("test", a.test) for a in annotations])


def _held_out(cfg: CfgNode, items: list[tuple],
              known: Known) -> tuple[list[tuple], list[tuple], Known, tuple[str, ...]]:
    """Return the held-out identities in the form of `_test_items`, numbered from 1.

    Args:
        cfg: configuration.
        items: training items of `_training_items`.
        known: their `Known`.
    """
    _, items = split_identities(items, cfg.DATASETS.HOLD_OUT, cfg.DATASETS.HOLD_OUT_SEED)
    pids, camids = (sorted({item[k] for item in items}) for k in (1, 2))
    number = {pid: 1 + place for place, pid in enumerate(pids)}
    items = [(path, number[pid], camids.index(camid)) for path, pid, camid in items]
    query, gallery = query_and_gallery(items) if known.identified else ([], items)
    if known.labels_of and not known.unit_of:
        known = known._replace(labels_of=lambda pid, labels_of=known.labels_of: labels_of(pids[pid - 1]))
    logger.info(f"{HELD_OUT}: {len(query)} query and {len(gallery)} gallery images of {cfg.DATASETS.HOLD_OUT} training "
                "identities")
    return query, gallery, known, CHANGES if known.outfit_of else ()


def resident_or_host(loader: DataLoader, cfg: CfgNode) -> DataLoader | ResidentLoader:
    """Return a loader of the same batches with images on the device if DATALOADER.RESIDENT is set and they fit.

    Args:
        loader: FastReID's loader, which is returned otherwise.
        cfg: configuration.
    """
    if not cfg.DATALOADER.RESIDENT:
        return loader
    try:
        return ResidentLoader.in_place_of(loader, cfg.DATALOADER.RESIDENT_GIB, cfg.MODEL.CHANNELS_LAST)
    except NotResident as reason:
        name = "training" if loader.dataset.relabel else "test"
        logger.info(f"DATALOADER.RESIDENT: not used for the {name} images: {reason}")
        return loader


def check_schema(schema: AttributeSchema, annotations: Annotations, dataset_name: str) -> None:
    """Check that a dataset has the schema of a model.

    Args:
        schema: schema of the model.
        annotations: labels of the dataset.
        dataset_name: for the error message.

    Raises:
        ValueError: if it has another schema.
    """
    if schema.name == annotations.schema.name and schema != annotations.schema:
        raise ValueError(f"DATASETS.TESTS: {dataset_name} has another schema '{schema.name}' than the one that the "
                         "model was trained with: other groups, fields, values or columns. Train the model again, or "
                         "restore the schema.")
    if schema.name != annotations.schema.name:
        raise ValueError(f"DATASETS.TESTS: {dataset_name} has the attributes of {annotations.schema.name}, the model "
                         f"those of {schema.name}. Test it on a dataset with the attributes of the model, or on "
                         "FastReID's dataset of the same name for reID only.")


def check_expansion(cfg, num_query: int, num_gallery: int) -> None:
    """Check that there are enough images for query expansion (TEST.AQE).

    Args:
        cfg: configuration.
        num_query: number of query images.
        num_gallery: number of gallery images.

    Raises:
        ValueError: if there are at most TEST.AQE.QE_K images.
    """
    test = cfg.TEST
    if test.AQE.ENABLED and num_query + num_gallery <= test.AQE.QE_K:
        raise ValueError(f"TEST.AQE.QE_K is {test.AQE.QE_K}, but there are {num_query} query and {num_gallery} gallery "
                         "images, expected more than QE_K in total: lower TEST.AQE.QE_K, or set "
                         "TEST.AQE.ENABLED False")
