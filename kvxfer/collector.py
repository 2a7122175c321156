"""`Collector`: the receiving end. Owns the socket, the clock and, on request, a thread around an `Aggregator`."""

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from itertools import compress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final

import msgspec

from kvxfer.clock import SteadyClock
from kvxfer.commits import Commits
from kvxfer.config import CollectorConfig, default_endpoint, private_endpoint
from kvxfer.delivering import Delivering
from kvxfer.errors import ConfigError, EndpointError, KVXferError
from kvxfer.exporting import Exporting, Health
from kvxfer.interval import Exporter, Interval, Pipeline
from kvxfer.left import LeftFiles
from kvxfer.transport import CollectorKeys, CollectorSockets, PublisherKeys, check_endpoint, check_exposure
from kvxfer.wire import VERSION, Ack, encode_ack

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("kvxfer")

# How soon a stop is seen; what arrives wakes the poll at once.
_POLL_SECONDS: Final = 0.1
# A last look for frames that are on their way: workers that closed before us had theirs delivered within this.
_SETTLE_SECONDS: Final = 0.05
# What is written of a closed interval between two receives.
_STEP_SECONDS: Final = 0.01
# How soon what a killed worker has left in shared memory is found.
_LOOK_SECONDS: Final = 1.0
# The last acknowledgements leave within this; who does not hear them sends again to the next collector.
_ACK_SECONDS: Final = 0.5
# Workers that go on sending do not keep a collector from stopping.
_LAST_SECONDS: Final = 2.0
# Nor does an exporter whose peer does not answer.
_EXPORT_SECONDS: Final = 5.0
# Nor a collector above: what it has not acknowledged is in the journal, and sent by the next start.
_RELAY_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 0.01


class Collector:
    """Receives reports at an endpoint, and hands an `Interval` to its exporters every ``interval_seconds``.

    One of: `run` in the foreground, `start` and `stop` on a thread, or `poll` within somebody's loop; `snapshot` at any
    time, from any thread. It binds when it is made, and raises `EndpointError` where it cannot, `JournalError` where
    another collector has its journal, `ConfigError` where the journal was grouped by other labels, the keys cannot be
    used, or the endpoint reaches beyond this host without them.
    """

    def __init__(self, config: CollectorConfig | None = None, exporters: Sequence[Exporter] = ()) -> None:
        """Bind the endpoint."""
        self.config = config or CollectorConfig()
        endpoint = self.config.endpoint or default_endpoint()
        keys = CollectorKeys(self.config.curve) if self.config.curve else None
        self._upstream = _upstream(self.config, endpoint)
        if keys is None and not self.config.insecure:
            check_exposure(endpoint)
        self.id = uuid.uuid4().hex
        """New with each start: publishers send to a collector that they did not know what none has acknowledged."""
        self._clock = SteadyClock()
        self._lock = threading.Lock()
        # The endpoint first: that it is taken says more than that the journal is, which belongs to it.
        self._sockets = CollectorSockets(endpoint, keys, private=endpoint == private_endpoint())
        try:
            self._commits = Commits(self.config, self._lock, self._clock.now())
        except KVXferError:
            self._sockets.close()
            raise
        self._aggregator = self._commits.aggregator
        self.endpoint = self._sockets.endpoint
        self._left = LeftFiles(self.endpoint)
        self._next_look = self._clock.now()
        self._exporters = [Exporting(exporter) for exporter in exporters]
        self._unexported: list[Interval] = []
        self._stopping = False
        self._closed = False
        self._warned_of_upstream = False
        self._pid = os.getpid()
        self._looping = False
        self._is_adding = False
        self._finished = threading.Event()
        self._last_poll = time.monotonic()
        self._num_closed, self._closing_seconds = 0, 0.0

    def __repr__(self) -> str:
        """Give endpoint and counts."""
        return f"<Collector {self.endpoint} {self._aggregator}>"

    def add_exporter(self, exporter: Exporter) -> None:
        """Give an exporter each interval that closes from now on, as those that it was made with."""
        self._exporters = [*self._exporters, Exporting(exporter)]

    def remove_exporter(self, exporter: Exporter) -> None:
        """Give an exporter no more intervals; it is closed when it has finished those that it has."""
        removed = [each for each in self._exporters if each.is_of(exporter)]
        # A new list, as the loop's thread may be going through the one before.
        self._exporters = [each for each in self._exporters if each not in removed]
        for each in removed:
            each.end()

    def move_upstream(self, endpoint: str) -> None:
        """Tell the collector above at another endpoint from now on, for who finds it by its name.

        Where there is one; it is to be the same, or another with its journal. Raises `EndpointError` for none.
        """
        check_endpoint(endpoint)
        if self._upstream is not None:
            self._upstream.move_to(endpoint)

    # --- three ways to run

    def run(self) -> None:
        """Collect until SIGINT or SIGTERM (or `stop` from another thread); then finish the interval, export, return."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stopping = True

    def start(self) -> "Self":
        """Collect on a thread of this process."""
        self._looping = True
        threading.Thread(target=self._loop, name="kvxfer-collector", daemon=True).start()
        return self

    def stop(self) -> None:
        """Take what has arrived, finish the interval, export, close. Later calls do nothing.

        An exporter that has not finished 5 s later is left alone.
        """
        if self._pid != os.getpid():  # in a forked child: the collector is the parent's
            return
        self._stopping = True
        if self._looping:  # the loop's thread owns the socket: it finishes
            self._finished.wait()
        elif not self._closed:
            self._finish()

    def __enter__(self) -> "Self":
        """Collect on a thread until the end of the block."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def poll(self, timeout: float = 0.0) -> list[Interval]:
        """Take what arrives within ``timeout`` seconds; give the interval that is due, if one is, to the exporters.

        Each of them has a thread of its own.
        """
        self._take(self._sockets.drain(max(0.0, min(timeout, self._seconds_left()))))
        now = self._clock.now()
        self._last_poll = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._take_over(now)
        if now >= self._aggregator.due:
            self._commits.finish()
        with self._lock:
            began = time.monotonic()
            intervals = self._aggregator.tick(now)
            closed = time.monotonic()
            self._is_adding = self._aggregator.step()
        if intervals:
            self._num_closed += 1
            self._closing_seconds += closed - began
        for interval in intervals:
            self._commits.close_interval(self._whole(interval), now)
        was_writing = self._commits.is_writing
        self._commits.step(_STEP_SECONDS)
        if not self._commits.is_writing and (was_writing or not self._commits.seconds_left(now)):
            self._commit(now)
        self._relay(now)
        self._unexported += intervals
        if not self._commits.is_writing:  # then exporters need not add up again what has been for the journal
            self._export()
        return intervals

    def _seconds_left(self) -> float:
        if self._commits.is_writing or self._is_adding:
            return 0.0
        now = self._clock.now()
        return min(self._aggregator.due - now, self._commits.seconds_left(now) or _POLL_SECONDS)

    def _commit(self, now: float) -> None:
        """Make durable what was taken, then acknowledge it."""
        self._commits.commit(now)
        for source_id, seq in self._aggregator.sources.drain_acks():
            self._sockets.acknowledge(encode_ack(source_id, Ack(VERSION, self.id, seq)))
        self._left.remove_taken()

    def _relay(self, now: float) -> None:
        """Tell the collector above what is committed, where there is one, and hear what it has."""
        relay = self._commits.relay
        if relay is None or self._upstream is None:
            return
        try:
            if self._commits.may_relay:
                self._upstream.exchange(relay.outboxes, now)
            else:
                self._upstream.hear(relay.outboxes, now)
        except EndpointError as error:
            if not self._warned_of_upstream:
                self._warned_of_upstream = True
                logger.error("nothing is told to the collector above: %s; this is said once", error)  # noqa: TRY400 - it says all

    def _loop(self) -> None:
        self._looping = True
        try:
            while not self._stopping:
                self.poll(_POLL_SECONDS)
        finally:
            try:
                self._finish()
            finally:
                self._finished.set()

    def _finish(self) -> None:
        self._closed = True
        try:
            self._take_the_rest()
            self._take_over(self._clock.now())
            now = self._clock.now()
            self._commits.finish()
            with self._lock:
                interval = self._aggregator.close_interval(now)
            self._commits.close_interval(self._whole(interval), now)
            self._commits.finish()
            self._commit(now)
            self._unexported.append(interval)
            self._export()
            self._relay_the_rest()
        finally:
            self._commits.close()
            self._sockets.close(_ACK_SECONDS)
            if self._upstream is not None:
                self._upstream.close(_ACK_SECONDS)
            for exporter in self._exporters:
                exporter.end()
            deadline = time.monotonic() + _EXPORT_SECONDS
            for exporter in self._exporters:
                exporter.join(deadline)

    def _relay_the_rest(self) -> None:
        relay, deadline = self._commits.relay, time.monotonic() + _RELAY_SECONDS
        if relay is not None:
            relay.part()
            self._relay(self._clock.now())
            while not relay.has_parted and time.monotonic() < deadline:
                time.sleep(_RETRY_SECONDS)
                self._relay(self._clock.now())

    def _take_the_rest(self) -> None:
        deadline = time.monotonic() + _LAST_SECONDS
        while (frames := self._sockets.drain(_SETTLE_SECONDS)) and time.monotonic() < deadline:
            self._take(frames)
        self._take(frames)

    # --- in and out

    def _take(self, frames: list[bytes]) -> None:
        now = self._clock.now()
        with self._lock:
            taken = list(compress(frames, self._aggregator.feed_all(frames, now)))
            for subscription in self._sockets.subscriptions():
                self._aggregator.subscribed(subscription)
        self._commits.note(taken, now)

    def _take_over(self, now: float) -> None:
        """Take what dead workers of this host have left in shared memory, as if they had sent it."""
        for found in self._left.look(now):
            before = self._aggregator.num_rejected
            if isinstance(found, KVXferError):
                self._aggregator.reject(found)
            else:
                self._take(found)
                if self._aggregator.num_rejected > before:
                    self._left.keep_last()

    def _export(self) -> None:
        for interval in map(self._whole, self._unexported):
            for exporter in self._exporters:
                exporter.export(interval)
        self._unexported = []

    def _completed(self, pipeline: Pipeline) -> Pipeline:
        return msgspec.structs.replace(
            pipeline,
            exports_failed=sum(exporter.failed for exporter in self._exporters),
            commits_failed=self._commits.failed,
            connections_refused=dict(self._sockets.refused),
            relay_unacknowledged=self._commits.relay.num_unacknowledged if self._commits.relay is not None else 0,
        )

    def _whole(self, interval: Interval) -> Interval:
        """The interval with what this side of the aggregator counts."""
        return msgspec.structs.replace(interval, pipeline=self._completed(interval.pipeline))

    def pipeline(self) -> Pipeline:
        """What the pipeline has counted of itself so far; cheaper than a whole snapshot."""
        with self._lock:
            return self._completed(self._aggregator.pipeline(self._clock.now()))

    def snapshot(self, *, sources: bool = True) -> Interval:
        """All that was taken since this collector, or the first of its journal, started, as an interval of copies.

        ``sources``: those of each source by itself too, which are nearly all of its cost where there are many.
        """
        with self._lock:
            snapshot = self._aggregator.snapshot(self._clock.now(), sources=sources)
        return self._whole(snapshot)

    def health(self) -> Health:
        """How this process does, from any thread."""
        return Health(
            loop_age_seconds=time.monotonic() - self._last_poll,
            is_journal_behind=self.config.journal is not None and not self._commits.is_durable,
            intervals_closed=self._num_closed,
            closing_seconds=self._closing_seconds,
            exporters=tuple(exporter.health() for exporter in self._exporters),
        )


def _upstream(config: CollectorConfig, endpoint: str) -> Delivering | None:
    """What leads to the collector above; raises `ConfigError` for one that is this one, or keys that are none."""
    if config.upstream is None:
        return None
    check_endpoint(config.upstream)
    if config.upstream == endpoint:
        message = f"{endpoint} is this collector's own endpoint: name that of the one above"
        raise ConfigError(message)
    return Delivering(config.upstream, PublisherKeys.load(config.upstream_curve) if config.upstream_curve else None)
