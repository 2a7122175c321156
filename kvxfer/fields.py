"""How a connector declares what it measures. From the declaration follow recording, merging, payload and export.

Only declarations live here; what a field holds is in `distribution` and `states`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kvxfer.distribution import PIECE, DistributionState, all_plausible, is_plausible, to_array
from kvxfer.errors import StatsError
from kvxfer.states import CounterState, GaugeState, LabelledState, State

UNIT_WORDS: Final = {"s": "seconds", "By": "bytes", "1": "ratio", "By/s": "bytes_per_second"}
"""The word of a unit in names; a count in braces (``{page}``) has none."""


class Field:
    """One declared field: ``unit`` in UCUM as OpenTelemetry writes it, ``help`` a sentence, ``labels`` its dimensions.

    Raises `StatsError` for a unit or labels that are no strings.
    """

    kind: ClassVar[str]
    name: str = ""

    def __init__(self, unit: str, help: str, *, labels: tuple[str, ...] = ()) -> None:  # noqa: A002 - as everywhere
        """Declare the field; its name is the attribute's."""
        if not unit or not all(isinstance(label, str) for label in labels):
            message = f"expected a unit and label names, got {unit!r} and {labels!r}"
            raise StatsError(message)
        self.unit = unit
        self.help = help
        self.labels = tuple(labels)

    def __set_name__(self, owner: type, name: str) -> None:
        """Take the attribute's name."""
        self.name = self.name or name

    def __repr__(self) -> str:
        """Give name and unit."""
        return f"<{type(self).__name__} {self.name} {self.unit}>"

    @property
    def full_name(self) -> str:
        """The name with its unit, as exporters write it: ``fetch_duration_seconds``."""
        word = UNIT_WORDS.get(self.unit, "")
        return self.name if not word or self.name.endswith(word) else f"{self.name}_{word}"

    def new_state(self) -> State:
        """An empty state of this field."""
        return LabelledState(self._new, len(self.labels)) if self.labels else self._new()

    def _new(self) -> State:
        raise NotImplementedError

    if TYPE_CHECKING:  # on an instance the attribute is the field's state

        def __get__(self, instance: object, owner: type) -> Any:  # noqa: ANN401 - of several kinds
            ...


class Distribution(Field):
    """A field of many values of which quantiles matter: ``stats.field.observe(value)``, or through a `Row`."""

    kind = "distribution"

    def _new(self) -> DistributionState:
        return DistributionState(whole=self.unit == "By" or self.unit.startswith("{"))


class Counter(Field):
    """A field that only adds up: ``stats.field.add(n)``."""

    kind = "counter"

    def _new(self) -> CounterState:
        return CounterState()


class Gauge(Field):
    """A level: ``stats.field.set(value)``; ``merge`` (last, max, min, sum) says how two readings become one."""

    kind = "gauge"

    def __init__(self, unit: str, help: str, *, labels: tuple[str, ...] = (), merge: str = "last") -> None:  # noqa: A002
        """Declare the field; raises `StatsError` for an unknown ``merge``."""
        super().__init__(unit, help, labels=labels)
        GaugeState(merge)
        self.merge = merge

    def _new(self) -> GaugeState:
        return GaugeState(self.merge)


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
        if self.duration is not None and self.size is not None:
            self.rate = Distribution("By/s", "Bytes over seconds of each transfer.")
            self.rate.name = f"{name.removeprefix('record_')}_rate"

    if TYPE_CHECKING:  # on an instance the attribute is the recorder

        def __get__(self, instance: object, owner: type) -> Callable[..., None]:
            ...


class RowBuffer:
    """The rows of one stats object that wait to be folded into the states of their columns."""

    __slots__ = ("_pending", "_rate", "_row", "_states", "record", "rejected")

    def __init__(self, row: Row, states: dict[str, Any]) -> None:
        """Make an empty buffer; ``states`` are those of the stats object, by field name."""
        self._row = row
        self._states = [states[column.name] for column in row.columns]
        self._rate = states[row.rate.name] if row.rate is not None else None
        self._pending: list[float] = []
        self.record = _recorder(self._pending, row)
        self.rejected = 0

    def forget_pending(self) -> None:
        """Drop the rows that wait."""
        self._pending.clear()

    def take_rejected(self) -> int:
        """Take the number of rows refused."""
        rejected, self.rejected = self.rejected, 0
        return rejected

    def fold(self) -> None:
        """Fold what waits, in pieces, so that the GIL is held for about 0.1 ms at a time."""
        width = len(self._states)
        pending = self._pending
        most = PIECE // width * width
        while piece := pending[:most]:
            del pending[: len(piece)]
            self._fold(piece)

    def extend(self, columns: list[list[Any]]) -> None:
        """Add columns of equal length, as vLLM's payloads hold them."""
        self._fold([value for row in zip(*columns, strict=True) for value in row])

    def _fold(self, values: list[Any]) -> None:
        width = len(self._states)
        array, refused = to_array(values)
        if refused:  # something that is no number: row by row, or the columns would slip
            self._fold_rows(values)
            return
        table = array.reshape(-1, width)
        if table.size and not all_plausible(array):
            plausible = is_plausible(table).all(axis=1)
            self.rejected += int(table.shape[0] - plausible.sum())
            table = table[plausible]
        self._add(table.T.copy())

    def _fold_rows(self, values: list[Any]) -> None:
        width = len(self._states)
        for start in range(0, len(values), width):
            row = values[start : start + width]
            if to_array(row)[1]:
                self.rejected += 1
            else:
                self._fold(row)

    def _add(self, columns: Any) -> None:  # noqa: ANN401 - float64[width, rows]
        for state, column in zip(self._states, columns, strict=True):
            state.add(column)
        row = self._row
        if self._rate is not None and row.duration is not None and row.size is not None:
            durations = columns[row.columns.index(row.duration)]
            sizes = columns[row.columns.index(row.size)]
            timed = durations > 0
            self._rate.add(sizes[timed] / durations[timed])


def _recorder(pending: list[float], row: Row) -> Callable[..., None]:
    """A function of the row's columns that does nothing but one `list.extend`.

    It is written out as `dataclasses` writes its ``__init__``: a wrong number of values is a TypeError at the caller,
    where ``*values`` would let the columns slip.
    """
    names = ", ".join(column.name for column in row.columns)
    source = f"def make(extend):\n def {row.name}({names}):\n  extend(({names},))\n return {row.name}"
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102 - made of our own attribute names
    recorder: Callable[..., None] = namespace["make"](pending.extend)
    return recorder
