"""Series whose names nobody here knows, since a worker chose them; they take neither name nor room from the others."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from kvxfer.contract import KVConnectorStats
from kvxfer.distribution import DistributionState
from kvxfer.exporters.prometheus.classic import UNKNOWN
from kvxfer.exporters.prometheus.families import Families, Family, Kind, Labels, Measured, Value
from kvxfer.exporters.prometheus.measuring import Measuring
from kvxfer.exporters.prometheus.naming import valid_name
from kvxfer.states import CounterState
from kvxfer.stats import TransferStats


class Unknown:
    """Keeps them until all that is known has been told.

    Where workers do not mean the same by a name, what most series mean gets it.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._held: dict[tuple[Any, ...], tuple[Family, list[tuple[Labels, Value]]]] = {}

    def add(self, family: Family, labels: Labels, value: Value) -> None:
        """Keep a series."""
        key = family.name, family.kind, family.boundaries
        self._held.setdefault(key, (family, []))[1].append((labels, value))

    def tell(self, families: Families) -> None:
        """Add what was kept."""
        for family, series in sorted(self._held.values(), key=lambda held: -len(held[1])):
            for labels, value in series:
                families.add(family, labels, value)


def add_carried(unknown: Unknown, measuring: Measuring, stats: TransferStats) -> None:
    """Add the fields that only a newer worker knows."""
    about = "A field that this collector does not know."
    for name, state in stats.data.items():
        full_name = f"{measuring.prefix}_carried_{valid_name(name)}"
        if name in stats.fields or name == "rejected_observations":
            continue
        if isinstance(state, DistributionState):
            family = Family(full_name, Kind.HISTOGRAM, about, "", UNKNOWN)
            unknown.add(family, measuring.own_labels, Measured(state.histogram(), state.sum))
        elif isinstance(state, CounterState):
            unknown.add(Family(full_name, Kind.COUNTER, about), measuring.own_labels, state.value)


def add_reduced(unknown: Unknown, measuring: Measuring, stats: KVConnectorStats) -> None:
    """Add the numbers that a class reduces itself to: gauges, since nobody knows what their keys mean."""
    for key, number in _numbers(stats.reduce()):
        family = Family(f"{measuring.prefix}_reduced_{valid_name(key.lower())}", Kind.GAUGE, _about(key))
        unknown.add(family, measuring.own_labels, number)


def _about(key: str) -> str:
    return f"{key!r} as the connector's class reduces it: of the last interval where it keeps no totals."


def _numbers(reduced: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for key, value in reduced.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}_{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield str(key), value
