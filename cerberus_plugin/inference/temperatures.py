"""Temperatures of recognition columns, as readers take them: they change how sure an answer is, never a search."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from ..attributes import AttributeSchema


class WithTemperatures:
    """A reader whose confidences can be calibrated."""

    schema: AttributeSchema
    temperatures: dict[str, float]

    def calibrated(self, temperatures: Mapping[str, float]):
        """The same reader with these temperatures, by a column's name."""
        reader = copy.copy(self)
        reader.temperatures = check_temperatures(self.schema, temperatures)
        return reader


def check_temperatures(schema: AttributeSchema, temperatures: Mapping[str, float] | None) -> dict[str, float]:
    """Temperatures by a column's name, none where None; refuses other columns and what is no positive number."""
    temperatures = dict(temperatures or {})
    names = [column.name for column in schema.columns]
    for name, value in temperatures.items():
        if name not in names:
            raise ValueError(f"temperatures: '{name}' is no column of {schema.name}; there are {', '.join(names)}")
        if not 0 < value < float("inf"):
            raise ValueError(f"temperatures: that of '{name}' is {value}, expected a positive number")
    return temperatures
