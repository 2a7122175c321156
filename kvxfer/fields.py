"""How a connector declares what it measures. From the declaration follow recording, merging, payload and export.

Only declarations live here; what a field holds is in `distribution`, `states` and `labelled`.
"""

from typing import Any, ClassVar, Final

from kvxfer.distribution import DistributionState
from kvxfer.errors import StatsError
from kvxfer.labelled import LabelledState
from kvxfer.states import CounterState, GaugeState, State
from kvxfer.underway import UnderWayState

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
        name = self.name.removesuffix("_perc") if self.unit == "1" else self.name  # vLLM's word of a part of one
        return name if not word or name.endswith(word) else f"{name}_{word}"

    def new_state(self) -> State:
        """An empty state of this field."""
        return LabelledState(self._new, len(self.labels)) if self.labels else self._new()

    def _new(self) -> State:
        raise NotImplementedError

    def __get__(self, instance: Any, owner: type) -> Any:  # noqa: ANN401 - the field, or on an instance its state
        """The state, made when it is first asked for and from then on an attribute of the instance."""
        return self if instance is None else instance.state(self.name)


class Distribution(Field):
    """A field of many values of which quantiles matter: ``stats.field.observe(value)``, or through a `Row`."""

    kind = "distribution"

    def _new(self) -> DistributionState:
        return DistributionState(whole=self.unit == "By" or self.unit.startswith("{"))


class Counter(Field):
    """A field that only adds up: ``stats.field.add(n)``; ``failure``: it counts what went wrong."""

    kind = "counter"

    def __init__(self, unit: str, help: str, *, labels: tuple[str, ...] = (), failure: bool = False) -> None:  # noqa: A002
        """Declare the field."""
        super().__init__(unit, help, labels=labels)
        self.failure = failure

    def _new(self) -> CounterState:
        return CounterState()


class Gauge(Field):
    """A level: ``stats.field.set(value)``.

    Of one source the last one counts; ``merge`` (last, max, min, sum) says how those of several become one.
    """

    kind = "gauge"

    def __init__(self, unit: str, help: str, *, labels: tuple[str, ...] = (), merge: str = "last") -> None:  # noqa: A002
        """Declare the field; raises `StatsError` for an unknown ``merge``."""
        super().__init__(unit, help, labels=labels)
        GaugeState(merge)
        self.merge = merge

    def _new(self) -> GaugeState:
        return GaugeState(self.merge)


class UnderWay(Field):
    """Transfers that are under way: ``token = stats.field.begin()``, ``stats.field.end(token)``."""

    kind = "under_way"

    def __init__(self, unit: str, help: str) -> None:  # noqa: A002 - as everywhere
        """Declare the field, which has no labels."""
        super().__init__(unit, help)

    def _new(self) -> UnderWayState:
        return UnderWayState()
