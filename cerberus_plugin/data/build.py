"""Data sets as a configuration describes them: what training, evaluation and experiments read."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
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
from .loader import AttributeDataset, SeededBatches, SeparateGenerators
from .own import OwnDataset
from .resident import NotResident, ResidentLoader
from .splits import HELD_OUT, at_random, leave_out, split_identities

logger = logging.getLogger("fastreid.cerberus")


def build_dataset(cfg: CfgNode, name: str, schema: AttributeSchema | None = None, number: int = 0):
    """A data set of the host's registry, under FASTREID_DATASETS; or one of a user's own, by its folder or table.

    Args:
        schema: read its labels under this schema; what is left out is in the `matching` of its annotations.
        number: of `OwnDataset`.
    """
    options = {"allow_subset": True} if cfg.DATASETS.ALLOW_SUBSET else {}
    ontology = read_ontology(cfg.DATASETS.ONTOLOGY) if cfg.DATASETS.ONTOLOGY else None
    try:
        registered = DATASET_REGISTRY.get(name)
    except KeyError:
        if os.path.exists(name):
            return OwnDataset(name, cfg.DATASETS.NAME_PATTERN, schema, ontology, number, cfg.DATASETS.SPLIT_FILE,
                              combineall=cfg.DATASETS.COMBINEALL)
        raise FileNotFoundError(f"DATASETS: '{name}' is neither a data set of the registry, such as "
                                "Market1501Attributes, nor a folder or table of your own data. Correct the name or the "
                                "path.") from None
    dataset = registered(root=host_build._root, combineall=cfg.DATASETS.COMBINEALL, **options)
    if ontology is not None and hasattr(dataset, "labels_of") and ontology.has(dataset.schema.name):
        dataset = read_under(dataset, ontology.schema, ontology.readings(dataset.schema.name, dataset.schema.columns))
    return read_under(dataset, schema)


def read_under(dataset, schema: AttributeSchema | None, readings: Readings | None = None):
    """A data set with its labels under a schema; as it is where it has no labels, or those of the schema.

    Args:
        readings: of its columns; by name where None.
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
    nothing = torch.full((len(schema.fields),), MISSING)  # of distractors
    under.labels_of = lambda key: known.get(tuple(dataset.labels_of(key).tolist()), nothing)
    return under


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from, built once at its start and passed to whatever needs it.

    Attributes:
        dataset: the training images; their items carry labels, and semantic IDs where there is a `sid_table`.
        schema: attribute schema of the labels; None without labels.
        sid_table: semantic IDs of the training identities, or of their outfits; None for a model without prototypes.
        held_out: test set of the held-out identities, with the number of its queries; None where nobody is held out.
        datasets: by their names in DATASETS.NAMES, labels under `schema`, so that tests on the same data need not read
            them again.
    """

    dataset: AttributeDataset
    schema: AttributeSchema | None
    sid_table: SIDTable | None
    held_out: tuple[AttributeDataset, int] | None
    datasets: Mapping[str, ImageDataset]


def build_training_data(cfg: CfgNode, semantic_ids: bool) -> TrainingData:
    """Read the training set of a configuration.

    Args:
        semantic_ids: number the semantic IDs of a labelled training set and add them to its items.
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
    """Training images of all DATASETS.NAMES, without the identities that are held out or carry what is left out.

    They are labelled where every data set is, by one schema.
    """
    items, known, _ = _training_items(cfg)
    return _train_set(cfg, items, known)


def build_train_loader(cfg: CfgNode, train_set: AttributeDataset | None = None) -> DataLoader | ResidentLoader:
    """Endless batches that depend on the seed and their number alone; without SEED, on a seed drawn now.

    Args:
        train_set: built from the configuration where None.
    """
    train_set = build_train_set(cfg) if train_set is None else train_set
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    with SeparateGenerators(seed):  # from which the host draws the seed of its sampler
        loader = host_build.build_reid_train_loader(_any_pictures(cfg, train_set), train_set=train_set)
    return resident_or_host(loader.with_batches(SeededBatches(loader.batch_sampler, seed)), cfg)


def _any_pictures(cfg: CfgNode, train_set: AttributeDataset) -> CfgNode:
    """The configuration; with the sampler of single pictures for a training set without identities."""
    if train_set.identified or cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
        return cfg
    logger.info(f"DATALOADER.SAMPLER_TRAIN: TrainingSampler in place of {cfg.DATALOADER.SAMPLER_TRAIN}, as the "
                "pictures have no identities")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    cfg.freeze()
    return cfg


def _train_set(cfg: CfgNode, items: list[tuple], known: Known) -> AttributeDataset:
    if cfg.DATASETS.HOLD_OUT and cfg.DATASETS.COMBINEALL:
        raise ValueError("DATASETS.HOLD_OUT with DATASETS.COMBINEALL would hold out people of the test as well, and "
                         "test on people trained on; set one of them to its default")
    items, _ = split_identities(items, cfg.DATASETS.HOLD_OUT, cfg.DATASETS.HOLD_OUT_SEED)
    without = None
    if cfg.DATASETS.LEAVE_OUT_SIDS:
        items, without = _without_carriers(cfg, items, known)
    return AttributeDataset(items, build_transforms(cfg, is_train=True), on_unreadable=cfg.DATALOADER.ON_UNREADABLE,
                            without=without, **known._asdict())


def build_test_set(cfg: CfgNode, name: str, schema: AttributeSchema | None = None,
                   datasets: Mapping[str, ImageDataset] | None = None) -> tuple[AttributeDataset, int]:
    """Query images, then gallery images, of a test data set or of the held-out identities; how many are queries.

    Args:
        schema: read labels under this schema. A data set that has none of its attributes comes out without labels.
        datasets: those that have been read already, by name.
    """
    return _test_set(cfg, *_test_items(cfg, name, schema, datasets or {}))


def check_test_set(cfg: CfgNode, name: str, test_set: tuple[AttributeDataset, int]) -> None:
    """Refuse a test data set that reID cannot be evaluated on.

    Raises:
        ValueError: if there is no query or gallery image, no more of both than TEST.AQE.QE_K, or if no query has a
            match: a gallery image of its identity under another camera. A setting of outfits under which no query
            has one is a warning, because the others have figures.
    """
    dataset, num_query = test_set
    query, gallery, settings = dataset.img_items[:num_query], dataset.img_items[num_query:], dataset.settings
    where = f"DATASETS.TESTS '{name}'" + ("" if name == HELD_OUT else f" in '{dataset.folders[0]}'")
    for what, items in (("query", query), ("gallery", gallery)):
        if not items and (dataset.identified or what == "gallery"):
            raise ValueError(f"{where}: has no {what} images, so there is nothing to evaluate. Complete the data set"
                             + (", or raise DATASETS.HOLD_OUT." if name == HELD_OUT else
                                f": both query and gallery need images ({', '.join(SUFFIXES)})."))
    if not dataset.identified:  # attributes alone are evaluated
        return
    check_expansion(cfg, len(query), len(gallery))

    def distinct(items: list[tuple]) -> Tensor:
        """Rows (pid, camid, outfit) of images, int64 (n, 3)."""
        return torch.tensor(sorted({(pid, camid, dataset.outfit_of(path) if settings else 0)
                                    for path, pid, camid in items}))

    asked, searched = distinct(query), distinct(gallery)
    pairs = Identities(searched[:, 0], searched[:, 1]).pairs(asked[:, 0], asked[:, 1])
    if not len(pairs.query):
        raise ValueError(f"{where}: none of the {len(asked[:, 0].unique())} query identities ({query[0][1]}, ...) is "
                         f"in the gallery, which has {len(searched[:, 0].unique())} ({gallery[0][1]}, ...). Take query "
                         "and gallery from one data set, with one numbering.")
    if not pairs.match.any():
        cameras = len(torch.cat([asked, searched])[:, 1].unique())
        raise ValueError(f"{where}: no query has a gallery image of its identity under another camera ({len(query)} "
                         f"queries, {len(gallery)} gallery images, {cameras} camera(s)), and reID ignores those under "
                         "its own, so there is nothing to evaluate. Number the cameras in the names of the images "
                         "(_c1, _c2, ...); where they are not known, give the queries another camera than the gallery.")
    for setting in (setting for setting in settings if setting in SETTINGS):
        counted = Outfits(asked[:, 2], searched[:, 2], setting).restrict(pairs, slice(None))
        if not counted.match.any() and comm.is_main_process():
            logger.warning(f"{where}: no query has a match that counts under the setting '{setting}', so there will be "
                           "no figures of it; check the outfits if this is the whole data set")


def _test_items(cfg: CfgNode, name: str, schema: AttributeSchema | None,
                datasets: Mapping[str, ImageDataset]) -> tuple[list[tuple], list[tuple], Known, tuple[str, ...]]:
    """Query, gallery, what is known of them, and the settings of an evaluation by outfits, none without outfits."""
    if name == HELD_OUT:
        if not cfg.DATASETS.HOLD_OUT:
            raise ValueError(f"DATASETS.TESTS has '{HELD_OUT}', but DATASETS.HOLD_OUT is 0: no identity was kept out "
                             "of training")
        return _held_out(cfg, *_training_items(cfg)[:2])
    dataset = read_under(datasets[name], schema) if name in datasets else build_dataset(cfg, name, schema)
    if comm.is_main_process():
        dataset.show_test()
        _tell_matching(dataset)
    known = _known_of([dataset])
    return dataset.query, dataset.gallery, known, tuple(getattr(dataset, "settings", ())) if known.outfit_of else ()


def _test_set(cfg: CfgNode, query: list[tuple], gallery: list[tuple], known: Known,
              settings: tuple[str, ...]) -> tuple[AttributeDataset, int]:
    return AttributeDataset(query + gallery, build_transforms(cfg, is_train=False), relabel=False,
                            on_unreadable=cfg.DATALOADER.ON_UNREADABLE, settings=settings,
                            **known._asdict()), len(query)


def build_readable_test_set(cfg: CfgNode, name: str, schema: AttributeSchema | None = None
                            ) -> tuple[AttributeDataset, list[tuple], list[tuple]]:
    """The data set of `build_test_set`, with its query and gallery items without those that evaluation leaves out.

    For whoever reads the images by themselves. Raises ValueError where no query or no gallery image can be read.
    """
    dataset, num_query = build_test_set(cfg, name, schema)
    left_out = dataset.left_out()
    if left_out:
        logger.warning(f"{name}: {len(left_out)} of {len(dataset)} test images could not be read and are left out")
    readable = [[dataset.img_items[index] for index in indices if index not in left_out]
                for indices in (range(num_query), range(num_query, len(dataset)))]
    if not all(readable):
        raise ValueError(f"{name}: {len(readable[0])} query and {len(readable[1])} gallery images can be read; both "
                         "must have at least one")
    return dataset, *readable


def _tell_matching(dataset) -> None:
    matching = dataset.annotations.matching if hasattr(dataset, "labels_of") else None
    if matching is not None and not matching.complete:
        logger.warning(f"{matching.data} is read under the schema {matching.schema}: {'; '.join(matching.lines())}")


class Known(NamedTuple):
    """What data sets tell beside the host's items, as far as all of them do: arguments of `AttributeDataset`."""

    labels_of: Callable[[str | int], Tensor] | None
    unit_of: Callable[[str], int] | None
    annotations: list[Annotations]
    outfit_of: Callable[[str], int] | None
    folders: list[str]
    distractors: frozenset[int]
    identified: bool


def _training_items(cfg: CfgNode) -> tuple[list[tuple], Known, dict[str, ImageDataset]]:
    """Items of all DATASETS.NAMES, what is known of them, and the data sets by name, labels under one schema."""
    names = list(cfg.DATASETS.NAMES)
    if len(set(names)) < len(names):
        raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES} has a data set twice, whose people would count as "
                         "others. Name it once.")
    datasets = {}
    for name in names:
        number = sum(isinstance(other, OwnDataset) for other in datasets.values())
        datasets[name] = build_dataset(cfg, name, number=number) if number else build_dataset(cfg, name)
    for name, dataset in datasets.items():
        if not dataset.train:
            raise ValueError(f"DATASETS.NAMES '{name}' in '{_folder_of(dataset)}': has no training images "
                             f"({', '.join(SUFFIXES)}). Complete the data set, or put pictures into train.")
    unknown = [name for name, dataset in datasets.items() if not getattr(dataset, "identified", True)]
    if 0 < len(unknown) < len(datasets) and comm.is_main_process():
        logger.warning(f"DATASETS.NAMES: it is not known who is on the pictures of {', '.join(unknown)}, so identities "
                       "are not learned, and attributes alone are")
    datasets = _under_common(cfg, datasets) if cfg.DATASETS.ONTOLOGY else _under_one_schema(datasets)
    items = [item for dataset in datasets.values() for item in dataset.train]
    pids: dict = {}
    paths: dict[str, str] = {}
    for name, dataset in datasets.items():
        for path, pid, _ in dataset.train:
            for known, key, what in ((pids, pid, "an identity"), (paths, os.path.abspath(path), "a picture")):
                if known.setdefault(key, name) != name:
                    raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES}: two of them have {what} '{key}', which "
                                     "would count as two. Name the data sets that hold different people.")
    return items, _known_of(list(datasets.values())), datasets


def _under_one_schema(datasets: dict[str, ImageDataset]) -> dict[str, ImageDataset]:
    """Data sets with their labels under one schema, that of all of them merged; as they are where one has no labels.

    Schemas that nobody has written are inferred from the words of all of them together.
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
                    "what a data set lacks is unknown, and left out of the losses")
    for dataset in read.values():
        if comm.is_main_process():
            _tell_matching(dataset)
    return read


def _under_common(cfg: CfgNode, datasets: dict[str, ImageDataset]) -> dict[str, ImageDataset]:
    """Data sets, read by an ontology, with those of its attributes that any of them has."""
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
            _tell_matching(dataset)
    return read


def _known_of(datasets: list) -> Known:
    """Outfits and units are numbered by path, those of a data set behind those of the ones before it."""
    outfits: dict[str, int] = {}
    units: dict[str, int] = {}
    owners: dict = {}  # of an identity or a unit: its data set, and what this calls it
    labelled = all(map(_is_labelled, datasets))
    by_unit = labelled and any(_whose(dataset) != "identities" for dataset in datasets)
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

    annotations = [dataset.annotations for dataset in datasets] if labelled else []
    worn = all(getattr(dataset, "outfits", None) for dataset in datasets)
    # The host's own name for identities that are no person; the root stands in for what names no folder of its own.
    distractors = frozenset().union(*(getattr(dataset, "_junk_pids", ()) for dataset in datasets))
    folders = [_folder_of(dataset) for dataset in datasets] + [host_build._root]
    return Known(labels_of if labelled else None, units.__getitem__ if by_unit else None, annotations,
                 outfits.__getitem__ if worn else None, folders, distractors,
                 all(getattr(dataset, "identified", True) for dataset in datasets))


def _units_of(dataset) -> tuple[Mapping[str, int], Mapping[int, str | int]]:
    """Numbers of the images with labels in common by path, and what the data set calls these labels by number."""
    if _whose(dataset) != "identities":
        own = dataset.outfits if _whose(dataset) == "outfits" else dataset.units
        return own, {number: number for number in own.values()}
    items = dataset.train + dataset.query + dataset.gallery
    places = {pid: place for place, pid in enumerate(dict.fromkeys(pid for _, pid, _ in items))}
    return {path: places[pid] for path, pid, _ in items}, {place: pid for pid, place in places.items()}


def _is_labelled(dataset) -> bool:
    """Whether a data set has labels; read under a schema, of any of its attributes."""
    if not hasattr(dataset, "labels_of"):
        return False
    matching = dataset.annotations.matching
    return matching is None or bool(matching.columns)


def _append(numbers: dict[str, int], more: Mapping[str, int]) -> int:
    """Add numbers by path behind those that are there, in place; the number that 0 became."""
    first = max(numbers.values(), default=-1) + 1
    numbers |= {path: first + number for path, number in more.items()}
    return first


def _folder_of(dataset) -> str:
    """Where a data set's images are; Market-1501 may be in a folder below, and calls this one otherwise."""
    return getattr(dataset, "data_dir", None) or getattr(dataset, "dataset_dir", None) or ""


def _whose(dataset) -> str:
    """Whose labels a data set has: where images have labels of their own, those that share them are a unit."""
    if getattr(dataset, "units", None):
        return "images"
    return "outfits" if getattr(dataset, "by_outfit", False) else "identities"


def _without_carriers(cfg: CfgNode, items: list[tuple], known: Known) -> tuple[list[tuple], dict]:
    """Items of the identities that carry none of the semantic IDs that training is not to see, and who went why."""
    data = cfg.DATASETS
    if not known.annotations:
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {data.LEAVE_OUT_SIDS}, but DATASETS.NAMES {data.NAMES} have no "
                         "attributes, so nobody is known to carry a semantic ID; set it to 0, or use "
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
                         "identities carries one of these semantic IDs; ask for fewer, or for others by "
                         "DATASETS.LEAVE_OUT_SEED")
    who = f"who carry one of {len(left.names)} semantic IDs"
    if data.LEAVE_OUT_AT_RANDOM:
        gone = at_random(people, len(gone), seed)
        who = f"drawn at random, as many as carry one of {len(left.names)} semantic IDs"
    logger.info(f"Training without {len(gone)} of {len(people)} identities, {who}: {'; '.join(left.names)}")
    return ([item for item in items if item[1] not in gone],
            {"semantic IDs": list(left.names), "identities": len(gone), "at random": data.LEAVE_OUT_AT_RANDOM})


def test_labels(annotations: list[Annotations]) -> Tensor:
    return torch.cat([a.lookup("test", a.test) for a in annotations])


def _held_out(cfg: CfgNode, items: list[tuple],
              known: Known) -> tuple[list[tuple], list[tuple], Known, tuple[str, ...]]:
    """`_test_items` of the held-out identities, numbered from 1 as in a test.

    Args:
        items, known: of `_training_items`.
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
    """The host's loader, or with DATALOADER.RESIDENT one of the same batches from images on the device, if they fit."""
    if not cfg.DATALOADER.RESIDENT:
        return loader
    try:
        return ResidentLoader.in_place_of(loader, cfg.DATALOADER.RESIDENT_GIB, cfg.MODEL.CHANNELS_LAST)
    except NotResident as reason:
        name = "training" if loader.dataset.relabel else "test"
        logger.info(f"DATALOADER.RESIDENT: the host's loader reads the {name} images: {reason}")
        return loader


def check_schema(schema: AttributeSchema, annotations: Annotations, dataset_name: str) -> None:
    """A model reads attributes of its own schema only."""
    if schema.name == annotations.schema.name and schema != annotations.schema:
        raise ValueError(f"DATASETS.TESTS: {dataset_name} has another schema '{schema.name}' than the one that the "
                         "model was trained on: other groups, fields, values or columns. Train the model anew, or "
                         "restore the schema.")
    if schema.name != annotations.schema.name:
        raise ValueError(f"DATASETS.TESTS: {dataset_name} has the attributes of {annotations.schema.name}, the model "
                         f"those of {schema.name}; it cannot read them. Test it on a data set with its own "
                         "attributes, or on the host's data set of the same name for reID alone.")


def check_expansion(cfg, num_query: int, num_gallery: int) -> None:
    """Refuse query expansion (TEST.AQE) over more images than there are."""
    test = cfg.TEST
    if test.AQE.ENABLED and num_query + num_gallery <= test.AQE.QE_K:
        raise ValueError(f"TEST.AQE.QE_K is {test.AQE.QE_K}, but there are {num_query} query and {num_gallery} gallery "
                         "images, expected more of both together than QE_K: lower TEST.AQE.QE_K, or set "
                         "TEST.AQE.ENABLED False")
