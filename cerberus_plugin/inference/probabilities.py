"""Recognition and search with one softmax classifier per attribute, as in ARN and APR.

Shapes: N images, E embedding size, Q queries, A label fields, M columns, C_m classes of column m.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attributes import MISSING, AttributeSchema
from ..attributes.marginals import balanced_answers, check_temperatures
from .reader import mean_over_described


class WithTemperatures:
    """Mixin for readers with calibrated confidences."""

    schema: AttributeSchema
    temperatures: dict[str, float]

    def calibrated(self, temperatures: Mapping[str, float]):
        """Return a copy with temperatures by column name.

        Raises:
            ValueError: if a name is not a column, or a temperature is not positive.
        """
        reader = copy.copy(self)
        check_temperatures(self.schema, temperatures)
        reader.temperatures = dict(temperatures)
        return reader


class ProbabilityReader(WithTemperatures):
    """Recognition and search with the probabilities of attribute classifiers.

    Args:
        schema: defines the columns; there is one classifier per column, in the same order.
        weight: weights of all classifiers, concatenated, float (sum of C_m, E).
        bias: biases of all classifiers, concatenated, float (sum of C_m,).
        train_labels: int64 (C, A), see `AttributeReader`.
        temperatures: by column name, the divisor of the logits in `confidences`; default 1.

    Examples:
        >>> from cerberus_plugin.attributes import Field, Group
        >>> schema = AttributeSchema("example", (Field("hat", "head", ("no", "yes")),), groups=(Group("head", 0),))
        >>> reader = ProbabilityReader(schema, torch.tensor([[0.0], [1.0]]), torch.zeros(2))
        >>> reader.recognise(torch.tensor([[2.0], [-2.0]])).tolist()
        [[1], [0]]
    """

    def __init__(self, schema: AttributeSchema, weight: Tensor, bias: Tensor, *,
                 train_labels: Tensor | None = None, temperatures: Mapping[str, float] | None = None) -> None:
        self.schema = schema
        self.weight, self.bias = weight.float(), bias.float()
        self.train_labels = train_labels
        self.temperatures = dict(temperatures or {})
        check_temperatures(schema, self.temperatures)

    def log_probabilities(self, embeddings: Tensor) -> list[Tensor]:
        """Return for each column the log-probabilities of its classes, (N, E) -> float (N, C_m)."""
        logits = F.linear(embeddings.float(), self.weight.to(embeddings.device), self.bias.to(embeddings.device))
        return [part.log_softmax(dim=1) for part in logits.split(self.schema.column_sizes, dim=1)]

    def confidences(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable class of each column, int64 (N, M), and its probability, float (N, M)."""
        best = []
        for column, log_p in zip(self.schema.columns, self.log_probabilities(embeddings)):
            temperature = self.temperatures.get(column.name)
            log_p = log_p if temperature is None else (log_p / temperature).log_softmax(dim=1)
            best.append(log_p.exp().max(dim=1))
        return torch.stack([b.indices for b in best], dim=1), torch.stack([b.values for b in best], dim=1)

    def column_scores(self, embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return for each column the logits to fit a temperature on, float (N, C_m), and the classes, int64 (C_m,)."""
        return [(log_p, torch.arange(log_p.shape[1])) for log_p in self.log_probabilities(embeddings)]

    def recognise(self, embeddings: Tensor) -> Tensor:
        """Predict the class of each column, (N, E) -> int64 (N, M); never -1."""
        return self.decide(self.answer_scores(embeddings))

    def recognise_balanced(self, embeddings: Tensor) -> Tensor:
        """Predict the classes that maximise the expected balanced accuracy, (N, E) -> int64 (N, M) on the CPU.

        See `balanced_answers`. The same as `recognise` if there are no `train_labels`.
        """
        return self.decide(self.answer_scores(embeddings), True)

    def answer_scores(self, embeddings: Tensor, balanced: bool = False) -> Tensor:
        """See `PersonReader`: log-probabilities of all columns."""
        return torch.cat(self.log_probabilities(embeddings), dim=1)

    def decide(self, scores: Tensor, balanced: bool = False) -> Tensor:
        """See `PersonReader`."""
        log_p = scores.split(self.schema.column_sizes, dim=1)
        if not balanced or self.train_labels is None:
            return torch.stack([own.max(dim=1).indices for own in log_p], dim=1)
        truth, known = self.schema.column_truth(self.train_labels.cpu())
        answers = []
        for m, own in enumerate(log_p):
            prior = truth[m][known[:, m]].double().mean(dim=0)
            answers.append(balanced_answers(summing_to_one(own), prior.numpy(), False))
        return torch.from_numpy(np.stack(answers, axis=1))

    def search(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Score images for descriptions: the mean log-probability of the described columns.

        Columns are assumed to be independent. If several colours of a garment are described, their probabilities are
        added. "No listed colour" is not a class of the classifiers; its probability is 1 minus that of the most
        probable colour.

        Args:
            labels: int64 (Q, A), -1 for fields that are not described; a tensor, or an array from `schema.parse`.
            embeddings: float (N, E).

        Returns:
            float (Q, N), at most 0; higher is better.

        Raises:
            ValueError: if a query describes no attribute.
        """
        labels = torch.as_tensor(labels)
        known = torch.stack([(labels[:, list(column.fields)] != MISSING).any(dim=1) for column in self.schema.columns])
        return mean_over_described(known, embeddings, lambda chunk: self._total(labels, known, chunk))

    def _total(self, labels: Tensor, known: Tensor, embeddings: Tensor) -> Tensor:
        """Sums over the described columns, `known` bool (M, Q), for one chunk: (Q, n)."""
        total = torch.zeros(len(labels), len(embeddings), device=embeddings.device)
        for column, some, log_p in zip(self.schema.columns, known, self.log_probabilities(embeddings)):
            if not some.any():
                continue
            # Many descriptions have the same labels in this column.
            said, which = torch.unique(labels[some][:, list(column.fields)], dim=0, return_inverse=True)
            fits = _fits_colour if column.is_colour else _fits_class
            total[some.to(total.device)] += torch.stack([fits(row, log_p) for row in said.tolist()])[which]
        return total


def summing_to_one(log_p: Tensor) -> np.ndarray:
    """Convert log-probabilities of a column, or means of them over images, to probabilities.

    The exponential of a mean over images is a geometric mean; the sum over classes can then be less than 1 and is
    normalised to 1. A sum of more than 1 is not changed: it occurs if semantic IDs have two colours.

    Args:
        log_p: float (N, C).

    Returns:
        float (N, C) on the CPU.

    Examples:
        >>> summing_to_one(torch.tensor([[0.25, 0.25]]).log()).tolist()
        [[0.5, 0.5]]
    """
    return (log_p - log_p.logsumexp(dim=1, keepdim=True).clamp(max=0)).exp().cpu().numpy()


def _fits_class(said: list[int], log_p: Tensor) -> Tensor:
    """Log-probability of the described class: [c], (n, C) -> (n,)."""
    return log_p[:, said[0]]


def _fits_colour(said: list[int], log_p: Tensor) -> Tensor:
    """Log-probability of a described colour column: C labels 1, 0 or -1, (n, C) -> (n,).

    That any of the colours with label 1 is predicted; if there are none, that any colour without a label is predicted;
    if all are 0, that the most probable colour is wrong.
    """
    yes = [k for k, value in enumerate(said) if value == 1]
    if yes:
        return log_p[:, yes].logsumexp(dim=1)
    others = [k for k, value in enumerate(said) if value == MISSING]
    if others:
        return log_p[:, others].logsumexp(dim=1)
    return log_p.topk(log_p.shape[1] - 1, dim=1, largest=False).values.logsumexp(dim=1)  # all but the most probable
