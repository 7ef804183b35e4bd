"""Metrics by attribute value, the entry "by value" of results.json; the tasks of an evaluation fill it."""

from __future__ import annotations

from torch import Tensor

from ..attributes import AttributeSchema
from ..metrics.by_value import Values, par_by_value, reid_by_value
from ..metrics.ranking import Ranking

SHARES = ("mAP", "Rank-1", "accuracy", "recall")


class ByValue:
    """reID and PAR metrics of one test dataset by attribute and value.

    The attribute `record` contains {attribute: {value: {"reID": {...}, "PAR": {...}}}}, with the display names of
    attributes, and metrics in percent.

    Args:
        schema: schema of the labels.
    """

    def __init__(self, schema: AttributeSchema) -> None:
        self.schema = schema
        self.record: dict[str, dict[str, dict]] = {}

    def add_reid(self, queries: Ranking, labels: Tensor, pids: Tensor) -> None:
        """Add reID metrics.

        Args:
            queries: ranking of Q queries.
            labels: int64 (Q, A), their labels.
            pids: int64 (Q,), their identities.
        """
        self._add("reID", reid_by_value(queries, *self.schema.column_truth(labels.cpu()), pids))

    def add_par(self, predictions: Tensor, labels: Tensor, pids: Tensor | None) -> None:
        """Add PAR metrics.

        Args:
            predictions: int64 (N, M), predicted values of the images.
            labels: int64 (N, A), their labels.
            pids: int64 (N,), their identities; None if unknown.
        """
        is_colour = [column.is_colour for column in self.schema.columns]
        self._add("PAR", par_by_value(predictions, *self.schema.column_truth(labels.cpu()), is_colour, pids))

    def _add(self, task: str, values: Values) -> None:
        for column, own in zip(self.schema.columns, values):
            of_column = self.record.setdefault(column.display or column.name, {})
            for name, metrics in zip(column.classes, own):
                of_column.setdefault(name, {})[task] = {
                    key: 100 * value if key in SHARES else value for key, value in metrics.items()}
