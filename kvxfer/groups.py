"""The groups of an aggregator: one connector in one combination of the labels that are grouped by.

No socket, no clock, no thread; who reports and what a report holds is the aggregator's affair.
"""

from typing import NamedTuple

from kvxfer.config import CollectorConfig
from kvxfer.labelled import OTHER
from kvxfer.saved import NOTHING, SavedGroup, load_stats, save_stats
from kvxfer.sums import Sum
from kvxfer.wire import Source


class GroupKey(NamedTuple):
    """The connector and the values of the labels grouped by (None where a source has no such label)."""

    connector: str
    labels: tuple[str | None, ...]


class KnownGroup:
    """What a group holds: sum and ranks of the open interval, sum and ranks of the closed ones."""

    __slots__ = ("open", "ranks", "total_ranks", "totals")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.open = Sum()
        self.totals = Sum()
        self.ranks: set[bytes] = set()
        self.total_ranks: set[bytes] = set()


class Groups:
    """Up to ``max_groups`` groups; what would be one more is in the one whose labels read ``other``."""

    def __init__(self, config: CollectorConfig) -> None:
        """Know none."""
        self._config = config
        self.by_key: dict[GroupKey, KnownGroup] = {}
        # What an earlier collector knew of connectors that are not registered here, and the ranks of it.
        self._carried: list[tuple[SavedGroup, KnownGroup]] = []

    def of(self, source: Source, connector: str) -> KnownGroup:
        """The group that a source's stats of a connector belong to."""
        key = GroupKey(connector, tuple(source.labels.get(label) for label in self._config.group_by))
        if key not in self.by_key and len(self.by_key) >= self._config.max_groups:
            key = GroupKey(connector, (OTHER,) * len(self._config.group_by))
        return self.by_key.setdefault(key, KnownGroup())

    def labels(self, key: GroupKey) -> dict[str, str]:
        """The labels of a group by name, those that its sources have."""
        pairs = zip(self._config.group_by, key.labels, strict=True)
        return {label: value for label, value in pairs if value is not None}

    def forget(self, encoded: bytes) -> None:
        """Take a source out of the ranks; what it reported stays."""
        for group in (*self.by_key.values(), *(ranks for _, ranks in self._carried)):
            group.total_ranks.discard(encoded)

    # --- kept over a restart

    def save(self, positions: dict[bytes, int]) -> list[SavedGroup]:
        """All groups; ``positions`` numbers the sources."""
        groups = [_saved(key, group, positions) for key, group in self.by_key.items()]
        carried = [
            SavedGroup(group.connector, group.labels, group.stats, group.totals, *_numbered(known, positions))
            for group, known in self._carried
        ]
        return groups + carried

    def restore(self, saved: list[SavedGroup], sources: list[bytes]) -> None:
        """Go on from saved groups; ``sources`` are those whose positions they hold."""
        for group in saved:
            payloads = (group.stats, group.totals)
            stats, totals = (None if part == NOTHING else load_stats(group.connector, part) for part in payloads)
            is_read = (stats is None, totals is None) == (group.stats == NOTHING, group.totals == NOTHING)
            known = KnownGroup()
            if is_read:
                known = self.by_key.setdefault(GroupKey(group.connector, group.labels), known)
                # A group is saved twice where its connector was registered after what was saved before had been read.
                for held, part in ((known.open, stats), (known.totals, totals)):
                    if part is not None:
                        held.own(part)
            else:
                self._carried.append((group, known))
            known.ranks |= {sources[number] for number in group.ranks}
            known.total_ranks |= {sources[number] for number in group.total_ranks}


def _saved(key: GroupKey, group: KnownGroup, positions: dict[bytes, int]) -> SavedGroup:
    stats, totals = (save_stats(part.stats) or NOTHING for part in (group.open, group.totals))
    return SavedGroup(key.connector, key.labels, stats, totals, *_numbered(group, positions))


def _numbered(group: KnownGroup, positions: dict[bytes, int]) -> tuple[list[int], list[int]]:
    """The ranks by the positions of their sources, those that are known still."""
    ranks, total_ranks = (
        sorted(positions[encoded] for encoded in ranks if encoded in positions)
        for ranks in (group.ranks, group.total_ranks)
    )
    return ranks, total_ranks
