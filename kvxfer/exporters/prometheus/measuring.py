"""Whose stats are read: what the names of their series begin with, and their labels. No series are made here."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from kvxfer.connectors.multi import MultiKVConnectorStats, connector_of_child
from kvxfer.contract import KVConnectorStats
from kvxfer.errors import KVXferError
from kvxfer.exporters.prometheus.families import Labels
from kvxfer.exporters.prometheus.naming import labels_of, snake
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Group

Names: TypeAlias = Literal["kvxfer", "vllm"]

_RESERVED: Final = ("source", "collector")
"""What names begin with that are no connector's."""


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
        stem = snake(bare or connector)
        self.stem = f"connector_{stem}" if stem.startswith(_RESERVED) else stem
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


def parts(measuring: Measuring, stats: KVConnectorStats) -> Iterator[tuple[Measuring, KVConnectorStats]]:
    """The stats, or of a MultiConnector those of each child."""
    if isinstance(stats, MultiKVConnectorStats):
        for connector, part in stats.data.items():
            yield measuring.child(connector), part
    else:
        yield measuring, stats


def by_series(groups: Iterable[Group], names: Names) -> list[tuple[Measuring, Group]]:
    """The groups with how they are told; those whose series would have the same labels are added up.

    To Prometheus a label that is empty is one that is not there; to the collector these are two groups.
    """
    found: dict[tuple[Labels, int], tuple[Measuring, Group]] = {}
    for group in groups:
        measuring = Measuring(group.connector, {}, group.labels, names)
        held = found.get((measuring.own_labels, 0))
        if held is None:
            found[measuring.own_labels, 0] = measuring, group
        else:
            try:
                found[measuring.own_labels, 0] = held[0], _sum(held[1], group)
            except Exception:  # noqa: BLE001 - a class of somebody else: its series are left out, and counted
                found[measuring.own_labels, len(found)] = measuring, group
    return list(found.values())


def _sum(one: Group, other: Group) -> Group:
    stats = one.stats.copy().aggregate(other.stats)
    return msgspec.structs.replace(one, stats=stats, num_ranks=one.num_ranks + other.num_ranks)
