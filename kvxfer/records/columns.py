"""The columns of a report, each with its unit and how it is read, in the order in which they are shown. No I/O."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from kvxfer.records.observed import QUANTILE_NAMES, Bounds
from kvxfer.records.report import Report, ReportRow
from kvxfer.units import mib, ms


class Column(NamedTuple):
    """One number of a row: ``key`` with its base unit for machines, ``title`` with the shown one for people.

    ``read`` gives it in base units, None where it is not known; ``show`` makes the shown unit of it. ``better`` is 1
    where more is better, -1 where less is, 0 where it is neither. ``is_estimated``: within 1.1 % where it comes from a
    histogram.
    """

    key: str
    title: str
    read: Callable[[ReportRow], Bounds | None]
    show: Callable[[float], float]
    better: int = 0
    is_estimated: bool = False


def _same(number: float) -> float:
    return number


def _exactly(name: str) -> Callable[[ReportRow], Bounds | None]:
    def read(row: ReportRow) -> Bounds | None:
        number: float | None = getattr(row, name)
        return None if number is None else Bounds(number, number)

    return read


def _quantile(name: str) -> Callable[[ReportRow], Bounds | None]:
    def read(row: ReportRow) -> Bounds | None:
        return None if row.durations is None or not row.durations.count else row.durations.quantiles[name]

    return read


def _extreme(name: str) -> Callable[[ReportRow], Bounds | None]:
    def read(row: ReportRow) -> Bounds | None:
        number = None if row.durations is None or not row.durations.count else getattr(row.durations, name)
        return None if number is None else Bounds(number, number)

    return read


COLUMNS: Final = (
    Column("num_transfers", "transfers", _exactly("num_transfers"), _same),
    Column("num_bytes", "MiB", _exactly("num_bytes"), mib),
    Column("bytes_per_second", "wall MiB/s", _exactly("bytes_per_second"), mib, 1),
    Column("bytes_per_busy_second", "busy MiB/s", _exactly("bytes_per_busy_second"), mib, 1),
    Column("mean_in_flight", "in flight", _exactly("mean_in_flight"), _same),
    Column("mean_seconds", "mean ms", _exactly("mean_seconds"), ms, -1),
    *(
        Column(f"{name}_seconds", f"{name.upper()} ms", _quantile(name), ms, -1, is_estimated=True)
        for name in QUANTILE_NAMES
    ),
    Column("max_seconds", "max ms", _extreme("max"), ms, -1),
    Column("num_failures", "failures", _exactly("num_failures"), _same, -1),
    Column("num_ranks", "ranks", _exactly("num_ranks"), _same),
)


def shown(bounds: Bounds | None, column: Column) -> str:
    """The number as a person reads it: at least three digits; ``low..high`` for bounds, ``-`` for none."""
    if bounds is None:
        return "-"
    low, high = (digits(column.show(number)) for number in (bounds.low, bounds.high))
    return low if low == high else f"{low}..{high}"


def digits(number: float) -> str:
    """A number with at least three digits that count, and no more than that asks for."""
    size = abs(number)
    if float(number).is_integer() or size >= 1000:  # noqa: PLR2004 - four digits are enough
        return f"{number:,.0f}"
    decimals = next((places for limit, places in ((100, 1), (10, 2), (0.1, 3)) if size >= limit), None)
    return f"{number:#.3g}" if decimals is None else f"{number:.{decimals}f}"


def kinds_of(failures: dict[str, float]) -> str:
    """The failures by kind, those that happened."""
    happened = {name.removeprefix("num_"): count for name, count in failures.items() if count}
    return ", ".join(f"{name} {digits(count)}" for name, count in happened.items()) or "0"


def flat(report: Report) -> list[dict[str, str | float | None]]:
    """The rows for machines: labels, base units, of a quantile its bounds; then what was lost in the whole file."""
    kinds = list(dict.fromkeys(kind for row in report.rows for kind in row.failures))
    pipeline = report.pipeline
    common: dict[str, str | float | None] = {
        "seconds_covered": report.seconds,
        "reports_lost": pipeline.reports_lost,
        "reports_rejected": sum(pipeline.reports_rejected.values()),
        "observations_rejected": pipeline.observations_rejected,
        "observations_cut": pipeline.observations_cut,
    }
    return [
        {name: row.labels.get(name) for name in report.by}
        | _numbers(row, COLUMNS)
        | {kind: row.failures.get(kind) for kind in kinds}
        | common
        for row in report.rows
    ]


def _numbers(row: ReportRow, columns: Sequence[Column]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for column in columns:
        bounds = column.read(row)
        if column.is_estimated:
            found[f"{column.key}_low"] = None if bounds is None else bounds.low
            found[f"{column.key}_high"] = None if bounds is None else bounds.high
        else:
            found[column.key] = None if bounds is None else bounds.low
    return found
