"""The end of ``demo`` and ``replay``: what was recorded against what was collected, per field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from kvxfer.errors import ConfigError
from kvxfer.interval import Interval
from kvxfer.workload.run import Outcome

# Float sums depend on the order of addition in their last bits; to the nanosecond they do not.
_DIGITS: Final = 9


class Reports(msgspec.Struct, frozen=True):
    """The collector's counts."""

    received: int
    duplicate: int
    rejected: int
    lost: int


class Summary(msgspec.Struct, frozen=True):
    """One run; ``recorded`` and ``collected`` are ``{field: {"count": n, "sum": x}}`` and ``{counter: n}``."""

    connector: str
    requests: int
    workers: int
    seconds: float
    recorded: dict[str, Any]
    collected: dict[str, Any]
    reports: Reports
    reduced: dict[str, Any]

    @property
    def is_equal(self) -> bool:
        """Whether each field that was recorded was collected with the same count and sum."""
        return self.recorded == self.collected


def summarize(connector: str, workers: int, outcome: Outcome, snapshot: Interval) -> Summary:
    """Put the tally of the workers beside what the collector holds."""
    stats = [group.stats for group in snapshot.groups if group.connector == connector]
    total = stats[0] if stats else None
    for other in stats[1:]:
        total = total.aggregate(other) if total is not None else other
    found = total.summary() if total is not None else {}
    pipeline = snapshot.pipeline
    return Summary(
        connector,
        outcome.requests,
        workers,
        round(outcome.seconds, 3),
        {name: _rounded(value) for name, value in outcome.recorded.items()},
        {name: _like(value, found.get(name)) for name, value in outcome.recorded.items()},
        Reports(
            pipeline.reports_received,
            pipeline.reports_duplicate,
            sum(pipeline.reports_rejected.values()),
            pipeline.reports_lost,
        ),
        total.reduce() if total is not None else {},
    )


def _like(recorded: Any, collected: Any) -> Any:  # noqa: ANN401 - a count or a field
    """What was collected in the form of what was recorded; nothing collected is 0."""
    if isinstance(recorded, Mapping):
        held = collected or {"count": 0, "sum": 0}
        return _rounded({"count": held["count"], "sum": held["sum"]})
    return collected or 0


def _rounded(value: Any) -> Any:  # noqa: ANN401 - a count or a field
    return {"count": value["count"], "sum": round(value["sum"], _DIGITS)} if isinstance(value, Mapping) else value


def table(summary: Summary) -> str:
    """The comparison as a person reads it."""
    rows = [("", "recorded", "collected", "")]
    for name, recorded in summary.recorded.items():
        collected = summary.collected[name]
        verdict = "equal" if recorded == collected else "DIFFERENT"
        rows.append((name, _text(recorded), _text(collected), verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {recorded:>{widths[1]}}  {collected:>{widths[2]}}  {verdict}".rstrip()
        for name, recorded, collected, verdict in rows
    ]
    return "\n".join(lines)


def _text(value: Any) -> str:  # noqa: ANN401 - a count or a field
    return f"{value['count']:,} x, sum {value['sum']:,}" if isinstance(value, Mapping) else f"{value:,}"


def write(summary: Summary, path: str | None) -> None:
    """Write the summary as JSON, if a file was named; `ConfigError` if it cannot be."""
    if path is None:
        return
    try:
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
    except OSError as error:
        message = f"--summary-json {path}: {error.strerror}: name a file that can be written"
        raise ConfigError(message) from error
