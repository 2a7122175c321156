"""Which report numbers of one source were taken, in memory that does not grow with them."""

from bisect import bisect_right
from typing import Final

MAX_GAPS: Final = 64
"""Gaps that are remembered: a publisher keeps at most so many reports, so none older can still come."""


class SeenSeqs:
    """The numbers taken, as ranges: ``<SeenSeqs 1..56 58..60>``.

    The first number may be above 1: what came before was another collector's.
    """

    __slots__ = ("_ends", "_forgotten", "_starts")

    def __init__(self) -> None:
        """Begin with no number taken."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._forgotten = 0

    def __repr__(self) -> str:
        """Give the ranges."""
        ranges = " ".join(f"{start}..{end}" for start, end in zip(self._starts, self._ends, strict=True))
        return f"<SeenSeqs {ranges or 'none'}>"

    def take(self, seq: int) -> bool:
        """Take a number; False if it was taken before."""
        at = bisect_right(self._starts, seq)
        if at and seq <= self._ends[at - 1]:
            return False
        joins_left = at > 0 and self._ends[at - 1] == seq - 1
        joins_right = at < len(self._starts) and self._starts[at] == seq + 1
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_left:
            self._ends[at - 1] = seq
        elif joins_right:
            self._starts[at] = seq
        else:
            self._starts.insert(at, seq)
            self._ends.insert(at, seq)
        self._forget()
        return True

    def _forget(self) -> None:
        if len(self._starts) > MAX_GAPS:
            self._forgotten += self._starts[1] - self._ends[0] - 1
            del self._starts[1], self._ends[0]

    def missing(self, last: int) -> int:
        """The numbers up to ``last`` that were never taken: from the first taken one on, all where none was."""
        if not self._starts:
            return last
        starts = (*self._starts[1:], last + 1)
        gaps = (min(start, last + 1) - end - 1 for start, end in zip(starts, self._ends, strict=True))
        return self._forgotten + sum(gap for gap in gaps if gap > 0)
