"""The yes/no labels of a published set as questions in words: one of its labels, or several that answer one question.

Shapes: N pictures, B published yes/no labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..attributes.schema import AttributeSchema, Field, Group
from ..own_data.schema_file import JOIN, Wording

UNKNOWN = -1  # of a label


@dataclass(frozen=True)
class Question:
    """A column in words.

    Attributes:
        name: of the column.   group: of the schema.
        answers: word for yes of each published label, by its name.
        no: word for no, where the question is a single label; "" where none or several answers can be given.
    """

    name: str
    group: str
    answers: Mapping[str, str]
    no: str = ""

    def fields(self) -> list[Field]:
        if self.no:
            (yes,) = self.answers.values()
            return [Field(self.name, self.group, (self.no, yes))]
        return [Field(f"{self.name} {word}", self.group, ("no", "yes"), self.name, word)
                for word in self.answers.values()]

    def words(self, labels: np.ndarray) -> list[str]:
        """Words of its labels (N, number of answers), 0, 1 or `UNKNOWN`; "" where any of them is unknown."""
        if self.no:
            (yes,) = self.answers.values()
            return np.array([self.no, yes, ""], object)[labels[:, 0]].tolist()  # UNKNOWN is the last
        kinds, number = np.unique(labels, axis=0, return_inverse=True)
        answers = list(self.answers.values())
        words = ["" if UNKNOWN in kind else JOIN.join(word for word, yes in zip(answers, kind) if yes) or "none"
                 for kind in kinds.tolist()]
        return np.array(words, object)[number.ravel()].tolist()


def binary(name: str, group: str, published: str, values: tuple[str, str] = ("no", "yes")) -> Question:
    """A question that is one published label; `values` are the words for 0 and 1."""
    return Question(name, group, {published: values[1]}, values[0])


def several(name: str, group: str, answers: Mapping[str, str]) -> Question:
    """A question that several published labels answer, of which none, one or several can be yes, such as colours.

    Args:
        answers: word by published label.
    """
    return Question(name, group, answers)


@dataclass(frozen=True)
class Questions:
    """All questions of a set, group by group.

    Attributes:
        schema_name: of the schema, as checkpoints and messages call it.
        groups: of the schema, in order; Cerberus needs one that reads a strip and one that reads the whole picture.
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
        fields = tuple(field for question in self.questions for field in question.fields())
        return Wording(AttributeSchema(self.schema_name, fields, groups=self.groups),
                       {question.name: () for question in self.questions if not question.no})

    @property
    def binaries(self) -> list[tuple[str, str, str]]:
        """Published label, column, and the word that stands for yes."""
        return [(name, question.name, word) for question in self.questions for name, word in question.answers.items()]

    def words(self, labels: np.ndarray, names: Sequence[str]) -> dict[str, list[str]]:
        """Columns of words of published labels.

        Args:
            labels: ints (N, len(names)), 0, 1 or `UNKNOWN`.   names: of their columns, in any order.
        """
        place = {name: i for i, name in enumerate(names)}
        return {question.name: question.words(labels[:, [place[name] for name in question.answers]])
                for question in self.questions}
