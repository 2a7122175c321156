"""The collector's state machine: frames in, intervals out.

No socket, no clock, no thread: every step takes ``now`` (Unix seconds of the collector). What a peer did wrong is
caught here, once, and counted by its cause; it costs no other peer anything.
"""

from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeVar

from kvxfer.config import CollectorConfig
from kvxfer.errors import ImplausibleError, KVXferError, PeerError, UnknownConnectorError
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Group, Interval, Pipeline, SourceView
from kvxfer.seqs import SeenSeqs
from kvxfer.stats import KVConnectorStats
from kvxfer.wire import Goodbye, Report, Source, decode, decode_payload, decode_source

Key = TypeVar("Key")

_MOST_LOST: Final = 1 << 20
"""Reports that a source may have lost: twelve days of one a second. A goodbye that claims more is not believed."""


class Place(NamedTuple):
    """One connector of one source."""

    source: bytes
    connector: str


class GroupKey(NamedTuple):
    """The connector and the values of the labels grouped by (None where a source has no such label)."""

    connector: str
    labels: tuple[str | None, ...]


class _KnownSource:
    """What is known of one source; ``stats`` of the open interval and ``totals`` of the closed ones, by connector."""

    __slots__ = ("clock_offset", "final_seq", "lost", "seen", "source", "stats", "totals")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.seen = SeenSeqs()
        self.stats: dict[str, KVConnectorStats] = {}
        self.totals: dict[str, KVConnectorStats] = {}
        self.clock_offset = 0.0
        self.final_seq: int | None = None
        self.lost = 0


class TooManySourcesError(PeerError):
    """A source beyond the collector's cap."""

    cause = "too_many_sources"


class ConnectorFailedError(PeerError):
    """A connector's own class that raised on a payload."""

    cause = "connector_failed"


class Aggregator:
    """Dedupes reports by their numbers, merges them per group and source, and closes an interval when it is time.

    Up to ``max_source_views`` sources keep their own numbers too; those that said goodbye make room for others.
    """

    def __init__(self, config: CollectorConfig, now: float) -> None:
        """Begin an interval that starts now."""
        self._config = config
        self._begin = self._start = now
        self.due = now + config.interval_seconds
        """When the interval ends, in Unix seconds."""
        self._sources: dict[bytes, _KnownSource] = {}
        self._gone: dict[bytes, None] = {}
        # The sources with numbers of their own, and those of them that reported in this interval.
        self._viewed: dict[Place, _KnownSource] = {}
        self._touched: dict[Place, _KnownSource] = {}
        self._groups: dict[GroupKey, KVConnectorStats] = {}
        self._ranks: dict[GroupKey, set[bytes]] = {}
        self._totals: dict[GroupKey, KVConnectorStats] = {}
        self._total_ranks: dict[GroupKey, set[bytes]] = {}
        self._received = self._duplicate = self._lost = self._rejected_observations = self._cut = 0
        self._rejected: Tally[str] = Tally()

    def __repr__(self) -> str:
        """Give the counts."""
        rejected = sum(self._rejected.values())
        return (
            f"<Aggregator sources={len(self._sources)} received={self._received} duplicate={self._duplicate}"
            f" rejected={rejected} lost={self._lost}>"
        )

    # --- in

    def feed(self, frame: bytes, now: float) -> None:
        """Take one frame of a peer, whatever is in it."""
        try:
            message = decode(frame)
            if isinstance(message, Goodbye):
                self._part(message)
            else:
                self._take(message, now)
        except KVXferError as error:
            self._rejected[_cause(error)] += 1

    def _take(self, report: Report, now: float) -> None:
        stats = _open(report)  # first, since what cannot be read makes no source known
        known = self._known(report.source)
        if not known.seen.take(report.seq):
            self._duplicate += 1
            return
        self._settle(known)
        known.clock_offset = now - report.end
        with _class_of_somebody_else():
            rejected = stats.num_rejected()
            if not stats.is_empty():
                self._merge(report, known, stats)
        self._received += 1
        self._cut += report.cut
        self._rejected_observations += rejected

    def _merge(self, report: Report, known: _KnownSource, stats: KVConnectorStats) -> None:
        key = self._key(known.source, report.connector)
        _merge_copy(self._groups, key, stats)
        self._ranks.setdefault(key, set()).add(report.source)
        place = Place(report.source, report.connector)
        if place not in self._viewed and len(self._viewed) >= self._config.max_source_views:
            self._make_room_for_a_view()
        if place in self._viewed or len(self._viewed) < self._config.max_source_views:
            held = known.stats.get(report.connector)
            known.stats[report.connector] = stats if held is None else held.aggregate(stats)
            self._viewed[place] = self._touched[place] = known

    def _make_room_for_a_view(self) -> None:
        if not self._gone:
            return
        ended = (place for place, known in self._viewed.items() if known.final_seq is not None)
        place = next((place for place in ended if place not in self._touched), None)
        if place is not None:
            self._viewed.pop(place).totals.pop(place.connector, None)

    def _known(self, encoded: bytes) -> _KnownSource:
        known = self._sources.get(encoded)
        if known is not None:
            return known
        source = decode_source(encoded)
        if len(self._sources) >= self._config.max_sources:
            self._evict()
        return self._sources.setdefault(encoded, _KnownSource(source))

    def _evict(self) -> None:
        if not self._gone:
            message = f"{len(self._sources)} sources are known already"
            raise TooManySourcesError(message)
        gone = next(iter(self._gone))
        del self._sources[gone], self._gone[gone]
        for ranks in self._total_ranks.values():
            ranks.discard(gone)

    def _part(self, goodbye: Goodbye) -> None:
        known = self._known(goodbye.source)
        missing = known.seen.missing(goodbye.seq)
        if missing > _MOST_LOST:
            message = f"a goodbye that claims {missing} reports which never came"
            raise ImplausibleError(message)
        known.final_seq = max(goodbye.seq, known.final_seq or 0)
        self._gone[goodbye.source] = None
        self._settle(known)

    def _settle(self, known: _KnownSource) -> None:
        """Count what is lost for good: the gaps of a source that said goodbye."""
        if known.final_seq is not None:
            lost = known.seen.missing(known.final_seq)
            self._lost += lost - known.lost
            known.lost = lost

    def _key(self, source: Source, connector: str) -> GroupKey:
        return GroupKey(connector, tuple(source.labels.get(label) for label in self._config.group_by))

    # --- out

    def tick(self, now: float) -> list[Interval]:
        """The interval that is due, if one is."""
        return [self.close_interval(now)] if now >= self.due else []

    def close_interval(self, now: float) -> Interval:
        """Close the interval now and begin the next one."""
        views = []
        for place, known in self._touched.items():
            stats = known.stats.pop(place.connector)
            views.append(SourceView(known.source, place.connector, stats, known.clock_offset))
            self._add_to_total(known.totals, place.connector, stats)
        groups, ranks = self._groups, self._ranks
        interval = Interval(self._start, now, self._as_groups(groups, ranks), tuple(views), self.pipeline())
        for key, merged in groups.items():
            self._add_to_total(self._totals, key, merged)
            self._total_ranks.setdefault(key, set()).update(ranks[key])
        self._touched, self._groups, self._ranks = {}, {}, {}
        self._start = now
        if now >= self.due:
            ended = int((now - self.due) / self._config.interval_seconds) + 1
            self.due += ended * self._config.interval_seconds
        return interval

    def snapshot(self, now: float) -> Interval:
        """All since the beginning, as one interval; the stats are copies. Classes that only grow are left out."""
        groups: dict[GroupKey, KVConnectorStats] = {}
        for part in (self._totals, self._groups):
            for key, stats in part.items():
                self._add_to_total(groups, key, stats)
        ranks = {key: self._total_ranks.get(key, set()) | self._ranks.get(key, set()) for key in groups}
        return Interval(self._begin, now, self._as_groups(groups, ranks), self._all_views(), self.pipeline())

    def _all_views(self) -> tuple[SourceView, ...]:
        views = []
        for place, known in self._viewed.items():
            totals: dict[str, KVConnectorStats] = {}
            for part in (known.totals, known.stats):
                if place.connector in part:
                    self._add_to_total(totals, place.connector, part[place.connector])
            offset = known.clock_offset
            views += [SourceView(known.source, connector, stats, offset) for connector, stats in totals.items()]
        return tuple(views)

    def _add_to_total(self, into: dict[Key, KVConnectorStats], key: Key, stats: KVConnectorStats) -> None:
        """Merge stats that stay as they are, unless they only grow; a class that fails at it is counted."""
        try:
            with _class_of_somebody_else():
                if stats.is_bounded():
                    _merge_copy(into, key, stats)
        except KVXferError as error:
            self._rejected[_cause(error)] += 1

    def _as_groups(
        self, groups: dict[GroupKey, KVConnectorStats], ranks: dict[GroupKey, set[bytes]]
    ) -> tuple[Group, ...]:
        return tuple(Group(key.connector, self._labels(key), stats, len(ranks[key])) for key, stats in groups.items())

    def _labels(self, key: GroupKey) -> dict[str, str]:
        pairs = zip(self._config.group_by, key.labels, strict=True)
        return {label: value for label, value in pairs if value is not None}

    def pipeline(self) -> Pipeline:
        """What the pipeline counts of itself."""
        return Pipeline(
            reports_received=self._received,
            reports_duplicate=self._duplicate,
            reports_lost=self._lost,
            reports_rejected=dict(self._rejected),
            observations_rejected=self._rejected_observations,
            observations_cut=self._cut,
            sources_known=len(self._sources),
        )


def _open(report: Report) -> KVConnectorStats:
    """The stats in a report, built by the class that is registered here for its connector."""
    payload = decode_payload(report.payload)
    with _class_of_somebody_else():
        connector = KVConnectorFactory.get_connector_class_by_name(report.connector)
        stats = connector.build_kv_connector_stats(payload)
    if stats is None:
        message = f"{report.connector} builds no stats"
        raise ConnectorFailedError(message)
    return stats


def _cause(error: KVXferError) -> str:
    """Under which name a refused message is counted."""
    if isinstance(error, PeerError):
        return error.cause
    return "unknown_connector" if isinstance(error, UnknownConnectorError) else ImplausibleError.cause


@contextmanager
def _class_of_somebody_else() -> Iterator[None]:
    """What a connector's class raises, other than our own errors, is a `ConnectorFailedError`."""
    try:
        yield
    except KVXferError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise ConnectorFailedError(message) from error


def _merge_copy(into: dict[Key, KVConnectorStats], key: Key, stats: KVConnectorStats) -> None:
    """Merge stats that stay as they are. Lists of somebody else's class may be taken as they are, hence the copy."""
    held = into.get(key)
    if held is None:
        into[key] = stats.copy()
    else:
        into[key] = held.aggregate(stats if stats.is_bounded() else stats.copy())
