"""Reports and comparisons as the command prints them: a table, Markdown, CSV or JSON."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from kvxfer.cli.tables import Cell, Painter, aligned, markdown, marked
from kvxfer.interval import Pipeline
from kvxfer.records.change import ESTIMATE_PERCENT, Change, ChangedRow, Comparison
from kvxfer.records.columns import COLUMNS, Column, digits, flat, kinds_of, shown
from kvxfer.records.report import Report
from kvxfer.records.times import clock
from kvxfer.reporting import printable

Tabled: TypeAlias = Callable[[Sequence[str], Sequence[Sequence[Cell]], Sequence[int]], str]
"""Header, rows, and the columns that are words."""

FORMATS: Final = ("table", "json", "csv", "markdown")

_RATES: Final = (
    "wall: bytes over the seconds covered; busy: bytes over the summed durations of transfers, which overlap"
    " (vLLM's Throughput)"
)
_BOUNDS: Final = (
    "low..high: the lowest and the highest of the intervals, since quantiles in JSON lines do not merge to one"
)
_ESTIMATES: Final = "P50, P90, P99: of a histogram, within 1.1 %"
_FAILURES: Final = "num_failures"
_COLUMNS: Final = {column.key: column for column in COLUMNS}


def report_text(report: Report, form: str, paint: Painter) -> str:
    """A report in one of `FORMATS`."""
    if form == "json":
        return _json(report)
    if form == "csv":
        return _csv(flat(report))
    remarks = [*_counted(report), *_explained([report])]
    head = marked(_range(report)) if form == "markdown" else printable(_range(report))
    return "\n".join([head, "", _table(report, _tabled(form, paint)), "", *_listed(remarks, form)])


def comparison_text(comparison: Comparison, form: str, paint: Painter) -> str:
    """A comparison in one of `FORMATS`."""
    if form == "json":
        return _json(comparison)
    if form == "csv":
        by = comparison.first.by
        return _csv([line for row in comparison.rows for line in _flat_changes(row, by)])
    reports = (comparison.first, comparison.second)
    names = _names(reports)
    named = list(zip(names, reports, strict=True))
    head = [f"{name}: {_range(report, named=False)}" for name, report in named]
    blocks = [_block(comparison, row, names, _tabled(form, paint), _title(form, paint)) for row in comparison.rows]
    counted = [f"{name}: {line}" for name, report in named for line in _counted(report)]
    remarks = [*comparison.notes, *counted, *_explained(reports)]
    return "\n".join([*_listed(head, form), "", "\n\n".join(blocks), "", *_listed(remarks, form)])


def _title(form: str, paint: Painter) -> Callable[[str], str]:
    return marked if form == "markdown" else lambda text: paint(printable(text), "bold")


def _tabled(form: str, paint: Painter) -> Tabled:
    if form == "markdown":
        return markdown
    return lambda header, rows, words: aligned(header, rows, words, paint)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode()


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(cell) if isinstance(cell, str) else cell for key, cell in row.items()} for row in rows)
    return out.getvalue().rstrip("\n")


def _cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{printable(text)}" if text[:1] in tuple("=+-@\t\r") else printable(text)


# --- one report


def _range(report: Report, *, named: bool = True) -> str:
    idle = f", {report.num_idle_intervals} of them idle" if report.num_idle_intervals else ""
    intervals = "1 interval" if report.num_intervals == 1 else f"{report.num_intervals:,} intervals"
    text = f"{clock(report.start)} to {clock(report.end)}, {intervals}{idle}, {report.seconds:,.1f} s covered"
    return f"{report.file}: {text}" if named else f"{', '.join(report.connectors)}, {text}"


def _table(report: Report, tabled: Tabled) -> str:
    columns = [column for column in COLUMNS if column.key != _FAILURES]
    rows = [
        [
            *(Cell(row.labels.get(name, "-")) for name in report.by),
            *(Cell(shown(column.read(row), column)) for column in columns),
            Cell(kinds_of(row.failures), "red" if row.num_failures else ""),
        ]
        for row in report.rows
    ]
    header = [*report.by, *(column.title for column in columns), "failures"]
    return tabled(header, rows, [*range(len(report.by)), len(header) - 1])


def _explained(reports: Sequence[Report]) -> list[str]:
    """What the numbers of these reports mean."""
    bounds = [_BOUNDS] if any(map(_has_bounds, reports)) else []
    return [_RATES, *bounds, *([_ESTIMATES] if any(map(_is_estimated, reports)) else [])]


def _counted(report: Report) -> list[str]:
    return [pipeline_line(report.pipeline), *report.notes]


def pipeline_line(pipeline: Pipeline) -> str:
    """What was lost on the way, in a line."""
    causes = ", ".join(f"{cause} {count:,}" for cause, count in pipeline.reports_rejected.items())
    rejected = f"{sum(pipeline.reports_rejected.values()):,} rejected" + (f" ({causes})" if causes else "")
    failed = {"exports": pipeline.exports_failed, "commits": pipeline.commits_failed}
    return (
        f"pipeline: {pipeline.reports_received:,} reports received, {pipeline.reports_duplicate:,} duplicate,"
        f" {pipeline.reports_lost:,} lost, {rejected}; observations: {pipeline.observations_rejected:,} rejected,"
        f" {pipeline.observations_cut:,} cut" + "".join(f"; {what} failed: {n:,}" for what, n in failed.items() if n)
    )


def _listed(lines: Sequence[str], form: str) -> list[str]:
    return [f"- {marked(line)}" for line in lines] if form == "markdown" else list(map(printable, lines))


def _is_estimated(report: Report) -> bool:
    return any(row.durations is not None and row.durations.is_estimated for row in report.rows)


def _has_bounds(report: Report) -> bool:
    held = (row.durations for row in report.rows if row.durations is not None)
    return any(not bounds.is_known for durations in held for bounds in durations.quantiles.values())


# --- two


def _names(reports: Sequence[Report]) -> tuple[str, str]:
    """The names of both files, short where that tells them apart."""
    short = [Path(report.file).name for report in reports]
    first, second = (report.file for report in reports)
    if first == second:
        return f"{short[0]} (1)", f"{short[1]} (2)"
    return (short[0], short[1]) if short[0] != short[1] else (first, second)


def _block(
    comparison: Comparison, row: ChangedRow, names: tuple[str, str], tabled: Tabled, title: Callable[[str], str]
) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in row.labels.items()) or "all"
    first, second = comparison.first.seconds, comparison.second.seconds
    seconds = [
        Cell("seconds covered"),
        Cell(f"{first:,.1f}"),
        Cell(f"{second:,.1f}"),
        Cell(_percent_text(first, second)),
    ]
    lines = [seconds, *(_line(change, row) for change in row.changes if _is_shown(change))]
    if row.where != "both":
        labels += f" (in {names[row.where == 'second']} alone)"
    return title(labels) + "\n\n" + tabled(["", *names, "change"], lines, [0])


def _is_shown(change: Change) -> bool:
    """A kind of failure that never happened is not shown."""
    counts = [bounds.low for bounds in (change.first, change.second) if bounds is not None]
    return change.column in _COLUMNS or any(counts)


def _line(change: Change, row: ChangedRow) -> list[Cell]:
    column = _COLUMNS.get(change.column) or _of_kind(change.column)
    first, second = shown(change.first, column), shown(change.second, column)
    if row.where != "both":
        return [Cell(column.title), Cell(first), Cell(second), Cell("new" if row.where == "second" else "absent")]
    return [Cell(column.title), Cell(first), Cell(second), _shown_change(change, column)]


def _of_kind(kind: str) -> Column:
    return Column(kind, f"- {kind.removeprefix('num_')}", lambda _: None, lambda number: number, -1)


def _shown_change(change: Change, column: Column) -> Cell:
    if change.percent is None:
        word = "-" if change.word == "unknown" else change.word
        return Cell(word, "red" if word == "new" and column.better < 0 else "")
    better = change.percent * column.better
    style = "" if abs(better) <= ESTIMATE_PERCENT else "green" if better > 0 else "red"
    return Cell(_signed(change.percent), style)


def _signed(percent: float) -> str:
    """A change with its sign; one of more than ten times as a factor, which is what people say."""
    if percent >= 900:  # noqa: PLR2004 - ten times
        return f"x {digits(round(1 + percent / 100, 1))}"
    text = f"{percent:+.1f} %"
    return "0.0 %" if text in ("+0.0 %", "-0.0 %") else text


def _percent_text(first: float, second: float) -> str:
    return _signed(100.0 * (second - first) / first) if first and second else "-"


def _flat_changes(row: ChangedRow, by: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            **{name: row.labels.get(name) for name in by},
            "where": row.where,
            "column": change.column,
            "first_low": change.first and change.first.low,
            "first_high": change.first and change.first.high,
            "second_low": change.second and change.second.low,
            "second_high": change.second and change.second.high,
            "change_percent": change.percent,
            "word": change.word,
        }
        for change in row.changes
    ]
