"""What a counter and a gauge hold. Only state and merging live here, as in `distribution`."""

import sys
from collections import deque
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any, Final, Protocol, TypeVar

from kvxfer.errors import StatsError

MAX_LABEL: Final = 200
"""Characters of a label value or of a field that a peer named; a longer one is counted as one too many."""

NOWHERE: Final[deque[Any]] = deque(maxlen=0)
"""Takes everything, in one C call as a list does, and keeps nothing."""

_LARGEST_STEP: Final = 2.0**53
BEYOND_INT: Final = 2.0**63
"""What no int of msgpack or JSON readers holds is read as a float."""

_LARGEST_FLOAT: Final = sys.float_info.max

MAX_READINGS: Final = 4096
"""Sources of which one gauge holds each reading apart, more than a group has. See `GaugeState`."""


class State(Protocol):
    """What every field's state can do; `DistributionState` is one too."""

    def drain_rejected(self) -> int:
        """Take the number of observations refused so far: not finite, negative or no number."""

    def forget_pending(self) -> None:
        """Drop what is pending."""

    def stop(self) -> None:
        """Drop what is observed from now on."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was observed, not even a refused value."""

    settle: Callable[[], None]
    """What reading does first: `fold`, or, where the state is part of stats, theirs under their lock."""

    def fold(self) -> None:
        """Take in what is pending."""

    def merge(self, other: Any) -> None:  # noqa: ANN401 - a state of the same class
        """Add what the other one holds."""

    def drain(self) -> "State":
        """Take all that is held and leave nothing."""

    def to_value(self) -> Any:  # noqa: ANN401 - plain data of several forms
        """Everything held, as plain data without loss."""

    def to_packed(self) -> Any:  # noqa: ANN401 - plain data of several forms
        """What a report carries."""

    def load(self, payload: Any) -> None:  # noqa: ANN401 - whatever a peer sent
        """Add a payload of either form; `StatsError` or `PeerError` where it has neither."""


class CounterState:
    """A sum of what was added: whole while all of it was. ``add(n)`` takes finite numbers from 0 up."""

    __slots__ = ("_value", "add", "pending", "rejected", "settle")

    def __init__(self) -> None:
        """Make a counter at 0."""
        # One C call on one list is atomic under the GIL: no addition of another thread is lost.
        self.pending: list[float] = []
        self.add = self.pending.append
        self._value: float = 0
        self.rejected = 0
        self.settle: Callable[[], None] = self.fold
        """What reading does first, as of `DistributionState`."""

    def __repr__(self) -> str:
        """Give the value."""
        return f"<CounterState {self.value}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both have counted the same."""
        if not isinstance(other, CounterState):
            return NotImplemented
        return (self.value, self.rejected) == (other.value, other.rejected)

    __hash__ = None  # type: ignore[assignment]

    def wait_in(self, pending: Any) -> None:  # noqa: ANN401 - a list, or what does as one
        """Let what is added wait there from now on; before anything is added."""
        self.pending = pending
        self.add = pending.append

    def fold(self) -> None:
        """Sum up what is pending, in the order in which it came."""
        piece = self.pending[:]
        del self.pending[: len(piece)]
        for number in piece:
            self._add(number)

    def count(self, number: int) -> None:
        """Add at once, for who holds the lock."""
        self._value += number

    def _add(self, value: float) -> None:
        number = as_number(value)
        # Beyond 2**53 a float counts no longer by one: nothing real is that large in one step. The bytes that a pool
        # moved in some weeks are, when their total is read again, as an int.
        largest = BEYOND_INT if type(number) is int else _LARGEST_STEP
        if number is not None and 0 <= number <= largest:
            self._value += number
        else:
            self.rejected += 1

    @property
    def is_empty(self) -> bool:
        """Whether it stands at 0 and refused nothing."""
        return not (self.pending or self._value or self.rejected)

    def merge(self, other: "CounterState") -> None:
        """Add the other one's count."""
        self._value += other.value
        self.rejected += other.rejected

    def drain(self) -> "CounterState":
        """Take the count and start again from 0."""
        self.fold()
        taken = CounterState()
        taken._value, self._value = self._value, 0
        taken.rejected = self.drain_rejected()
        return taken

    def forget_pending(self) -> None:
        """Drop what `add` has left."""
        self.pending.clear()

    def stop(self) -> None:
        """Drop what is added from now on."""
        self.add = NOWHERE.append
        if not isinstance(self.pending, list):
            self.pending.stop()

    def drain_rejected(self) -> int:
        """Take the number of additions refused."""
        rejected, self.rejected = self.rejected, 0
        return rejected

    @property
    def value(self) -> float:
        """The count; a float where no reader's int holds it."""
        self.settle()
        return self._value if self._value < BEYOND_INT else float(self._value)

    def to_value(self) -> float:
        """The count."""
        return self.value

    to_packed = to_value

    def load(self, payload: Any) -> None:  # noqa: ANN401 - whatever a peer sent
        """Add a number, or a list of numbers (vLLM's form of a count of failures)."""
        for number in _numbers(payload):
            self._add(number)


def _sum(readings: Collection[float]) -> float:
    # In the order of their sizes: floats add up to the same whoever came first.
    total = max(-_LARGEST_FLOAT, min(_LARGEST_FLOAT, sum(sorted(readings))))
    return total if -BEYOND_INT < total < BEYOND_INT else float(total)


_MERGES: Final[dict[str, Callable[[Collection[float]], float]]] = {
    "last": lambda readings: list(readings)[-1],
    "max": max,
    "min": min,
    "sum": _sum,
}


class GaugeState:
    """A level that was read; ``merge`` says how the levels of several become one: last, max, min or sum.

    Of one source the last reading counts: one that is signed (`sign`) takes the place of an earlier one of the same,
    and what the same sources read later that of all (`make_way`). Law: the value is the same in any order of up to
    `MAX_READINGS` sources, but for "last"; of those beyond each reading counts, as if it were of another one.
    """

    __slots__ = ("_choose", "_readings", "merge_rule", "pending", "rejected", "settle")

    def __init__(self, merge_rule: str = "last") -> None:
        """Make a gauge that was not read yet."""
        if merge_rule not in _MERGES:
            message = f"expected merge={'|'.join(_MERGES)}, got {merge_rule!r}"
            raise StatsError(message)
        self.merge_rule = merge_rule
        self._choose = _MERGES[merge_rule]
        # By who read it, the last one last; None of those that nobody has signed.
        self._readings: dict[str | None, float] = {}
        self.rejected = 0
        # The last value refused waits here, so that the stats see that there is something to fold.
        self.pending: list[float] = []
        self.settle: Callable[[], None] = self.fold

    def __repr__(self) -> str:
        """Give the value and the rule."""
        return f"<GaugeState {self.value} merge={self.merge_rule}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both stand at the same value."""
        if not isinstance(other, GaugeState):
            return NotImplemented
        self.fold()
        other.fold()
        return (self.value, self.rejected, self.merge_rule) == (other.value, other.rejected, other.merge_rule)

    __hash__ = None  # type: ignore[assignment]

    @property
    def value(self) -> float | None:
        """The level, None before the first reading."""
        return self._choose(self._readings.values()) if self._readings else None

    @property
    def readings(self) -> Collection[float]:
        """What was read, of each source that has signed."""
        return self._readings.values()

    def set(self, value: float) -> None:
        """Note the level as it is now; a value that is not finite is counted in ``rejected``."""
        number = _as_level(value)
        if number is not None:
            self._readings = {None: number}
        else:
            self.rejected += 1
            self.pending[:] = [value]

    def sign(self, source: str) -> None:
        """Say whose level it is."""
        if self._readings and self.merge_rule != "last":
            self._readings = {source: self._choose(self._readings.values())}

    def make_way(self, later: "GaugeState") -> None:
        """Forget what was read where the same sources have read it later."""
        if later._readings:
            self._readings = {}

    def fold(self) -> None:
        """Forget what waits: it is counted already."""
        self.pending.clear()

    @property
    def is_empty(self) -> bool:
        """Whether it was not read."""
        return not (self._readings or self.rejected or self.pending)

    def merge(self, other: "GaugeState") -> None:
        """Add the readings of others; of the same, theirs is the last."""
        other.fold()
        self.rejected += other.rejected
        for source, number in other._readings.items():
            self.read(source, number)

    def read(self, source: str | None, number: float) -> None:
        """Note the level of a source; it takes the place of an earlier one of the same."""
        if source not in self._readings and len(self._readings) >= MAX_READINGS:
            source = None
        held = self._readings.pop(source, None)
        is_others = source is None and held is not None
        self._readings[source] = self._choose((held, number)) if is_others and held is not None else number

    def drain(self) -> "GaugeState":
        """Take the value; a gauge has none until it is read again."""
        taken = GaugeState(self.merge_rule)
        taken._readings, self._readings = self._readings, {}
        taken.rejected = self.drain_rejected()
        return taken

    def forget_pending(self) -> None:
        """Forget what was refused."""
        self.pending.clear()

    def stop(self) -> None:
        """Do nothing: a level takes no room."""

    def drain_rejected(self) -> int:
        """Take the number of readings refused."""
        self.fold()
        rejected, self.rejected = self.rejected, 0
        return rejected

    def to_value(self) -> float | dict[str | None, float] | None:
        """The value, None before the first reading; of readings that are signed each by its source."""
        return self.value if self._readings.keys() <= {None} else dict(self._readings)

    def to_packed(self) -> float | None:
        """The value, None before the first reading."""
        return self.value

    def load(self, payload: Any) -> None:  # noqa: ANN401 - whatever a peer sent
        """Note a number, the last one of a list (vLLM's form), or what `to_value` gives of those that are signed."""
        if isinstance(payload, dict) and self.merge_rule != "last":
            self._load_signed(payload)
            return
        for number in _numbers(payload)[-1:]:
            self.set(number)

    def _load_signed(self, payload: dict[Any, Any]) -> None:
        if not all(source is None or isinstance(source, str) for source in payload):
            message = "expected a number by each source, got one by something else"
            raise StatsError(message)
        for source, number in zip(payload, _numbers([*payload.values()]), strict=True):
            level = _as_level(number)
            if level is None:
                self.rejected += 1
            else:
                self.read(source, level)


_K = TypeVar("_K")
_V = TypeVar("_V")


def halves_of(items: dict[_K, _V]) -> list[dict[_K, _V]]:
    """The first and the second half of a dict of two or more; nothing of a smaller one."""
    pairs, half = list(items.items()), len(items) // 2
    return [dict(pairs[:half]), dict(pairs[half:])] if half else []


def as_number(value: object) -> float | None:
    """A real number as int or float of Python, None for anything else (bool too)."""
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    try:
        return float(value) if isinstance(value, Real) else None
    except OverflowError:
        return None


def _as_level(value: object) -> float | None:
    """A finite number, None for anything else; an int beyond all floats is no level of anything."""
    number = as_number(value)
    return number if number is not None and -_LARGEST_FLOAT <= number <= _LARGEST_FLOAT else None


def _numbers(payload: Any) -> list[float]:  # noqa: ANN401 - whatever a peer sent
    """The numbers of a payload that is one number or a list of them (vLLM's form)."""
    values = payload if isinstance(payload, list | tuple) else [payload]
    numbers = [number for number in map(as_number, values) if number is not None]
    if len(numbers) != len(values):
        message = f"expected a number or a list of numbers, got {type(payload).__name__}"
        raise StatsError(message)
    return numbers
