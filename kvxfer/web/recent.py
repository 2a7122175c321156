"""The intervals that closed last, for who cannot ask a journal: an exporter that keeps them in memory."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kvxfer.interval import Interval
from kvxfer.saved import at_once, encoding_interval

MAX_BYTES: Final = 16 << 20
"""Of closed intervals, without their sources: some hours of a few groups."""


class _Kept(NamedTuple):
    end: float
    saved: bytes


class Recent:
    """Keeps the last interval, and with ``history`` those before it, up to `MAX_BYTES`, without their sources."""

    def __init__(self, *, history: bool, then: Callable[[], None] = lambda: None) -> None:
        """Keep nothing yet; ``then`` is called after each interval."""
        self.last: Interval | None = None
        """The interval that closed last."""
        self._keeps = history
        self._then = then
        self._kept: deque[_Kept] = deque()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Give how much is kept."""
        return f"<Recent intervals={len(self._kept)} bytes={self._num_bytes}>"

    def export(self, interval: Interval) -> None:
        """Keep the interval."""
        self.last = interval
        if self._keeps:
            self._keep(interval)
        self._then()

    def _keep(self, interval: Interval) -> None:
        bare = Interval(interval.start, interval.end, interval.groups, (), interval.pipeline, interval.silent)
        saved = at_once(encoding_interval(bare))
        with self._lock:
            self._kept.append(_Kept(interval.end, saved))
            self._num_bytes += len(saved)
            while self._num_bytes > MAX_BYTES:
                self._num_bytes -= len(self._kept.popleft().saved)

    def close(self) -> None:
        """Do nothing: what is kept can be asked for until the process ends."""

    def newest(self, start: float, end: float) -> Iterator[bytes]:
        """The intervals that ended after ``start`` and until ``end``, newest first, encoded."""
        with self._lock:
            kept = list(self._kept)
        return (each.saved for each in reversed(kept) if start < each.end <= end)
