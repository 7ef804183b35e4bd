"""The attribute tables of a trained model in numpy: attribute names and values, semantic IDs and their prototypes.

An embedding is the concatenation of G blocks of D numbers, one block per group.
Shapes: N images, G groups, K semantic IDs of a group, F fields of a group, L bits of a group, A fields of all groups,
M columns, C classes of a column, V classes of all columns, D dimensions of a block.
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

ABSTAINED = "uncertain"


class Answer(NamedTuple):
    """The predicted value of one attribute in one image.

    Attributes:
        value: the most probable class, as text.
        probability: probability of this class, 0 to 1.
        abstained: whether the probability is below the calibrated threshold; the answer is then shown as `ABSTAINED`.
        calibrated: whether the probability was calibrated on labelled images; without calibration the model never
            abstains.

    Examples:
        >>> str(Answer("red", 0.875))
        'red (88%)'
        >>> Answer.of("red", 0.4, below=0.7).abstained, str(Answer.of("red", 0.4, below=None))
        (True, 'red (40%, not calibrated)')
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
        """Former name of `abstained`."""
        return self.abstained

    @classmethod
    def of(cls, value: str, probability: float, below: float | None) -> Answer:
        """Create an answer that abstains if its probability is less than `below`; `below` None means not calibrated."""
        return cls(value, probability, below is not None and probability < below, below is not None)


@dataclass(frozen=True, eq=False)
class GroupTables:
    """Semantic IDs of one group and their prototypes.

    Attributes:
        name: name of the group.
        labels: int64 (K, F), values 0, 1, ... of the fields of the group.
        prototypes: float32 (K, D), of unit length.
        residuals: float32 (L, D), the vector that each bit adds to a prototype.
        mean_prototype: float32 (D,), mean over the semantic IDs seen in training. With `mean_bits` and the residuals
            it defines the prototypes of other combinations.
        mean_bits: float32 (L,), mean bits of the same semantic IDs.
        counts: int64 (K,), the number of training identities with each semantic ID.
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
    """Predicts attributes from embeddings, and converts descriptions to vectors that embeddings are compared with.

    Attributes:
        schema: defines attributes, values and groups; embeddings have the blocks of its groups in the same order.
        groups: tables of each group, in the same order.
        scales: by column name, the factor s_m that converts cosines to logits.
        reading: the method of prediction and search, "nearest" or "probability", see `PrototypeReader`.
        tau: exponent of the prior of semantic IDs, see `marginals`.
        unseen_prior: number of identities assumed for a semantic ID without training identities, see `prior_of`.
        force_colour: never predict "none" for a colour column that has colours.
        temperatures: by column name, the divisor of the logits before the softmax. Columns that are absent are not
            calibrated.
        withhold_below: by column name, the probability below which the model abstains; infinity means always.

    Raises:
        ValueError: if tables, scales, temperatures or thresholds do not fit the schema.
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
        def fail(reason: str):
            raise ValueError(f"attribute model of {self.schema.name}: {reason}; export the model again")

        names = tuple(group.name for group in self.groups)
        if self.schema.group_names != names:
            fail(f"has groups {', '.join(names)}, expected {', '.join(self.schema.group_names)}")
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
                fail(f"{wrong[0] if wrong else 'labels'} of group '{group.name}' do not fit the schema; the "
                     "checkpoint or the file is damaged")
        if self.reading not in READINGS:
            fail(f"'reading' is {self.reading!r}, expected one of {', '.join(READINGS)}")
        if set(self.scales) != set(self.column_names):
            fail(f"scales of {', '.join(map(str, self.scales))}, expected one per column")
        scales = {f"scale of column '{name}'": value for name, value in self.scales.items()}
        for name, value in (scales | {"unseen_prior": self.unseen_prior}).items():
            if not 0 < value < math.inf:
                fail(f"{name} is {value}, expected a number above 0")
        if not 0 <= self.tau < math.inf:
            fail(f"tau is {self.tau}, expected a number of at least 0")
        check_temperatures(self.schema, self.temperatures)
        if set(self.withhold_below) - set(self.temperatures) or not all(v >= 0 for v in self.withhold_below.values()):
            raise ValueError(f"withhold_below names {', '.join(self.withhold_below)}, expected numbers of at least 0 "
                             f"for calibrated columns: {', '.join(self.temperatures) or 'none'}")

    def calibrated(self, temperatures: Mapping[str, float],
                   withhold_below: Mapping[str, float] | None = None) -> AttributeModel:
        """Return a copy with calibrated probabilities.

        Args:
            temperatures: see the attributes of the class.
            withhold_below: see the attributes of the class.

        Raises:
            ValueError: if they do not fit the columns of the schema.
        """
        return replace(self, temperatures=dict(temperatures), withhold_below=dict(withhold_below or {}))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The M columns of the schema; the classes of a colour column begin with "none"."""
        return tuple(replace(column, classes=column.answers) for column in self.schema.columns)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns, in the order of predictions."""
        return tuple(column.name for column in self.columns)

    def parse(self, words: Mapping[str, str]) -> np.ndarray:
        """Convert a description to labels, int64 (A,), see `AttributeSchema.parse`."""
        return self.schema.parse(words)

    def canonical(self, words: Mapping[str, str]) -> dict[str, str]:
        """Replace display names in a description by column names.

        Raises:
            ValueError: if an attribute or value is unknown, see `AttributeSchema.parse`.
        """
        self.parse(words)
        return {self.schema.column(name).name: value for name, value in words.items()}

    def cosines(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """Return for each group the cosines of images and prototypes.

        Args:
            embeddings: float (N, G * D).

        Returns:
            per group float32 (N, K); -inf for semantic IDs that cannot be predicted because of `force_colour`.
        """
        return [np.where(allowed, own, -np.inf).astype(np.float32)
                for own, allowed in zip(self._cosines(embeddings), self.allowed)]

    def _cosines(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """`cosines`, without regard to `force_colour`."""
        blocks = unit(np.asarray(embeddings, dtype=np.float32).reshape(len(embeddings), len(self.groups), -1))
        return [blocks[:, g] @ group.prototypes.T for g, group in enumerate(self.groups)]

    def nearest(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the classes of the nearest semantic IDs, (N, G * D) -> int64 (N, M)."""
        nearest = {group.name: cosine.argmax(axis=1) for group, cosine in zip(self.groups, self.cosines(embeddings))}
        return np.stack([classes[nearest[column.group]]
                         for column, classes in zip(self.columns, self.classes_of_sids)], axis=1)

    def answers(self, embeddings: np.ndarray) -> np.ndarray:
        """Predict classes by the method `reading`, (N, G * D) -> int64 (N, M); 0 is "none" in colour columns."""
        if self.reading == "nearest":
            return self.nearest(embeddings)
        return np.stack([shares.argmax(axis=1) for shares in self.probabilities(embeddings)], axis=1)

    def probabilities(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """Return for each column the calibrated probabilities of its classes, (N, G * D) -> float32 (N, C).

        The probability of a class is the sum over the semantic IDs with this class. With `force_colour`, semantic IDs
        without a colour have probability 0.
        """
        found = []
        for m, (logits, g) in enumerate(zip(self._logits(embeddings), self.marginals.column_groups)):
            logits = np.where(self.allowed[g], logits, -np.inf) / self.temperatures.get(self.column_names[m], 1.0)
            found.append(np.exp(self.marginals.log_probabilities(m, logits)).astype(np.float32))
        return found

    def log_probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the log-probabilities of the classes of all columns, (N, G * D) -> float32 (N, V), for search.

        They do not depend on calibration or `force_colour`.
        """
        found = np.concatenate([self.marginals.log_probabilities(m, logits)
                                for m, logits in enumerate(self._logits(embeddings))], axis=1)
        return np.maximum(found, LOWEST).astype(np.float32)

    def _logits(self, embeddings: np.ndarray) -> list[np.ndarray]:
        """Per column float64 (N, K)."""
        cosines = self._cosines(embeddings)
        return [self.marginals.logits(m, cosines[g]) for m, g in enumerate(self.marginals.column_groups)]

    @cached_property
    def marginals(self) -> Marginals:
        """The tables from which probabilities are computed."""
        return Marginals.build(self.schema, [group.labels for group in self.groups],
                               [group.counts for group in self.groups], self.scales, self.tau, self.unseen_prior)

    def recognise(self, embeddings: np.ndarray) -> list[dict[str, Answer]]:
        """Predict the attributes of images as text.

        The value is the most probable class, to which the calibration applies. It can differ from the class of the
        nearest semantic ID, if several semantic IDs with another class are almost as near.

        Args:
            embeddings: float (N, G * D).

        Returns:
            one dict per image, from column name to `Answer`.
        """
        shares = self.probabilities(embeddings)
        classes, sure = (np.stack([take(own, axis=1) for own in shares], axis=1) for take in (np.argmax, np.max))
        return [{column.name: self.answer(column.name, column.classes[k], p)
                 for column, k, p in zip(self.columns, row, probabilities)}
                for row, probabilities in zip(classes.tolist(), sure.tolist())]

    def answer(self, column: str, value: str, probability: float) -> Answer:
        """Create the answer for the most probable class of a column, with the calibrated threshold of the column."""
        below = self.withhold_below.get(column, 0.0) if column in self.temperatures else None
        return Answer.of(value, probability, below)

    def describe(self, words: Mapping[str, str]) -> np.ndarray:
        """Convert a description to one block per group.

        The inner product with the block of an image is the mean cosine over the semantic IDs that agree with the
        description. If no semantic ID agrees, it is the cosine with a synthesised prototype, for which unspecified
        attributes take their first value, such as "no".

        Args:
            words: maps attributes to values, see `AttributeSchema.parse`.

        Returns:
            float32 (G, D); zeros for a group without described attributes.
        """
        labels = self.parse(words)
        return np.stack([self._describe(group, labels[list(self.schema.group_fields(group.name))])
                         for group in self.groups])

    @property
    def num_values(self) -> int:
        """V, the number of classes of all columns."""
        return len(self.groups_of_values)

    @cached_property
    def groups_of_values(self) -> tuple[int, ...]:
        """For each of the V classes, the index of its group."""
        return tuple(g for g, held in zip(self.marginals.column_groups, self.marginals.held) for _ in held.T)

    @cached_property
    def log_value_priors(self) -> np.ndarray:
        """Log of the prior probabilities of the V classes, float64 (V,), from the prior of the semantic IDs."""
        priors = [prior_of(group.counts, self.unseen_prior) for group in self.groups]
        found = np.concatenate([priors[g] @ held for g, held in zip(self.marginals.column_groups, self.marginals.held)])
        return np.log(np.maximum(found, np.exp(LOWEST)))

    def wanted_classes(self, words: Mapping[str, str]) -> np.ndarray:
        """Convert a description to weights of the V classes, float32 (V,), see `marginals.wanted_classes`.

        The inner product with `log_probabilities` is the score in a search by probability.
        """
        return wanted_classes(self.schema, self.parse(words)[None])[0]

    def to_dict(self) -> dict:
        """Return a dict that can be written as JSON; arrays are float32 in base64."""
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
        """Create a model from the result of `to_dict`.

        Also accepts the two older formats: one scale per group, or one scale for all groups and no prior.
        """
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
        """Per group bool (K,): the semantic IDs that can be predicted, see `nameable`."""
        return tuple(nameable(self.schema, group.name, group.labels, self.force_colour) for group in self.groups)

    @cached_property
    def classes_of_sids(self) -> tuple[np.ndarray, ...]:
        """Per column int64 (K,): the class of each semantic ID of its group; of several colours, the first."""
        return tuple(held.argmax(axis=1) for held in self.marginals.held)

    def _describe(self, group: GroupTables, wanted: np.ndarray) -> np.ndarray:
        """The block (D,) of one group for wanted labels int64 (F,) of its fields."""
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
    """Normalise vectors to unit length along the last axis; zero vectors stay zero.

    Examples:
        >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _pack(array: np.ndarray) -> dict:
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")}


def _unpack(record: Mapping) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(record["float32"], validate=True), dtype="<f4")
    return data.reshape(record["shape"]).astype(np.float32)


Vocabulary = AttributeModel  # former name, for one version
