"""Stats of connectors whose own classes are elsewhere: FlexKV's, LMCache's, a private one's. What their payload says.

Nobody here knows what the names mean, so by their form alone lists of numbers are distributions and numbers counters.
The line says so (`MARK`), since a level, which is no counter, is summed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kvxfer.connectors.base import Connector
from kvxfer.connectors.described import DescribedStats
from kvxfer.reading import reduce_field
from kvxfer.states import as_number

MARK: Final = "Generic stats"
"""The first key that these reduce to, with 1: the numbers that follow are read by their form."""

MAX_DEPTH: Final = 8
"""Objects within objects; what is deeper is rejected."""

_GENERIC: Final = "generic"
_DESCRIBED: Final = {"types", "data", "info", "rejected", _GENERIC}


class GenericConnectorStats(DescribedStats):
    """Any payload of vLLM's style.

    A number is a counter; a list of numbers a distribution; an object's fields are named ``outer.inner``, with label
    values as keys they are label sets; rows, as a list of objects, are a distribution for each column; a string in a
    list counts under a label of itself, and by itself is a fact, as a truth is. A payload that describes itself is
    taken at its word. What fits nothing of this is counted as rejected. Bounds are those of `DescribedStats`.
    """

    def _load(self, payload: Mapping[str, Any]) -> None:
        if _describes_itself(payload):
            super()._load(payload)
        else:
            self._load_fields("", payload, 0)

    def _load_fields(self, prefix: str, fields: Mapping[Any, Any], depth: int) -> None:
        if depth > MAX_DEPTH:
            self._reject(1)
            return
        for key, value in fields.items():
            if isinstance(key, tuple):
                self._load_value(prefix, key, value, depth)
            else:
                self._load_value(f"{prefix}.{key}" if prefix else str(key), (), value, depth)

    def _load_value(self, name: str, labels: tuple[Any, ...], value: Any, depth: int) -> None:  # noqa: ANN401 - any
        if isinstance(value, Mapping):
            self._load_fields(name, value, depth + 1)
        elif isinstance(value, list | tuple):
            self._load_list(name, labels, value, depth + 1)
        elif isinstance(value, str | bool):
            self._take_facts({name: value})
        elif (number := as_number(value)) is None:
            self._reject(value is not None)
        elif number:  # a counter at 0 says nothing
            self._load_metric(name, "counter", {labels: number})

    def _load_list(self, name: str, labels: tuple[Any, ...], values: Sequence[Any], depth: int) -> None:
        numbers = [value for value in values if as_number(value) is not None]
        rows = [value for value in values if isinstance(value, Mapping)]
        words = [value for value in values if isinstance(value, str)]
        self._reject(len(values) - len(numbers) - len(rows) - len(words))
        if numbers:
            self._load_metric(name, "histogram", {labels: numbers})
        for word in words:
            self._load_metric(name, "counter", {(*labels, word): 1})
        columns: dict[Any, list[Any]] = {}
        for row in rows:
            for column, value in row.items():
                columns.setdefault(column, []).append(value)
        self._load_fields(name, columns, depth)

    def _payload(self, metrics: dict[str, Any]) -> dict[str, Any]:
        # So that a journal can be read where the name is not registered.
        return super()._payload(metrics) | {_GENERIC: True}

    def reduce(self) -> dict[str, Any]:
        """The mark, then count, mean and quantiles of each distribution, and each counter, by name."""
        reduced = {MARK: 1} if self.data["data"] else {}
        for key, state in self._reduced_states():
            reduced |= reduce_field(key, state)
        return reduced


def _describes_itself(payload: Mapping[str, Any]) -> bool:
    return payload.keys() <= _DESCRIBED and all(isinstance(payload.get(part), dict) for part in ("types", "data"))


class GenericConnector(Connector):
    """The connector of these stats; each that is registered as such is a class of its own, named after it."""

    stats_class = GenericConnectorStats
