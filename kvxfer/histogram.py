"""A base-2 exponential histogram: what a distribution becomes when its values are too many to keep.

Only merging and reading live here; the bucket rule is in `buckets`, bytes are in `packing`. Law: merging is addition,
so any grouping and order of the parts gives the same buckets, counts and extremes (and sums to the last bits).
"""

import math
import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvxfer.buckets import LARGEST, SMALLEST, bucket_indexes, middle

_NO_COUNTS: Final = np.zeros(0, np.int64)
_LARGEST: Final = sys.float_info.max
_NO_OVERFLOW: Final = 2.0**990


class Histogram:
    """Counts of non-negative finite values in the buckets of `kvxfer.buckets`, with exact count, sum, min and max.

    The counts are one dense window that starts at bucket ``offset``: 8 bytes a bucket, 32 buckets an octave, so 10 kB
    for values from a nanosecond to a quarter of an hour and at most 37 kB. ``zeros`` counts what has no bucket.
    """

    __slots__ = ("count", "counts", "max", "min", "offset", "sum", "zeros")

    def __init__(self) -> None:
        """Make an empty histogram."""
        self.count = 0
        self.zeros = 0
        self.offset = 0
        self.counts = _NO_COUNTS
        self.sum = 0.0
        self.min = math.inf
        self.max = -math.inf

    def __repr__(self) -> str:
        """Give the whole state but the single counts."""
        return f"<Histogram count={self.count} zeros={self.zeros} offset={self.offset} buckets={self.counts.size}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both hold the same buckets, counts, extremes and sum."""
        if not isinstance(other, Histogram):
            return NotImplemented
        mine = (self.count, self.zeros, self.offset, self.sum, self.min, self.max)
        theirs = (other.count, other.zeros, other.offset, other.sum, other.min, other.max)
        return mine == theirs and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    def add(self, values: NDArray[np.float64]) -> None:
        """Count each of ``values``: finite, not negative, at least one."""
        largest = float(values.max())
        # No sum of fewer than 2**32 smaller values overflows; of larger ones a float may not hold the sum.
        total = float(values.sum()) if largest < _NO_OVERFLOW else _bounded_sum(values)
        self._note(values.size, total, float(values.min()), largest)
        if self.min < SMALLEST:
            positive = values[values >= SMALLEST]
            self.zeros += values.size - positive.size
            if not positive.size:
                return
            values = positive
        indexes = bucket_indexes(np.minimum(values, LARGEST) if largest > LARGEST else values)
        first = int(indexes.min())
        self._add_window(first, np.bincount(indexes - first))

    def merge(self, other: "Histogram") -> None:
        """Add what the other one holds; it is left as it was."""
        self._note(other.count, other.sum, other.min, other.max)
        self.zeros += other.zeros
        if other.counts.size:
            self._add_window(other.offset, other.counts)

    def _note(self, count: int, total: float, smallest: float, largest: float) -> None:
        self.count += count
        # A sum beyond all floats stays a number, so that it can be sent and read.
        self.sum = bounded(self.sum + total)
        self.min = min(self.min, smallest)
        self.max = max(self.max, largest)

    def _add_window(self, offset: int, counts: NDArray[np.int64]) -> None:
        if not self.counts.size:
            self.offset, self.counts = offset, counts.copy()
            return
        first = min(offset, self.offset)
        end = max(offset + counts.size, self.offset + self.counts.size)
        if end - first > self.counts.size:
            grown = np.zeros(end - first, np.int64)
            grown[self.offset - first :][: self.counts.size] = self.counts
            self.offset, self.counts = first, grown
        self.counts[offset - self.offset :][: counts.size] += counts

    def quantile(self, q: float) -> float:
        """The ``q``-quantile (0 to 1) as numpy's linear percentile defines it, from values known to 1.083 %."""
        rank = q * (self.count - 1)
        below = math.floor(rank)
        cumulative = np.cumsum(self.counts) + self.zeros
        low = self._value_at(below, cumulative)
        high = self._value_at(min(below + 1, self.count - 1), cumulative)
        return low + (high - low) * (rank - below)

    def _value_at(self, rank: int, cumulative: NDArray[np.int64]) -> float:
        # The extremes are known exactly, and no estimate may lie outside of them.
        if rank >= self.count - 1:
            return self.max
        if rank < self.zeros or rank == 0:
            return self.min if rank == 0 else max(0.0, self.min)
        bucket = self.offset + int(np.searchsorted(cumulative, rank, side="right"))
        return min(max(middle(bucket), self.min), self.max)


def bounded(total: float) -> float:
    """A sum, which beyond all floats stays a number: the largest one."""
    return min(total, _LARGEST)


def _bounded_sum(values: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore"):
        return bounded(float(values.sum()))


def histograms_of_rows(table: NDArray[np.float64]) -> list[Histogram] | None:
    """A histogram of each row, in a third of the time of one by one; None unless all values are plain.

    Plain values have a bucket: they are from `SMALLEST` to `LARGEST`.
    """
    smallest, largest = table.min(axis=1), table.max(axis=1)
    if not (smallest.min() >= SMALLEST and largest.max() <= LARGEST):  # not, for NaN
        return None
    indexes = bucket_indexes(table.reshape(-1)).reshape(table.shape)
    first = indexes.min(axis=1)
    indexes -= first[:, None]
    columns = zip(indexes, first.tolist(), table.sum(axis=1).tolist(), smallest.tolist(), largest.tolist(), strict=True)
    return [_folded(*column) for column in columns]


def _folded(indexes: NDArray[np.int64], first: int, total: float, smallest: float, largest: float) -> Histogram:
    histogram = Histogram()
    histogram._note(indexes.size, total, smallest, largest)
    histogram.offset, histogram.counts = first, np.bincount(indexes)
    return histogram
