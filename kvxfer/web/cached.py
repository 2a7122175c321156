"""What is costly to make, made once for all who ask at about the same time."""

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MIN_SECONDS: Final = 1.0
"""For so long at least what was made is given again."""

MAX_SECONDS: Final = 30.0
SHARE: Final = 0.005
"""Of one CPU that making takes at most, however often one asks: what costs more is kept for longer, up to
`MAX_SECONDS`. The interpreter runs one thread at a time, so that is what collecting loses."""


class Cached(Generic[T]):
    """Makes a value when it is asked for, and gives it again for a while; what making raises is not kept."""

    def __init__(self, make: Callable[[], T], now: Callable[[], float] = time.monotonic) -> None:
        """Make nothing yet."""
        self._make = make
        self._now = now
        self._lock = threading.Lock()
        self._held: T | None = None
        self._until = float("-inf")
        self.num_made = 0
        self.cpu_seconds = 0.0
        """What making took so far."""

    def get(self) -> T:
        """The value; who asks while it is made waits for it."""
        with self._lock:
            if self._held is None or self._now() >= self._until:
                self._remake()
            if self._held is None:
                raise RuntimeError
            return self._held

    def let_go(self) -> None:
        """Keep nothing of what would be made again anyway; to be called now and then."""
        if self._lock.acquire(blocking=False):  # it is being made otherwise
            try:
                if self._now() >= self._until:
                    self._held = None
            finally:
                self._lock.release()

    def _remake(self) -> None:
        began = time.thread_time()
        self._held = self._make()
        took = time.thread_time() - began
        self.num_made += 1
        self.cpu_seconds += took
        self._until = self._now() + min(max(MIN_SECONDS, took / SHARE), MAX_SECONDS)
