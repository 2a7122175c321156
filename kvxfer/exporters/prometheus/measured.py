"""What groups and sources measured, as series.

Only stats are read here; the pipeline's own counts are in `health`. A class of somebody else that fails costs its own
series alone.
"""

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

from kvxfer.connectors.described import DescribedStats
from kvxfer.connectors.multi import MultiKVConnectorStats, connector_of_child
from kvxfer.contract import KVConnectorStats
from kvxfer.distribution import DistributionState
from kvxfer.errors import KVXferError
from kvxfer.exporters.prometheus.classic import UNKNOWN, boundaries_of
from kvxfer.exporters.prometheus.described import add_described
from kvxfer.exporters.prometheus.families import Counted, Families, Family, Kind, Labels, Measured, Value
from kvxfer.exporters.prometheus.naming import labels_of, snake, unit_word, valid_name
from kvxfer.exporters.prometheus.vllm_names import VLLM_NAMES
from kvxfer.factory import KVConnectorFactory
from kvxfer.fields import Field
from kvxfer.histogram import Histogram
from kvxfer.interval import Group, SourceView
from kvxfer.labelled import LabelledState
from kvxfer.states import CounterState, GaugeState
from kvxfer.stats import TransferStats

Names: TypeAlias = Literal["kvxfer", "vllm"]

_KINDS: Final = {"distribution": Kind.HISTOGRAM, "counter": Kind.COUNTER, "gauge": Kind.GAUGE}


class Measuring:
    """Whose stats are read: the connector's name, our labels and those of the group or source."""

    def __init__(self, connector: str, ours: Mapping[str, str], theirs: Mapping[str, str], names: Names) -> None:
        """Find the stem of the names; connectors that share one class, as NIXL's three do, share it."""
        try:
            found = KVConnectorFactory.get_connector_class_by_name(connector_of_child(connector))
            bare = str(getattr(found, "__name__", ""))
        except KVXferError:
            bare = ""
        self.connector = connector
        self.names = names
        self.stem = snake(bare or connector)
        self.ours = {"connector": connector, **ours}
        self.theirs = theirs
        self.own_labels = labels_of(self.ours, theirs)
        """Of a field that has no labels."""

    @property
    def prefix(self) -> str:
        """What its names begin with."""
        return f"kvxfer_{self.stem}"

    def child(self, connector: str) -> "Measuring":
        """The same for a connector below this one."""
        ours = {**self.ours, "connector": connector, "parent": self.connector}
        return Measuring(connector, ours, self.theirs, self.names)

    def labels(self, more: Mapping[str, str]) -> Labels:
        """The labels of a series, with those of its field."""
        return labels_of({**self.ours, **more}, self.theirs) if more else self.own_labels


def add_group(families: Families, group: Group, names: Names) -> bool:
    """Add all that a group holds since the beginning; whether its class could be read."""
    measuring = Measuring(group.connector, {}, group.labels, names)
    family = Family(f"{measuring.prefix}_ranks", Kind.GAUGE, "Publishers that have reported and are not forgotten.")
    families.add(family, measuring.own_labels, group.num_ranks)
    return _guarded(families, measuring, group.stats)


def _guarded(families: Families, measuring: Measuring, stats: KVConnectorStats) -> bool:
    try:
        _add(families, measuring, stats)
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return False
    return True


def _add(families: Families, measuring: Measuring, stats: KVConnectorStats) -> None:
    if isinstance(stats, MultiKVConnectorStats):
        for child, part in stats.data.items():
            _add(families, measuring.child(child), part)
        return
    if isinstance(stats, TransferStats):
        _add_declared(families, measuring, stats)
    elif isinstance(stats, DescribedStats):
        add_described(families, measuring, stats)
    else:
        add_reduced(families, measuring, stats)
        return
    _add_moved(families, measuring, stats)


def _add_moved(families: Families, measuring: Measuring, stats: KVConnectorStats) -> None:
    prefix, labels, moved = measuring.prefix, measuring.own_labels, stats.moved()
    rejected = Family(f"{prefix}_rejected_observations", Kind.COUNTER, "Refused: not finite, negative or no number.")
    families.add(rejected, labels, stats.num_rejected())
    if moved is not None:
        moved_help = (
            "Bytes moved. Its rate is the throughput over the wall clock, over that of busy seconds the busy one."
        )
        busy_help = "Durations of transfers, summed. Its rate is how many are in flight on average."
        families.add(Family(f"{prefix}_moved_bytes", Kind.COUNTER, moved_help, "bytes"), labels, moved.num_bytes)
        families.add(Family(f"{prefix}_busy_seconds", Kind.COUNTER, busy_help, "seconds"), labels, moved.busy_seconds)


# --- declared fields


def _add_declared(families: Families, measuring: Measuring, stats: TransferStats) -> None:
    for name, field in stats.fields.items():
        family = _family_of(field, measuring.stem, measuring.names)
        families.declare(family)
        for more, state in _children(field, stats.data.get(name)):
            value = value_of(field.kind, state)
            if value is not None:
                families.add(family, measuring.labels(more), value)
    for name, state in stats.data.items():
        if name not in stats.fields and name != "rejected_observations":
            _add_carried(families, measuring, f"{measuring.prefix}_{valid_name(name)}", state)


@lru_cache(maxsize=1024)
def _family_of(field: Field, stem: str, names: Names) -> Family:
    kind, word = _KINDS[field.kind], unit_word(field.unit)
    theirs = VLLM_NAMES.get(stem, {}).get(field.name) if names == "vllm" else None
    if theirs is not None:
        return Family(theirs.name, kind, field.help, "", theirs.boundaries, is_native=False)
    boundaries = boundaries_of(field.unit, word) if kind is Kind.HISTOGRAM else ()
    return Family(f"kvxfer_{stem}_{field.full_name}", kind, field.help, word, boundaries)


def _children(field: Field, state: Any) -> Iterator[tuple[dict[str, str], Any]]:  # noqa: ANN401 - any state
    """The states of a field with their labels; of one that nobody observed yet an empty one, unless it has labels."""
    if isinstance(state, LabelledState):
        for values, child in list(state.children.items()):
            yield dict(zip(field.labels, values, strict=True)), child
    elif state is not None or not field.labels:
        yield {}, state


def value_of(kind: str, state: Any) -> Value | None:  # noqa: ANN401 - any state
    """What is exposed of a state; without one 0, but nothing of a gauge that was never read."""
    if kind == "distribution":
        return Measured(Histogram(), 0) if state is None else Measured(state.histogram(), state.sum)
    if state is None:
        return 0 if kind == "counter" else None
    value: float | None = state.value
    return value


def _add_carried(families: Families, measuring: Measuring, name: str, state: Any) -> None:  # noqa: ANN401 - any state
    """Add a field that only a newer worker knows."""
    about = "A field that this collector does not know."
    if isinstance(state, DistributionState):
        family = Family(name, Kind.HISTOGRAM, about, "", UNKNOWN)
        families.add(family, measuring.own_labels, Measured(state.histogram(), state.sum))
    elif isinstance(state, CounterState):
        families.add(Family(name, Kind.COUNTER, about), measuring.own_labels, state.value)


# --- stats of other classes


def add_last(families: Families, group: Group) -> bool:
    """Add the numbers of the last interval of stats that only grow, and so have no totals; whether they could be read.

    They are gauges, since nobody knows what their keys mean.
    """
    measuring = Measuring(group.connector, {}, group.labels, "kvxfer")
    try:
        if not group.stats.is_bounded():
            add_reduced(families, measuring, group.stats)
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return False
    return True


def add_reduced(families: Families, measuring: Measuring, stats: KVConnectorStats) -> None:
    """Add the numbers that a class reduces itself to."""
    for key, number in _numbers(stats.reduce()):
        family = Family(f"{measuring.prefix}_reduced_{valid_name(key.lower())}", Kind.GAUGE, _about(key))
        families.add(family, measuring.own_labels, number)


def _about(key: str) -> str:
    return f"{key!r} as the connector's class reduces it: of the last interval where it keeps no totals."


def _numbers(reduced: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for key, value in reduced.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}_{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield str(key), value


# --- sources


def add_source(families: Families, view: SourceView) -> bool:
    """Add what one source measured: counters, gauges, and count and sum of each distribution; whether it could be read.

    Their names are not those of the groups, so that a sum over the one counts nothing of the other.
    """
    ours = {"source": view.source.id, "host": view.source.host}
    measuring = Measuring(view.connector, ours, view.source.labels, "kvxfer")
    seen = Family("kvxfer_source_last_seen_timestamp_seconds", Kind.GAUGE, "When it was last heard of.", "seconds")
    live = Family("kvxfer_source_live", Kind.GAUGE, "1 where it reports, 0 where it is silent.")
    families.add(seen, measuring.own_labels, view.last_seen)
    families.add(live, measuring.own_labels, int(view.state == "live"))
    try:
        stats = view.stats
        if isinstance(stats, MultiKVConnectorStats):
            parts = [(measuring.child(connector), part) for connector, part in stats.data.items()]
        else:
            parts = [(measuring, stats)]
        for each, part in parts:
            if isinstance(part, TransferStats):
                _add_source_fields(families, each, part)
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return False
    return True


def _add_source_fields(families: Families, measuring: Measuring, stats: TransferStats) -> None:
    for name, field in stats.fields.items():
        state = stats.data.get(name)
        if isinstance(state, LabelledState) or field.labels:
            continue
        value = _summed(field, state)
        if value is not None:
            families.add(_source_family(field, measuring.stem), measuring.own_labels, value)


@lru_cache(maxsize=1024)
def _source_family(field: Field, stem: str) -> Family:
    kind = Kind.SUMMARY if field.kind == "distribution" else _KINDS[field.kind]
    return Family(f"kvxfer_{stem}_source_{field.full_name}", kind, field.help, unit_word(field.unit))


def _summed(field: Field, state: DistributionState | CounterState | GaugeState | None) -> Value | None:
    if isinstance(state, DistributionState):
        return Counted(state.count, state.sum)
    return Counted(0, 0) if field.kind == "distribution" else value_of(field.kind, state)
