"""What a collector tells the one above it: its closed intervals, merged, as the reports of a source for each group.

No socket, no clock, no thread. Law: what an interval held is in exactly one report. Where what `Relay.save` gave when
it closed outlives a crash, the report has the same number and content afterwards, so the one above counts it once.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from kvxfer.copying import copy_of
from kvxfer.errors import JournalError, PeerError
from kvxfer.interval import Group
from kvxfer.outbox import Outbox, SavedOutbox
from kvxfer.wire import UNREADABLE, Source, decode_source

MAX_KEPT_BYTES: Final = 64 << 20
"""Bytes that are kept of all groups: 64 reports of 5 kB of each of 200 groups. Beyond it intervals merge."""

_decoder: Final = msgspec.msgpack.Decoder(list[SavedOutbox])


class Relay:
    """The outboxes of the groups; each holds up to 64 reports of one interval, what comes then merges into one."""

    def __init__(self, origin: Source) -> None:
        """Begin with no group; ``origin`` says who relays, a group's id is its id and a number."""
        self._origin = origin
        self.outboxes: dict[str, Outbox] = {}
        """By source id."""
        self._by_group: dict[tuple[str, frozenset[tuple[str, str]]], Outbox] = {}

    def __repr__(self) -> str:
        """Give who relays, and how much waits."""
        return f"<Relay {self._origin.id} groups={len(self.outboxes)} unacked={self.num_unacknowledged}>"

    @property
    def num_unacknowledged(self) -> int:
        """Reports that are kept."""
        # A copy: others than the loop's thread ask too.
        return sum(outbox.num_unacknowledged for outbox in list(self.outboxes.values()))

    def take(self, groups: Iterable[Group], now: float) -> None:
        """Add a closed interval, whose stats stay as they are, and close it into reports where there is room."""
        for group in groups:
            outbox = self._of(group, now)
            outbox.num_ranks = group.num_ranks
            try:
                stats = copy_of(group.stats, group.connector)
                if stats is not None:
                    outbox.observe(stats, now)
            except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
                outbox.count_cut(1)
        kept_bytes = sum(outbox.kept_bytes for outbox in self.outboxes.values())
        for outbox in self.outboxes.values():
            if kept_bytes < MAX_KEPT_BYTES:
                kept_bytes -= outbox.kept_bytes
                outbox.flush(now)
                kept_bytes += outbox.kept_bytes

    def _of(self, group: Group, now: float) -> Outbox:
        key = group.connector, frozenset(group.labels.items())
        if key not in self._by_group:
            source_id = f"{self._origin.id}-{len(self.outboxes)}"
            source = msgspec.structs.replace(self._origin, id=source_id, labels=group.labels)
            self._by_group[key] = self.outboxes[source_id] = Outbox(source, group.connector, now)
        return self._by_group[key]

    def part(self) -> None:
        """Say goodbye once everything is sent."""
        for outbox in self.outboxes.values():
            outbox.part()

    @property
    def has_parted(self) -> bool:
        """Whether all is acknowledged and goodbye was said."""
        return all(outbox.has_parted for outbox in self.outboxes.values())

    # --- kept over a restart

    def save(self) -> bytes:
        """What is held, for `restore`."""
        return msgspec.msgpack.encode([outbox.save() for outbox in self.outboxes.values()])

    def restore(self, saved: bytes, now: float) -> None:
        """Go on from what was saved, in a relay that has taken nothing yet; raises `JournalError` for what is none."""
        try:
            for each in _decoder.decode(saved):
                source = decode_source(each.source)
                self._origin = msgspec.structs.replace(source, id=source.id.rpartition("-")[0], labels={})
                key = each.connector, frozenset(source.labels.items())
                self._by_group[key] = self.outboxes[source.id] = Outbox.restored(each, now)
        except (PeerError, *UNREADABLE) as error:
            message = f"what is kept for the collector above cannot be read: {error}"
            raise JournalError(message) from error
