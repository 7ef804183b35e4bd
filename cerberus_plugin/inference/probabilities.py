"""Recognition and search by one softmax classifier an attribute, the way of ARN and APR.

Shapes: N images, E size of an embedding, Q queries, A label fields, M recognition columns, C_m classes of a column.
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
    """A reader whose confidences can be calibrated."""

    schema: AttributeSchema
    temperatures: dict[str, float]

    def calibrated(self, temperatures: Mapping[str, float]):
        """The same reader with these temperatures, by a column's name."""
        reader = copy.copy(self)
        check_temperatures(self.schema, temperatures)
        reader.temperatures = dict(temperatures)
        return reader


class ProbabilityReader(WithTemperatures):
    """Recognition and search with the probabilities of attribute classifiers.

    Args:
        schema: whose columns are classified, one after the other.
        weight, bias: of all classifiers together, float (sum of C_m, E) and (sum of C_m,).
        train_labels: int64 (C, A), see `AttributeReader`.
        temperatures: by a column's name, what its logits are divided by in `confidences`; 1 where not given.
    """

    def __init__(self, schema: AttributeSchema, weight: Tensor, bias: Tensor, *,
                 train_labels: Tensor | None = None, temperatures: Mapping[str, float] | None = None) -> None:
        self.schema = schema
        self.weight, self.bias = weight.float(), bias.float()
        self.train_labels = train_labels
        self.temperatures = dict(temperatures or {})
        check_temperatures(schema, self.temperatures)

    def log_probabilities(self, embeddings: Tensor) -> list[Tensor]:
        """Per column float (N, C_m), natural logarithms."""
        logits = F.linear(embeddings.float(), self.weight.to(embeddings.device), self.bias.to(embeddings.device))
        return [part.log_softmax(dim=1) for part in logits.split(self.schema.column_sizes, dim=1)]

    def confidences(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Most probable class of each column and its probability: (N, E) -> int64 (N, M), float (N, M)."""
        best = []
        for column, log_p in zip(self.schema.columns, self.log_probabilities(embeddings)):
            temperature = self.temperatures.get(column.name)
            log_p = log_p if temperature is None else (log_p / temperature).log_softmax(dim=1)
            best.append(log_p.exp().max(dim=1))
        return torch.stack([b.indices for b in best], dim=1), torch.stack([b.values for b in best], dim=1)

    def column_scores(self, embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What temperatures are fitted on: logits, float (N, C_m), and the answer that each gives, int64 (C_m,)."""
        return [(log_p, torch.arange(log_p.shape[1])) for log_p in self.log_probabilities(embeddings)]

    def recognise(self, embeddings: Tensor) -> Tensor:
        """Attributes of images: (N, E) -> int64 (N, M); a classifier always names a class."""
        return self.decide(self.answer_scores(embeddings))

    def recognise_balanced(self, embeddings: Tensor) -> Tensor:
        """The answers that balanced accuracy expects, see `balanced_answers`: (N, E) -> int64 (N, M) on the CPU.

        As `recognise` where the training identities are not known.
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
        """Scores of images for described persons: mean logarithm of the probabilities of the described columns.

        Columns count as independent. Of several colours that a garment has any may be the answer; "no listed colour",
        which no classifier knows, has the probability that the best guess is wrong.

        Args:
            labels: int64 (Q, A), -1 where the description is open; a tensor, or an array as `schema.parse` gives.

        Returns:
            float (Q, N), 0 at most.
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
            # Many descriptions share what they say of one column.
            said, which = torch.unique(labels[some][:, list(column.fields)], dim=0, return_inverse=True)
            fits = _fits_colour if column.is_colour else _fits_class
            total[some.to(total.device)] += torch.stack([fits(row, log_p) for row in said.tolist()])[which]
        return total


def summing_to_one(log_p: Tensor) -> np.ndarray:
    """Probabilities of a column's classes from log-probabilities or means of them: (N, C) -> (N, C), on the CPU.

    Means over images that disagree are geometric, and sum to less than 1; those of one image, where a semantic ID may
    hold two colours, sum to 1 or more and stay as they are.
    """
    return (log_p - log_p.logsumexp(dim=1, keepdim=True).clamp(max=0)).exp().cpu().numpy()


def _fits_class(said: list[int], log_p: Tensor) -> Tensor:
    """Of the class that is said: [c], (n, C) -> (n,)."""
    return log_p[:, said[0]]


def _fits_colour(said: list[int], log_p: Tensor) -> Tensor:
    """Of any colour that is said to be there, or else of none that is said not to be: C times 1, 0 or -1 -> (n,)."""
    yes = [k for k, value in enumerate(said) if value == 1]
    if yes:
        return log_p[:, yes].logsumexp(dim=1)
    others = [k for k, value in enumerate(said) if value == MISSING]
    if others:
        return log_p[:, others].logsumexp(dim=1)
    return log_p.topk(log_p.shape[1] - 1, dim=1, largest=False).values.logsumexp(dim=1)  # all but the best guess
