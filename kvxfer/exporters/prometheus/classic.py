"""Classic buckets: boundaries by unit, and how many values of a histogram lie at or below each.

A value counts as at or below a boundary if it lies in the boundary's own bucket of `kvxfer.buckets`, or below. So a
boundary counts itself, what is above it by up to 2.2 % may be counted too, and a boundary that is a power of two is
exact. No count ever falls: it depends on the histogram alone, never on whether its values are still known.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvxfer.buckets import bucket_indexes
from kvxfer.histogram import Histogram


def _decades(first: int, last: int) -> tuple[float, ...]:
    """1, 2.5 and 5 times each power of ten."""
    steps = [float(f"{step}e{power}") for power in range(first, last) for step in ("1", "2.5", "5")]
    return (*steps, float(f"1e{last}"))


BOUNDARIES: Final[dict[str, tuple[float, ...]]] = {
    "seconds": _decades(-5, 2),
    "bytes": tuple(float(1 << power) for power in range(10, 41, 2)),
    "bytes_per_second": _decades(6, 12),
    "ratio": (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0),
}
"""By the word of the unit: 10 us to 100 s, 1 KiB to 1 TiB, 1 MB/s to 1 TB/s."""

COUNTS: Final = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
"""Of what is counted: 1 to 500,000."""

UNKNOWN: Final = tuple(float(f"1e{power}") for power in range(-6, 13))
"""Of fields whose unit nobody has told."""


def boundaries_of(unit: str, word: str) -> tuple[float, ...]:
    """The boundaries of a declared unit, ``word`` its word."""
    return BOUNDARIES.get(word, COUNTS if unit.startswith("{") else UNKNOWN)


@lru_cache(maxsize=64)
def _indexes(boundaries: tuple[float, ...]) -> NDArray[np.int64]:
    return bucket_indexes(np.array(boundaries, np.float64))


def cumulative(histogram: Histogram, boundaries: tuple[float, ...]) -> list[int]:
    """How many values lie at or below each boundary; all boundaries are from `SMALLEST` to `LARGEST`, rising."""
    below = np.concatenate(([0], np.cumsum(histogram.counts)))
    ends = np.clip(_indexes(boundaries) - histogram.offset + 1, 0, histogram.counts.size)
    counts: list[int] = (below[ends] + histogram.zeros).tolist()
    return counts
