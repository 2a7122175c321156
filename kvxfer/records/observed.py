"""One interval as it was recorded, in the same form from a journal and from JSON lines; what can be added up of it.

No I/O. A journal holds distributions, which merge. A line of JSON holds what was read off them: count, sum and
extremes add up exactly, quantiles do not merge. Of several intervals they are therefore bounds, the lowest and the
highest of the intervals: the quantile of all transfers lies between, to within its neighbouring values. Their mean
would be no quantile of anything, and hide the interval that had the tail.
"""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import msgspec

from kvxfer.contract import KVConnectorStats
from kvxfer.distribution import DistributionState
from kvxfer.interval import Interval, Pipeline
from kvxfer.reading import QUANTILES
from kvxfer.underway import InFlight
from kvxfer.wire import Source

QUANTILE_NAMES: Final = tuple(QUANTILES)


class Bounds(msgspec.Struct, frozen=True):
    """A number that lies from ``low`` to ``high``; both are the same where it is known."""

    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether it is one number."""
        return self.low == self.high


class Durations(msgspec.Struct, frozen=True):
    """The seconds that transfers took; quantiles by name (p50, p90, p99).

    ``is_estimated``: the quantiles are those of histograms, within 1.1 % of an observed value.
    """

    count: int
    sum: float
    min: float
    max: float
    quantiles: dict[str, Bounds]
    is_estimated: bool = False

    @property
    def mean(self) -> float:
        """The mean, 0 for none."""
        return self.sum / self.count if self.count else 0.0

    def with_added(self, other: "Durations") -> "Durations":
        """Both together, quantiles as bounds."""
        if not self.count or not other.count:
            return self if self.count else other
        return Durations(
            self.count + other.count,
            self.sum + other.sum,
            min(self.min, other.min),
            max(self.max, other.max),
            {name: _around(mine, other.quantiles[name]) for name, mine in self.quantiles.items()},
            self.is_estimated or other.is_estimated,
        )


def _around(one: Bounds, other: Bounds) -> Bounds:
    return Bounds(min(one.low, other.low), max(one.high, other.high))


def durations_of(state: DistributionState) -> Durations:
    """What is read off a distribution."""
    quantiles = {name: state.quantile(q) for name, q in QUANTILES.items()}
    known = {name: Bounds(value, value) for name, value in quantiles.items()}
    return Durations(state.count, state.sum, state.min, state.max, known, not state.is_exact)


class Part(NamedTuple):
    """What one group or one source moved in an interval; None for what its connector does not know.

    ``source`` is the id, empty for a group; ``labels`` of a source have its host and pid too.
    """

    connector: str
    labels: Mapping[str, str]
    source: str
    num_ranks: int
    num_bytes: float | None
    busy_seconds: float | None
    durations: DistributionState | Durations | None
    failures: Mapping[str, float]
    state: str = "live"
    in_flight: InFlight | None = None


class Absent(NamedTuple):
    """A source from which nothing came."""

    source: str
    labels: Mapping[str, str]


class Observed(NamedTuple):
    """One interval, from ``start`` to ``end`` (Unix seconds of the collector)."""

    start: float
    end: float
    groups: list[Part]
    sources: list[Part]
    pipeline: Pipeline
    silent: list[Absent]
    departed: list[Absent]
    unread: Collection[str] = ()
    """Connectors of which something is missing here, since their class is not."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing was reported in it."""
        return not self.groups and not self.unread


OWN_LABELS: Final = ("source", "host", "pid")
"""What each source has besides its labels; a label of that name comes first."""


def _of_source(source: str, host: str, pid: int, labels: Mapping[str, str]) -> dict[str, str]:
    return {"source": source, "host": host, "pid": str(pid)} | dict(labels)


# --- from a journal


def of_interval(interval: Interval) -> Observed:
    """An interval of a collector; what a connector's own class fails to tell is not known."""
    return Observed(
        interval.start,
        interval.end,
        [_part(group.connector, group.labels, "", group.num_ranks, group.stats) for group in interval.groups],
        [
            _part(view.connector, _labels_of(view.source), view.source.id, 1, view.stats)._replace(state=view.state)
            for view in interval.sources
        ],
        interval.pipeline,
        [Absent(source.id, _labels_of(source)) for source in interval.silent],
        [Absent(source.id, _labels_of(source)) for source in interval.departed],
    )


def _labels_of(source: Source) -> dict[str, str]:
    return _of_source(source.id, source.host, source.pid, source.labels)


def _part(connector: str, labels: Mapping[str, str], source: str, num_ranks: int, stats: KVConnectorStats) -> Part:
    try:
        moved = stats.moved()
        num_bytes, busy = (None, None) if moved is None else moved
        numbers = (num_bytes, busy, stats.durations(), stats.failures())
        return Part(connector, labels, source, num_ranks, *numbers, in_flight=stats.in_flight())
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return Part(connector, labels, source, num_ranks, None, None, None, {})


# --- from a line of JSON


class _Read(msgspec.Struct):
    count: int
    sum: int | float
    min: float
    max: float
    p50: float
    p90: float
    p99: float

    def durations(self) -> Durations:
        known = {name: Bounds(getattr(self, name), getattr(self, name)) for name in QUANTILE_NAMES}
        return Durations(self.count, self.sum, self.min, self.max, known, is_estimated=True)


class _Who(msgspec.Struct):
    source: str
    host: str
    pid: int
    labels: dict[str, str]

    def absent(self) -> Absent:
        return Absent(self.source, _of_source(self.source, self.host, self.pid, self.labels))


class _UnderWay(msgspec.Struct):
    num_transfers: int
    oldest_seconds: float


class _Numbers(msgspec.Struct, kw_only=True):
    connector: str
    labels: dict[str, str]
    num_bytes: int | float | None = None
    busy_seconds: int | float | None = None
    durations: _Read | None = None
    failures: dict[str, int | float] = {}
    in_flight: _UnderWay | None = None

    def part(self, labels: Mapping[str, str], source: str, num_ranks: int) -> Part:
        durations = None if self.durations is None else self.durations.durations()
        moved = (self.num_bytes, self.busy_seconds)
        now = self.in_flight
        in_flight = None if now is None else InFlight(now.num_transfers, now.oldest_seconds)
        return Part(self.connector, labels, source, num_ranks, *moved, durations, self.failures, in_flight=in_flight)


class _Group(_Numbers, kw_only=True):
    num_ranks: int


class _Source(_Numbers, kw_only=True):
    source: str
    host: str
    pid: int
    state: str = "live"


class Line(msgspec.Struct, kw_only=True):
    """A line of `kvxfer.exporters.jsonl`, as far as it is read here."""

    version: int
    start: float
    end: float
    groups: list[_Group]
    sources: list[_Source]
    pipeline: Pipeline
    silent: list[_Who] = []
    departed: list[_Who] = []

    def observed(self) -> Observed:
        """The interval in it."""
        return Observed(
            self.start,
            self.end,
            [group.part(group.labels, "", group.num_ranks) for group in self.groups],
            [
                view.part(_of_source(view.source, view.host, view.pid, view.labels), view.source, 1)._replace(
                    state=view.state
                )
                for view in self.sources
            ],
            self.pipeline,
            [who.absent() for who in self.silent],
            [who.absent() for who in self.departed],
        )
