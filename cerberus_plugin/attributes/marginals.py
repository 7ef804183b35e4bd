"""Attribute probabilities from the cosines of representations and prototypes, shared by numpy, torch and ONNX.

    log p_m(k | x) = s_m cos(f, p_k) + tau log pi_k - log Z        semantic ID k of the group that column m belongs to
    p(v | x)       = sum of p_m(k | x) over the semantic IDs k with the value v of column m

The scale s_m is large if the attribute can be predicted for held-out identities. It is near 0 if it cannot; p(v | x) is
then close to the share of training identities with the value v (with tau 1).

The classes of a column are its values as text. The first class of a colour column is "none", the class of semantic IDs
without a listed colour.
Shapes: N images, K semantic IDs of a group, F label fields of a column, C classes of a column, V of all columns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .schema import MISSING, AttributeSchema

READINGS = ("nearest", "probability")

# Lower bound of log-probabilities in a search. Only values without a semantic ID reach it: their score is then the same
# for all images.
LOWEST = -100.0
TINY = 1e-300  # replaces probabilities of 0, so that logarithms are finite


def held_classes(labels: np.ndarray, num_classes: int, is_colour: bool) -> np.ndarray:
    """Return which semantic IDs have which class of a column.

    Args:
        labels: int (K, F), the labels of the column's fields.
        num_classes: C.
        is_colour: whether the fields are yes/no fields of colours; otherwise F is 1.

    Returns:
        bool (K, C). A semantic ID with two listed colours has both classes; one without a colour has class 0, "none".

    Examples:
        >>> held_classes(np.array([[0, 0], [1, 1]]), 3, is_colour=True).tolist()
        [[True, False, False], [False, True, True]]
    """
    if not is_colour:
        return labels == np.arange(num_classes)
    yes = labels == 1
    return np.concatenate([~yes.any(axis=1, keepdims=True), yes], axis=1)


def prior_of(counts: np.ndarray, unseen: float) -> np.ndarray:
    """Return the prior pi of each semantic ID: its share of the training identities.

    Args:
        counts: int (K,), training identities with each semantic ID.
        unseen: the count to use instead of 0.

    Returns:
        float64 (K,), with the sum 1.

    Raises:
        ValueError: if `unseen` is not positive.

    Examples:
        >>> prior_of(np.array([3, 0]), unseen=1.0).tolist()
        [0.75, 0.25]
    """
    if not unseen > 0:
        raise ValueError(f"TEST.PAR.UNSEEN_PRIOR is {unseen}, expected a number of identities above 0, such as 0.5: "
                         "without a prior an unseen combination is never found")
    shares = np.where(counts > 0, counts, unseen).astype(np.float64)
    return shares / shares.sum()


def balanced_answers(probabilities: np.ndarray, prior: np.ndarray, none_first: bool,
                     never_none: bool = False) -> np.ndarray:
    """Predict the classes that maximise the expected balanced accuracy (mA).

    Predicting class c adds p_c / pi_c to the expected true positive rate of c and removes (1 - p_c) / (1 - pi_c) from
    its true negative rate. The net gain is (p_c - pi_c) / (pi_c (1 - pi_c)), and the class of the largest gain is
    predicted. mA does not count "none" as a class, so its gain is 0: it is predicted if no colour has a positive gain.
    With two classes the result is the class of larger p / pi.

    Special cases: a class without training identities has no true positive rate and is never predicted. A class of
    all training identities has no true negative rate; its gain is p_c. If no class can be predicted, or no training
    identity is labelled, the result is the most probable class.

    Args:
        probabilities: float (N, C).
        prior: float (C,), the share of training identities with each class.
        none_first: whether the first class is "none".
        never_none: predict another class instead of "none".

    Returns:
        int64 (N,).

    Examples:
        >>> balanced_answers(np.array([[0.7, 0.3], [0.9, 0.1]]), np.array([0.8, 0.2]), none_first=False).tolist()
        [1, 0]
    """
    of_all = prior > 1 - 1e-9
    usable = (prior > 0) & ~of_all
    gains = np.where(usable, (probabilities - prior) / np.where(usable, prior * (1 - prior), 1.0), -np.inf)
    gains = np.where(of_all, probabilities, gains)
    if none_first:
        gains[:, 0] = -np.inf if never_none else 0
    if not (prior > 0).any() or np.isneginf(gains).all():
        gains = np.array(probabilities)
        if none_first and never_none:
            gains[:, 0] = -np.inf
    return gains.argmax(axis=1)


def nameable(schema: AttributeSchema, group: str, labels: np.ndarray, force_colour: bool) -> np.ndarray:
    """Return which semantic IDs of a group can be predicted.

    Args:
        group: name of the group.
        labels: int (K, F), of the fields of the group.
        force_colour: restrict predictions to semantic IDs with a colour, if the group has such semantic IDs.

    Returns:
        bool (K,).

    Examples:
        >>> from cerberus_plugin.attributes import Field, Group
        >>> colours = tuple(Field(c, "top", ("no", "yes"), "shirt", c) for c in ("red", "blue"))
        >>> schema = AttributeSchema("example", colours, groups=(Group("top", 0),))
        >>> nameable(schema, "top", np.array([[0, 0], [1, 0]]), force_colour=True).tolist()
        [False, True]
    """
    colours = [place for place, i in enumerate(schema.group_fields(group)) if schema.fields[i].column]
    coloured = (labels[:, colours] == 1).any(axis=1)
    return coloured if force_colour and coloured.any() else np.ones(len(labels), bool)


def wanted_classes(schema: AttributeSchema, labels: np.ndarray) -> np.ndarray:
    """Convert descriptions to weights of the classes of all columns.

    The inner product with the log-probabilities of an image is the score of the image. The weights of a described
    column have the sum 1. If several colours of one garment are described, each has the same weight. The score is then
    the log of the geometric mean of their probabilities, which is high only if all of them are probable. A column is
    described if one of its labels is yes or all of them are known.

    Args:
        labels: int (Q, A), -1 for an attribute that is not described.

    Returns:
        float32 (Q, V).

    Examples:
        >>> from cerberus_plugin.attributes import Field, Group
        >>> schema = AttributeSchema("example", (Field("hat", "head", ("no", "yes")),), groups=(Group("head", 0),))
        >>> wanted_classes(schema, np.array([[1], [-1]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    weights = []
    for column in schema.columns:
        own = labels[:, list(column.fields)]
        known = (own != MISSING).all(axis=1) | (column.is_colour & (own == 1).any(axis=1))
        held = held_classes(own, len(column.answers), column.is_colour).astype(np.float32)
        weights.append(held / np.maximum(held.sum(axis=1, keepdims=True), 1) * known[:, None])
    return np.concatenate(weights, axis=1)


@dataclass(frozen=True, eq=False)
class Marginals:
    """Tables from which attribute probabilities are computed, as numpy arrays or torch tensors.

    Attributes:
        scales: s_m of each column.
        log_priors: per group float64 (K,), tau log pi_k.
        held: per column float64 (K, C), 1 where a semantic ID has a class and 0 elsewhere.
        priors: per column float64 (C,), the share of training identities with each class.
        column_groups: per column, the index of its group.
        colours: per column, whether it is a colour column.
        backend: name of the module of the tables, "numpy" or "torch"; a name, so that the object can be pickled.
    """

    scales: tuple[float, ...]
    log_priors: tuple[Any, ...]
    held: tuple[Any, ...]
    priors: tuple[np.ndarray, ...]
    column_groups: tuple[int, ...]
    colours: tuple[bool, ...]
    backend: str = "numpy"

    @classmethod
    def build(cls, schema: AttributeSchema, labels: Sequence[np.ndarray], counts: Sequence[np.ndarray],
              scales: Mapping[str, float], tau: float, unseen: float) -> Marginals:
        """Build the tables from the semantic IDs.

        Args:
            schema: defines columns and groups.
            labels: per group int (K, F), of the fields of the group.
            counts: per group int (K,), training identities with each semantic ID.
            scales: s_m by column name.
            tau: exponent of the prior.
            unseen: see `prior_of`.
        """
        groups = tuple(schema.group_names.index(column.group) for column in schema.columns)
        held = tuple(held_classes(labels[g][:, schema.places(column)], len(column.answers), column.is_colour)
                     .astype(np.float64) for g, column in zip(groups, schema.columns))
        shares = [own / max(own.sum(), 1) for own in counts]
        return cls(tuple(float(scales[column.name]) for column in schema.columns),
                   tuple(tau * np.log(prior_of(own, unseen)) for own in counts), held,
                   tuple(shares[g] @ own for g, own in zip(groups, held)), groups,
                   tuple(column.is_colour for column in schema.columns))

    def computed_by(self, backend: str, log_priors: Iterable, held: Iterable) -> Marginals:
        """Return a copy that computes with another module.

        Args:
            backend: name of an imported module, such as "torch".
            log_priors: the attribute `log_priors`, with tables of this module.
            held: the attribute `held`, with tables of this module.
        """
        return replace(self, backend=backend, log_priors=tuple(log_priors), held=tuple(held))

    def logits(self, m: int, cosines):
        """Return s_m cos + tau log pi for column `m`, from the cosines of its group: float (N, K) -> float64 (N, K)."""
        return self.scales[m] * cosines + self.log_priors[self.column_groups[m]]

    def log_probabilities(self, m: int, logits):
        """Return log-probabilities of the classes of column `m`, from its logits: (N, K) -> float64 (N, C).

        The result is log `TINY` for a class without a semantic ID of finite logit. float64 represents probabilities
        that float32 would round to 0.
        """
        module = sys.modules[self.backend]
        weights = module.exp(logits - module.amax(logits, 1)[:, None])
        shares = (weights @ self.held[m]) / weights.sum(1)[:, None]
        return module.log(module.clip(shares, TINY, 1))


def check_temperatures(schema: AttributeSchema, temperatures: Mapping[str, float]) -> None:
    """Check temperatures by column name.

    Raises:
        ValueError: if a name is not a column of the schema, or a temperature is not a positive finite number.
    """
    names = [column.name for column in schema.columns]
    for name, value in temperatures.items():
        if name not in names:
            raise ValueError(f"temperatures: '{name}' is not a column of {schema.name}; expected one of "
                             f"{', '.join(names)}")
        if not 0 < value < float("inf"):
            raise ValueError(f"temperatures: the temperature of '{name}' is {value}, expected a positive number")


def check_threshold(threshold: float) -> None:
    """Check a threshold of `is_reliable`.

    Raises:
        ValueError: if it is not between 0 and 1.

    Examples:
        >>> check_threshold(80)
        Traceback (most recent call last):
        ValueError: filter: the threshold is 80, expected a probability between 0 and 1
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"filter: the threshold is {threshold}, expected a probability between 0 and 1")


def is_reliable(probabilities, threshold: float):
    """Return whether predicted attributes are reliable: whether their probability exceeds the threshold.

    An image contradicts a query if an attribute is reliable in both and the two values differ. This is the rule of
    APR's acceleration (`inference.filtered_search`) and of the gallery filter (`search.gallery.Prefilter`). With the
    threshold 1 no attribute is reliable.

    Args:
        probabilities: a number, an array or a tensor.
        threshold: 0 to 1.

    Returns:
        a bool for each probability.

    Examples:
        >>> is_reliable(np.array([0.7, 0.9]), 0.8).tolist()
        [False, True]
    """
    return probabilities > threshold
