"""What groups measured, as series of known names: counters and distributions of their totals, gauges of now.

Only stats are read here; the pipeline's own counts are in `health`, what workers name themselves in `unknown` and
`described`. A class of somebody else that fails costs its own series alone.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from kvxfer.connectors.described import DescribedStats
from kvxfer.contract import KVConnectorStats
from kvxfer.exporters.prometheus.classic import boundaries_of
from kvxfer.exporters.prometheus.common import add_common, add_common_levels
from kvxfer.exporters.prometheus.described import add_described
from kvxfer.exporters.prometheus.families import Families, Family, Kind, Measured, Value
from kvxfer.exporters.prometheus.measuring import Measuring, Names, parts
from kvxfer.exporters.prometheus.naming import unit_word
from kvxfer.exporters.prometheus.unknown import Unknown, add_carried, add_reduced
from kvxfer.exporters.prometheus.vllm_names import VLLM_NAMES
from kvxfer.fields import Field
from kvxfer.histogram import Histogram
from kvxfer.interval import Group
from kvxfer.labelled import LabelledState
from kvxfer.stats import TransferStats

_KINDS: Final = {"distribution": Kind.HISTOGRAM, "counter": Kind.COUNTER, "gauge": Kind.GAUGE}


def add_group(families: Families, unknown: Unknown, measuring: Measuring, group: Group) -> bool:
    """Add what a group has counted since the beginning; whether its class could be read."""
    family = Family(f"{measuring.prefix}_ranks", Kind.GAUGE, "Publishers that have reported and are not forgotten.")
    families.add(family, measuring.own_labels, group.num_ranks)
    try:
        for each, stats in parts(measuring, group.stats):
            _add_totals(families, unknown, each, stats)
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return False
    return True


def add_levels(families: Families, unknown: Unknown, measuring: Measuring, group: Group) -> bool:
    """Add what holds for the last interval alone; whether the class could be read.

    These are gauges, which are never folded over intervals, and the numbers of stats that only grow.
    """
    try:
        if not group.stats.is_bounded():
            add_reduced(unknown, measuring, group.stats)
        for each, stats in parts(measuring, group.stats):
            add_common_levels(families, each, stats)
            if isinstance(stats, TransferStats):
                _add_declared(families, each, stats, gauges=True)
            elif isinstance(stats, DescribedStats):
                add_described(unknown, each, stats, gauges=True)
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return False
    return True


def _add_totals(families: Families, unknown: Unknown, measuring: Measuring, stats: KVConnectorStats) -> None:
    if not stats.is_bounded():  # it has no totals
        return
    add_common(families, measuring, stats)
    if isinstance(stats, TransferStats):
        _add_declared(families, measuring, stats, gauges=False)
        add_carried(unknown, measuring, stats)
        _add_moved(families, measuring, stats)
    elif isinstance(stats, DescribedStats):
        add_described(unknown, measuring, stats, gauges=False)
        _add_moved(families, measuring, stats)
    else:
        add_reduced(unknown, measuring, stats)


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


def _add_declared(families: Families, measuring: Measuring, stats: TransferStats, *, gauges: bool) -> None:
    for name, field in stats.fields.items():
        if (field.kind == "gauge") is not gauges:
            continue
        family = _family_of(field, measuring.stem, measuring.names)
        families.declare(family)
        for more, state in _children(field, stats.data.get(name)):
            value = _value_of(field.kind, state)
            if value is not None:
                families.add(family, measuring.labels(more), value)


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


def _value_of(kind: str, state: Any) -> Value | None:  # noqa: ANN401 - any state
    """What is exposed of a state; without one 0, but nothing of a gauge that was never read."""
    if kind == "distribution":
        return Measured(Histogram(), 0) if state is None else Measured(state.histogram(), state.sum)
    if state is None:
        return 0 if kind == "counter" else None
    value: float | None = state.value
    return value
