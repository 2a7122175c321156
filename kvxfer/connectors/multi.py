"""vLLM's MultiConnector: several connectors at once, each with its own stats.

vLLM names a child after its class and merges children of one class under that name. Here each may have a name of its
own: the first of a class is named as in vLLM, the second ``NixlConnector#2``, and so on (`names_of_children`).
"""

import re
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, Final

from kvxfer.connectors.base import Connector
from kvxfer.contract import KVConnectorStats, Moved
from kvxfer.distribution import DistributionState, merged
from kvxfer.errors import StatsError
from kvxfer.factory import ConnectorClass, KVConnectorFactory
from kvxfer.states import halves_of
from kvxfer.underway import InFlight

MAX_CHILDREN: Final = 6
"""Children of one object, twice what is configured anywhere; each can hold as much as stats of its own, 11 MB."""

_INSTANCE: Final = re.compile(r"(.+)#[2-9]")


def names_of_children(class_names: Iterable[str]) -> list[str]:
    """The names of children in the order of the config: all differ, so that those of one class are told apart."""
    seen: Tally[str] = Tally()
    names = []
    for name in class_names:
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def connector_of_child(child: str) -> str:
    """The connector that a child is an instance of."""
    found = _INSTANCE.fullmatch(child)
    return child if found is None else found[1]


class MultiKVConnectorStats(KVConnectorStats):
    """Stats of several connectors: ``data`` is ``{child class name: stats of the child}``."""

    def __init__(self, data: dict[str, KVConnectorStats] | None = None) -> None:
        """Hold the children given, by identity."""
        self.data = data if data is not None else {}

    def __getitem__(self, child: str) -> KVConnectorStats:
        """The stats of one child."""
        stats: KVConnectorStats = self.data[child]
        return stats

    def reset(self) -> None:
        """Empty every child."""
        for stats in self.data.values():
            stats.reset()

    def renew(self) -> None:
        """In a forked child: every child of it begins with nothing."""
        for stats in self.data.values():
            stats.renew()

    def aggregate(self, other: KVConnectorStats) -> "MultiKVConnectorStats":
        """Merge child by child, take a child that is new, and return this object.

        Raises `StatsError`, with nothing merged, where a child of both is of different classes, or both together have
        too many.
        """
        return self._merge(other, lambda mine, stats: mine.aggregate(stats))

    def follow(self, later: KVConnectorStats) -> "MultiKVConnectorStats":
        """The same for what the same sources observed later."""
        return self._merge(later, lambda mine, stats: mine.follow(stats))

    def sign(self, source: str) -> None:
        """Say to each child who observed it."""
        for stats in self.data.values():
            stats.sign(source)

    def _merge(
        self, other: KVConnectorStats, merge: Callable[[KVConnectorStats, KVConnectorStats], KVConnectorStats]
    ) -> "MultiKVConnectorStats":
        if not isinstance(other, MultiKVConnectorStats):
            message = f"cannot merge {type(other).__name__} into {type(self).__name__}"
            raise StatsError(message)
        _check_number(self.data.keys() | other.data.keys())
        for child, stats in other.data.items():
            mine = self.data.get(child)
            if mine is not None and type(mine) is not type(stats):
                message = f"cannot merge {type(stats).__name__} into {type(mine).__name__} - at `{child}`"
                raise StatsError(message)
        for child, stats in other.data.items():
            mine = self.data.get(child)
            # A copy, or what is merged into this child later would show in the other object.
            self.data[child] = stats.copy() if mine is None else merge(mine, stats)
        return self

    def drain(self, *, for_report: bool = False) -> "MultiKVConnectorStats":
        """Drain every child."""
        return type(self)({child: stats.drain(for_report=for_report) for child, stats in list(self.data.items())})

    def drain_cut(self) -> int:
        """Take what the children have dropped."""
        return sum(stats.drain_cut() for stats in list(self.data.values()))

    def stop(self) -> None:
        """Let every child drop what is recorded."""
        for stats in list(self.data.values()):
            stats.stop()

    def split(self) -> "list[MultiKVConnectorStats]":
        """Two of some of the children each, or of parts of the one child."""
        halves = halves_of(self.data)
        if not halves:
            halves = [{child: part} for child, stats in self.data.items() for part in stats.split()]
        return [type(self)(half) for half in halves]

    def reduce(self) -> dict[str, Any]:
        """The reduced keys of each child that holds something, nested."""
        return {child: stats.reduce() for child, stats in self.data.items() if not stats.is_empty()}

    def is_empty(self) -> bool:
        """Whether all children are empty."""
        return all(stats.is_empty() for stats in self.data.values())

    def to_dict(self) -> dict[str, Any]:
        """The payload of each child."""
        return {child: stats.to_dict() for child, stats in self.data.items()}

    def to_packed(self) -> dict[str, Any]:
        """The payload of a report: of each child that holds something."""
        return {child: stats.to_packed() for child, stats in self.data.items() if not stats.is_empty()}

    def copy(self) -> "MultiKVConnectorStats":
        """An equal object that shares nothing with this one."""
        return type(self)({child: stats.copy() for child, stats in self.data.items()})

    def summary(self) -> dict[str, Any]:
        """The summary of each child."""
        return {child: stats.summary() for child, stats in self.data.items()}

    def moved(self) -> Moved | None:
        """Bytes and busy seconds over the children that know theirs."""
        known = [moved for moved in (stats.moved() for stats in self.data.values()) if moved is not None]
        return Moved(*map(sum, zip(*known, strict=True))) if known else None

    def durations(self) -> DistributionState | None:
        """The seconds of the transfers of all children that know theirs."""
        known = (stats.durations() for stats in self.data.values())
        return merged(durations for durations in known if durations is not None)

    def failures(self) -> dict[str, float]:
        """What went wrong in each child, those of one name together."""
        total: dict[str, float] = {}
        for stats in self.data.values():
            for name, count in stats.failures().items():
                total[name] = total.get(name, 0) + count
        return total

    def note_levels(self) -> None:
        """Let every child read its own."""
        for stats in list(self.data.values()):
            stats.note_levels()

    def forget_under_way(self) -> None:
        """Let every child forget its own."""
        for stats in self.data.values():
            stats.forget_under_way()

    def in_flight(self) -> InFlight | None:
        """Transfers under way in all children that know theirs."""
        known = [each for each in (stats.in_flight() for stats in self.data.values()) if each is not None]
        if not known:
            return None
        return InFlight(sum(each.num_transfers for each in known), max(each.oldest_seconds for each in known))

    def num_rejected(self) -> int:
        """Observations that were refused, over all children."""
        return sum(stats.num_rejected() for stats in self.data.values())

    def num_values(self) -> int:
        """The longest list of values of any child."""
        return max((stats.num_values() for stats in self.data.values()), default=0)

    def is_bounded(self) -> bool:
        """Whether all children are."""
        return all(stats.is_bounded() for stats in self.data.values())


class MultiConnector(Connector):
    """Builds each child by its own class; the class is looked up by the child's name."""

    stats_class = MultiKVConnectorStats

    @classmethod
    def build_kv_connector_stats(cls, data: Mapping[str, Any] | None = None) -> MultiKVConnectorStats:
        """Build the children; a child already built is kept, one whose build returns None is left out.

        Raises `UnknownConnectorError` (a ValueError) for a child that is not registered, `StatsError` for too many.
        """
        return _build_all(data or {}, KVConnectorFactory.get_connector_class_by_name)

    @classmethod
    def build_known_or_generic(cls, data: Mapping[str, Any]) -> MultiKVConnectorStats:
        """The same where a child that is not registered is generic: for a worker, which is not to lose the others."""
        return _build_all(data, _known_or_generic)


def _check_number(children: Sized) -> None:
    if len(children) > MAX_CHILDREN:
        message = f"a MultiConnector holds at most {MAX_CHILDREN} connectors, got {len(children)}"
        raise StatsError(message)


def _known_or_generic(connector: str) -> ConnectorClass:
    if KVConnectorFactory.is_registered(connector):
        return KVConnectorFactory.get_connector_class_by_name(connector)
    return KVConnectorFactory.get_generic_class(connector)


def _build_all(data: Mapping[str, Any], find: Callable[[str], ConnectorClass]) -> MultiKVConnectorStats:
    _check_number(data)
    built = {child: _build(child, payload, find) for child, payload in data.items()}
    return MultiKVConnectorStats({child: stats for child, stats in built.items() if stats is not None})


def _build(child: Any, payload: Any, find: Callable[[str], ConnectorClass]) -> KVConnectorStats | None:  # noqa: ANN401 - whatever a peer sent
    if isinstance(payload, KVConnectorStats):
        return payload
    if not isinstance(child, str) or not isinstance(payload, dict):
        message = f"expected a payload by a name, got {type(payload).__name__} - at `{child}`"
        raise StatsError(message)
    connector = connector_of_child(child)
    if connector == "MultiConnector":
        message = "a MultiConnector holds connectors that hold no others - at `MultiConnector`"
        raise StatsError(message)
    # Before 0.30 vLLM wrapped each child's payload.
    bare = payload["data"] if payload.keys() == {"data"} else payload
    return find(connector).build_kv_connector_stats(bare)
