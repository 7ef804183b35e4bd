"""The user's own datasets: images with a table of attributes as text, or folders of images."""

from __future__ import annotations

import copy
import functools
import hashlib
import logging

import numpy as np
import torch
from fastreid.data.datasets.bases import ImageDataset
from fastreid.utils import comm
from torch import Tensor

from ..attributes import Annotations, AttributeSchema
from ..attributes.matching import relabel
from ..own_data.ontology import Ontology
from ..own_data.people import labels_of, labels_under, read_people, read_wording, split_people
from ..own_data.split import SPLIT_FILE
from ..own_data.tables import EMPTY
from ..utils.files import json_sha256
from .clothes import GALLERY_CAMERAS

logger = logging.getLogger("fastreid.cerberus")


class OwnDataset(ImageDataset):
    """Images of people, read by `own_data.people` from a folder or a table.

    An image with an unknown camera gets a separate camera, so that none of its matches is ignored.

    Args:
        data: folder or table.
        name_pattern: see `read_people`.
        schema: convert the labels to this schema, see `own_data.people.labels_under`; None for the dataset's own.
        ontology: convert the labels to the common attributes of this ontology if it contains the dataset, and then to
            `schema`.
        number: index among the own datasets that are trained on together, which keeps their people and cameras apart.
        split_file: see `split_people`.
        **kwargs: passed to FastReID's ImageDataset.

    Attributes:
        labels_of: function that returns the labels int64 (A,) of an identity or a unit; missing without attributes.
        schema: attribute schema; missing without attributes.
        annotations: labels; missing without attributes.
        units: number of the unit by path. A unit is the images of one person (and outfit) with the same labels. Empty
            if all images of each person have the same labels.
        outfits: number of the outfit by path; empty if the outfit of an image is unknown.
        cameras_known: whether the camera of at least one image is known.
        camera_names: name of the folder and name of each known camera, such as "site/gate"; the first numbers in items.
        identified: whether the persons on the images are known. If not, each image is a separate identity, all test
            images are gallery images, and only attributes can be trained and evaluated.
        own: the data that was read.
        inferred: whether the schema was inferred, because there is no schema file.

    Raises:
        FileNotFoundError: if the folder or a file does not exist.
        ValueError: for invalid data; names file, line, value, the allowed values and a remedy.
    """

    dataset_name = "own"
    settings = ("cloth-changing", "same-clothes")

    def __init__(self, data: str, name_pattern: str = "", schema: AttributeSchema | None = None,
                 ontology: Ontology | None = None, number: int = 0, split_file: str = "", **kwargs) -> None:
        own = read_people(data, name_pattern)
        main = comm.is_main_process()
        own = split_people(own, write=main, split_file=split_file)
        for note in own.notes if main else ():
            logger.info(f"{own.source}: {note}")
        self.dataset_dir = str(own.folder)
        self.cameras_known, self.identified = own.camera is not None, own.identified
        if not self.cameras_known and self.identified and main:
            logger.info(f"{own.source}: the cameras are unknown, so reID ignores no match")
        self.camera_names = tuple(f"{own.name}/{word}" for word in (() if own.camera is None else own.camera.words))
        people = len(own.person.words)
        numbers = np.empty(people, np.int64)  # depend only on the names
        numbers[sorted(range(people), key=own.person.words.__getitem__)] = np.arange(1, people + 1)
        pids = numbers[own.person.codes]
        camids = np.arange(len(own)) + (GALLERY_CAMERAS if own.camera is None else len(own.camera.words))
        if own.camera is not None:
            camids = np.where(own.camera.codes == EMPTY, camids, own.camera.codes)
        paths = [own.path(row) for row in range(len(own))]
        self.own, self._paths, self._pids, self._ontology = own, paths, pids, ontology
        self._label(schema)
        self.outfits = {}
        if own.outfit is not None and own.outfit.complete:
            worn = np.unique(np.stack([pids, own.outfit.codes], axis=1), axis=0, return_inverse=True)[1].ravel()
            self.outfits = dict(zip(paths, worn.tolist()))

        def items(part: str) -> list[tuple]:
            rows = sorted(np.flatnonzero(own.is_in(part)).tolist(), key=own.files.__getitem__)
            return [(paths[row], int(pids[row]), int(camids[row])) for row in rows]

        train, query, gallery = map(items, ("train", "query", "gallery"))
        _check_parts(own, train, query, gallery)
        name = self.dataset_name = f"own{number + 1}" if number else "own"
        super().__init__([(path, f"{name}_{pid}", f"{name}_{camid}") for path, pid, camid in train], query, gallery,
                         **kwargs)

    def under(self, schema: AttributeSchema) -> OwnDataset:
        """Return a copy with the labels converted to another schema."""
        other = copy.copy(self)
        other._label(schema)
        return other

    def _label(self, schema: AttributeSchema | None) -> None:
        """Set the attributes that describe labels."""
        own, paths, pids = self.own, self._paths, self._pids
        self.units: dict[str, int] = {}
        wording, matching = read_wording(own), None
        self._junk_pids = _distractors(own, wording, pids)  # the name that FastReID uses
        self.inferred = wording is None or not wording.path
        name, ontology = own.name if wording is None else wording.schema.name, self._ontology
        # Labels as in the tables, before any conversion.
        written = None if wording is None else (wording.schema, labels_of(own, wording))
        if ontology is not None and ontology.has(name):
            labels, matching = labels_under(own, ontology.schema, functools.partial(ontology.readings, name))
            if schema is not None:
                labels, _ = relabel(labels, ontology.schema, schema)
            schema = schema or ontology.schema
        elif schema is not None and own.attributes and (wording is None or wording.schema != schema):
            labels, matching = labels_under(own, schema)
        elif wording is None or written is None:
            return
        else:
            for column, reason in (wording.left_out or {}).items():
                logger.info(f"{own.source}: column '{column}' is not an attribute: it {reason}")
            schema, labels = written
        kinds = [pids[:, None], labels] if own.outfit is None else [pids[:, None], own.outfit.codes[:, None], labels]
        units, number = np.unique(np.concatenate(kinds, axis=1), axis=0, return_inverse=True)
        rows = torch.from_numpy(units[:, -labels.shape[1]:].astype(np.int64))
        keys = np.arange(len(units))
        whose = units[:, 0]
        if len(np.unique(np.concatenate([pids[:, None], labels], axis=1), axis=0)) == len(np.unique(pids)):
            keys = whose
        else:
            self.units = dict(zip(paths, number.ravel().tolist()))
        self.schema = schema
        self._labels = {int(key): row for key, row in zip(keys, rows)}
        trained = set(keys[np.unique(number.ravel()[own.is_in("train")])].tolist())
        tested = set(keys[np.unique(number.ravel()[own.is_in("query") | own.is_in("gallery")])].tolist())
        rows_of = [{key: self._labels[key] for key in sorted(chosen)} for chosen in (trained, tested)]
        by_name = sorted(range(len(own)), key=own.files.__getitem__)
        of_tables, as_written = written or (schema, labels)
        digest = json_sha256([of_tables.to_dict(), [own.files[row] for row in by_name],
                              hashlib.sha256(np.ascontiguousarray(as_written[by_name])).hexdigest(),
                              *([own.overlay] if own.overlay else [])])
        self.annotations = Annotations(self.schema, *rows_of, str(own.source), digest, matching)
        self.labels_of = self._labels_of

    def _labels_of(self, key: str | int) -> Tensor:
        """Return the labels int64 (A,) of an identity (as in FastReID's items) or of a unit."""
        return self._labels[int(str(key).rsplit("_", 1)[-1])]

    def show_train(self) -> None:
        """Print nothing: `cerberus check` shows the counts."""

    show_test = show_train


def _distractors(own, wording, pids: np.ndarray) -> list[int]:
    """Return the numbers of the distractors, which may only be in the gallery."""
    rows = np.flatnonzero(np.isin(own.person.to_list(), wording.nobody if wording else ()))
    wrong = [row for row in rows.tolist() if not own.is_in("gallery")[row]]
    if wrong:
        raise ValueError(f"{wording.path}: nobody contains '{own.person[wrong[0]]}', but '{own.files[wrong[0]]}' is in "
                         f"{own.split[wrong[0]]}, expected only persons in the gallery. Correct one of the "
                         "two.")
    return sorted(set(pids[rows].tolist()))


def _check_parts(own, train: list[tuple], query: list[tuple], gallery: list[tuple]) -> None:
    """Check that no person is in training and in the test."""
    where = own.folder / SPLIT_FILE if (own.folder / SPLIT_FILE).is_file() else own.source
    both = {pid for _, pid, _ in train} & {pid for _, pid, _ in query + gallery}
    if both:
        tested = own.person.codes[own.is_in("query") | own.is_in("gallery")]
        row = int(np.flatnonzero(own.is_in("train") & np.isin(own.person.codes, tested))[0])
        raise ValueError(f"{where}: {len(both)} people are in training and in the test, such as '{own.person[row]}' "
                         f"('{own.files[row]}'). Put all images of a person into one of them; otherwise the test "
                         "would use people that the model was trained on.")
