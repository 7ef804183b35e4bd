"""What a trained Cerberus knows of attributes, in numpy: words, semantic IDs and their prototypes.

Embeddings are blocks side by side, one a group.
Shapes: N images, G groups, K semantic IDs of a group, F fields of a group, L bits of a group, A fields of all groups,
M columns, C classes of a column, D dimensions of a block.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .marginals import LOWEST, READINGS, Marginals, check_temperatures, nameable, prior_of, wanted_classes
from .schema import MISSING, AttributeSchema, Column, agreeing

ABSTAINED = "cannot tell"


class Answer(NamedTuple):
    """One attribute of one image.

    Attributes:
        value: the most probable class, in words.   probability: that it is right.
        abstained: whether the probability is too low for the calibrated accuracy; shown as "cannot tell".
        calibrated: whether the probability is fitted on labelled images; if not, the model never abstains.
    """

    value: str
    probability: float
    abstained: bool = False
    calibrated: bool = True

    def __str__(self) -> str:
        if self.abstained:
            return ABSTAINED
        return f"{self.value} ({self.probability:.0%}{'' if self.calibrated else ', not calibrated'})"

    @property
    def withheld(self) -> bool:
        """The former name of `abstained`."""
        return self.abstained

    @classmethod
    def of(cls, value: str, probability: float, below: float | None) -> Answer:
        """An answer that abstains below this probability; None for a column that is not calibrated."""
        return cls(value, probability, below is not None and probability < below, below is not None)


@dataclass(frozen=True, eq=False)
class GroupTables:
    """The semantic IDs of one group, `name`.

    Attributes:
        labels: int64 (K, F), the values of the group's own fields, 0, 1, ...
        prototypes: float32 (K, D), unit length.
        residuals: float32 (L, D), what each bit adds to a prototype.
        mean_prototype, mean_bits: float32 (D,) and (L,), of the semantic IDs seen in training; with the residuals they
            give the prototype of any other combination.
        counts: int64 (K,), training identities that carry each semantic ID.
    """

    name: str
    labels: np.ndarray
    prototypes: np.ndarray
    residuals: np.ndarray
    mean_prototype: np.ndarray
    mean_bits: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class AttributeModel:
    """Attributes in words, read off embeddings and described as vectors that embeddings are compared with.

    Attributes:
        schema: of the attributes; its groups are in the order of an embedding's blocks.
        groups: the tables of each group, in the same order.
        scales: by column, s_m, what cosines are multiplied by to become logits.
        reading: how answers and searches are read off embeddings, "nearest" or "probability", see `PrototypeReader`.
        tau, unseen_prior: power of the prior of semantic IDs, and the identities that one counts as which no training
            identity carries; see `marginals`.
        force_colour: name a colour wherever there is one to name, in place of "none".
        temperatures: by column, what its logits are divided by before the softmax; those left out are not calibrated.
        withhold_below: by column, the probability below which it abstains; infinite: always.
    """

    schema: AttributeSchema
    groups: tuple[GroupTables, ...]
    scales: Mapping[str, float]
    reading: str = "nearest"
    tau: float = 1.0
    unseen_prior: float = 0.5
    force_colour: bool = False
    temperatures: Mapping[str, float] = field(default_factory=dict)
    withhold_below: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def refuse(reason: str):
            raise ValueError(f"attribute model of {self.schema.name}: {reason}; export the model again")

        names = tuple(group.name for group in self.groups)
        if self.schema.group_names != names:
            refuse(f"has groups {', '.join(names)}, expected {', '.join(self.schema.group_names)}")
        for group, bits in zip(self.groups, self.schema.group_bits):
            own = self.schema.group_fields(group.name)
            k, d = len(group.labels), len(group.mean_prototype)
            shapes = {"labels": (k, len(own)), "prototypes": (k, d), "residuals": (bits, d), "mean_bits": (bits,),
                      "counts": (k,)}
            wrong = [name for name, shape in shapes.items() if getattr(group, name).shape != shape]
            wrong += ["counts"] if (group.counts < 0).any() else []
            wrong += [name for name in _ARRAYS if not np.isfinite(getattr(group, name)).all()]
            if wrong or not k or any(not 0 <= value < len(self.schema.fields[i].values) for i, column in
                                     zip(own, group.labels.T) for value in (column.min(), column.max())):
                refuse(f"{wrong[0] if wrong else 'labels'} of group '{group.name}' do not fit the schema, the "
                       "checkpoint or the file is damaged")
        if self.reading not in READINGS:
            refuse(f"'reading' is {self.reading!r}, expected one of {', '.join(READINGS)}")
        if set(self.scales) != set(self.column_names):
            refuse(f"scales of {', '.join(map(str, self.scales))}, expected one of each column")
        scales = {f"scale of column '{name}'": value for name, value in self.scales.items()}
        for name, value in (scales | {"unseen_prior": self.unseen_prior}).items():
            if not 0 < value < math.inf:
                refuse(f"{name} is {value}, expected a number above 0")
        if not 0 <= self.tau < math.inf:
            refuse(f"tau is {self.tau}, expected a number of at least 0")
        check_temperatures(self.schema, self.temperatures)
        if set(self.withhold_below) - set(self.temperatures) or not all(v >= 0 for v in self.withhold_below.values()):
            raise ValueError(f"withhold_below names {', '.join(self.withhold_below)}, expected numbers from 0 for "
                             f"some of the calibrated columns: {', '.join(self.temperatures) or 'none'}")

    def calibrated(self, temperatures: Mapping[str, float],
                   withhold_below: Mapping[str, float] | None = None) -> AttributeModel:
        """The same with calibrated probabilities."""
        return replace(self, temperatures=dict(temperatures), withhold_below=dict(withhold_below or {}))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """What can be asked for and is answered: the columns of the schema, "none" among the classes of colours."""
        return tuple(replace(column, classes=column.answers) for column in self.schema.columns)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns, in the order in which answers are listed."""
        return tuple(column.name for column in self.columns)

    def parse(self, words: Mapping[str, str]) -> np.ndarray:
        """A description in words to labels, int64 (A,), see `AttributeSchema.parse`."""
        return self.schema.parse(words)

    def canonical(self, words: Mapping[str, str]) -> dict[str, str]:
        """A description with the columns' own names in place of display names; refuses what `parse` refuses."""
        self.parse(words)
        return {self.schema.column(name).name: value for name, value in words.items()}

    def cosines(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """Per group the cosine of each image with each prototype, -inf for what may not be named: (N, K)."""
        return [np.where(allowed, own, -np.inf).astype(np.float32)
                for own, allowed in zip(self._cosines(embeddings), self.allowed)]

    def _cosines(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """`cosines` with all semantic IDs."""
        blocks = unit(np.asarray(embeddings, dtype=np.float32).reshape(len(embeddings), len(self.groups), -1))
        return [blocks[:, g] @ group.prototypes.T for g, group in enumerate(self.groups)]

    def nearest(self, embeddings: np.ndarray) -> np.ndarray:
        """The classes of the nearest semantic IDs, the answer of PAR: int64 (N, M)."""
        nearest = {group.name: cosine.argmax(axis=1) for group, cosine in zip(self.groups, self.cosines(embeddings))}
        return np.stack([classes[nearest[column.group]]
                         for column, classes in zip(self.columns, self.classes_of_sids)], axis=1)

    def answers(self, embeddings: np.ndarray) -> np.ndarray:
        """The classes that recognition answers by `reading`: int64 (N, M), "none" of colours 0."""
        if self.reading == "nearest":
            return self.nearest(embeddings)
        return np.stack([shares.argmax(axis=1) for shares in self.probabilities(embeddings)], axis=1)

    def probabilities(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """Per column the calibrated probability of each class, that of all semantic IDs that hold it: float32 (N, C).

        With `force_colour` semantic IDs that name no colour have none.
        """
        found = []
        for m, (logits, g) in enumerate(zip(self._logits(embeddings), self.marginals.column_groups)):
            logits = np.where(self.allowed[g], logits, -np.inf) / self.temperatures.get(self.column_names[m], 1.0)
            found.append(np.exp(self.marginals.log_probabilities(m, logits)).astype(np.float32))
        return found

    def log_probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Log-probabilities of all classes of all columns side by side: float32 (N, V).

        Those that search adds up: neither calibration nor `force_colour` touches them.
        """
        found = np.concatenate([self.marginals.log_probabilities(m, logits)
                                for m, logits in enumerate(self._logits(embeddings))], axis=1)
        return np.maximum(found, LOWEST).astype(np.float32)

    def _logits(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """Per column (N, K)."""
        cosines = self._cosines(embeddings)
        return [self.marginals.logits(m, cosines[g]) for m, g in enumerate(self.marginals.column_groups)]

    @cached_property
    def marginals(self) -> Marginals:
        return Marginals.build(self.schema, [group.labels for group in self.groups],
                               [group.counts for group in self.groups], self.scales, self.tau, self.unseen_prior)

    def recognise(self, embeddings: np.ndarray) -> list[dict[str, Answer]]:
        """Attributes of images in words: (N, G * D) -> one dict an image, by column.

        The value is the most probable class, which calibration vouches for. That of the nearest semantic ID may be
        another one where several semantic IDs that share a class come close.
        """
        shares = self.probabilities(embeddings)
        classes, sure = (np.stack([take(own, axis=1) for own in shares], axis=1) for take in (np.argmax, np.max))
        return [{column.name: self.answer(column.name, column.classes[k], p)
                 for column, k, p in zip(self.columns, row, probabilities)}
                for row, probabilities in zip(classes.tolist(), sure.tolist())]

    def answer(self, column: str, value: str, probability: float) -> Answer:
        """The answer where this class is the most probable one."""
        below = self.withhold_below.get(column, 0.0) if column in self.temperatures else None
        return Answer.of(value, probability, below)

    def describe(self, words: Mapping[str, str]) -> np.ndarray:
        """The block of each group that a description stands for: float32 (G, D), zeros for a group it leaves out.

        The inner product with an image's block is the mean cosine over the semantic IDs that agree with the
        description, or the cosine with a synthesised prototype where none does: what is left open then counts as no.
        """
        labels = self.parse(words)
        return np.stack([self._describe(group, labels[list(self.schema.group_fields(group.name))])
                         for group in self.groups])

    @property
    def num_values(self) -> int:
        """V, all classes of all columns."""
        return len(self.groups_of_values)

    @cached_property
    def groups_of_values(self) -> tuple[int, ...]:
        """The index of the group of each of the V classes."""
        return tuple(g for g, held in zip(self.marginals.column_groups, self.marginals.held) for _ in held.T)

    @cached_property
    def log_value_priors(self) -> np.ndarray:
        """Log-probabilities of the V classes before looking, float64 (V,), by the prior of the semantic IDs."""
        priors = [prior_of(group.counts, self.unseen_prior) for group in self.groups]
        found = np.concatenate([priors[g] @ held for g, held in zip(self.marginals.column_groups, self.marginals.held)])
        return np.log(np.maximum(found, np.exp(LOWEST)))

    def wanted_classes(self, words: Mapping[str, str]) -> np.ndarray:
        """A description as weights of all columns' classes side by side, see `marginals.wanted_classes`: (V,).

        Its inner product with `log_probabilities` is the score of a search by probability.
        """
        return wanted_classes(self.schema, self.parse(words)[None])[0]

    def to_dict(self) -> dict:
        """A record of plain values, for JSON; arrays are float32 in base64."""
        groups = [{"name": group.name, "labels": group.labels.tolist(), "counts": group.counts.tolist(),
                   **{name: _pack(getattr(group, name)) for name in _ARRAYS}}
                  for group in self.groups]
        return {**self.schema.to_dict(), "groups": groups, "scales": dict(self.scales),
                "reading": self.reading, "tau": self.tau, "unseen_prior": self.unseen_prior,
                "force_colour": self.force_colour, "temperatures": dict(self.temperatures),
                "withhold_below": {name: None if value == math.inf else value  # JSON has no infinity
                                   for name, value in self.withhold_below.items()}}

    @classmethod
    def from_dict(cls, record: Mapping) -> AttributeModel:
        """The inverse of `to_dict`. Older records have one scale a group, or one of all and no prior."""
        known = "cosine_scale" not in record
        groups = tuple(GroupTables(own["name"], np.array(own["labels"], dtype=np.int64),
                                   **{name: _unpack(own[name]) for name in _ARRAYS},
                                   counts=np.array(own["counts"] if known else [0] * len(own["labels"]),
                                                   dtype=np.int64))
                       for own in record["groups"])
        schema = AttributeSchema.from_dict(record)
        of_groups = {own["name"]: own.get("scale", record.get("cosine_scale")) for own in record["groups"]}
        scales = record.get("scales") or {name: of_groups[schema.column(name).group] for name in record["columns"]}
        reading, tau, unseen = (record["reading"], record["tau"], record["unseen_prior"]) if known else (
            "nearest", 0.0, 1.0)
        return cls(schema, groups, scales, reading, tau, unseen,
                   record["force_colour"], record["temperatures"],
                   {name: math.inf if value is None else value for name, value in record["withhold_below"].items()})

    @cached_property
    def allowed(self) -> tuple[np.ndarray, ...]:
        """Per group bool (K,): semantic IDs that may be named."""
        return tuple(nameable(self.schema, group.name, group.labels, self.force_colour) for group in self.groups)

    @cached_property
    def classes_of_sids(self) -> tuple[np.ndarray, ...]:
        """Per column int64 (K,): the class that each semantic ID of its group holds, the first of several colours."""
        return tuple(held.argmax(axis=1) for held in self.marginals.held)

    def _describe(self, group: GroupTables, wanted: np.ndarray) -> np.ndarray:
        """The block of one group for the labels of its own fields, int64 (F,): (D,)."""
        if (wanted == MISSING).all():
            return np.zeros_like(group.mean_prototype)
        agree = agreeing(group.labels, wanted[None])[0]  # (K,)
        if agree.any():
            return group.prototypes[agree].mean(axis=0)
        filled = np.zeros((1, len(self.schema.fields)), dtype=np.int64)
        filled[:, list(self.schema.group_fields(group.name))] = np.maximum(wanted, 0)
        bits = self.schema.bits(filled, group.name)[0].astype(np.float32)  # (L,)
        return unit(group.mean_prototype + (bits - group.mean_bits) @ group.residuals)


_ARRAYS = ("prototypes", "residuals", "mean_prototype", "mean_bits")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of unit length along the last axis; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _pack(array: np.ndarray) -> dict:
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")}


def _unpack(record: Mapping) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(record["float32"], validate=True), dtype="<f4")
    return data.reshape(record["shape"]).astype(np.float32)


Vocabulary = AttributeModel  # the old name, for one version
