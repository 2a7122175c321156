"""What was recorded, added up beside the stats and not through them: the truth that a collector is measured against."""

from collections.abc import Iterable
from math import fsum
from typing import TypeAlias, TypedDict

# Bounds what a long run keeps; the float sums are rounded once per so many values.
FOLD_VALUES = 1024


class FieldTally(TypedDict):
    """How many values a field got and what they add up to, in the field's unit."""

    count: int
    sum: float


# By field name, and by counter name
Recorded: TypeAlias = dict[str, FieldTally | int]


class Tally:
    """Counts and sums of the rows and failures of one decode process. Integers are added exactly."""

    def __init__(self, fields: Iterable[str], counters: Iterable[str]) -> None:
        self._columns: dict[str, list[float]] = {name: [] for name in fields}
        self._counters = dict.fromkeys(counters, 0)
        self._rows = 0

    def add(self, row: Iterable[float]) -> None:
        """Add one recorded row, its values in the order of the fields."""
        self._rows += 1
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)
            if len(column) == FOLD_VALUES:
                column[:] = [_total(column)]

    def count(self, counter: str) -> None:
        """Add one to a counter."""
        self._counters[counter] += 1

    def recorded(self) -> Recorded:
        """Give everything added so far."""
        sums = {name: FieldTally(count=self._rows, sum=_total(column)) for name, column in self._columns.items()}
        return {**sums, **self._counters}


def add_up(parts: Iterable[Recorded]) -> Recorded:
    """Add what several processes recorded, name by name."""
    columns: dict[str, list[FieldTally | int]] = {}
    for part in parts:
        for name, value in part.items():
            columns.setdefault(name, []).append(value)
    return {name: _added(values) for name, values in columns.items()}


def _added(values: list[FieldTally | int]) -> FieldTally | int:
    """Add the tallies of one field, or the numbers of one counter."""
    fields = [value for value in values if not isinstance(value, int)]
    if not fields:
        return sum(value for value in values if isinstance(value, int))
    return FieldTally(count=sum(field["count"] for field in fields), sum=_total([field["sum"] for field in fields]))


def _total(values: list[float]) -> float:
    """Add integers exactly and floats with one rounding."""
    return sum(values) if all(isinstance(value, int) for value in values) else fsum(values)
