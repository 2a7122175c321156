"""What one distribution field holds: the values themselves while they are few, a histogram beyond.

Only state, merging and reading live here: no I/O, no clock. The declaration of a field is in `fields`.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from struct import error as StructError  # noqa: N812 - it is a class, whatever its name says
from struct import pack
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvxfer.errors import StatsError
from kvxfer.histogram import Histogram, histograms_of_rows
from kvxfer.packing import pack_exact, pack_histogram, unpack
from kvxfer.states import BEYOND_INT, NOWHERE

EXACT_LIMIT: Final = 4096
"""Two exact parts with at most this many values together stay exact: 32 KiB, and percentiles cost 0.1 ms."""

PACK_ABOVE: Final = 100
"""A report carries up to this many values as they are: below it folding costs three times as much and saves no byte."""

PIECE: Final = 4096
"""Pending values are folded in pieces of this many: one fold holds the GIL for about 0.1 ms."""

_FLOAT: Final = 8


class DistributionState:
    """The observations of one field: exact (the values) or a histogram; the same interface in both states.

    ``observe(value)`` is one C call (`list.append`) and never raises; NaN, infinities and negative values are counted
    in ``rejected`` when the pending values are folded, and are part of nothing else. Law: merging is addition; any
    grouping and order of the parts gives the same state, buckets, counts and extremes, and the same sum to the last
    bits. A quantile of the exact state is numpy's (linear), one of the histogram is within 1.1 % of it.
    """

    __slots__ = ("_exact", "_histogram", "observe", "pending", "rejected", "settle", "whole")

    def __init__(self, *, whole: bool = False) -> None:
        """Make an empty one; ``whole``: its values are whole numbers, so sums and values read as int."""
        self.pending: list[float] = []
        self.observe = self.pending.append
        self._exact = bytearray()
        self._histogram: Histogram | None = None
        self.rejected = 0
        self.whole = whole
        self.settle: Callable[[], None] = self.fold
        """What reading does first: fold this field, or, where it is part of stats, all of them under their lock."""

    def __repr__(self) -> str:
        """Give count, sum and state."""
        state = "exact" if self._histogram is None else "histogram"
        return f"<DistributionState {state} count={self.count} sum={self.sum}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both hold the same observations, in any order."""
        if not isinstance(other, DistributionState):
            return NotImplemented
        self.settle()
        other.settle()
        same_values = np.array_equal(np.sort(self._array()), np.sort(other._array()))
        return same_values and self._histogram == other._histogram and self.rejected == other.rejected

    __hash__ = None  # type: ignore[assignment]

    # --- adding

    def fold(self) -> None:
        """Take in what `observe` has left, in pieces."""
        # All at once, since what is cut off a long list in pieces moves the rest each time.
        waiting = self.pending[:]
        del self.pending[: len(waiting)]
        for start in range(0, len(waiting), PIECE):
            self.extend(waiting[start : start + PIECE])

    def extend(self, values: Sequence[float]) -> None:
        """Add values of Python; what is not a plausible number is counted in ``rejected``."""
        array, refused = to_array(values)
        plausible = array[is_plausible(array)] if array.size and not all_plausible(array) else array
        self.rejected += refused + array.size - plausible.size
        self.add(plausible)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add values that are finite and not negative."""
        if self._histogram is None and len(self._exact) + _FLOAT * values.size <= _FLOAT * EXACT_LIMIT:
            self._exact += values.tobytes()
        elif values.size:
            self._as_histogram().add(values)

    def add_histogram(self, histogram: Histogram) -> None:
        """Add a histogram, which is this state's from here on."""
        if self._histogram is None and not self._exact:
            self._histogram = histogram
        else:
            self._as_histogram().merge(histogram)

    def merge(self, other: "DistributionState") -> None:
        """Add what the other one holds; it is left as it was."""
        other.settle()
        if other._held():
            self.whole = other.whole and (self.whole or not self._held())
        self.rejected += other.rejected
        if other._histogram is not None:
            self._as_histogram().merge(other._histogram)
        else:
            self.add(other._array())

    def _as_histogram(self) -> Histogram:
        if self._histogram is None:
            self._histogram = Histogram()
            if self._exact:
                self._histogram.add(self._array())
                self._exact = bytearray()
        return self._histogram

    def drain(self) -> "DistributionState":
        """Take all that is held into a new state and leave this one empty; `observe` keeps working."""
        self.fold()
        taken = DistributionState(whole=self.whole)
        taken._exact, taken._histogram = self._exact, self._histogram
        self._exact, self._histogram = bytearray(), None
        taken.rejected = self.drain_rejected()
        return taken

    def drain_rejected(self) -> int:
        """Take the number of values refused."""
        rejected, self.rejected = self.rejected, 0
        return rejected

    def forget_pending(self) -> None:
        """Drop what `observe` has left."""
        self.pending.clear()

    def stop(self) -> None:
        """Drop what is observed from now on."""
        self.observe = NOWHERE.append

    # --- reading

    def _array(self) -> NDArray[np.float64]:
        return np.frombuffer(bytes(self._exact), np.float64)

    @property
    def is_exact(self) -> bool:
        """Whether the values themselves are held."""
        return self._histogram is None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was observed, not even a refused value."""
        return not (self.pending or self._exact or self._histogram or self.rejected)

    @property
    def count(self) -> int:
        """The number of values."""
        self.settle()
        return self._held()

    def _held(self) -> int:
        return len(self._exact) // _FLOAT if self._histogram is None else self._histogram.count

    @property
    def sum(self) -> float:
        """The sum of the values, 0 for none; correctly rounded (so in any order the same) while exact."""
        self.settle()
        total = _exact_sum(self._array()) if self._histogram is None else self._histogram.sum
        return int(total) if self.whole and total < BEYOND_INT and total.is_integer() else total

    @property
    def mean(self) -> float:
        """The arithmetic mean, 0 for none."""
        return self.sum / self.count if self.count else 0.0

    @property
    def min(self) -> float:
        """The smallest value, 0 for none."""
        return self.quantile(0.0)

    @property
    def max(self) -> float:
        """The largest value, 0 for none."""
        return self.quantile(1.0)

    def quantile(self, q: float) -> float:
        """The ``q``-quantile, ``q`` from 0 to 1; 0 for no values. Raises `StatsError` for another ``q``."""
        if not 0 <= q <= 1:
            message = f"a quantile lies between 0 and 1, got {q}"
            raise StatsError(message)
        if not self.count:
            return 0.0
        if self._histogram is not None:
            return self._histogram.quantile(q)
        return float(np.percentile(self._array(), q * 100))

    def histogram(self) -> Histogram:
        """A histogram of the observations, for who needs buckets; not to be changed."""
        self.settle()
        if self._histogram is not None:
            return self._histogram
        histogram = Histogram()
        if self._exact:
            histogram.add(self._array())
        return histogram

    # --- payloads

    def to_value(self) -> list[float] | bytes:
        """Everything held, without loss: the values while exact (vLLM's form), packed bytes beyond."""
        self.settle()
        if self._histogram is not None:
            return pack_histogram(self._histogram, whole=self.whole)
        values: list[float] = self._array().tolist()
        if not self.whole:
            return values
        return [int(value) if value < BEYOND_INT and value.is_integer() else value for value in values]

    def to_packed(self) -> bytes:
        """The bytes of a report: exact up to `PACK_ABOVE` values, a histogram beyond."""
        if self.count <= PACK_ABOVE and self.is_exact:
            return pack_exact(self._exact, whole=self.whole)
        return pack_histogram(self.histogram(), whole=self.whole)

    def load(self, payload: Any) -> None:  # noqa: ANN401 - whatever a peer sent
        """Add a payload: a list of numbers (vLLM's form) or packed bytes; `StatsError` or `PeerError` for others."""
        if isinstance(payload, bytes):
            self._load_packed(payload)
        elif isinstance(payload, list | tuple):
            part = DistributionState(whole=all(type(value) is int for value in payload))
            part.extend(payload)
            self.merge(part)
        else:
            message = f"expected a list of numbers or packed bytes, got {type(payload).__name__}"
            raise StatsError(message)

    def _load_packed(self, packed: bytes) -> None:
        content, whole = unpack(packed)
        self.whole = whole and (self.whole or not self._held())
        if isinstance(content, Histogram):
            self.add_histogram(content)
        else:
            self.extend(content.tolist())


def merged(parts: Iterable[DistributionState]) -> DistributionState | None:
    """The sum of the parts, which are left as they were: the part itself where it is the only one, None for none."""
    found = list(parts)
    if len(found) < 2:  # noqa: PLR2004 - nothing to add up
        return found[0] if found else None
    total = DistributionState()
    for part in found:
        total.merge(part)
    return total


_NO_NUMBER: Final = (StructError, OverflowError, TypeError, ValueError)


def _exact_sum(values: NDArray[np.float64]) -> float:
    try:
        return math.fsum(values.tolist())
    except OverflowError:
        return sys.float_info.max


def pack_all(states: Mapping[str, DistributionState]) -> dict[str, bytes]:
    """`DistributionState.to_packed` of each; those of the columns of one row are folded together."""
    crowded = {name: state for name, state in states.items() if state.is_exact and state.count > PACK_ABOVE}
    folded: dict[str, Histogram] = {}
    if len({state.count for state in crowded.values()}) == 1:
        table = np.frombuffer(b"".join(state._exact for state in crowded.values()), np.float64)
        histograms = histograms_of_rows(table.reshape(len(crowded), -1))
        folded = dict(zip(crowded, histograms or [], strict=False))
    return {
        name: pack_histogram(folded[name], whole=state.whole) if name in folded else state.to_packed()
        for name, state in states.items()
    }


def to_array(values: Sequence[Any], *, whole: bool = False) -> tuple[NDArray[np.float64], int]:
    """The numbers among ``values`` as float64, and how many were none.

    `struct.pack` reads a list three times as fast as numpy does, and refuses what is not a number; ints that it may
    read as ints (``whole``) five times as fast.
    """
    try:
        if whole:
            return np.frombuffer(pack(f"{len(values)}q", *values), np.int64).astype(np.float64), 0
    except _NO_NUMBER:
        pass
    try:
        return np.frombuffer(pack(f"{len(values)}d", *values), np.float64), 0
    except _NO_NUMBER:
        numbers = [value for value in values if _is_number(value)]
        return np.array(numbers, np.float64), len(values) - len(numbers)


def _is_number(value: object) -> bool:
    try:
        pack("d", value)
    except _NO_NUMBER:
        return False
    return True


def all_plausible(array: NDArray[np.float64]) -> bool:
    """Whether all values are finite and not negative (NaN fails both comparisons)."""
    return bool(array.min() >= 0 and array.max() < math.inf)


def is_plausible(array: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Per value: finite and not negative."""
    plausible: NDArray[np.bool_] = (array >= 0) & (array < math.inf)
    return plausible
