"""The screen of ``kvxfer top``, drawn with rich, and the same as plain tables for who has no terminal."""

from typing import Any, Final

from kvxfer.cli.keys import HELP, View
from kvxfer.cli.tables import Cell, Painter, aligned
from kvxfer.interval import Pipeline
from kvxfer.pace import SLOW_FACTOR
from kvxfer.records.columns import COLUMNS, Column, digits, kinds_of, shown
from kvxfer.records.live import GONE, IDLE, SILENT, SLOW, LiveRow, Now
from kvxfer.records.times import clock
from kvxfer.reporting import printable
from kvxfer.units import mib

_BY_KEY: Final = {column.key: column for column in COLUMNS}
_STYLES: Final = {SILENT: "bold red", SLOW: "bold yellow", GONE: "dim", IDLE: "dim"}

_NARROW: Final = ("num_transfers", "bytes_per_second", "bytes_per_busy_second", "p50_seconds", "p99_seconds")
_WIDE: Final = (
    "num_transfers",
    "num_bytes",
    "bytes_per_second",
    "bytes_per_busy_second",
    "mean_in_flight",
    "mean_seconds",
    "p50_seconds",
    "p90_seconds",
    "p99_seconds",
    "max_seconds",
)
_WIDE_COLUMNS: Final = 120
_STATE_WIDTH: Final = 6
_WIDTH: Final = 7
_FAILURES_WIDTH: Final = 5
_SHORT: Final = {"num_transfers": "xfers", "num_failures": "fail"}
"""Titles without units, which are said once; the others are the first word of theirs."""

_MOST_GROUPS: Final = 6
_HANGS_SECONDS: Final = 60.0
"""A transfer that is under way for longer is shown as the alert rule has it."""

_STALE_INTERVALS: Final = 2.5
"""Without a new interval for so many of its length, the collector has stopped."""


def columns_for(width: int) -> list[Column]:
    """The columns for which there is room."""
    return [_BY_KEY[key] for key in (_WIDE if width >= _WIDE_COLUMNS else _NARROW)]


def stale_after(now: Now) -> float:
    """Seconds after the end of an interval at which the next one is overdue."""
    return max(_STALE_INTERVALS * (now.end - now.start), 5.0)


def headline(now: Now, age: float) -> str:
    """What the interval is, how old it is, and the sources by state."""
    states = "  ".join(f"{state} {count:,}" for state, count in now.pipeline.sources.items())
    return f"{now.end - now.start:,.3g} s to {clock(now.end)[11:19]}, {age:,.0f} s ago  {states}"


def lost(trouble: str) -> str:
    """That the collector does not answer, and why."""
    return f"no connection to the collector, trying again: {trouble}"


def summary(now: Now) -> str:
    """All groups together."""
    row = now.total
    wall, busy = (0.0 if rate is None else mib(rate) for rate in (row.bytes_per_second, row.bytes_per_busy_second))
    return (
        f"wall {digits(wall)} MiB/s  busy {digits(busy)} MiB/s  in flight {digits(row.mean_in_flight or 0)}"
        f"  {row.num_transfers or 0:,} transfers"
    )


def under_way(now: Now) -> str:
    """What has begun and not ended, empty where nobody tells."""
    if now.in_flight is None:
        return ""
    whose = f" ({now.oldest})" if now.oldest and now.in_flight.num_transfers else ""
    oldest = f", the oldest for {digits(now.in_flight.oldest_seconds)} s{whose}" if now.in_flight.num_transfers else ""
    return f"under way: {now.in_flight.num_transfers:,}{oldest}"


def pipeline_text(pipeline: Pipeline) -> str:
    """What the pipeline counted since its start."""
    rejected = sum(pipeline.reports_rejected.values())
    text = (
        f"pipeline: {pipeline.reports_received:,} received, {pipeline.reports_duplicate:,} duplicate,"
        f" {pipeline.reports_lost:,} lost, {rejected:,} rejected, {pipeline.observations_cut:,} cut"
    )
    failed = {"exports": pipeline.exports_failed, "commits": pipeline.commits_failed}
    return text + "".join(f", {count:,} {what} failed" for what, count in failed.items() if count)


def _has_losses(pipeline: Pipeline) -> bool:
    failed = (pipeline.exports_failed, pipeline.commits_failed)
    return any((pipeline.reports_lost, pipeline.observations_cut, *pipeline.reports_rejected.values(), *failed))


# --- plain


def plain(now: Now, view: View) -> str:
    """The interval as two tables of text."""
    columns = [_BY_KEY[key] for key in _WIDE]
    paint = Painter(is_on=False)
    tables = []
    for title, rows in (("group", now.groups), ("rank", view.sorted(now.ranks))):
        cells = [
            [
                Cell(row.name),
                Cell(row.state if title == "rank" else f"{row.row.num_ranks:,}"),
                *(Cell(shown(column.read(row.row), column)) for column in columns),
                Cell(kinds_of(row.row.failures)),
            ]
            for row in rows
        ]
        second = "state" if title == "rank" else "ranks"
        header = [title, second, *(column.title for column in columns), "failures"]
        tables.append(aligned(header, cells, [0, len(header) - 1], paint) if cells else f"no {title}s")
    head = f"{clock(now.start)} to {clock(now.end)}: {summary(now)}, failures: {kinds_of(now.total.failures)}"
    head += f", {under_way(now)}" if now.in_flight is not None else ""
    return "\n".join([head, "", *tables[:1], "", *tables[1:], "", pipeline_text(now.pipeline), ""])


# --- on a terminal


class Screen:
    """Draws what there is to see into the width and height of the terminal; rich must be installed."""

    def __init__(self, name: str) -> None:
        """Draw for a file of this name."""
        self._name = printable(name)

    def draw(self, now: Now | None, view: View, age: float, width: int, height: int, *, trouble: str = "") -> Any:  # noqa: ANN401 - rich's
        """One screen; ``trouble`` is why nothing new comes."""
        from rich.console import Group  # noqa: PLC0415 - an extra

        if now is None:
            body = [_line(lost(trouble), "bold red", width)] if trouble else [_line("no interval yet", "", width)]
            return Group(_line(f"kvxfer top {self._name}", "reverse", width), *body)
        head = [
            _line(f"{self._name}  {headline(now, age)}", "reverse", width),
            _line(summary(now), "bold", width),
        ]
        if now.in_flight is not None:
            hangs = now.in_flight.oldest_seconds > _HANGS_SECONDS
            head.append(_line(under_way(now), "bold red" if hangs else "", width))
        if now.total.num_failures:
            head.append(_line(f"failures: {kinds_of(now.total.failures)}", "bold red", width))
        if trouble:
            head.append(_line(lost(trouble), "bold red", width))
        elif age > stale_after(now):
            head.append(_line("no new interval: the collector has stopped, or hangs", "bold red", width))
        foot = [
            _line(pipeline_text(now.pipeline), "bold red" if _has_losses(now.pipeline) else "", width),
            _line(_prompt(view), "reverse", width),
        ]
        room = max(0, height - len(head) - len(foot))
        body = _help(width, room) if view.shows_help else _tables(now, view, width, room)
        return Group(*head, *body, *foot)


def _prompt(view: View) -> str:
    if view.typed is not None:
        return f"filter: {view.typed}_   Enter keeps it, Esc drops it"
    return "q quit  s sort  r reverse  f filter  p pause  ? help"


def _way_of_looking(view: View) -> str:
    filtered = f", filter: {view.filter}" if view.filter else ""
    return f"by {view.order}{filtered}{', PAUSED' if view.is_paused else ''}"


def _line(text: str, style: str, width: int) -> Any:  # noqa: ANN401 - rich's
    from rich.text import Text  # noqa: PLC0415 - an extra

    line = Text(printable(text), style, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def _help(width: int, room: int) -> list[Any]:
    lines = ["", *(f"  {key}   {what}" for key, what in HELP), ""]
    lines += [
        "  wall: bytes over the seconds of the interval",
        "  busy: bytes over the summed durations of transfers, which overlap",
        "  silent: no sign of life; gone: it left, or was given up; idle: nothing moved;",
        f"  slow: {SLOW_FACTOR:g} times slower than its group, by P90 and per byte",
        "",
        "  any key leaves this help",
    ]
    return [_line(line, "", width) for line in (lines + [""] * room)[:room]]


def _tables(now: Now, view: View, width: int, room: int) -> list[Any]:
    """Groups, then ranks, in exactly so many lines."""
    columns = columns_for(width)
    groups, ranks = view.sorted(now.groups), view.sorted(view.chosen(now.ranks))
    room_of_groups = max(1, min(len(groups), _MOST_GROUPS, (room - 3) // 2))
    lines = _rows("GROUP (MiB/s, ms)", "ranks", groups, columns, width, room_of_groups)
    lines.append(_line(_way_of_looking(view), "dim", width))
    lines += _rows("RANK", "state", ranks, columns, width, room - len(lines) - 1)
    return (lines + [_line("", "", width)] * room)[:room]


def _rows(title: str, second: str, rows: list[LiveRow], columns: list[Column], width: int, room: int) -> list[Any]:
    """A header and at most ``room`` lines; the last one says how many more there are."""
    widths = [max(_WIDTH, len(_title(column))) for column in columns]
    name_width = max(4, width - _STATE_WIDTH - sum(widths) - _FAILURES_WIDTH - len(widths) - 2)
    header = [title, second, *map(_title, columns), _SHORT["num_failures"]]
    lines = [_line(_joined(header, widths, name_width), "bold", width)]
    fitting = rows if len(rows) <= room else rows[: max(0, room - 1)]
    for row in fitting:
        state = row.state if second == "state" else f"{row.row.num_ranks:,}"
        numbers = [shown(column.read(row.row), column) for column in columns]
        text = _joined([row.name, state, *numbers, digits(row.row.num_failures)], widths, name_width)
        lines.append(_line(text, _STYLES.get(row.state) or ("red" if row.row.num_failures else ""), width))
    if len(fitting) < len(rows):
        lines.append(_line(f"{len(rows) - len(fitting):,} more: sort (s) or filter (f)", "dim", width))
    return lines


def _title(column: Column) -> str:
    return _SHORT.get(column.key) or column.title.removesuffix(" MiB/s").removesuffix(" ms")


def _joined(cells: list[str], widths: list[int], name_width: int) -> str:
    name = printable(cells[0])
    name = name if len(name) <= name_width else f"{name[: name_width - 1]}…"
    sizes = [_STATE_WIDTH, *widths, _FAILURES_WIDTH]
    return " ".join([name.ljust(name_width), *(cell.rjust(size) for cell, size in zip(cells[1:], sizes, strict=True))])
