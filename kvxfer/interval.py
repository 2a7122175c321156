"""What exporters see: an `Interval`, a value that nobody changes."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from kvxfer.contract import KVConnectorStats, Moved
from kvxfer.wire import Source


class Rates(msgspec.Struct, frozen=True):
    """What follows from bytes, busy seconds and the seconds of the interval; unrounded, 0 where nothing moved."""

    bytes_per_second: float
    """Bytes over the interval's wall clock."""

    bytes_per_busy_second: float
    """Bytes over the summed durations of the transfers, which overlap: vLLM's "Throughput (MB/s)"."""

    mean_in_flight: float
    """Summed durations over the interval: how many transfers were under way on average."""


def rates(moved: Moved, seconds: float) -> Rates:
    """The rates of an interval of that many seconds."""
    num_bytes, busy = moved
    return Rates(
        num_bytes / seconds if seconds > 0 else 0.0,
        num_bytes / busy if busy else 0.0,
        busy / seconds if seconds > 0 else 0.0,
    )


class Group(msgspec.Struct, frozen=True):
    """One connector in one combination of the labels that the collector groups by."""

    connector: str
    labels: dict[str, str]
    stats: KVConnectorStats
    num_ranks: int
    """Sources that reported in the interval; instead of a collector that relays, those that it speaks for."""


class SourceView(msgspec.Struct, frozen=True):
    """One source by itself; ``clock_offset_seconds``: arrival minus the end of its last report.

    That is how far its clock is behind the collector's, and the time that the report waited and travelled.
    ``last_seen`` is when its last message came (Unix seconds of the collector), ``state`` live, silent or gone.
    """

    source: Source
    connector: str
    stats: KVConnectorStats
    clock_offset_seconds: float
    last_seen: float = 0.0
    state: str = "live"


class Pipeline(msgspec.Struct, frozen=True):
    """What the pipeline counts of itself, since the collector started, or the first of those that share a journal."""

    reports_received: int
    reports_duplicate: int
    reports_lost: int
    """Numbers that a source which is gone had used, and that never came."""

    reports_rejected: dict[str, int]
    """By cause: undecodable, version, unknown_connector, implausible, connector_failed, too_many_sources,
    interval_full (stats that keep lists, of which too much came)."""

    observations_rejected: int
    """Not finite, negative or no number."""

    observations_cut: int
    """Refused by a publisher's own bound."""

    exports_failed: int = 0
    commits_failed: int = 0
    """Writes of the journal that failed; what they held is in memory alone until one succeeds."""

    sources: dict[str, int] = {}
    """By state: live, silent (nothing came for ``silent_seconds``), gone (said goodbye, or silent for too long)."""

    connections_refused: dict[str, int] = {}
    """By cause: unauthorized_key, revoked_key, wrong_server_key, mechanism (one side uses CURVE, the other does not),
    no_handshake (something else was spoken, or nothing), subscriptions (a flood of them: all were cut off). Since the
    collector started. It counts attempts of both sockets: who is refused tries again up to 85 times a second at first,
    then once in seconds."""

    relay_unacknowledged: int = 0
    """Reports for the collector above that it has not acknowledged."""


class Interval(msgspec.Struct, frozen=True):
    """What was reported from ``start`` to ``end`` (Unix seconds of the collector). Its stats are not to be changed."""

    start: float
    end: float
    groups: tuple[Group, ...]
    sources: Sequence[SourceView]
    pipeline: Pipeline
    silent: tuple[Source, ...] = ()
    """The sources from which nothing came for ``silent_seconds``, not even that they live."""

    departed: tuple[Source, ...] = ()
    """The sources that left in it: they said goodbye, or were given up after ``gone_seconds``."""

    @property
    def seconds(self) -> float:
        """The wall clock that it covers."""
        return self.end - self.start


class Exporter(Protocol):
    """What the collector asks of an exporter. One that raises is counted, and gets the next interval all the same."""

    def export(self, interval: Interval) -> None:
        """Write the interval; it is not to be changed."""

    def close(self) -> None:
        """Finish."""
