"""Map the yes/no labels of a published dataset to columns of values: one label or several labels per column.

Shapes: N images, B published yes/no labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..attributes.schema import AttributeSchema, Field, Group
from ..own_data.schema_file import JOIN, Wording

UNKNOWN = -1  # an unknown label


@dataclass(frozen=True)
class Question:
    """A column and its published labels.

    Attributes:
        name: name of the column.
        group: group of the schema.
        answers: for each published label, by name, the value that it means.
        no: for a column of one label, the value if this label is no; "" for a column of several labels, of which any
            number can be yes.
    """

    name: str
    group: str
    answers: Mapping[str, str]
    no: str = ""

    def fields(self) -> list[Field]:
        """Return the fields of the schema for this column."""
        if self.no:
            (yes,) = self.answers.values()
            return [Field(self.name, self.group, (self.no, yes))]
        return [Field(f"{self.name} {word}", self.group, ("no", "yes"), self.name, word)
                for word in self.answers.values()]

    def words(self, labels: np.ndarray) -> list[str]:
        """Return the values of images.

        Args:
            labels: ints (N, number of labels), 0, 1 or `UNKNOWN`.

        Returns:
            N values; "" if any label is unknown.

        Examples:
            >>> several("age", "identity", {"A1": "young", "A2": "old"}).words(np.array([[1, 0], [0, 0], [0, -1]]))
            ['young', 'none', '']
        """
        if self.no:
            (yes,) = self.answers.values()
            return np.array([self.no, yes, ""], object)[labels[:, 0]].tolist()  # UNKNOWN is the last
        kinds, number = np.unique(labels, axis=0, return_inverse=True)
        answers = list(self.answers.values())
        words = ["" if UNKNOWN in kind else JOIN.join(word for word, yes in zip(answers, kind) if yes) or "none"
                 for kind in kinds.tolist()]
        return np.array(words, object)[number.ravel()].tolist()


def binary(name: str, group: str, published: str, values: tuple[str, str] = ("no", "yes")) -> Question:
    """Make a column of one published label.

    Args:
        name: name of the column.
        group: group of the schema.
        published: name of the label.
        values: values for the labels 0 and 1.

    Examples:
        >>> binary("gender", "identity", "Female", ("male", "female")).words(np.array([[0], [1], [-1]]))
        ['male', 'female', '']
    """
    return Question(name, group, {published: values[1]}, values[0])


def several(name: str, group: str, answers: Mapping[str, str]) -> Question:
    """Make a column of several published labels, of which any number can be yes, such as colours.

    Args:
        name: name of the column.
        group: group of the schema.
        answers: value by published label.
    """
    return Question(name, group, answers)


@dataclass(frozen=True)
class Questions:
    """All columns of a dataset.

    Attributes:
        schema_name: name of the schema, as in checkpoints and messages.
        groups: groups of the schema, in order; Cerberus needs one of a strip and one of the whole image.
        questions: columns, sorted by group.
    """

    schema_name: str
    groups: tuple[Group, ...]
    questions: tuple[Question, ...]

    @property
    def published(self) -> tuple[str, ...]:
        """Names of the B published labels, in the order of the schema's fields."""
        return tuple(name for question in self.questions for name in question.answers)

    @property
    def wording(self) -> Wording:
        """The schema of these columns."""
        fields = tuple(field for question in self.questions for field in question.fields())
        return Wording(AttributeSchema(self.schema_name, fields, groups=self.groups),
                       {question.name: () for question in self.questions if not question.no})

    @property
    def binaries(self) -> list[tuple[str, str, str]]:
        """For each published label: its name, its column, and the value that it means."""
        return [(name, question.name, word) for question in self.questions for name, word in question.answers.items()]

    def words(self, labels: np.ndarray, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the columns of values of images.

        Args:
            labels: ints (N, B), 0, 1 or `UNKNOWN`.
            names: names of the B labels, in any order.

        Returns:
            N values by name of the column; "" for unknown.
        """
        place = {name: i for i, name in enumerate(names)}
        return {question.name: question.words(labels[:, [place[name] for name in question.answers]])
                for question in self.questions}
