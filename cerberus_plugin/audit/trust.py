"""The accuracy of an audit's models on people that they were not trained on, which decides which findings to report.

Shapes: U units of images that share a label, C classes of a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest

from ..utils.text import counted
from .identities import LEAST_NEARER, Telling

LEVEL = 0.05  # significance level: an attribute is judged if its p-value is smaller
HEADER = ("attribute", "labels", "accuracy", "majority class", "p", "judged")
REMEDY = ("To judge more, train longer (--epochs, in a new --out folder), add people to the data, or give a better "
          "model by --run, such as one from pretrained weights (cerberus train --weights).")


@dataclass(frozen=True)
class Reading:
    """The accuracy of an attribute.

    Attributes:
        attribute: the column.
        labels: number of units.
        right: share of units whose label is the most probable value.
        frequent: the most frequent label.
        constant: share of units with this label, the majority-class baseline.
        p: p-value of a one-sided sign test, on the units for which exactly one of model and baseline is right.
        judged: whether findings of this attribute are reported.
    """

    attribute: str
    labels: int
    right: float
    frequent: str
    constant: float
    p: float
    judged: bool


def reading(attribute: str, probabilities: np.ndarray, right: np.ndarray, answers: Sequence[str]) -> Reading:
    """Compare the accuracy of a model with the majority-class baseline.

    A finding claims that the most probable value is right and the label is wrong. Therefore shares of units are
    compared, not means over classes, see docs/audit.md.

    Args:
        attribute: the column.
        probabilities: float (U, C).
        right: bool (U, C), the labels.
        answers: C values.

    Examples:
        >>> how = reading("hat", np.array([[0.9, 0.1], [0.2, 0.8]]), np.eye(2, dtype=bool), ("no", "yes"))
        >>> how.right, how.constant, how.p
        (1.0, 0.5, 0.5)
    """
    frequent = int(right.sum(axis=0).argmax())
    model, constant = right[np.arange(len(right)), probabilities.argmax(axis=1)], right[:, frequent]
    better, worse = int((model & ~constant).sum()), int((constant & ~model).sum())
    p = float(binomtest(better, better + worse, alternative="greater").pvalue) if better + worse else 1.0
    return Reading(attribute, len(right), float(model.mean()), answers[frequent], float(constant.mean()), p, p < LEVEL)


@dataclass(frozen=True)
class Trust:
    """The accuracy of the models.

    Attributes:
        attributes: accuracy by attribute.
        people: how well people are distinguished; None if identities are unknown.
    """

    attributes: tuple[Reading, ...]
    people: Telling | None

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of a table with the columns `HEADER`, as text."""
        return [(one.attribute, str(one.labels), f"{one.right:.0%}", f"{one.constant:.0%} ({one.frequent})",
                 f"{one.p:.2g}" if one.p >= 0.001 else "<0.001", "yes" if one.judged else "no")
                for one in self.attributes]

    def sentences(self) -> list[str]:
        """Return sentences below the table: attributes that are not judged, accuracy for people, and a remedy."""
        said, out = [], [one.attribute for one in self.attributes if not one.judged]
        if out:
            said.append("Not judged, because the accuracy is not significantly higher than that of the majority class "
                        f"(p < {LEVEL}): {', '.join(out)}. 'label' and 'view' findings of these attributes are not "
                        "reported.")
        people = self.people
        if people is not None and people.pictures:
            said.append(f"People: an image is more similar to the other images of its person than to another person in "
                        f"{people.nearer:.0%} of comparisons (by chance: 50%). For {people.first:.0%} of "
                        f"{counted(people.pictures, 'image')}, the most similar person is its own (by chance: "
                        f"{people.chance:.1%}).")
        if people is not None and not people.judged:
            said.append("Identities are not judged, because " + (
                f"{people.nearer:.0%} is less than {LEAST_NEARER:.0%}" if people.pictures else
                "no fold has two people with two images each") +
                ". 'same person', 'two people' and 'other person' findings are not reported.")
        if out or (people is not None and not people.judged):
            said.append(REMEDY)
        return said

    def record(self) -> dict:
        """Return the contents for JSON."""
        return {"attributes": [asdict(one) for one in self.attributes],
                "people": None if self.people is None else asdict(self.people), "said": self.sentences()}
