"""How far the models of an audit can be trusted: what they know of people whom they were not trained on.

Shapes: U units of pictures that share a label, C classes of a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest

from .identities import LEAST_NEARER, Telling

LEVEL = 0.05  # an attribute is judged where its reading would be this good by chance with a smaller probability
HEADER = ("attribute", "labels", "read rightly", "most frequent value", "p", "judged")
REMEDY = ("More is judged after a longer training (--epochs, in a new --out folder), with more people in the data, or "
          "by a better model given by --run, such as one from pretrained weights (cerberus train --weights).")


@dataclass(frozen=True)
class Reading:
    """How well an attribute is read.

    Attributes:
        attribute: the column.   labels: units that were compared.
        right: share of units whose label is the most probable value.
        frequent: the most frequent value.   constant: share of units with this label, right for always saying it.
        p: of a one-sided sign test, on the units in which one of the two is right.
        judged: whether findings of it are reported.
    """

    attribute: str
    labels: int
    right: float
    frequent: str
    constant: float
    p: float
    judged: bool


def reading(attribute: str, probabilities: np.ndarray, right: np.ndarray, answers: Sequence[str]) -> Reading:
    """Compare the most probable values with always saying the most frequent one.

    A finding says that the most probable value is right and the label is wrong, so shares of units are compared, not
    means over classes: see docs/audit.md.

    Args:
        probabilities: float (U, C).   right: bool (U, C), the labels.   answers: C words.
    """
    frequent = int(right.sum(axis=0).argmax())
    model, constant = right[np.arange(len(right)), probabilities.argmax(axis=1)], right[:, frequent]
    better, worse = int((model & ~constant).sum()), int((constant & ~model).sum())
    p = float(binomtest(better, better + worse, alternative="greater").pvalue) if better + worse else 1.0
    return Reading(attribute, len(right), float(model.mean()), answers[frequent], float(constant.mean()), p, p < LEVEL)


@dataclass(frozen=True)
class Trust:
    """What the models know: of attributes, and of people, None where nobody's identity is known."""

    attributes: tuple[Reading, ...]
    people: Telling | None

    def rows(self) -> list[tuple[str, ...]]:
        """A table under `HEADER`, in words."""
        return [(one.attribute, str(one.labels), f"{one.right:.0%}", f"{one.constant:.0%} ({one.frequent})",
                 f"{one.p:.2g}" if one.p >= 0.001 else "<0.001", "yes" if one.judged else "no")
                for one in self.attributes]

    def sentences(self) -> list[str]:
        """What is to be said below the table: of people, what is not judged, and what helps."""
        said, out = [], [one.attribute for one in self.attributes if not one.judged]
        if out:
            said.append(f"Not judged, as it is not read better than by always saying the most frequent value (p < "
                        f"{LEVEL}): {', '.join(out)}. No 'label' and 'view' findings of it are reported.")
        people = self.people
        if people is not None and people.pictures:
            said.append(f"People: a picture is more like the others of its person than like another person in "
                        f"{people.nearer:.0%} of comparisons (by chance: 50%), and it is most like its own person for "
                        f"{people.first:.0%} of {people.pictures} pictures (by chance: {people.chance:.1%}).")
        if people is not None and not people.judged:
            said.append("Who is on a picture is not judged" + (
                f", as {people.nearer:.0%} is less than {LEAST_NEARER:.0%}" if people.pictures else
                ", as no fold has two people with two pictures each") +
                ": no 'same person', 'two people' and 'other person' findings are reported.")
        if out or (people is not None and not people.judged):
            said.append(REMEDY)
        return said

    def record(self) -> dict:
        """All of it, for JSON."""
        return {"attributes": [asdict(one) for one in self.attributes],
                "people": None if self.people is None else asdict(self.people), "said": self.sentences()}
