"""What a trained Cerberus knows of attributes, in numpy: words, semantic IDs and their prototypes.

Embeddings are blocks side by side, one a group.
Shapes: N images, G groups, K semantic IDs of a group, F fields of a group, L bits of a group, A fields of all groups,
M columns, C classes of a column, D dimensions of a block.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...attributes.marginals import LOWEST, READINGS, Marginals, held_classes, prior_of

MISSING = -1
WITHHELD = "cannot tell"
NONE = "none"  # the answer of a garment that has no listed colour


class Answer(NamedTuple):
    """One attribute of one picture.

    Attributes:
        value: the most probable class, in words.   probability: that it is right.
        withheld: whether the probability is too low for the accuracy that was calibrated for: "cannot tell".
        calibrated: whether the probability is fitted on labelled images; if not, nothing is withheld either.
    """

    value: str
    probability: float
    withheld: bool = False
    calibrated: bool = True

    def __str__(self) -> str:
        if self.withheld:
            return WITHHELD
        return f"{self.value} ({self.probability:.0%}{'' if self.calibrated else ', not calibrated'})"


def told(value: str, probability: float, below: float | None) -> Answer:
    """An answer, withheld below this probability; None: of a column that is not calibrated."""
    return Answer(value, probability, below is not None and probability < below, below is not None)


@dataclass(frozen=True)
class Field:
    """One label: `values` are the words for 0, 1, ...; with `column` set it is one class, `word`, of that column."""

    name: str
    group: str
    values: tuple[str, ...]
    column: str = ""
    word: str = ""


@dataclass(frozen=True)
class Column:
    """One attribute as people ask for it: its classes, "none" first for colours, and the fields it is made of."""

    name: str
    group: str
    classes: tuple[str, ...]
    fields: tuple[int, ...]

    @property
    def is_colour(self) -> bool:
        return len(self.fields) > 1


@dataclass(frozen=True, eq=False)
class Group:
    """The semantic IDs of one group.

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
class Vocabulary:
    """Attributes in words, read off embeddings and described as vectors that embeddings are compared with.

    Attributes:
        schema: name of the attribute schema.   fields: all labels, group by group.
        column_names: the columns, in the order in which answers are listed.
        groups: in the order of an embedding's blocks.
        scales: by column, s_m, what cosines are multiplied by to become logits.
        reading: how answers and searches are read off embeddings, "nearest" or "probability", see `PrototypeReader`.
        tau, unseen_prior: power of the prior of semantic IDs, and the identities that one counts as which no training
            identity carries; see `marginals`.
        force_colour: name a colour wherever there is one to name, in place of "none".
        temperatures: by column, what its logits are divided by before the softmax; those left out are not calibrated.
        withhold_below: by column, the probability below which its answer is withheld; infinite: always.
    """

    schema: str
    fields: tuple[Field, ...]
    column_names: tuple[str, ...]
    groups: tuple[Group, ...]
    scales: Mapping[str, float]
    reading: str = "nearest"
    tau: float = 1.0
    unseen_prior: float = 0.5
    force_colour: bool = False
    temperatures: Mapping[str, float] = field(default_factory=dict)
    withhold_below: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group in self.groups:
            own = self._fields_of(group.name)
            k, d = len(group.labels), len(group.mean_prototype)
            bits = sum(_num_bits(self.fields[i]) for i in own)
            shapes = {"labels": (k, len(own)), "prototypes": (k, d), "residuals": (bits, d), "mean_bits": (bits,),
                      "counts": (k,)}
            wrong = [name for name, shape in shapes.items() if getattr(group, name).shape != shape]
            wrong += ["counts"] if (group.counts < 0).any() else []
            wrong += [name for name in _ARRAYS if not np.isfinite(getattr(group, name)).all()]
            if wrong or not k or any(not 0 <= value < len(self.fields[i].values) for i, column in
                                     zip(own, group.labels.T) for value in (column.min(), column.max())):
                raise ValueError(f"vocabulary of {self.schema}: {wrong[0] if wrong else 'labels'} of group "
                                 f"'{group.name}' do not fit the schema; export the model again, or use "
                                 "another checkpoint")
        if set(self.column_names) != {own.column or own.name for own in self.fields}:
            raise ValueError(f"vocabulary of {self.schema}: columns {', '.join(map(str, self.column_names))} are not "
                             "those of its fields; export the model again")
        if self.reading not in READINGS:
            raise ValueError(f"vocabulary of {self.schema}: 'reading' is {self.reading!r}, expected one of "
                             f"{', '.join(READINGS)}; export the model again")
        if set(self.scales) != set(self.column_names):
            raise ValueError(f"vocabulary of {self.schema}: scales of {', '.join(map(str, self.scales))}, expected one "
                             "of each column; export the model again")
        scales = {f"scale of column '{name}'": value for name, value in self.scales.items()}
        for name, value in (scales | {"unseen_prior": self.unseen_prior}).items():
            if not 0 < value < math.inf:
                raise ValueError(f"vocabulary of {self.schema}: {name} is {value}, expected a number above 0; export "
                                 "the model again")
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"vocabulary of {self.schema}: tau is {self.tau}, expected a number of at least 0; export "
                             "the model again")
        unknown = set(self.temperatures) - set(self.column_names)
        if unknown or not all(0 < value < math.inf for value in self.temperatures.values()):
            raise ValueError(f"temperatures are {dict(self.temperatures)}, expected numbers above 0 for some of "
                             f"{', '.join(self.column_names)}")
        if set(self.withhold_below) - set(self.temperatures) or not all(v >= 0 for v in self.withhold_below.values()):
            raise ValueError(f"answers are withheld of {', '.join(self.withhold_below)}, expected numbers from 0 for "
                             f"some of the calibrated columns: {', '.join(self.temperatures) or 'none'}")

    def calibrated(self, temperatures: Mapping[str, float],
                   withhold_below: Mapping[str, float] | None = None) -> Vocabulary:
        """The same with calibrated probabilities."""
        return replace(self, temperatures=dict(temperatures), withhold_below=dict(withhold_below or {}))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """What can be asked for and is answered."""
        members: dict[str, list[int]] = {}
        for i, own in enumerate(self.fields):
            members.setdefault(own.column or own.name, []).append(i)
        columns = []
        for name in self.column_names:
            first = self.fields[members[name][0]]
            classes = (NONE, *(self.fields[i].word for i in members[name])) if first.column else first.values
            columns.append(Column(name, first.group, classes, tuple(members[name])))
        return tuple(columns)

    def cosines(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """Per group the cosine of each image with each prototype, -inf for what may not be named: (N, K)."""
        blocks = _unit(np.asarray(embeddings, dtype=np.float32).reshape(len(embeddings), len(self.groups), -1))
        return [np.where(allowed, blocks[:, g] @ group.prototypes.T, -np.inf).astype(np.float32)
                for g, (group, allowed) in enumerate(zip(self.groups, self.allowed))]

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
        blocks = _unit(np.asarray(embeddings, dtype=np.float32).reshape(len(embeddings), len(self.groups), -1))
        cosines = [blocks[:, g] @ group.prototypes.T for g, group in enumerate(self.groups)]
        return [self.marginals.logits(m, cosines[g]) for m, g in enumerate(self.marginals.column_groups)]

    @cached_property
    def marginals(self) -> Marginals:
        names = [group.name for group in self.groups]
        columns = []
        for column in self.columns:
            g = names.index(column.group)
            own = [self._fields_of(column.group).index(i) for i in column.fields]
            columns.append((g, self.groups[g].labels[:, own], len(column.classes), column.is_colour))
        return Marginals.build(columns, [group.counts for group in self.groups],
                               [self.scales[name] for name in self.column_names], self.tau, self.unseen_prior)

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
        """What is said where this class is the most probable one."""
        return told(value, probability, self.withhold_below.get(column, 0.0) if column in self.temperatures else None)

    def describe(self, words: Mapping[str, str]) -> np.ndarray:
        """The block of each group that a description stands for: float32 (G, D), zeros for a group it leaves out.

        The inner product with an image's block is the mean cosine over the semantic IDs that agree with the
        description, or the cosine with a synthesised prototype where none does: what is left open then counts as no.
        """
        labels = self.parse(words)
        return np.stack([self._describe(group, labels[self._fields_of(group.name)]) for group in self.groups])

    def parse(self, words: Mapping[str, str]) -> np.ndarray:
        """A description in words to labels: int64 (A,), -1 where it is open.

        Naming one colour says no to the other colours of that garment; two colours are joined by " and ".
        """
        by_name = {column.name: column for column in self.columns}
        labels = np.full(len(self.fields), MISSING, dtype=np.int64)
        for name, value in words.items():
            column = by_name.get(name)
            if column is None:
                raise ValueError(f"search: unknown attribute '{name}' of {self.schema}{_nearest(name, by_name)}")
            parts = str(value).split(" and ") if column.is_colour else [value]
            for part in parts:
                if part not in column.classes or (len(parts) > 1 and part == NONE):
                    raise ValueError(f"search: '{name}' cannot be '{value}'{_nearest(part, column.classes)}")
            if column.is_colour:
                labels[list(column.fields)] = [word in parts for word in column.classes[1:]]
            else:
                labels[column.fields[0]] = column.classes.index(value)
        return labels

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
        """A description as weights of all columns' classes side by side: float32 (V,).

        Its inner product with `log_probabilities` is the score of a search by probability: 1 for the described class of
        a column; several colours of one garment share the 1, so that an image must show each of them.
        """
        labels = self.parse(words)
        weights = []
        for column in self.columns:
            own = labels[None, list(column.fields)]
            held = held_classes(own, len(column.classes), column.is_colour)[0].astype(np.float32)
            weights.append(held / max(held.sum(), 1) * (own != MISSING).all())
        return np.concatenate(weights)

    def to_dict(self) -> dict:
        """A record of plain values, for JSON; arrays are float32 in base64."""
        groups = [{"name": group.name, "labels": group.labels.tolist(), "counts": group.counts.tolist(),
                   **{name: _pack(getattr(group, name)) for name in _ARRAYS}}
                  for group in self.groups]
        return {"schema": self.schema, "fields": [asdict(own) for own in self.fields],
                "columns": list(self.column_names), "groups": groups, "scales": dict(self.scales),
                "reading": self.reading, "tau": self.tau, "unseen_prior": self.unseen_prior,
                "force_colour": self.force_colour, "temperatures": dict(self.temperatures),
                "withhold_below": {name: None if value == math.inf else value  # JSON has no infinity
                                   for name, value in self.withhold_below.items()}}

    @classmethod
    def from_dict(cls, record: Mapping) -> Vocabulary:
        """The inverse of `to_dict`. Older records have one scale a group, or one of all and no prior."""
        known = "cosine_scale" not in record
        groups = tuple(Group(own["name"], np.array(own["labels"], dtype=np.int64),
                             **{name: _unpack(own[name]) for name in _ARRAYS},
                             counts=np.array(own["counts"] if known else [0] * len(own["labels"]), dtype=np.int64))
                       for own in record["groups"])
        fields = tuple(Field(**(own | {"values": tuple(own["values"])})) for own in record["fields"])
        group_of = {own.column or own.name: own.group for own in fields}
        of_groups = {own["name"]: own.get("scale", record.get("cosine_scale")) for own in record["groups"]}
        scales = record.get("scales") or {name: of_groups[group_of[name]] for name in record["columns"]}
        reading, tau, unseen = (record["reading"], record["tau"], record["unseen_prior"]) if known else (
            "nearest", 0.0, 1.0)
        return cls(record["schema"], fields, tuple(record["columns"]), groups, scales, reading, tau, unseen,
                   record["force_colour"], record["temperatures"],
                   {name: math.inf if value is None else value for name, value in record["withhold_below"].items()})

    @cached_property
    def allowed(self) -> tuple[np.ndarray, ...]:
        """Per group bool (K,): semantic IDs that may be named."""
        allowed = []
        for group in self.groups:
            colours = [i for i, f in enumerate(self._fields_of(group.name)) if self.fields[f].column]
            forced = self.force_colour and colours
            allowed.append((group.labels[:, colours] == 1).any(axis=1) if forced else np.ones(len(group.labels), bool))
        return tuple(allowed)

    @cached_property
    def classes_of_sids(self) -> tuple[np.ndarray, ...]:
        """Per column int64 (K,): the class that each semantic ID of its group holds, the first of several colours."""
        labels = {group.name: group.labels for group in self.groups}
        classes = []
        for column in self.columns:
            own = [self._fields_of(column.group).index(i) for i in column.fields]
            values = labels[column.group][:, own]  # (K, fields of the column)
            yes = values == 1
            classes.append(np.where(yes.any(axis=1), yes.argmax(axis=1) + 1, 0) if column.is_colour else values[:, 0])
        return tuple(classes)

    def _describe(self, group: Group, wanted: np.ndarray) -> np.ndarray:
        """The block of one group for the labels of its own fields, int64 (F,): (D,)."""
        if (wanted == MISSING).all():
            return np.zeros_like(group.mean_prototype)
        agree = ((group.labels == wanted) | (wanted == MISSING)).all(axis=1)  # (K,)
        if agree.any():
            return group.prototypes[agree].mean(axis=0)
        bits = self._bits(group.name, np.maximum(wanted, 0))
        return _unit(group.mean_prototype + (bits - group.mean_bits) @ group.residuals)

    def _bits(self, group: str, labels: np.ndarray) -> np.ndarray:
        """One bit for a field of two values, one-hot for more: (F,) -> float32 (L,)."""
        parts = [[value] if _num_bits(self.fields[i]) == 1 else np.arange(_num_bits(self.fields[i])) == value
                 for i, value in zip(self._fields_of(group), labels)]
        return np.concatenate(parts).astype(np.float32)

    def _fields_of(self, group: str) -> list[int]:
        return [i for i, own in enumerate(self.fields) if own.group == group]


_ARRAYS = ("prototypes", "residuals", "mean_prototype", "mean_bits")


def _num_bits(own: Field) -> int:
    return 1 if len(own.values) == 2 else len(own.values)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _pack(array: np.ndarray) -> dict:
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")}


def _unpack(record: Mapping) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(record["float32"], validate=True), dtype="<f4")
    return data.reshape(record["shape"]).astype(np.float32)


def _nearest(word: str, allowed) -> str:
    """The end of an error about a misspelt word: the nearest allowed one, then all of them."""
    near = get_close_matches(str(word), list(allowed), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"{hint} Allowed: {', '.join(allowed)}"
