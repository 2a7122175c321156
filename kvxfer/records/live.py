"""The newest interval as `kvxfer top` shows it, and who was there before. No I/O, no clock.

A worker stays in the table while it is idle or silent, and for a minute after it has left: the one that is missing is
the one to be looked for.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from kvxfer.distribution import DistributionState
from kvxfer.interval import Pipeline
from kvxfer.pace import Pace, pace_of, slow_among
from kvxfer.records.observed import OWN_LABELS, Observed, Part, durations_of
from kvxfer.records.report import CONNECTOR, ReportRow, make_row
from kvxfer.records.totals import Totals
from kvxfer.underway import InFlight

GONE_SECONDS: Final = 60.0
"""How long one that has left is shown."""

FORGET_SECONDS: Final = 900.0
"""Nobody of whom nothing is told for so long is shown: that it left was told in an interval that was not read."""

_UNKNOWN: Final = ""
"""The connector of a source of which only its silence was told."""

LIVE, IDLE, SILENT, GONE, SLOW = "live", "idle", "silent", "gone", "slow"


class LiveRow(NamedTuple):
    """One group or rank: what it is called, what it moved in the interval, and whether it lives."""

    name: str
    row: ReportRow
    state: str = LIVE


class Now(NamedTuple):
    """What there is to see: the interval from ``start`` to ``end`` (Unix seconds), all of it, its groups and ranks.

    ``in_flight``: what is under way, of workers that tell; ``oldest`` is the name of the rank whose is the oldest.
    """

    start: float
    end: float
    total: ReportRow
    groups: list[LiveRow]
    ranks: list[LiveRow]
    pipeline: Pipeline
    in_flight: InFlight | None = None
    oldest: str = ""


class _Known:
    """One connector of one source."""

    __slots__ = ("labels", "left_at", "seen_at", "state")

    def __init__(self, labels: Mapping[str, str], now: float) -> None:
        self.labels = labels
        self.seen_at = now
        self.left_at: float | None = None
        self.state = LIVE


class Live:
    """Takes intervals one by one, in their order."""

    def __init__(self) -> None:
        """Know of none."""
        self._known: dict[tuple[str, str], _Known] = {}
        self._last: Observed | None = None

    def know(self, totals: Observed) -> None:
        """Know who has reported before the first interval, out of all since the beginning."""
        for part in totals.sources:
            if part.state != GONE:
                known = self._known[part.source, part.connector] = _Known(part.labels, totals.end)
                known.state = SILENT if part.state == SILENT else IDLE

    def take(self, observed: Observed) -> None:
        """Take the next interval."""
        self._last = observed
        now = observed.end
        for known in self._known.values():
            known.state = IDLE if known.left_at is None else GONE
        for part in observed.sources:
            self._known.pop((part.source, _UNKNOWN), None)
            self._known[part.source, part.connector] = _Known(part.labels, now)
        silent = {absent.source: absent.labels for absent in observed.silent}
        departed = {absent.source for absent in observed.departed}
        unseen = silent.keys() - {source for source, _ in self._known}
        self._known.update({(source, _UNKNOWN): _Known(silent[source], now) for source in unseen})
        for place in _slow(observed):
            self._known[place].state = SLOW
        for (source, _), known in self._known.items():
            if source in silent:
                known.state, known.seen_at = SILENT, now
            elif source in departed and known.left_at is None:
                known.left_at, known.state = now, GONE
        for place in [place for place, known in self._known.items() if _is_over(known, now)]:
            del self._known[place]

    def now(self) -> Now | None:
        """What there is to see, None before the first interval."""
        last = self._last
        if last is None:
            return None
        seconds = last.end - last.start
        groups = [_row(_name(part.labels, part.connector), [part], part.num_ranks, seconds) for part in last.groups]
        moved = {(part.source, part.connector): part for part in last.sources}
        ranks = []
        for place, known in self._known.items():
            parts = [moved[place]] if place in moved else []
            ranks.append(
                _row(_name(known.labels, place[1]), parts, 1, seconds, known.labels)._replace(state=known.state)
            )
        total = _row("all", last.groups, sum(part.num_ranks for part in last.groups), seconds).row
        return Now(last.start, last.end, total, groups, ranks, last.pipeline, *_under_way(last))


def _under_way(observed: Observed) -> tuple[InFlight | None, str]:
    known = [part.in_flight for part in observed.groups if part.in_flight is not None]
    if not known:
        return None, ""
    oldest = max(each.oldest_seconds for each in known)
    names = (_name(part.labels, part.connector) for part in observed.sources if part.in_flight)
    ages = (part.in_flight.oldest_seconds for part in observed.sources if part.in_flight)
    whose = next((name for name, age in zip(names, ages, strict=True) if age >= oldest), "")
    return InFlight(sum(each.num_transfers for each in known), oldest), whose


def _slow(observed: Observed) -> Iterable[tuple[str, str]]:
    """Those that are slower than their group by the factor at which the log warns of it too; here at once."""
    names = sorted({name for group in observed.groups for name in group.labels})
    paced = (
        ((part.source, part.connector), (part.connector, *map(part.labels.get, names)), _pace(part))
        for part in observed.sources
    )
    return [place for place, _ in slow_among(paced)]


def _pace(part: Part) -> Pace | None:
    held = durations_of(part.durations) if isinstance(part.durations, DistributionState) else part.durations
    if held is None:
        return None
    return pace_of(held.count, part.num_bytes, part.busy_seconds, held.quantiles["p90"].high)


def _is_over(known: _Known, now: float) -> bool:
    if known.left_at is not None:
        return now - known.left_at > GONE_SECONDS
    return now - known.seen_at > FORGET_SECONDS


def _row(
    name: str, parts: Iterable[Part], num_ranks: int, seconds: float, labels: Mapping[str, str] | None = None
) -> LiveRow:
    total = Totals()
    held = dict(labels or {})
    for part in parts:
        total.add(part)
        held |= {CONNECTOR: part.connector, **part.labels}
    return LiveRow(name, make_row(held, total, num_ranks, seconds))


def _name(labels: Mapping[str, str], connector: str) -> str:
    """Rank first, then the other labels, then where it runs: what tells apart comes before what is cut off."""
    short = connector.removesuffix("Connector") or connector
    if "pid" not in labels:
        return " ".join([short, *labels.values()])
    others = [value for name, value in labels.items() if name not in ("rank", *OWN_LABELS)]
    where = f"{labels['host']}:{labels['pid']}"
    return " ".join(part for part in (labels.get("rank", ""), *others, where, short) if part)
