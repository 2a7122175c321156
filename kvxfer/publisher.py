"""`StatsPublisher`: the worker's end. Owns the thread, which alone drains, sends and hears (`draining`)."""

import contextlib
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from multiprocessing import util as multiprocessing_util
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from kvxfer.area import SharedPending
from kvxfer.config import default_curve, default_endpoint
from kvxfer.contract import KVConnectorStats
from kvxfer.copying import copy_of
from kvxfer.delivering import Delivering
from kvxfer.draining import RETRY_SECONDS, Draining, Harmless
from kvxfer.errors import ConfigError, PeerError
from kvxfer.exits import finalizer, watch
from kvxfer.factory import KVConnectorFactory
from kvxfer.outbox import Delivery
from kvxfer.reporting import publishes
from kvxfer.stats import TransferStats
from kvxfer.transport import PublisherKeys, check_endpoint
from kvxfer.wire import MAX_NAME, Source, decode_source, encode

if TYPE_CHECKING:
    from typing_extensions import Self

BUFFERS: Final = ("process", "shared")

STEP_SECONDS: Final = 1.0
"""How long who asks waits at most for the thread, which a host may starve: a step of it takes milliseconds."""

FOLD_SECONDS: Final = 0.1
"""How often it is looked whether many rows wait: 200,000 a second then wait as 3 MB, and each fold is short."""


class StatsPublisher:
    """Publishes the stats of one connector from this process.

    ``connector`` is a registered name; ``endpoint`` the collector's, by default `default_endpoint`; ``labels`` say who
    this is (engine, role, rank); ``curve`` is the directory of this worker's keys, by default ``KVXFER_CURVE``, "" for
    none. Record into ``stats``; a thread sends a report every ``flush_seconds`` while there is something to report.
    Recording never blocks and nothing grows without bound, be there a collector or not; after the constructor nothing
    raises but ``stats`` of a connector that is not registered. Leaving the context, or the process by any exit that
    runs Python's exit handlers, sends what is left within ``linger`` seconds; what is recorded after that is dropped. A
    forked child publishes as a source of its own.

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
        self._stats: dict[str, KVConnectorStats] = {}
        self._harmless = Harmless(connector)
        self._begin()
        watch(self)  # last, as a fork meanwhile has nothing to renew in half a publisher

    def __repr__(self) -> str:
        """Give connector, endpoint and outbox."""
        return f"<StatsPublisher {self.connector} -> {self.endpoint} {self._draining.outbox}>"

    @property
    def delivery(self) -> Delivery:
        """How far the reports of this process have come."""
        outbox = self._draining.outbox
        return Delivery(outbox.num_reports, outbox.num_resent, outbox.num_unacknowledged, self._draining.num_refused)

    def _begin(self) -> None:
        """Become a source of this process: an outbox, a socket yet to be made, a thread."""
        self._pid = os.getpid()
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        self._alone = threading.Lock()
        self._is_closing = False
        self._end_by = math.inf
        self.source = Source(uuid.uuid4().hex, platform.node()[:MAX_NAME], self._pid, time.time(), self.labels)
        delivering = Delivering(self.endpoint, self._keys)
        self._draining = Draining(self.source, self.connector, self._stats, delivering, self._harmless)
        self._draining.flush_seconds = self._flush_seconds
        if self._is_shared:
            with self._harmless.guard():  # where there is no place for it, recording goes on in process memory
                self._draining.share(self.endpoint)
        publishes(self.source.id, is_so=True)
        self._finalizer = finalizer()
        self._thread = threading.Thread(target=self._run, name="kvxfer-publisher", daemon=True)
        with self._harmless.guard():  # where no thread can start, what is flushed and closed is sent all the same
            self._thread.start()

    @property
    def stats(self) -> Any:  # noqa: ANN401 - the class of the connector
        """The stats to record into; raises `UnknownConnectorError` for a connector that is not registered."""
        if not self._stats:
            connector = KVConnectorFactory.get_connector_class_by_name(self.connector)
            # Of several that ask at once, a signal handler among them, all get the same object.
            self._stats.setdefault(self.connector, self._new_stats(connector))
        return self._stats[self.connector]

    def _new_stats(self, connector: Any) -> Any:  # noqa: ANN401 - a connector and the class of its stats
        stats = connector.build_kv_connector_stats()
        if isinstance(stats, TransferStats):
            stats.fold_by(self._fold)
            if self._is_shared:
                stats.wait_in(self._area)
        return stats

    def _fold(self) -> bool:
        """Let the thread fold, for who reads the stats on the main one; whether it did. Others fold for themselves."""
        if self._is_closing or threading.current_thread() is not threading.main_thread():
            return False
        return self._thread.is_alive() and self._answered(_Asked(is_for_all=False), STEP_SECONDS)

    def _area(self, name: str, width: int) -> SharedPending:
        pending, shared = SharedPending(name, width, self._nudge), self._draining.shared
        return pending if shared is None else shared.pending(pending)

    def _nudge(self) -> None:
        """Let the thread look at once."""
        if self._asked.empty():
            self._asked.put(None)

    # --- the worker's calls

    def push(self, stats: KVConnectorStats | Mapping[str, Any]) -> None:
        """Add a copy of stats, or of a payload, that somebody else collected; they may be changed afterwards.

        Takes any vLLM-style object. What cannot be read is logged once and counted as cut. Never waits: of what is
        pushed faster than the thread takes, parts are merged before it does (`pushed`).
        """
        self._check_pid()
        if self._is_closing:
            return
        try:
            part = copy_of(stats, self.connector)
            if part is not None and not part.is_empty():
                self._draining.pushed.put(part)
        except Exception as error:  # noqa: BLE001 - a class of somebody else, or a payload that is none
            self._harmless.warn(error)
            self.count_cut(1)
        self._nudge()

    def count_cut(self, number: int) -> None:
        """Count observations that could not be pushed; the next report tells. Raises nothing."""
        self._draining.pushed.count_cut(number)

    def flush(self, timeout: float = 0.0) -> bool:
        """Close what was recorded into a report and send it; for a host that has a step of its own.

        Returns whether everything is acknowledged: counted by a collector and, where it has a journal, written down.
        Waits for that at most ``timeout`` seconds; without it there is hardly time for an answer. Where a host starves
        the thread that does it, it waits up to `STEP_SECONDS` for that. What is not acknowledged is kept and sent until
        it is.
        """
        self._check_pid()
        deadline = time.monotonic() + timeout
        while not (is_done := self._ask(deadline)) and not self._is_closing and time.monotonic() < deadline:
            time.sleep(min(RETRY_SECONDS, max(0.0, deadline - time.monotonic())))
        return is_done

    def _ask(self, deadline: float) -> bool:
        """Let the thread do all there is to do, wait until it has; whether everything is acknowledged then.

        An exception that a signal handler raises meanwhile breaks off nothing but the wait, and a handler may call
        this itself: a `SimpleQueue` may be put into from within its own ``put`` and ``get``.
        """
        if self._is_closing:
            return self._draining.has_ended and self._draining.outbox.is_idle
        if not self._thread.is_alive():
            return self._do_alone(lambda: self._draining.step(close=True, note=False))
        waits = time.monotonic() < deadline
        return self._answered(_Asked(waits=waits), max(STEP_SECONDS, deadline - time.monotonic()))

    def _answered(self, asked: "_Asked", timeout: float) -> bool:
        self._asked.put(asked)
        with contextlib.suppress(Empty):
            return asked.answer.get(timeout=timeout)
        return False

    def move_to(self, endpoint: str) -> None:
        """Deliver to another endpoint from now on, also what is not acknowledged; source and numbers go on.

        For who finds a collector by its name: it is to be the same one, or another with its journal, which knows what
        it has of this source. Raises `EndpointError` for an endpoint that is none, `ConfigError` with
        ``buffer="shared"``, which a collector finds by the endpoint that it was made for.
        """
        check_endpoint(endpoint)
        if self._is_shared:
            message = "a publisher with buffer='shared' stays at its endpoint: use buffer='process', or make another"
            raise ConfigError(message)
        self.endpoint = endpoint
        self._draining.move_to(endpoint)
        self._nudge()

    def close(self, timeout: float | None = None) -> None:
        """Send what is left and stop, when it is acknowledged or ``timeout`` seconds (by default ``linger``) are over.

        Later calls wait for that too, and do nothing else. What is recorded afterwards is dropped.
        """
        if self._pid != os.getpid():
            return
        linger = self._linger if timeout is None else timeout
        self.ask_to_close(linger)
        if self._thread.is_alive():
            self._thread.join(max(0.0, linger) + STEP_SECONDS)
        elif not self._draining.has_ended:
            self._do_alone(self._end)

    def ask_to_close(self, linger: float | None = None) -> None:
        """Begin to close; `close` waits for it."""
        if self._pid == os.getpid() and not self._is_closing:
            self._end_by = time.monotonic() + (self._linger if linger is None else linger)
            self._is_closing = True
            self._asked.put(None)

    def _do_alone(self, what: Callable[[], bool]) -> bool:
        """Do what the thread would, where there is none."""
        if not self._alone.acquire(timeout=STEP_SECONDS):
            return False
        try:
            return what()
        finally:
            self._alone.release()

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
        while not self._is_closing:
            asked = self._next_asked(min(FOLD_SECONDS, self._flush_seconds))
            for reader in [each for each in asked if not each.is_for_all]:
                self._draining.fold()
                reader.answer.put(True)
            waiting = [each for each in asked if each.is_for_all]
            is_done = self._draining.step(close=bool(waiting), note=not any(each.waits for each in waiting))
            for each in waiting:
                each.answer.put(is_done)
        self._end()

    def _next_asked(self, seconds: float) -> "list[_Asked]":
        """What is asked for; after a nudge, or ``seconds``, there may be nothing."""
        asked: list[_Asked | None] = []
        with contextlib.suppress(Empty):
            asked.append(self._asked.get(timeout=seconds))
            while True:
                asked.append(self._asked.get_nowait())
        return [each for each in asked if each is not None]

    def _end(self) -> bool:
        self._draining.end(self._end_by)
        self._finalizer.cancel()
        publishes(self.source.id, is_so=False)
        is_done = self._draining.outbox.is_idle
        for each in self._next_asked(0.0):
            each.answer.put(is_done)
        return is_done

    # --- fork

    def _check_pid(self) -> None:
        # For a fork that ran no hooks of Python's; with hooks this is done already.
        if self._pid != os.getpid():
            self._after_fork()

    def _after_fork(self) -> None:
        """In a child: leave the parent's socket and observations alone and begin as a source of its own.

        One that was closed, or was about to be, stays closed, without the locks that a thread of the parent held.
        """
        left = self._draining
        abandoned = [] if left.shared is None else left.shared.abandon()
        with self._harmless.guard():
            for stats in self._stats.values():
                stats.renew()
        left.abandon()
        if self._is_closing:
            left.stop_recording()
            left.has_ended = True
            self._pid, self._alone = os.getpid(), threading.Lock()
            return
        self._begin()
        if self._draining.shared is not None:
            for pending in abandoned:
                self._draining.shared.pending(pending)
        # multiprocessing clears its finalizers in a forked child, after this.
        multiprocessing_util.register_after_fork(self, StatsPublisher._finalize_again)

    def _finalize_again(self) -> None:
        self._finalizer = finalizer()


class _Asked:
    """What is asked of the thread: to flush all, or only to fold what waits; ``waits``: until nothing is left."""

    def __init__(self, *, is_for_all: bool = True, waits: bool = False) -> None:
        self.is_for_all = is_for_all
        self.waits = waits
        self.answer: SimpleQueue[bool] = SimpleQueue()


def _checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    checked = {str(name): str(value) for name, value in labels.items()}
    try:
        return decode_source(encode(Source("id", "", 0, 0.0, checked))).labels
    except PeerError as error:
        message = f"a publisher has at most 16 labels of at most 200 characters: {error}"
        raise ConfigError(message) from error
