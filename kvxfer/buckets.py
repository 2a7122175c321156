"""The bucket rule: which bucket of a base-2 exponential histogram holds a value.

Only the rule lives here: no state, no merging. It is the one of OpenTelemetry's data model ("Exponential
Buckets") and of Prometheus' native histograms: at scale ``s`` bucket ``i`` holds ``(2**(i/2**s), 2**((i+1)/2**s)]``,
exact at every border. ``ceil(log2(x) * 2**s) - 1`` is not: it errs for two values in five that lie within 2 ulp of a
border, so the index is read off the bits of the float instead.
"""

import math
from decimal import Decimal, localcontext
from typing import Final

import numpy as np
from numpy.typing import NDArray

SCALE: Final = 5
"""Buckets per octave are ``2**SCALE`` = 32: the middle of a bucket is within 1.09 % of all that it holds."""

PER_OCTAVE: Final = 1 << SCALE
SMALLEST: Final = 2.0**-64
"""The smallest value with a bucket, 5e-20. Smaller ones and zero belong to the zero bucket."""

LARGEST: Final = 2.0**80
"""Where the highest bucket ends, 1.2e24; it holds what is larger too. Between both lies all that can be measured.

Without these borders two values and 50 bytes of a peer would take 524 kB, in each of its fields.
"""

LOWEST_INDEX: Final = -64 * PER_OCTAVE - 1
HIGHEST_INDEX: Final = 80 * PER_OCTAVE - 1

_MANTISSA_BITS: Final = 52
_MANTISSA_MASK: Final = (1 << _MANTISSA_BITS) - 1
# 64 cells an octave: the narrowest of the 32 buckets spans 1.4 cells, so no cell holds two borders.
_CELL_BITS: Final = 6
_CELL_SHIFT: Final = _MANTISSA_BITS - _CELL_BITS


def _border_mantissas() -> list[int]:
    """The mantissa bits of the largest double at or below each border ``2**(k/32)``, k = 0..31."""
    mantissas = []
    with localcontext() as context:
        context.prec = 60
        for k in range(PER_OCTAVE):
            exact = Decimal(2) ** (Decimal(k) / PER_OCTAVE)
            mantissas.append(int((exact - 1) * (1 << _MANTISSA_BITS)))
    return mantissas


def _tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per cell (exponent and top mantissa bits): its lowest bucket, and the bits of the border within, if any.

    Both are looked up at once for a value's bits, 6 ns a value; computing them from the 64 cells of one octave
    takes twice as long. 2 MB, of which a field touches a few lines.
    """
    cells = np.arange(2047 << _CELL_BITS, dtype=np.int64)
    below = np.zeros(1 << _CELL_BITS, np.int64)
    border = np.full(1 << _CELL_BITS, _MANTISSA_MASK, np.int64)
    for mantissa in _border_mantissas():
        cell = mantissa >> _CELL_SHIFT
        border[cell] = mantissa
        below[cell + 1 :] += 1
    exponent, cell_of_octave = np.divmod(cells, 1 << _CELL_BITS)
    base = ((exponent - 1023) << SCALE) + below[cell_of_octave] - 1
    return base, (exponent << _MANTISSA_BITS) | border[cell_of_octave]


_BASE, _BORDER = _tables()


def bucket_indexes(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket of each value; ``values`` are from ``SMALLEST`` to ``LARGEST``."""
    bits = values.view(np.int64)
    cell = bits >> _CELL_SHIFT
    indexes: NDArray[np.int64] = _BASE.take(cell)
    indexes += bits > _BORDER.take(cell)
    return indexes


def middle(index: int) -> float:
    """The value whose relative distance to both borders of the bucket is the same (1.083 %).

    >>> round(middle(-1), 4)
    0.9892
    """
    octave, step = divmod(index, PER_OCTAVE)
    ratio = 2.0 ** (1 / PER_OCTAVE)
    return math.ldexp(2.0 ** (step / PER_OCTAVE) * 2 * ratio / (1 + ratio), octave)
