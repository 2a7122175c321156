"""`TransferStats`: what one interval of one connector holds, how it merges and reads, derived from a declaration.

No I/O, no clock.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final

from kvxfer.contract import KVConnectorStats, Moved
from kvxfer.distribution import DistributionState, merged, pack_all
from kvxfer.errors import StatsError
from kvxfer.fields import Counter, Field, UnderWay
from kvxfer.labelled import LabelledState
from kvxfer.reading import counted, describe, exact_values, reduce_field
from kvxfer.rows import PIECE_ROWS, Row, RowBuffer
from kvxfer.states import MAX_LABEL, CounterState, GaugeState, State, halves_of
from kvxfer.underway import InFlight, UnderWayState

MAX_CARRIED: Final = 16
"""Undeclared fields that stats carry on: enough for a newer worker's, few enough for a hostile one's."""


EARLY_VALUES: Final = 4 * PIECE_ROWS
"""Values that wait before a publisher folds them between two reports: 0.5 MB, and a full piece of rows of four."""

_LEVELS: Final[tuple[type[Any], ...]] = (GaugeState, LabelledState, UnderWayState)
_OF_ALL: Final = ("rejected_observations", "under_way")


class TransferStats(KVConnectorStats):
    """Stats that are declared: fields and rows as class attributes, everything else follows.

    On an instance each field's attribute is its state (``stats.num_misses.add(2)``) and each row's is its recorder.
    Recording is safe from any thread and never blocks; reading folds what is pending first. ``data`` maps field
    names to states. Raises `StatsError` for a payload that does not fit the declaration.
    """

    fields: ClassVar[dict[str, Field]] = {}
    rows: ClassVar[dict[str, Row]] = {}

    rejected_observations = Counter("{observation}", "Observations refused: not finite, negative or no number.")
    under_way = UnderWay("{transfer}", "Transfers that were begun and have not ended, of who tells of them.")

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401 - whatever other bases take
        """Collect the fields and rows of the declaration, those of the bases first."""
        super().__init_subclass__(**kwargs)
        declared = vars(cls)
        rows = {name: value for name, value in declared.items() if isinstance(value, Row)}
        rates = {row.rate.name: row.rate for row in rows.values() if row.rate is not None}
        own = {name: value for name, value in declared.items() if isinstance(value, Field)}
        taken = [name for name in (*own, *rows) if hasattr(TransferStats, name) or name == "data" or name in rates]
        if taken:
            message = f"{cls.__name__}: {', '.join(taken)} names a part of TransferStats or of a row: choose another"
            raise StatsError(message)
        for name, rate in rates.items():
            setattr(cls, name, rate)
        cls.fields = {**cls.fields, **own, **rates}
        cls.rows = {**cls.rows, **rows}

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        """Make an empty one, or one of a payload: vLLM's (lists), packed, or both mixed."""
        # States and buffers are made when they are first asked for: most objects are parts that only travel.
        self.data = {}
        self._buffers: dict[str, RowBuffer] = {}
        # Lists of what waits to be folded; a labelled field stands for those of its label sets.
        self._waiting: list[Any] = []
        # Only those who fold take it; recording does not. Reading a field within folds once more, hence reentrant.
        self._lock = threading.RLock()
        self._ask_to_fold: Callable[[], bool] | None = None
        self._make_pending: Callable[[str, int], Any] | None = None
        self._is_stopped = False
        if data:
            self._load(data)

    def wait_in(self, make_pending: Callable[[str, int], Any]) -> None:
        """Let rows and counters wait to be folded in what this gives by name and number of values, not in lists.

        To be called before anything is recorded.
        """
        self._make_pending = make_pending

    def fold_by(self, ask: Callable[[], bool]) -> None:
        """Let reading ask whoever drains to fold first; ``ask`` tells whether that was done."""
        self._ask_to_fold = ask

    def exclusively(self) -> AbstractContextManager[Any]:
        """Within, no other thread folds or drains."""
        return self._lock

    def stop(self) -> None:
        """Drop what is recorded from now on; what was is there to be drained."""
        self._is_stopped = True
        for part in (*self._buffers.values(), *self.data.values()):
            part.stop()

    def state(self, name: str) -> Any:  # noqa: ANN401 - the declaration says which
        """The state of a field."""
        declared: Field = self.fields.get(name) or getattr(TransferStats, name)
        state = declared.new_state()
        if self._make_pending is not None and isinstance(state, CounterState) and name in self.fields:
            state.wait_in(self._make_pending(name, 1))
        return self._join(name, state)

    def _join(self, name: str, new: State) -> State:
        # One of several threads that ask at once wins; all get its state.
        state: State = self.data.setdefault(name, new)
        if state is new:
            if self._is_stopped:
                state.stop()
            state.settle = self.fold
            self._waiting.append(getattr(state, "pending", state))
            # An undeclared field, whose name a peer chose, is no attribute.
            if name in self.fields or name in _OF_ALL:
                setattr(self, name, state)
        return state

    def recorder(self, name: str) -> Callable[..., None]:
        """The recorder of a row."""
        row = self.rows[name]
        pending = None if self._make_pending is None else self._make_pending(name, len(row.columns))
        new = RowBuffer(row, lambda field: self.data.get(field) or self.state(field), pending)
        buffer = self._buffers.setdefault(name, new)
        if buffer is new:
            if self._is_stopped:
                buffer.stop()
            self._waiting.append(buffer.pending)
            # Not through vars(): that makes CPython 3.11 look the recorder up a fifth slower.
            setattr(self, name, buffer.record)
        return buffer.record

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the payload: the buffers and the lock are made anew."""
        return (type(self), (self.to_dict(),))

    def __repr__(self) -> str:
        """Give the states that hold something."""
        held = ", ".join(f"{name}={state!r}" for name, state in self._held())
        return f"<{type(self).__name__} {held or 'empty'}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both are of one class and hold the same observations."""
        if not isinstance(other, TransferStats):
            return NotImplemented
        return type(self) is type(other) and dict(self._held()) == dict(other._held())

    __hash__ = None  # type: ignore[assignment]

    # --- building

    @classmethod
    def of(cls, states: Mapping[str, State]) -> "TransferStats":
        """Stats that hold these states of their fields, which are theirs from here on."""
        stats = cls()
        for name, state in states.items():
            stats._join(name, state)
        return stats

    def _load(self, payload: Mapping[str, Any]) -> None:
        rest = dict(payload)
        for name, row in self.rows.items():
            if _holds_rows(rest, row):
                self.recorder(name)
                self._buffers[name].extend([rest.pop(column.name) for column in row.columns])
        for name, value in rest.items():
            self._load_field(name, value)
        self._hoist_rejected()

    def _load_field(self, name: str, value: object) -> None:
        state = self.data.get(name) or self._new_state(name, value)
        if state is None:
            self.rejected_observations.count(1)
            return
        try:
            state.load(value)
        except StatsError as error:
            message = f"{error} - at `{type(self).__name__}.{name}`"
            raise StatsError(message) from error

    def _new_state(self, name: str, value: object) -> Any:  # noqa: ANN401 - the declaration or the value says which
        """The state of a declared field, or of one that only a newer worker knows and that is carried on."""
        if name in self.fields or name in _OF_ALL:
            return self.state(name)
        room = isinstance(name, str) and len(name) <= MAX_LABEL and self._num_carried() < MAX_CARRIED
        if room and isinstance(value, bytes | list):
            return self._join(name, DistributionState())
        return self._join(name, CounterState()) if room and isinstance(value, int | float) else None

    def _num_carried(self) -> int:
        return sum(1 for field in self.data if field not in self.fields and field not in _OF_ALL)

    # --- merging

    def fold(self) -> None:
        """Take what was recorded into the states; done by whoever reads, so it costs little where nothing waits."""
        if not any(self._waiting):
            if self._ask_to_fold is not None:
                with self._lock:  # another thread may have taken what waited, and be about to add it
                    return
            return
        # Who has the lock, in the middle of a merge, folds itself: others wait for it.
        ask = None if self._lock._is_owned() else self._ask_to_fold  # type: ignore[attr-defined]
        if ask is None or not ask():
            self.fold_here()

    def fold_here(self) -> None:
        """The same, on this thread: on the main one a signal handler that raises breaks it off."""
        with self._lock:
            self._fold()

    def fold_early(self) -> None:
        """Fold what waits for a report where it is much: few rows are cheaper to fold at once, when it is drained."""
        if any(isinstance(waiting, list) and len(waiting) >= EARLY_VALUES for waiting in self._waiting):
            with self._lock:
                self._fold(for_report=True)

    def _fold(self, *, for_report: bool = False) -> None:
        for buffer in list(self._buffers.values()):
            buffer.fold(for_report=for_report)
        for state in list(self.data.values()):
            state.fold()
        self._hoist_rejected()

    def _hoist_rejected(self) -> None:
        parts = (*self._buffers.values(), *self.data.values())
        refused = sum(part.drain_rejected() for part in parts)
        if refused:
            self.rejected_observations.count(refused)

    def reset(self) -> None:
        """Forget everything observed."""
        self.drain()

    def drain(self, *, for_report: bool = False) -> "TransferStats":
        """Take all observations into a new object and leave this one empty, in one step.

        ``for_report``: what a report would carry as a histogram becomes one at once, which is cheaper.
        """
        with self._lock:
            self._fold(for_report=for_report)
            parts = {name: state.drain() for name, state in list(self.data.items()) if not state.is_empty}
        return self.of(parts)

    def drain_cut(self) -> int:
        """Take the number of rows that came faster than they could be folded, and were dropped."""
        return sum(buffer.drain_cut() for buffer in list(self._buffers.values()))

    clone_and_reset = drain  # vLLM's name for it

    def aggregate(self, other: KVConnectorStats) -> "TransferStats":
        """Merge the other one in and return this object; raises `StatsError` for stats of another kind."""
        if not isinstance(other, TransferStats) or not isinstance(other, type(self)):
            message = f"cannot merge {type(other).__name__} into {type(self).__name__}"
            raise StatsError(message)
        held = dict(other._held())
        with self._lock:
            self._merge(held)
        return self

    def follow(self, later: KVConnectorStats) -> KVConnectorStats:
        """As `aggregate` what the same sources observed later: of levels theirs are the last."""
        for name, part in later.data.items() if isinstance(later, TransferStats) else ():
            mine = self.data.get(name)
            if isinstance(mine, _LEVELS) and type(mine) is type(part):
                mine.make_way(part)
        return self.aggregate(later)

    def sign(self, source: str) -> None:
        """Say whose levels these are."""
        for state in self.data.values():
            if isinstance(state, _LEVELS):
                state.sign(source)

    def _merge(self, parts: Mapping[str, State]) -> None:
        for name, part in parts.items():
            mine = self.data.get(name) or self._new_state(name, part.to_value() if name not in self.fields else None)
            if type(mine) is type(part):
                mine.merge(part)
            else:  # an undeclared field that two workers do not mean the same by, or one too many
                self.rejected_observations.count(1)

    def is_empty(self) -> bool:
        """Whether nothing was observed, not even a refused value."""
        return not any(self._waiting) and all(state.is_empty for state in list(self.data.values()))

    def _held(self) -> list[tuple[str, State]]:
        self.fold()
        return [(name, state) for name, state in list(self.data.items()) if not state.is_empty]

    # --- reading

    def to_dict(self) -> dict[str, Any]:
        """The payload without loss: lists of values as vLLM's while a field is exact, packed bytes beyond."""
        payload = {name: state.to_value() for name, state in self._held()}
        # Of columns that were observed one by one no rates are to be made when it is read.
        return payload | {row.rate.name: [] for row in self.rows.values() if row.rate and _holds_rows(payload, row)}

    def to_packed(self) -> dict[str, Any]:
        """The payload of a report: see `packing`."""
        held = dict(self._held())
        distributions = {name: state for name, state in held.items() if isinstance(state, DistributionState)}
        packed: dict[str, Any] = pack_all(distributions)
        return {name: packed[name] if name in packed else state.to_packed() for name, state in held.items()}

    def split(self) -> "Sequence[TransferStats]":
        """Two of some of the fields each, or of some of the label sets of the one field."""
        held = dict(self._held())
        halves = halves_of(held)
        if not halves:
            halves = [{name: half} for name, state in held.items() for half in _halves_of_labelled(state)]
        return [self.of(states) for states in halves]

    def reduce(self) -> dict[str, Any]:
        """Count, mean and quantiles of each distribution, each counter and gauge; a connector may give its own keys."""
        self.fold()
        reduced: dict[str, Any] = {}
        for name, declared in self.fields.items():
            reduced |= reduce_field(declared.full_name, self.data.get(name) or self.state(name))
        return reduced

    def copy(self) -> "TransferStats":
        """An equal object that shares nothing with this one."""
        return type(self)().aggregate(self)

    def summary(self) -> dict[str, Any]:
        """Per field a number, or count, sum, extremes and quantiles."""
        return {name: describe(state) for name, state in self._held()}

    def moved(self) -> Moved | None:
        """Bytes and busy seconds over all rows that name a duration and a size."""
        transfers = [(row.size, row.duration) for row in self.rows.values() if row.size and row.duration]
        if not transfers:
            return None
        return Moved(
            sum(getattr(self, size.name).sum for size, _ in transfers),
            sum(getattr(self, duration.name).sum for _, duration in transfers),
        )

    def durations(self) -> DistributionState | None:
        """The seconds of all rows that name a duration and a size; not to be changed."""
        return merged(getattr(self, row.duration.name) for row in self.rows.values() if row.size and row.duration)

    def failures(self) -> dict[str, float]:
        """The counters that are declared as failures."""
        names = [name for name, field in self.fields.items() if isinstance(field, Counter) and field.failure]
        return {name: counted(getattr(self, name)) for name in names}

    def note_levels(self) -> None:
        """Read how many transfers are under way."""
        state = self.data.get("under_way")
        if state is not None:
            state.note()

    def forget_under_way(self) -> None:
        """Hold no number of transfers under way any more; the state stays."""
        state = self.data.get("under_way")
        if state is not None:
            state.drain()

    def in_flight(self) -> InFlight | None:
        """Transfers under way, as of the last reading of each source; None where none tells of them."""
        state = self.data.get("under_way")
        return None if state is None else state.in_flight

    def num_rejected(self) -> int:
        """Observations that were refused."""
        return int(self.rejected_observations.value)

    def num_values(self) -> int:
        """The values that the fullest distribution holds one by one."""
        return max((exact_values(state) for _, state in self._held()), default=0)

    def is_bounded(self) -> bool:
        """True: what is many folds into histograms."""
        return True

    def renew(self) -> None:
        """In a forked child: begin with nothing, the observations so far are the parent's to report.

        The lock is made anew too, since a thread that is not there any more may hold it.
        """
        self._lock = threading.RLock()
        for part in (*self._buffers.values(), *self.data.values()):
            part.forget_pending()
        self.reset()


def _halves_of_labelled(state: State) -> Sequence[State]:
    return state.split() if isinstance(state, LabelledState) else ()


def _holds_rows(payload: Mapping[str, Any], row: Row) -> bool:
    """Whether there are lists of one length, as vLLM's payloads hold rows, and no rates, as ours always do."""
    columns = [payload.get(column.name) for column in row.columns]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
    return len(lengths) == 1 and -1 not in lengths and not (row.rate and row.rate.name in payload)
