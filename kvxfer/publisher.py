"""`StatsPublisher`: the worker's end. Owns the socket, the clock and the thread around an `Outbox`."""

import contextlib
import logging
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from multiprocessing import util as multiprocessing_util
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from kvxfer.area import SharedPending
from kvxfer.clock import SteadyClock
from kvxfer.config import default_curve, default_endpoint
from kvxfer.copying import copy_of
from kvxfer.delivering import Delivering
from kvxfer.errors import ConfigError, PeerError
from kvxfer.exits import finalizer, watch
from kvxfer.factory import KVConnectorFactory
from kvxfer.outbox import Delivery, Outbox
from kvxfer.reporting import count_publisher
from kvxfer.shared import SharedBuffer
from kvxfer.stats import KVConnectorStats, TransferStats
from kvxfer.takeover import SavedWorker, encode_worker
from kvxfer.transport import PublisherKeys, check_endpoint
from kvxfer.wire import MAX_NAME, Source, decode_source, encode

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("kvxfer")

# How often a flush that waits looks for its acknowledgement, which takes a millisecond without a journal.
_RETRY_SECONDS: Final = 0.005

BUFFERS: Final = ("process", "shared")

FOLD_SECONDS: Final = 0.1
"""How often it is looked whether many rows wait: 200,000 a second then wait as 3 MB, and each fold is short."""


class StatsPublisher:
    """Publishes the stats of one connector from this process.

    ``connector`` is a registered name; ``endpoint`` the collector's, by default `default_endpoint`; ``labels`` say who
    this is (engine, role, rank); ``curve`` is the directory of this worker's keys, by default ``KVXFER_CURVE``, "" for
    none. Record into ``stats``; a thread sends a report every ``flush_seconds`` while there is something to report.
    Nothing here blocks or grows without bound, be there a collector or not, and after the constructor nothing raises
    but ``stats`` of a connector that is not registered. Leaving the context, or the process by any exit that runs
    Python's exit handlers, sends what is left within ``linger`` seconds; what is recorded after that waits for nobody.
    A forked child publishes as a source of its own.

    ``buffer="shared"``: rows and counters are recorded into shared memory (`kvxfer.shared`), and what else is observed
    is there 0.1 s later: a collector on this host takes over what a killed process had not sent. With no place for it
    there is a warning, and all is as with ``"process"``.

    Raises `ConfigError` for unusable labels, keys, name, buffer, seconds, `EndpointError` for an endpoint that is none.
    """

    def __init__(  # noqa: PLR0913 - all but the first are by keyword or have a default
        self,
        connector: str,
        endpoint: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        curve: str | None = None,
        flush_seconds: float = 1.0,
        linger: float = 1.0,
        buffer: str = "process",
    ) -> None:
        """Start publishing; the socket connects in the background."""
        if not 0 < len(connector) <= MAX_NAME:
            message = f"the connector's name has {len(connector)} characters, it may have 1 to {MAX_NAME}"
            raise ConfigError(message)
        if not 0 < flush_seconds < math.inf:
            message = f"flush_seconds must be a number above 0, got {flush_seconds}"
            raise ConfigError(message)
        if buffer not in BUFFERS:
            message = f"expected buffer={'|'.join(BUFFERS)}, got {buffer!r}"
            raise ConfigError(message)
        self.connector = connector
        self.endpoint = endpoint or default_endpoint()
        check_endpoint(self.endpoint)
        directory = default_curve() if curve is None else curve
        self._keys = PublisherKeys.load(directory) if directory else None
        self.labels = _checked_labels(labels or {})
        self._flush_seconds = flush_seconds
        self._linger = linger
        self._is_shared = buffer == "shared"
        self._stats: KVConnectorStats | None = None
        self._warned = False
        self._begin()
        watch(self)  # last, as a fork meanwhile has nothing to renew in half a publisher

    def __repr__(self) -> str:
        """Give connector, endpoint and outbox."""
        return f"<StatsPublisher {self.connector} -> {self.endpoint} {self._outbox}>"

    @property
    def delivery(self) -> Delivery:
        """How far the reports of this process have come."""
        outbox = self._outbox
        return Delivery(outbox.num_reports, outbox.num_resent, outbox.num_unacknowledged, self._delivering.num_refused)

    def _begin(self) -> None:
        """Become a source of this process: an outbox, a socket yet to be made, a thread."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._delivering = Delivering(self.endpoint, self._keys)
        self._clock = SteadyClock()
        now = self._clock.now()
        self.source = Source(uuid.uuid4().hex, platform.node()[:MAX_NAME], self._pid, now, self.labels)
        self._outbox = Outbox(self.source, self.connector, now)
        self._next_flush = time.monotonic() + self._flush_seconds
        self._shared: SharedBuffer | None = None
        self._unsaved = True
        if self._is_shared:
            with self._never_harming():  # where there is no place for it, recording goes on in process memory
                first = encode_worker(SavedWorker(self._outbox.save(), {}))
                self._shared = SharedBuffer(self.endpoint, self.source.id, first)
        count_publisher(1)
        self._finalizer = finalizer(self)
        self._thread = threading.Thread(target=self._run, name="kvxfer-publisher", daemon=True)
        with self._never_harming():  # where no thread can start, what is flushed and closed is sent all the same
            self._thread.start()

    @property
    def stats(self) -> Any:  # noqa: ANN401 - the class of the connector
        """The stats to record into; raises `UnknownConnectorError` for a connector that is not registered."""
        if self._stats is None:
            connector = KVConnectorFactory.get_connector_class_by_name(self.connector)
            with self._lock:  # of several threads that ask at once, all get the same object
                self._stats = self._stats or self._new_stats(connector)
        return self._stats

    def _new_stats(self, connector: Any) -> Any:  # noqa: ANN401 - a connector and the class of its stats
        stats = connector.build_kv_connector_stats()
        if self._is_shared and isinstance(stats, TransferStats):
            stats.wait_in(self._area)
        return stats

    def _area(self, name: str, width: int) -> SharedPending:
        # In a forked child the event is another one.
        pending = SharedPending(name, width, lambda: self._wake.set())  # noqa: PLW0108
        return pending if self._shared is None else self._shared.pending(pending)

    # --- the worker's calls

    def push(self, stats: KVConnectorStats | Mapping[str, Any]) -> None:
        """Add a copy of stats, or of a payload, that somebody else collected; they may be changed afterwards.

        Takes any vLLM-style object. What cannot be read is logged once and counted as cut.
        """
        self._check_pid()
        if self._closing:
            return
        now = self._clock.now()
        try:
            part = copy_of(stats, self.connector)
            if part is not None and not part.is_empty():
                with self._lock:
                    self._observe(part, now)
        except Exception as error:  # noqa: BLE001 - a class of somebody else, or a payload that is none
            self._warn(error)
            with self._lock:
                self._outbox.count_cut(1)
        self._wake.set()

    def flush(self, timeout: float = 0.0) -> bool:
        """Close what was recorded into a report and send it; for a host that has a step of its own.

        Returns whether everything is acknowledged: counted by a collector and, where it has a journal, written down.
        Waits for that at most ``timeout`` seconds; without it there is hardly time for an answer. What is not
        acknowledged is kept and sent until it is.
        """
        self._check_pid()
        return self._outbox.is_idle if self._closing else self._flush_until(time.monotonic() + timeout)

    def _flush_until(self, deadline: float) -> bool:
        with self._never_harming():
            self._flush()
            while not self._exchange() and self._wait(deadline):
                self._flush()  # what there was no room for before
        return self._outbox.is_idle

    def close(self, timeout: float | None = None) -> None:
        """Send what is left and stop, when it is acknowledged or ``timeout`` seconds (by default ``linger``) are over.

        Later calls do nothing.
        """
        if self._pid != os.getpid() or self._closing:
            return
        self._closing = True
        deadline = time.monotonic() + (self._linger if timeout is None else timeout)
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._never_harming():
            self._flush()
        with self._lock:
            self._outbox.part()
        self._flush_until(deadline)
        with self._never_harming(), self._lock:
            self._delivering.close(deadline - time.monotonic())
            shared, self._shared = self._shared, None
            if shared is not None:
                shared.close(keep=not self._outbox.is_idle)
        self._finalizer.cancel()
        count_publisher(-1)

    def __enter__(self) -> "Self":
        """Publish until the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what is left."""
        self.close()

    # --- the thread

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(min(FOLD_SECONDS, self._flush_seconds))
            self._wake.clear()
            if not self._closing:
                with self._never_harming():
                    self._step()

    def _step(self) -> None:
        due = time.monotonic() >= self._next_flush
        if due or self._shared is not None:
            self._take_in(close=due)
        elif isinstance(self._stats, TransferStats):
            self._stats.fold_early()
        self._exchange()

    def _flush(self) -> None:
        self._take_in(close=True)

    def _take_in(self, *, close: bool) -> None:
        """Move what was recorded into the outbox; ``close`` the open interval, if there is room."""
        if self._shared is None:
            drained = self._drain()
            with self._lock:
                self._put(drained, close=close)
            return
        with self._lock:  # what is saved says how much of the areas is in it: nobody else drains in between
            self._shared.stop_crowded()
            with self._stats.exclusively() if isinstance(self._stats, TransferStats) else contextlib.nullcontext():
                drained = self._drain()
                floors = self._shared.floors
            self._put(drained, close=close)
            self._save(self._shared, floors)

    def _put(self, drained: KVConnectorStats | None, *, close: bool) -> None:
        now = self._clock.now()
        if drained is not None and not drained.is_empty():
            self._observe(drained, now)
        if isinstance(self._stats, TransferStats):
            self._outbox.count_cut(self._stats.drain_cut())
        if close:
            self._unsaved |= self._outbox.flush(now)
            self._next_flush = time.monotonic() + self._flush_seconds

    def _save(self, shared: SharedBuffer, floors: dict[str, int]) -> None:
        """Save what is held, before anything of it is sent; what does not fit is in process memory alone."""
        if self._unsaved:
            whole = encode_worker(SavedWorker(self._outbox.save(), floors))
            if shared.save(whole) or shared.save(encode_worker(SavedWorker(self._outbox.save(brief=True), floors))):
                shared.resume()
                self._unsaved = False

    def _observe(self, stats: KVConnectorStats, now: float) -> None:
        self._unsaved = True
        try:
            self._outbox.observe(stats, now)
        except Exception as error:  # noqa: BLE001 - a class of somebody else that cannot merge
            self._warn(error)
            self._outbox.count_cut(1)

    def _drain(self) -> KVConnectorStats | None:
        stats = self._stats
        if isinstance(stats, TransferStats):
            return stats.drain(for_report=True)
        if stats is None or stats.is_empty():
            return None
        # Stats that cannot be drained in one step: what another thread records in between is theirs to guard.
        part = copy_of(stats, self.connector)
        stats.reset()
        return part

    def _exchange(self) -> bool:
        """Hear what is acknowledged, hand over what the socket takes now; whether nothing is left to do."""
        with self._lock:
            self._delivering.exchange({self.source.id: self._outbox}, self._clock.now())
            return self._outbox.has_parted if self._closing else self._outbox.is_idle

    def _wait(self, deadline: float) -> bool:
        """Wait a moment for an answer, the lock free meanwhile; False when time is up."""
        left = deadline - time.monotonic()
        if left > 0:
            time.sleep(min(left, _RETRY_SECONDS))
        return left > 0

    @contextlib.contextmanager
    def _never_harming(self) -> Iterator[None]:
        """Telemetry that fails is logged once; the host goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("kvxfer cannot publish stats of %s: %r; this is said once", self.connector, error)

    # --- fork

    def _check_pid(self) -> None:
        # For a fork that ran no hooks of Python's; with hooks this is done already.
        if self._pid != os.getpid():
            self._after_fork()

    def _after_fork(self) -> None:
        """In a child: leave the parent's socket and observations alone and begin as a source of its own.

        One that was closed, or was about to be, stays closed, without the locks that a thread of the parent held.
        """
        abandoned = [] if self._shared is None else self._shared.abandon()
        with self._never_harming():
            if self._stats is not None:
                self._stats.renew()
        self._delivering.abandon()
        if self._closing:
            self._pid, self._lock = os.getpid(), threading.Lock()
            return
        self._begin()
        if self._shared is not None:
            for pending in abandoned:
                self._shared.pending(pending)
        # multiprocessing clears its finalizers in a forked child, after this.
        multiprocessing_util.register_after_fork(self, StatsPublisher._finalize_again)

    def _finalize_again(self) -> None:
        self._finalizer = finalizer(self)


def _checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    checked = {str(name): str(value) for name, value in labels.items()}
    try:
        return decode_source(encode(Source("id", "", 0, 0.0, checked))).labels
    except PeerError as error:
        message = f"a publisher has at most 16 labels of at most 200 characters: {error}"
        raise ConfigError(message) from error
