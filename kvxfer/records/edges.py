"""Where a run begins and ends within the intervals of a range. No I/O, no clock."""

from typing import NamedTuple

from kvxfer.records.observed import Observed
from kvxfer.records.times import Range


class Covered(NamedTuple):
    """From ``start`` to ``end`` (Unix seconds) lie ``seconds`` that intervals cover; idle ones count among them."""

    start: float
    end: float
    seconds: float
    num_intervals: int
    num_idle: int


class Edges:
    """Leaves out the warm-up, and idle intervals at an end that has no bound; see `Range`."""

    def __init__(self, wanted: Range) -> None:
        """Begin before the first interval."""
        self._wanted = wanted
        self._begin: float | None = None
        self._num_warm = 0
        self._covered: Covered | None = None
        # Idle ones at the end: they count when another follows, or where the range has a bound there.
        self._open: Covered | None = None

    def take(self, observed: Observed) -> bool:
        """Take the next interval; False where it belongs to the warm-up."""
        if self._begin is None:
            if observed.is_idle and self._wanted.since is None:
                return True
            self._begin = observed.start
        if self._is_warm_up(observed):
            return False
        self._open = _extended(self._open or self._covered, observed)
        if not observed.is_idle:
            self._covered, self._open = self._open, None
        return True

    def _is_warm_up(self, observed: Observed) -> bool:
        seconds, num_intervals = self._wanted.warm_up
        is_early = self._num_warm < num_intervals or observed.start < (self._begin or 0.0) + seconds
        self._num_warm += is_early
        return is_early

    def covered(self) -> Covered:
        """What is left of the range."""
        held = (self._open if self._wanted.until is not None else None) or self._covered
        return held or Covered(0.0, 0.0, 0.0, 0, 0)


def _extended(held: Covered | None, observed: Observed) -> Covered:
    start, seconds, number, idle = (observed.start, 0.0, 0, 0) if held is None else (held.start, *held[2:])
    length = max(0.0, observed.end - observed.start)
    return Covered(start, observed.end, seconds + length, number + 1, idle + observed.is_idle)
