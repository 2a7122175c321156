"""The packed bytes of a distribution: what travels in a report.

Little-endian, one byte string a field. It only grows: a new form takes a new value of the first byte.

====  =======================================================================================================
byte  meaning
====  =======================================================================================================
0     form: 0 exact, 1 histogram; plus 128 where all values are whole numbers
1...  exact: the values, float64
1     histogram: size of a count (1, 2, 4, 8) plus 16 times the size of a gap (0 where the counts are dense)
2     count of the zero bucket (uint64), sum, min, max (float64), index of the first bucket (int32)
38    dense: the counts of consecutive buckets. Sparse: the gaps to the bucket before (the first is 0), then the
      counts of those buckets
====  =======================================================================================================
"""

import math
import sys
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvxfer.buckets import HIGHEST_INDEX, LOWEST_INDEX
from kvxfer.errors import ImplausibleError
from kvxfer.histogram import Histogram

EXACT: Final = 0
HISTOGRAM: Final = 1
WHOLE: Final = 128

_HEADER: Final = Struct("<BBQdddi")
HEADER: Final = np.dtype(
    [
        ("form", "u1"),
        ("sizes", "u1"),
        ("zeros", "<u8"),
        *((name, "<f8") for name in ("sum", "min", "max")),
        ("offset", "<i4"),
    ]
)
"""The same, for many at once."""

_UNSIGNED: Final = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
# One report that claims more transfers than a worker makes in years is not believed, and 1,000,000 of the
# largest ones still add up within 63 bits.
_MOST: Final = 1 << 43
# Sums are added up in another order than extremes are multiplied: allow for the rounding of 2**43 additions.
_SLACK: Final = 1e-3


def pack_exact(values: bytes | bytearray, *, whole: bool) -> bytes:
    """Pack float64 values that are kept as they are."""
    return bytes((EXACT | WHOLE * whole,)) + values


def pack_histogram(histogram: Histogram, *, whole: bool) -> bytes:
    """Pack a histogram, dense or sparse, whichever is smaller."""
    counts = histogram.counts
    count_size = _size_of(counts)
    # Finding the gaps takes as long as all the rest: only where, at a byte each, they save a third.
    if np.count_nonzero(counts) * (1 + count_size) * 3 < counts.size * count_size * 2:
        occupied = np.flatnonzero(counts)
        gaps = occupied.copy()
        gaps[1:] -= occupied[:-1]
        gaps[0] = 0
        gap_size, counts = _size_of(gaps), counts[occupied]
        body: bytes = gaps.astype(_UNSIGNED[gap_size]).tobytes()
    else:
        gap_size, body = 0, b""
    header = _HEADER.pack(
        HISTOGRAM | WHOLE * whole,
        count_size | gap_size << 4,
        histogram.zeros,
        histogram.sum,
        histogram.min,
        histogram.max,
        histogram.offset,
    )
    packed: bytes = header + body + counts.astype(_UNSIGNED[count_size]).tobytes()
    return packed


def _size_of(numbers: NDArray[np.int64]) -> int:
    bits = int(numbers.max()).bit_length() if numbers.size else 0
    return 1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8  # noqa: PLR2004 - bits of the sizes


def unpack(packed: bytes) -> tuple[NDArray[np.float64] | Histogram, bool]:
    """The values or the histogram in a peer's bytes, and whether all values are whole; `ImplausibleError` if neither.

    Exact values may still be negative or not finite: each of those is the reader's to refuse.
    """
    if not packed:
        message = "a distribution of no bytes"
        raise ImplausibleError(message)
    form, whole = packed[0] & ~WHOLE, bool(packed[0] & WHOLE)
    if form == EXACT and len(packed) % 8 == 1:
        return np.frombuffer(packed, "<f8", offset=1), whole
    if form == HISTOGRAM and len(packed) >= _HEADER.size:
        return _unpack_histogram(packed), whole
    message = f"a distribution of form {form} with {len(packed)} bytes"
    raise ImplausibleError(message)


def num_values(packed: bytes) -> int:
    """How many values are in a packed distribution; `ImplausibleError` where it is none."""
    content, _ = unpack(packed)
    return content.count if isinstance(content, Histogram) else content.size


def _unpack_histogram(packed: bytes) -> Histogram:
    _, sizes, zeros, total, smallest, largest, offset = _HEADER.unpack_from(packed)
    counts = _unpack_counts(packed, sizes & 15, sizes >> 4)
    histogram = Histogram()
    histogram.zeros, histogram.offset, histogram.counts = zeros, offset, counts
    histogram.sum, histogram.min, histogram.max = total, smallest, largest
    # In floats, since the counts of a liar overflow an integer (and turn negative in int64).
    count = zeros + float(counts.sum(dtype=np.float64))
    if counts.min(initial=0) < 0 or not is_plausible(count, offset, offset + counts.size, total, smallest, largest):
        message = f"a histogram of {count:.0f} values with sum {total}, min {smallest}, max {largest}"
        raise ImplausibleError(message)
    histogram.count = int(count)
    return histogram


def is_plausible(count: Any, offset: Any, end: Any, total: Any, smallest: Any, largest: Any) -> Any:  # noqa: ANN401
    """Whether there can be such a histogram, with buckets from ``offset`` to ``end``; of numbers, or of arrays."""
    return (
        (count > 0)
        & (count < _MOST)
        & (offset >= LOWEST_INDEX)
        & (end <= HIGHEST_INDEX + 1)
        & (smallest >= 0)
        & (smallest <= largest)
        & (largest < math.inf)
        # A sum beyond all floats is sent as the largest one.
        & ((smallest * (1 - _SLACK) * count <= total) | (total == sys.float_info.max))
        & (total <= largest * (1 + _SLACK) * count)
        & (total < math.inf)
    )


def _unpack_counts(packed: bytes, count_size: int, gap_size: int) -> NDArray[np.int64]:
    body = len(packed) - _HEADER.size
    if count_size not in _UNSIGNED or (gap_size and gap_size not in _UNSIGNED) or body % (count_size + gap_size):
        message = f"a histogram with counts of {count_size} and gaps of {gap_size} bytes in {body} bytes"
        raise ImplausibleError(message)
    buckets = body // (count_size + gap_size)
    counts = np.frombuffer(packed, _UNSIGNED[count_size], buckets, _HEADER.size + buckets * gap_size)
    if not gap_size:
        return counts.astype(np.int64)
    gaps = np.frombuffer(packed, _UNSIGNED[gap_size], buckets, _HEADER.size)
    return _spread(gaps, counts)


def _spread(gaps: NDArray[np.unsignedinteger], counts: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """The dense window of a sparse histogram."""
    positions = np.cumsum(gaps, dtype=np.float64)
    last = float(positions[-1]) if positions.size else 0.0
    if last > HIGHEST_INDEX - LOWEST_INDEX:
        message = f"a histogram that spans {last:.0f} buckets"
        raise ImplausibleError(message)
    window = np.zeros(int(last) + 1, np.int64)
    np.add.at(window, positions.astype(np.int64), counts.astype(np.int64))
    return window
