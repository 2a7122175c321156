"""Two reports side by side: per row and column the change from the first to the second. No I/O.

A change is given only where it means something: not from nothing, not between bounds, and a quantile of a histogram
has not changed before it has by more than the error of both together.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from kvxfer.records.columns import COLUMNS, Column
from kvxfer.records.observed import Bounds
from kvxfer.records.report import Report, ReportRow

ESTIMATE_PERCENT: Final = 2.2
"""Twice the 1.1 % by which a quantile of a histogram may be off."""

_UNEQUAL_SECONDS: Final = 0.05


class Change(msgspec.Struct, frozen=True):
    """One column of a row in both runs, in base units; None where it is not known.

    ``percent`` is None where ``word`` says why: new (from 0), gone (to 0), unknown, or within 2.2 % (of estimates).
    """

    column: str
    first: Bounds | None
    second: Bounds | None
    percent: float | None
    word: str = ""


class ChangedRow(msgspec.Struct, frozen=True):
    """The row of the same labels in both runs; ``where`` is both, first or second, the runs that have it."""

    labels: dict[str, str]
    where: str
    changes: tuple[Change, ...]


class Comparison(msgspec.Struct, frozen=True):
    """Two runs; their rows are matched by their labels."""

    first: Report
    second: Report
    rows: tuple[ChangedRow, ...]
    notes: tuple[str, ...]


def compare(first: Report, second: Report) -> Comparison:
    """Put two reports that are grouped by the same labels side by side, the rows of the first one first."""
    mine, theirs = ({tuple(row.labels.items()): row for row in report.rows} for report in (first, second))
    rows = tuple(_changed(mine.get(key), theirs.get(key)) for key in dict.fromkeys([*mine, *theirs]))
    return Comparison(first, second, rows, tuple(_notes(first, second)))


def _changed(first: ReportRow | None, second: ReportRow | None) -> ChangedRow:
    labels = next(row.labels for row in (first, second) if row is not None)
    where = "second" if first is None else "first" if second is None else "both"
    kinds = dict.fromkeys(kind for row in (first, second) if row is not None for kind in row.failures)
    changes = [_change(column, first, second) for column in COLUMNS] + [_kind(kind, first, second) for kind in kinds]
    return ChangedRow(labels, where, tuple(changes))


def _change(column: Column, first: ReportRow | None, second: ReportRow | None) -> Change:
    before, after = (None if row is None else column.read(row) for row in (first, second))
    durations = (row.durations for row in (first, second) if row is not None)
    is_estimate = column.is_estimated and any(each is not None and each.is_estimated for each in durations)
    return Change(column.key, before, after, *_percent(before, after, is_estimate=is_estimate))


def _kind(kind: str, first: ReportRow | None, second: ReportRow | None) -> Change:
    counts = (None if row is None else row.failures.get(kind, 0) for row in (first, second))
    before, after = (None if count is None else Bounds(count, count) for count in counts)
    return Change(kind, before, after, *_percent(before, after, is_estimate=False))


def _percent(first: Bounds | None, second: Bounds | None, *, is_estimate: bool) -> tuple[float | None, str]:
    if first is None or second is None or not (first.is_known and second.is_known):
        return None, "unknown"
    before, after = first.low, second.low
    if not before or not after:
        return (0.0, "") if before == after else (None, "gone" if before else "new")
    percent = 100.0 * (after - before) / before
    if is_estimate and abs(percent) <= ESTIMATE_PERCENT:
        return None, f"within {ESTIMATE_PERCENT:g} %"
    return percent, ""


def _notes(first: Report, second: Report) -> Iterable[str]:
    if abs(second.seconds - first.seconds) > _UNEQUAL_SECONDS * first.seconds:
        yield (
            f"the runs cover {first.seconds:,.1f} s and {second.seconds:,.1f} s:"
            " transfers, bytes and failures are of unequal times"
        )
