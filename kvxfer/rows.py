"""Rows: distributions that are recorded together in one C call, and how they are folded into the columns' states."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvxfer.distribution import PACK_ABOVE, DistributionState, all_plausible, is_plausible, to_array
from kvxfer.errors import StatsError
from kvxfer.fields import Distribution
from kvxfer.histogram import histograms_of_rows
from kvxfer.states import NOWHERE

PIECE_ROWS = 4096
"""Rows are folded in pieces of this many: one piece holds the GIL for about a millisecond."""

MAX_PIECE_ROWS = 1 << 18
"""Rows of a piece where very many wait, behind a host that hardly lets go of the GIL: each of some twenty calls of
numpy waits 5 ms for it, so that pieces of 4,096 fold 40,000 rows a second, and these two million. What holds the GIL
at once are 3 ms for a column."""

MAX_WAITING_ROWS = 1 << 22
"""Rows that one fold takes: a host that records more than two million a second for longer is faster than any fold, and
what is above this is cut, or it would fill the memory."""


class Row:
    """Distributions that are recorded together, one value each: ``stats.record_fetch(0.0031, 65536)``.

    Recording is one C call on one list: atomic under the GIL, so rows stay whole with many threads and no lock. A row
    with a value that is not finite or is negative is refused whole, so that its columns keep the same length.
    ``duration`` (s) and ``size`` (By) name the columns of a transfer: from them follow the distribution of the rates of
    single transfers (`rate`, By/s; a transfer of no duration has none) and the rates of `interval`.
    """

    name: str = ""

    def __init__(
        self, *columns: Distribution, duration: Distribution | None = None, size: Distribution | None = None
    ) -> None:
        """Declare the row; raises `StatsError` for no column, a labelled one, or a duration or size that is none."""
        outside = [field for field in (duration, size) if field is not None and field not in columns]
        if not columns or outside or any(column.labels for column in columns):
            message = f"a row takes unlabelled distributions, its duration and size among them, got {columns!r}"
            raise StatsError(message)
        self.columns = columns
        self.duration = duration
        self.size = size
        self.rate: Distribution | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        """Take the attribute's name, and name the rates after it: ``record_fetch`` gives ``fetch_rate``."""
        self.name = name
        self.make_recorder = _recorder_maker(_RECORDER, name, self.columns)
        self.make_guarded_recorder = _recorder_maker(_GUARDED_RECORDER, name, self.columns)
        if self.duration is not None and self.size is not None:
            self.rate = Distribution("By/s", "Bytes over seconds of each transfer.")
            self.rate.name = f"{name.removeprefix('record_')}_rate"

    if TYPE_CHECKING:  # on an instance the attribute is the recorder

        def __get__(self, instance: object, owner: type) -> Callable[..., None]: ...

    else:

        def __get__(self, instance, owner):  # noqa: ANN001, ANN204
            """The recorder, made when it is first asked for and from then on an attribute of the instance."""
            return self if instance is None else instance.recorder(self.name)


class RowBuffer:
    """The rows of one stats object that wait to be folded into the states of their columns."""

    __slots__ = ("_cut", "_duration_at", "_rate", "_size_at", "_states", "pending", "record", "rejected", "stop")

    def __init__(self, row: Row, state_of: Callable[[str], Any], pending: Any = None) -> None:  # noqa: ANN401 - see Pending
        """Make an empty buffer; ``state_of`` gives the stats object's state of a field.

        ``pending``: a `Pending` to append to instead of a list.
        """
        self._states: list[DistributionState] = [state_of(column.name) for column in row.columns]
        self._rate: DistributionState | None = state_of(row.rate.name) if row.rate is not None else None
        self._duration_at = row.columns.index(row.duration) if row.duration is not None else -1
        self._size_at = row.columns.index(row.size) if row.size is not None else -1
        self.pending: Any = [] if pending is None else pending
        self.record, self.stop = (row.make_recorder if pending is None else row.make_guarded_recorder)(self.pending)
        """Adds a row; and lets it drop rows from now on, whoever keeps it."""
        self.rejected = 0
        self._cut = 0

    def drain_cut(self) -> int:
        """Take the number of rows that were more than a fold takes."""
        cut, self._cut = self._cut, 0
        return cut

    def forget_pending(self) -> None:
        """Drop the rows that wait, and the number of those that were cut."""
        self.pending.clear()
        self._cut = 0

    def drain_rejected(self) -> int:
        """Take the number of rows refused."""
        rejected, self.rejected = self.rejected, 0
        return rejected

    def fold(self, *, for_report: bool = False) -> None:
        """Fold what waits, in pieces.

        ``for_report``: more than `PACK_ABOVE` rows become histograms at once, as a report would carry them.
        """
        # All at once, since what is cut off a long list in pieces moves the rest each time.
        waiting = self.pending[:]
        del self.pending[: len(waiting)]
        width = len(self._states)
        self._cut += max(0, len(waiting) // width - MAX_WAITING_ROWS)
        del waiting[width * MAX_WAITING_ROWS :]
        most = width * min(max(PIECE_ROWS, len(waiting) // width // 8), MAX_PIECE_ROWS)
        for start in range(0, len(waiting), most):
            piece = waiting[start : start + most] if len(waiting) > most else waiting
            self._fold(piece, for_report=for_report)

    def extend(self, columns: list[list[Any]]) -> None:
        """Add columns of equal length, as vLLM's payloads hold them."""
        self._fold([value for row in zip(*columns, strict=True) for value in row])

    def _fold(self, values: list[Any], *, for_report: bool = False) -> None:
        width = len(self._states)
        # One row more than there are columns: the rates, where there are any.
        table = np.empty((width + (self._rate is not None), len(values) // width))
        for number, state in enumerate(self._states):
            column, refused = to_array(values[number::width], whole=state.whole)
            if refused:  # something that is no number: row by row, or the columns would slip
                self._fold_one_by_one(values)
                return
            table[number] = column
        if self._rate is not None:
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                np.divide(table[self._size_at], table[self._duration_at], out=table[width])
        histograms = histograms_of_rows(table) if for_report and table.shape[1] > PACK_ABOVE else None
        if histograms is None:
            self._add_values(table)
        else:
            states = self._states if self._rate is None else [*self._states, self._rate]
            for state, histogram in zip(states, histograms, strict=True):
                state.add_histogram(histogram)

    def _fold_one_by_one(self, values: list[Any]) -> None:
        width = len(self._states)
        for start in range(0, len(values), width):
            row, refused = to_array(values[start : start + width])
            if refused:
                self.rejected += 1
            else:
                self._fold(row.tolist())

    def _add_values(self, table: NDArray[np.float64]) -> None:
        width = len(self._states)
        if table.size and not all_plausible(table[:width]):
            plausible = is_plausible(table[:width]).all(axis=0)
            self.rejected += int(table.shape[1] - plausible.sum())
            table = table[:, plausible]
        for state, column in zip(self._states, table, strict=False):
            state.add(column)
        if self._rate is not None:
            rates = table[width]
            self._rate.add(rates[is_plausible(rates)])  # what took no time has none


_RECORDER = """
def make(pending):
    extend = pending.extend
    def {name}({columns}):
        extend(({columns},))
    def stop():
        nonlocal extend
        extend = NOWHERE.extend
    return {name}, stop
"""

# The attribute `write` is looked up each time: after a fork it leads elsewhere, whoever keeps the recorder.
_GUARDED_RECORDER = """
def make(pending):
    pack = pending.pack
    def {name}({columns}):
        try:
            pending.write(pack({columns}))
        except Exception:
            pending.overflow(({columns},))
    return {name}, pending.stop
"""


def _recorder_maker(
    source: str, name: str, columns: tuple[Distribution, ...]
) -> Callable[[Any], tuple[Callable[..., None], Callable[[], None]]]:
    """From what a row waits in to a function of the row's columns that does nothing but append to it, and its stop.

    It is written out as `dataclasses` writes its ``__init__``: a wrong number of values is a TypeError at the caller,
    where ``*values`` would let the columns slip.
    """
    names = ", ".join(column.name for column in columns)
    namespace: dict[str, Any] = {"NOWHERE": NOWHERE}
    exec(source.format(name=name, columns=names), namespace)  # noqa: S102 - made of our own attribute names
    make: Callable[[Any], tuple[Callable[..., None], Callable[[], None]]] = namespace["make"]
    return make
