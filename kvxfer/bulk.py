"""Many packed distributions of one field at once, checked and added up for a fraction of a microsecond each.

What `packing.unpack` and `DistributionState.merge` do with one in some forty calls of numpy, done for hundreds in as
many. Law: the sum of parts equals merging them one by one.

Histograms with dense counts of a byte, as those of up to some thousand values are, become the rows of one table, whose
words of 8 bytes are split in two of four lanes of 16 bits: a sum down its `ROWS` rows, or across its `WINDOW` buckets,
adds up words and overflows no lane. What is packed otherwise is unpacked by itself.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvxfer.distribution import DistributionState, all_plausible
from kvxfer.errors import ImplausibleError
from kvxfer.histogram import Histogram, bounded
from kvxfer.packing import EXACT, HEADER, HISTOGRAM, WHOLE, is_plausible, unpack

ROWS: Final = 256
"""Parts at once: 256 counts of at most 255 fit into 16 bits."""

WINDOW: Final = 1024
"""Buckets of a table, 32 octaves: across its 128 words, 256 counts of at most 255 are in each lane."""

_FORM: Final = 0xFF ^ WHOLE
_ABSENT: Final = b"\xff"
_DENSE_BYTES: Final = 1  # the sizes of counts and gaps, in the header
_LANES: Final = np.uint64(0x00FF00FF00FF00FF)
_BYTE: Final = np.uint64(8)
_WORD: Final = 8
_BODY: Final = HEADER.itemsize
_ZEROS: Final = [bytes(size) for size in range(WINDOW + _WORD)]


class Column:
    """One field of up to `ROWS` reports: its packed parts, b"" where a report has none.

    ``plausible`` tells of each whether it can be added up; what is wrong with another one `unpack` says. ``sizes`` are
    their bytes.
    """

    def __init__(self, parts: Sequence[bytes]) -> None:
        """Check the parts."""
        self._parts = parts
        self.sizes = sizes = np.fromiter(map(len, parts), np.int64, len(parts))
        headers = _headers(parts, int(sizes.min()))
        form = headers["form"] & _FORM
        self._is_held = sizes > 1  # one byte alone says exact and no values
        self._is_whole = (headers["form"] & WHOLE > 0) | ~self._is_held
        self._is_exact = (form == EXACT) & (sizes % _WORD == 1) & self._is_held
        in_table = (form == HISTOGRAM) & (headers["sizes"] == _DENSE_BYTES) & (sizes > _BODY)
        in_table &= _in_one_window(headers["offset"], sizes - _BODY, in_table)
        self._table = _Table(headers, parts, sizes, in_table)
        self.plausible = (sizes == 0) | self._is_exact | (form == EXACT) & (sizes == 1)
        self.plausible[in_table] = self._table.plausible
        self._check_exact()
        others = np.flatnonzero(self._is_held & ~in_table & ~self._is_exact).tolist()
        self._single = {row: found for row in others if (found := self._unpacked(row)) is not None}

    def _check_exact(self) -> None:
        rows = np.flatnonzero(self._is_exact).tolist()
        if rows and not all_plausible(self._values(rows)):
            self.plausible[rows] = [all_plausible(self._values([row])) for row in rows]

    def _values(self, rows: Sequence[int]) -> NDArray[np.float64]:
        return np.frombuffer(b"".join([self._parts[row][1:] for row in rows]), np.float64)

    def _unpacked(self, row: int) -> Histogram | None:
        try:
            content, _ = unpack(self._parts[row])
        except ImplausibleError:
            return None
        self.plausible[row] = isinstance(content, Histogram)
        return content if isinstance(content, Histogram) else None

    def sums(self, order: NDArray[np.intp], starts: Sequence[int]) -> list[DistributionState | None]:
        """Of each run of rows, which begins at its start in ``order``: the sum, None where no report has the field.

        The rows are plausible, and no run is empty.
        """
        held = np.logical_or.reduceat(self._is_held[order], starts).tolist()
        whole = np.logical_and.reduceat(self._is_whole[order], starts).tolist()
        states = [DistributionState(whole=whole[run]) if held[run] else None for run in range(len(starts))]
        for run, histogram in self._table.sums(order, starts):
            state = states[run]
            if state is not None:
                state.add_histogram(histogram)
        if self._single or self._is_exact.any():
            for state, rows in zip(states, np.split(order, starts[1:]), strict=True):
                if state is not None:
                    self._add_others(state, rows.tolist())
        return states

    def _add_others(self, state: DistributionState, rows: list[int]) -> None:
        for row in self._single.keys() & rows:
            histogram = Histogram()  # the one that is kept stays as it is
            histogram.merge(self._single[row])
            state.add_histogram(histogram)
        state.add(self._values([row for row in rows if self._is_exact[row]]))


def _headers(parts: Sequence[bytes], smallest: int) -> NDArray[Any]:
    if smallest >= _BODY:
        return np.frombuffer(b"".join([part[:_BODY] for part in parts]), HEADER)
    return np.frombuffer(b"".join([part[:_BODY].ljust(_BODY, _ABSENT) for part in parts]), HEADER)


def _in_one_window(
    offsets: NDArray[np.int32], buckets: NDArray[np.int64], among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of them lie in one window of buckets: around the middle one of them, where not all do."""
    if not among.any():
        return among
    first = offsets.astype(np.int64)
    ends = first + buckets
    start = int(first[among].min())
    if int(ends[among].max()) - start > WINDOW:
        start = int(np.median(first[among])) - WINDOW // 2
    inside: NDArray[np.bool_] = (first >= start) & (ends <= start + WINDOW)
    return inside


class _Table:
    """Those among the parts that are dense histograms with counts of a byte: one a row, in one window of buckets."""

    def __init__(
        self, headers: NDArray[Any], parts: Sequence[bytes], sizes: NDArray[np.int64], among: NDArray[np.bool_]
    ) -> None:
        self._place = np.where(among, np.cumsum(among) - 1, -1)
        self._headers = headers[among]
        self._first = int(self._headers["offset"].min(initial=2**31 - 1))
        self._starts = self._headers["offset"].astype(np.int64) - self._first
        self._ends = self._starts + sizes[among] - _BODY
        width = -(-int(self._ends.max(initial=0)) // _WORD) * _WORD
        rows = np.flatnonzero(among).tolist()
        padded: list[bytes] = []
        for row, start, end in zip(rows, self._starts.tolist(), self._ends.tolist(), strict=True):
            padded += (_ZEROS[start], parts[row][_BODY:], _ZEROS[width - end])
        words = np.frombuffer(b"".join(padded), "<u8").reshape(len(rows), width // _WORD)
        self._even, self._odd = words & _LANES, (words >> _BYTE) & _LANES
        across = (self._even + self._odd).sum(axis=1).view(np.uint16).reshape(len(rows), 4)
        self._counts = across.sum(axis=1, dtype=np.float64) + self._headers["zeros"]
        total, smallest, largest = (self._headers[name] for name in ("sum", "min", "max"))
        first, end = self._headers["offset"], self._ends + self._first
        with np.errstate(over="ignore", invalid="ignore"):
            self.plausible = is_plausible(self._counts, first, end, total, smallest, largest)

    def sums(self, order: NDArray[np.intp], starts: Sequence[int]) -> list[tuple[int, Histogram]]:
        """The number and the sum of each run in which there is a row of this table."""
        rows = self._place[order]
        runs = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))[rows >= 0]
        rows = rows[rows >= 0]
        if not rows.size:
            return []
        begin = np.flatnonzero(np.concatenate(([True], runs[1:] != runs[:-1])))
        counts = np.empty((begin.size, self._even.shape[1] * 4, 2), np.int64)
        counts[:, :, 0] = np.add.reduceat(self._even[rows], begin).view(np.uint16)
        counts[:, :, 1] = np.add.reduceat(self._odd[rows], begin).view(np.uint16)
        windows = counts.reshape(begin.size, -1)
        headers = self._headers[rows]
        with np.errstate(over="ignore"):
            numbers = zip(
                runs[begin].tolist(),
                np.minimum.reduceat(self._starts[rows], begin).tolist(),
                np.maximum.reduceat(self._ends[rows], begin).tolist(),
                np.add.reduceat(self._counts[rows], begin).tolist(),
                np.add.reduceat(headers["zeros"], begin).tolist(),
                np.add.reduceat(headers["sum"], begin).tolist(),
                np.minimum.reduceat(headers["min"], begin).tolist(),
                np.maximum.reduceat(headers["max"], begin).tolist(),
                strict=True,
            )
        return [
            (run, _histogram(int(count), zeros, self._first + first, window[first:end], (total, low, high)))
            for window, (run, first, end, count, zeros, total, low, high) in zip(windows, numbers, strict=True)
        ]


def _histogram(
    count: int, zeros: int, offset: int, counts: NDArray[np.int64], values: tuple[float, float, float]
) -> Histogram:
    histogram = Histogram()
    histogram.count, histogram.zeros, histogram.offset = count, zeros, offset
    histogram.counts = counts.copy()  # the window that it is cut from goes
    total, histogram.min, histogram.max = values
    histogram.sum = bounded(total)
    return histogram
