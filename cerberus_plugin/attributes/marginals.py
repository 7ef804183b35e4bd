"""How probabilities of semantic IDs add up to those of attributes: the one definition, for numpy, torch and ONNX.

    log p_m(k | x) = s_m cos(f, p_k) + tau log pi_k - log Z        semantic ID k of the group that column m belongs to
    p(v | x)       = sum of p_m(k | x) over the semantic IDs that hold the value v of column m

The scale s_m is large where the column can be read off images of other people, and near 0 where it cannot: p(v | x) is
the share of training identities with the value then.

Classes of a column are its values in words; a colour column begins with "none", which is held where no colour is.
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

# The least log-probability that a search adds up: of a value that no semantic ID of the table holds, which then ranks
# nothing. Probabilities of others do not come near it.
LOWEST = -100.0
TINY = 1e-300  # the probability of what cannot be, so that its logarithm is finite


def held_classes(labels: np.ndarray, num_classes: int, is_colour: bool) -> np.ndarray:
    """Which semantic IDs hold which class of a column: their labels of its fields, int (K, F), to bool (K, C).

    A semantic ID with two listed colours holds both.
    """
    if not is_colour:
        return labels == np.arange(num_classes)
    yes = labels == 1
    return np.concatenate([~yes.any(axis=1, keepdims=True), yes], axis=1)


def prior_of(counts: np.ndarray, unseen: float) -> np.ndarray:
    """pi of each semantic ID, float64 (K,): its share of training identities, `unseen` of them where it has none."""
    if not unseen > 0:
        raise ValueError(f"TEST.PAR.UNSEEN_PRIOR is {unseen}, expected a number of identities above 0, such as 0.5: "
                         "without a prior an unseen combination is never found")
    shares = np.where(counts > 0, counts, unseen).astype(np.float64)
    return shares / shares.sum()


def balanced_answers(probabilities: np.ndarray, prior: np.ndarray, none_first: bool,
                     never_none: bool = False) -> np.ndarray:
    """The classes that maximise the expected balanced accuracy, float (N, C) and (C,) -> int64 (N,).

    Naming class c gains p_c / pi_c in the true positive rate of its question and loses (1 - p_c) / (1 - pi_c) in the
    true negative rate: it pays where p_c > pi_c, most where (p_c - pi_c) / (pi_c (1 - pi_c)) is largest. "None", the
    first class of a colour column, is no question of its own, so it is the answer where no colour pays. Of two classes
    this is the one of larger p / pi. A class without a training identity has no true positive rate, and is not named;
    one of all training identities has no true negative rate, and gains its p. Where there is no class to name, or no
    training identity is labelled, the answer is the most probable class.

    Args:
        none_first: whether the first class is "none".   never_none: answer another class in its place.
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
    """Semantic IDs of a group that recognition may name, by the labels of its own fields: (K, F) -> bool (K,).

    All of them, or with `force_colour` those that show a colour, where there are any.
    """
    colours = [place for place, i in enumerate(schema.group_fields(group)) if schema.fields[i].column]
    coloured = (labels[:, colours] == 1).any(axis=1)
    return coloured if force_colour and coloured.any() else np.ones(len(labels), bool)


def wanted_classes(schema: AttributeSchema, labels: np.ndarray) -> np.ndarray:
    """Descriptions as weights of all columns' classes side by side: int (Q, A), -1 where open, to float32 (Q, V).

    The inner product with the log-probabilities of an image is its score: 1 for the described class of a column.
    Several colours of one garment share the 1, so that their geometric mean counts: an image must show each of them. A
    column counts where one of its values is yes or all are known.
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
    """The tables behind probabilities of a set of attributes, and how these are computed, by numpy or by torch.

    Attributes:
        scales: s_m of each column.
        log_priors: per group float64 (K,), tau log pi_k.
        held: per column float64 (K, C), 1 where a semantic ID holds a class and 0 elsewhere.
        priors: per column float64 (C,), the share of training identities with each class, 0 where none has it.
        column_groups: per column the index of its group.   colours: per column whether it is of colours.
        backend: the name of the module that computes, numpy, or torch where the tables are tensors. A name, so that
            tables can be pickled.
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
        """From the semantic IDs and how many training identities carry each.

        Args:
            labels: per group int (K, F), of its own fields.   counts: per group int (K,).
            scales: s_m by a column's name.   tau, unseen: see `prior_of`.
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
        """The same computed by another module, "torch", with these tables as its tensors."""
        return replace(self, backend=backend, log_priors=tuple(log_priors), held=tuple(held))

    def logits(self, m: int, cosines):
        """s_m cos + tau log pi of the semantic IDs of a column's group, float (N, K) -> float64 (N, K)."""
        return self.scales[m] * cosines + self.log_priors[self.column_groups[m]]

    def log_probabilities(self, m: int, logits):
        """Of the classes of one column, from its logits, (N, K) -> float64 (N, C).

        The logarithm of `TINY` where nothing that may be answered holds a class. float64 keeps probabilities that
        float32 would round to 0.
        """
        module = sys.modules[self.backend]
        weights = module.exp(logits - module.amax(logits, 1)[:, None])
        shares = (weights @ self.held[m]) / weights.sum(1)[:, None]
        return module.log(module.clip(shares, TINY, 1))


def check_temperatures(schema: AttributeSchema, temperatures: Mapping[str, float]) -> None:
    """Refuse temperatures of what is no column, and those that are no positive number."""
    names = [column.name for column in schema.columns]
    for name, value in temperatures.items():
        if name not in names:
            raise ValueError(f"temperatures: '{name}' is no column of {schema.name}; there are {', '.join(names)}")
        if not 0 < value < float("inf"):
            raise ValueError(f"temperatures: that of '{name}' is {value}, expected a positive number")


def check_threshold(threshold: float) -> None:
    """Refuse a threshold of `is_reliable` that is no probability."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"filter: the threshold is {threshold}, expected a probability between 0 and 1")


def is_reliable(probabilities, threshold: float):
    """Whether recognised attributes are reliable: a bool for each probability, of a number, an array or a tensor.

    An image contradicts a query where an attribute is reliable in both and the two values differ (APR's acceleration,
    `inference.filtered_search`, and the filter of galleries, `search.gallery.Prefilter`). A threshold of 1 makes no
    attribute reliable.
    """
    return probabilities > threshold
