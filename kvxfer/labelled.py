"""What a labelled field holds: one state per label set. Only state and merging live here, as in `states`."""

from collections.abc import Callable
from typing import Any, Final

from kvxfer.errors import StatsError
from kvxfer.states import MAX_LABEL, GaugeState, State, halves_of

MAX_LABEL_SETS: Final = 100
"""Label sets of one field; what comes beyond is counted under ``other``, so that a label cannot fill the memory."""

OTHER: Final = "other"


class LabelledState:
    """One state per label set; at most ``most`` of them, the overflow is counted under ``other``."""

    __slots__ = ("_refused", "_settle", "children", "make", "most", "num_labels")

    def __init__(self, make: Callable[[], Any], num_labels: int, most: int = MAX_LABEL_SETS) -> None:
        """Make none yet; ``make`` gives the state of a new label set, of ``num_labels`` values."""
        self.make = make
        self.most = most
        self.num_labels = num_labels
        self.children: dict[tuple[str, ...], Any] = {}
        self._refused: list[None] = []  # an entry per call of `labels` that was refused: an append is atomic
        self._settle: Callable[[], None] | None = None

    @property
    def settle(self) -> Callable[[], None]:
        """What reading any label set does first."""
        return self._settle or self.fold

    @settle.setter
    def settle(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def __repr__(self) -> str:
        """Give the states."""
        return f"<LabelledState {self.children}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both hold the same in every label set."""
        if not isinstance(other, LabelledState):
            return NotImplemented
        return (self._held(), len(self._refused)) == (other._held(), len(other._refused))

    def __bool__(self) -> bool:
        """Whether something waits to be folded."""
        return bool(self._refused) or any(child.pending for child in list(self.children.values()))

    def _held(self) -> dict[tuple[str, ...], Any]:
        return {values: child for values, child in self.children.items() if not child.is_empty}

    __hash__ = None  # type: ignore[assignment]

    def labels(self, *values: str) -> Any:  # noqa: ANN401 - the declaration says which state
        """The state of one label set; keep it where it is used often.

        It never raises: for values that are not as declared it is that of ``other``, and the call is counted as one
        observation rejected.
        """
        try:
            child = self.children.get(values)
        except Exception:  # noqa: BLE001 - of a value that has no hash, or one that fails
            child = None
        if child is not None:
            return child
        fitting = self._fitting(values)
        if fitting is None:
            self._refused.append(None)
        return self._at(fitting or self._other)

    def child(self, values: tuple[Any, ...]) -> Any:  # noqa: ANN401 - the declaration says which state
        """The state of a label set that a peer named; raises `StatsError` for values that are not as declared."""
        child = self.children.get(values)
        if child is not None:
            return child
        fitting = self._fitting(values)
        if fitting is None:
            message = f"expected {self.num_labels} label values of type str, got {values!r:.80}"
            raise StatsError(message)
        return self._at(fitting)

    def _fitting(self, values: tuple[Any, ...]) -> tuple[str, ...] | None:
        """The values as plain strings that a report can carry, None where they are not as declared."""
        try:
            plain = tuple(map(str.__str__, values))  # of a subclass of str msgspec may make nothing
            "".join(plain).encode()
        except (TypeError, UnicodeEncodeError):  # no str; half of a surrogate pair
            return None
        return plain if len(plain) == self.num_labels else None

    @property
    def _other(self) -> tuple[str, ...]:
        return (OTHER,) * self.num_labels

    def _at(self, values: tuple[str, ...]) -> Any:  # noqa: ANN401 - the declaration says which state
        is_new = values not in self.children
        if is_new and (len(self.children) >= self.most or any(len(value) > MAX_LABEL for value in values)):
            values = self._other
        child = self.children.setdefault(values, self.make())
        if self._settle is not None:
            child.settle = self._settle
        return child

    def forget_pending(self) -> None:
        """Drop what is pending in every label set."""
        self._refused.clear()
        for child in list(self.children.values()):
            child.forget_pending()

    def stop(self) -> None:
        """Drop what is observed in any label set from now on."""
        make = self.make

        def make_stopped() -> State:
            state: State = make()
            state.stop()
            return state

        self.make = make_stopped
        for child in list(self.children.values()):
            child.stop()

    def drain_rejected(self) -> int:
        """Take the number of observations refused, over all label sets."""
        rejected: int = sum(child.drain_rejected() for child in list(self.children.values()))
        return rejected + len(self._drain_refused())

    def _drain_refused(self) -> list[None]:
        refused = self._refused[:]
        del self._refused[: len(refused)]
        return refused

    def fold(self) -> None:
        """Fold every label set."""
        for child in list(self.children.values()):
            child.fold()

    @property
    def is_empty(self) -> bool:
        """Whether no label set holds anything, and no label was refused."""
        return not self._refused and all(child.is_empty for child in list(self.children.values()))

    def merge(self, other: "LabelledState") -> None:
        """Merge label set by label set."""
        self._refused.extend(other._refused)
        for values, child in list(other.children.items()):
            self.child(values).merge(child)

    def sign(self, source: str) -> None:
        """Say whose levels these are, where they are some."""
        for child in self.children.values():
            if isinstance(child, GaugeState):
                child.sign(source)

    def make_way(self, later: "LabelledState") -> None:
        """Forget the levels that the same sources have read later."""
        for values, child in later.children.items():
            mine = self.children.get(values)
            if isinstance(mine, GaugeState) and isinstance(child, GaugeState):
                mine.make_way(child)

    def drain(self) -> "LabelledState":
        """Take what the label sets hold; who kept one of them goes on with it."""
        taken = LabelledState(self.make, self.num_labels, self.most)
        taken._refused = self._drain_refused()
        taken.children = {values: child.drain() for values, child in list(self.children.items())}
        return taken

    def split(self) -> "list[LabelledState]":
        """Two that together hold the same, and share it with this one; none where there is one label set or none."""
        halves = []
        for children in halves_of(self.children):
            half = LabelledState(self.make, self.num_labels, self.most)
            half.children = children
            halves.append(half)
        for first in halves[:1]:
            first._refused = self._refused
        return halves

    def to_value(self) -> dict[tuple[str, ...], Any]:
        """The plain data of each label set."""
        return {values: child.to_value() for values, child in self.children.items() if not child.is_empty}

    def to_packed(self) -> dict[tuple[str, ...], Any]:
        """What a report carries of each label set."""
        return {values: child.to_packed() for values, child in self.children.items() if not child.is_empty}

    def load(self, payload: Any) -> None:  # noqa: ANN401 - whatever a peer sent
        """Add a payload of each label set."""
        if not isinstance(payload, dict):
            message = f"expected a payload per label set, got {type(payload).__name__}"
            raise StatsError(message)
        for values, child in payload.items():
            self.child(values if isinstance(values, tuple) else (values,)).load(child)
