"""`Collector`: the receiving end. Owns the socket, the clock and, on request, a thread around an `Aggregator`."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final

import msgspec

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig, default_endpoint, private_endpoint
from kvxfer.interval import Exporter, Interval, Pipeline
from kvxfer.transport import PullSocket

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("kvxfer")

# How soon a stop is seen; what arrives wakes the poll at once.
_POLL_SECONDS: Final = 0.1
# A last look for frames that are on their way: workers that closed before us had theirs delivered within this.
_SETTLE_SECONDS: Final = 0.05
# Workers that go on sending do not keep a collector from stopping.
_LAST_SECONDS: Final = 2.0


class Collector:
    """Receives reports at an endpoint, and hands an `Interval` to its exporters every ``interval_seconds``.

    One of: `run` in the foreground, `start` and `stop` on a thread, or `poll` within somebody's loop; `snapshot` at any
    time, from any thread. It binds when it is made and raises `EndpointError` where it cannot.
    """

    def __init__(self, config: CollectorConfig | None = None, exporters: Sequence[Exporter] = ()) -> None:
        """Bind the endpoint."""
        self.config = config or CollectorConfig()
        endpoint = self.config.endpoint or default_endpoint()
        self._socket = PullSocket(endpoint, private=endpoint == private_endpoint())
        self.endpoint = self._socket.endpoint
        self._exporters = tuple(exporters)
        self._clock = _SteadyClock()
        self._aggregator = Aggregator(self.config, self._clock.now())
        self._lock = threading.Lock()
        self._exports_failed = 0
        self._warned: set[int] = set()
        self._stopping = False
        self._closed = False
        self._pid = os.getpid()
        self._looping = False
        self._finished = threading.Event()

    def __repr__(self) -> str:
        """Give endpoint and counts."""
        return f"<Collector {self.endpoint} {self._aggregator}>"

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
        """Take what has arrived, finish the interval, export, close. Later calls do nothing."""
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
        """Take what arrives within ``timeout`` seconds, and export the interval that is due, if one is."""
        left = self._aggregator.due - self._clock.now()
        frames = self._socket.drain(max(0.0, min(timeout, left)))
        self._feed(frames)
        with self._lock:
            intervals = self._aggregator.tick(self._clock.now())
        for interval in intervals:
            self._export(interval)
        return intervals

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
            with self._lock:
                interval = self._aggregator.close_interval(self._clock.now())
            self._export(interval)
        finally:
            for exporter in self._exporters:
                self._guarded(exporter, exporter.close)
            self._socket.close()

    def _take_the_rest(self) -> None:
        deadline = time.monotonic() + _LAST_SECONDS
        while (frames := self._socket.drain(_SETTLE_SECONDS)) and time.monotonic() < deadline:
            self._feed(frames)
        self._feed(frames)

    # --- in and out

    def _feed(self, frames: list[bytes]) -> None:
        now = self._clock.now()
        with self._lock:
            for frame in frames:
                self._aggregator.feed(frame, now)

    def _export(self, interval: Interval) -> None:
        interval = msgspec.structs.replace(interval, pipeline=self._with_exports(interval.pipeline))
        for exporter in self._exporters:
            self._guarded(exporter, partial(exporter.export, interval))

    def _guarded(self, exporter: Exporter, call: Callable[[], object]) -> None:
        """One exporter that fails costs the others nothing; it is logged once and counted each time."""
        try:
            call()
        except Exception:
            self._exports_failed += 1
            if id(exporter) not in self._warned:
                self._warned.add(id(exporter))
                logger.exception("%s failed; later failures are only counted", type(exporter).__name__)

    def _with_exports(self, pipeline: Pipeline) -> Pipeline:
        return msgspec.structs.replace(pipeline, exports_failed=self._exports_failed)

    def snapshot(self) -> Interval:
        """All that was taken since this collector started, as one interval; its stats are copies."""
        with self._lock:
            snapshot = self._aggregator.snapshot(self._clock.now())
        return msgspec.structs.replace(snapshot, pipeline=self._with_exports(snapshot.pipeline))


class _SteadyClock:
    """Unix seconds that a change of the system's clock does not move."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset
