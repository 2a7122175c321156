"""Stats whose payload describes itself, as those of vLLM's offloading connectors do: what they share.

vLLM's form: ``{"types": {name: "counter" | "gauge" | "histogram"}, "data": {name: {label values: value or list}},
"info": {name: facts}}``. The packed form is the same with packed distributions for lists.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from kvxfer.contract import KVConnectorStats
from kvxfer.distribution import DistributionState
from kvxfer.errors import StatsError
from kvxfer.labelled import MAX_LABEL_SETS, LabelledState
from kvxfer.reading import describe, exact_values
from kvxfer.states import MAX_LABEL, CounterState, GaugeState, as_number, halves_of
from kvxfer.wire import encode_payload

MAX_METRICS: Final = 256
"""Metrics that one object holds; vLLM 0.33 has 21. What comes beyond is counted as rejected."""

MAX_HISTOGRAMS: Final = 32
"""Metrics that are histograms, which take up to 37 kB in each label set; vLLM 0.33 has 8, none with labels."""

MAX_HISTOGRAM_SETS: Final = 8
"""Label sets of a histogram; vLLM had two (``CPU_to_GPU``, ``GPU_to_CPU``)."""

MAX_FACT_BYTES: Final = 4096
"""Bytes of msgpack of one fact."""

_MOST: Final = 1 << 53
_HISTOGRAM: Final = "histogram"
_KINDS: Final = {"counter": CounterState, "gauge": GaugeState, "histogram": DistributionState}


class DescribedStats(KVConnectorStats):
    """Counters add per label set, gauges keep the last value, histograms extend; facts are carried, never reduced.

    ``data`` is ``{"types": ..., "data": {name: LabelledState}, "info": ...}``. Raises `StatsError` for a payload of
    another form.
    """

    prefix: ClassVar[str] = ""
    """What the names of its metrics begin with."""

    left_out: ClassVar[str] = ""
    """A metric that is carried and never reduced, empty for none."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        """Make an empty one, or one of a payload."""
        self.reset()
        if data:
            self._load(data)

    def __eq__(self, other: object) -> bool:
        """Tell whether both hold the same observations and facts."""
        if not isinstance(other, DescribedStats):
            return NotImplemented
        return type(self) is type(other) and self.data == other.data and self._rejected == other._rejected

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the payload."""
        return (type(self), (self.to_dict(),))

    def reset(self) -> None:
        """Forget everything observed."""
        self._rejected = 0
        self.data = {"types": {}, "data": {}, "info": {}}

    def _load(self, payload: Mapping[str, Any]) -> None:
        types, metrics, facts = (payload.get(part) or {} for part in ("types", "data", "info"))
        if not all(isinstance(part, dict) for part in (types, metrics, facts)):
            message = f"expected types, data and info to be objects - at `{type(self).__name__}`"
            raise StatsError(message)
        for name, children in metrics.items():
            self._load_metric(str(name), types.get(name), children)
        self._take_facts(facts)
        refused = as_number(payload.get("rejected", 0))
        self._reject(int(refused) if refused is not None and 0 <= refused < _MOST else 1)

    def _load_metric(self, name: str, kind: object, children: object) -> None:
        if not isinstance(kind, str) or kind not in _KINDS or not isinstance(children, dict):
            message = f"expected a counter, gauge or histogram with labels, got {kind!r:.40} - at `{name:.80}`"
            raise StatsError(message)
        for labels, value in children.items():
            key = tuple(map(str, labels)) if isinstance(labels, tuple | list) else (str(labels),)
            state = self._metric(name, kind, len(key))
            if state is None:
                self._reject(1)
            else:
                state.child(key).load(value)
                self._reject(state.drain_rejected())

    def _reject(self, number: int) -> None:
        # Where no int of msgpack would hold the sum, it could not be saved.
        self._rejected = min(self._rejected + number, _MOST)

    def _metric(self, name: str, kind: str, num_labels: int) -> LabelledState | None:
        """The state of a metric, made where there is room; None where it is full or of another kind."""
        metrics, types = self.data["data"], self.data["types"]
        if name not in metrics and len(name) <= MAX_LABEL and self._has_room_for(kind):
            types[name] = kind
            most = MAX_HISTOGRAM_SETS if kind == _HISTOGRAM else MAX_LABEL_SETS
            metrics[name] = LabelledState(_KINDS[kind], num_labels, most)
        state: LabelledState | None = metrics.get(name)
        return state if state is not None and types[name] == kind and state.num_labels == num_labels else None

    def _has_room_for(self, kind: str) -> bool:
        kinds = list(self.data["types"].values())
        return len(kinds) < MAX_METRICS and (kind != _HISTOGRAM or kinds.count(_HISTOGRAM) < MAX_HISTOGRAMS)

    def aggregate(self, other: KVConnectorStats) -> "DescribedStats":
        """Merge the other one in and return this object; raises `StatsError` for stats of another kind."""
        if not isinstance(other, type(self)):
            message = f"cannot merge {type(other).__name__} into {type(self).__name__}"
            raise StatsError(message)
        self._reject(other._rejected)
        for name, state in other.data["data"].items():
            mine = self._metric(name, other.data["types"][name], state.num_labels)
            if mine is None:
                self._reject(1)
            else:
                mine.merge(state)
        self._take_facts(other.data["info"])
        return self

    def _take_facts(self, facts: dict[str, Any]) -> None:
        """Keep the newest value of each fact, and new ones where there is room."""
        held = self.data["info"]
        for name, value in facts.items():
            if len(bytes(encode_payload({name: value}))) > MAX_FACT_BYTES:
                self._reject(1)
            elif name in held or len(held) < MAX_METRICS:
                held[name] = value

    def drain(self, *, for_report: bool = False) -> "DescribedStats":
        """Take all observations into a new object and leave this one empty."""
        del for_report
        taken = type(self)()
        taken.data, self.data = self.data, taken.data
        taken._rejected, self._rejected = self._rejected, 0
        return taken

    def split(self) -> "list[DescribedStats]":
        """Two of some of the metrics each, or of some of the label sets of the one metric; the first has the facts."""
        metrics = self.data["data"]
        halves = halves_of(metrics)
        if not halves:
            halves = [{name: half} for name, state in metrics.items() for half in state.split()]
        parts = [type(self)() for _ in halves]
        for part, half in zip(parts, halves, strict=True):
            part.data = {"types": {name: self.data["types"][name] for name in half}, "data": half, "info": {}}
        for part in parts[:1]:
            part.data["info"], part._rejected = self.data["info"], self._rejected
        return parts

    def is_empty(self) -> bool:
        """Whether there is neither a metric nor a fact."""
        return not (self.data["data"] or self.data["info"] or self._rejected)

    def to_dict(self) -> dict[str, Any]:
        """The payload without loss, in vLLM's form while histograms are exact."""
        return self._payload({name: state.to_value() for name, state in self.data["data"].items()})

    def to_packed(self) -> dict[str, Any]:
        """The payload of a report."""
        return self._payload({name: state.to_packed() for name, state in self.data["data"].items()})

    def _payload(self, metrics: dict[str, Any]) -> dict[str, Any]:
        payload = {"types": dict(self.data["types"]), "data": metrics}
        extra = {"info": self.data["info"], "rejected": min(self._rejected, _MOST - 1)}
        return payload | {name: value for name, value in extra.items() if value}

    def reduce(self) -> dict[str, Any]:
        """vLLM's keys: ``name``, and for histograms ``name_count`` and ``name_sum``; labels before the suffix."""
        reduced: dict[str, Any] = {}
        for key, state in self._reduced_states():
            if isinstance(state, DistributionState):
                reduced |= {f"{key}_count": state.count, f"{key}_sum": state.sum}
            else:
                reduced[key] = state.to_value()
        return reduced

    def _reduced_states(self) -> Iterator[tuple[str, Any]]:
        """The state of each label set, with the key that it has in a line."""
        for name, state in self.data["data"].items():
            if name != self.left_out:
                for labels, child in state.children.items():
                    yield f"{name}:{labels}" if labels else name, child

    def copy(self) -> "DescribedStats":
        """An equal object that shares nothing with this one."""
        return type(self)().aggregate(self)

    def summary(self) -> dict[str, Any]:
        """Per metric a number or count, sum, extremes and quantiles; per label set where it has labels."""
        return {name: _describe(state) for name, state in self.data["data"].items()}

    def num_rejected(self) -> int:
        """Observations that were refused."""
        return self._rejected

    def num_values(self) -> int:
        """The values that the fullest histogram holds one by one."""
        return max(map(exact_values, self.data["data"].values()), default=0)

    def is_bounded(self) -> bool:
        """True: metrics, label sets and values are bounded."""
        return True


def _describe(state: LabelledState) -> Any:  # noqa: ANN401 - plain data of JSON
    unlabelled = state.children.get(())
    return describe(state if unlabelled is None else unlabelled)
