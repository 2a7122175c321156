"""What the collector's state machine knows of the publishers: numbers taken, who lives, whom to acknowledge.

No socket, no clock, no thread; what they observed is the aggregator's affair.
"""

from collections import OrderedDict
from enum import Enum
from typing import TYPE_CHECKING, Final

from kvxfer.config import CollectorConfig
from kvxfer.errors import ImplausibleError, PeerError
from kvxfer.forgotten import Forgotten
from kvxfer.saved import SavedSource, load_stats
from kvxfer.seqs import TakenSeqs
from kvxfer.sums import Sum
from kvxfer.wire import MAX_OUTSTANDING, Goodbye, Report, Source, decode_source

if TYPE_CHECKING:
    from kvxfer.groups import KnownGroup

MAX_STRANGERS: Final = 4096
"""Ids answered at once of which nothing has come yet; a publisher that gets no answer sends again in seconds."""


PERIODS: Final = 3
"""A source that reports seldom, a collector with long intervals, is silent after so many of its periods."""

MAX_PERIOD_SECONDS: Final = 3600.0

SOURCE_BYTES: Final = 1024
"""Bytes of a source on the wire, on average over those that are known; with its labels one has some hundred."""


class SourceState(Enum):
    """Live: heard of within ``silent_seconds``. Gone: said goodbye, or not heard of for ``gone_seconds``."""

    LIVE = "live"
    SILENT = "silent"
    GONE = "gone"


class TooManySourcesError(PeerError):
    """A source beyond the collector's cap."""

    cause = "too_many_sources"


class KnownSource:
    """What is known of one source; by connector its group, and the sums of the open interval and of the closed ones."""

    __slots__ = (
        "clock_offset",
        "encoded",
        "final_seq",
        "groups",
        "last_seen",
        "lost",
        "most_ranks",
        "num_ranks",
        "open",
        "period",
        "source",
        "taken",
        "totals",
    )

    def __init__(self, source: Source, encoded: bytes, now: float) -> None:
        """Begin with nothing taken."""
        self.source = source
        self.encoded = encoded
        self.taken = TakenSeqs()
        self.groups: dict[str, KnownGroup] = {}
        self.open: dict[str, Sum] = {}
        self.totals: dict[str, Sum] = {}
        self.clock_offset = 0.0
        self.last_seen = now
        self.final_seq: int | None = None
        self.lost = 0
        self.period = 0.0
        """Seconds that its last report covers, as far as they are believed: so long it may have nothing to tell."""
        self.num_ranks = 1
        """How many publishers it speaks for, by its last report: more than one where it is a collector that relays."""
        self.most_ranks = 1
        """The most that it has spoken for."""

    def __repr__(self) -> str:
        """Give id, numbers and end."""
        return f"<KnownSource {self.source.id} {self.taken} final={self.final_seq} lost={self.lost}>"

    @property
    def is_gone(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.final_seq is not None

    def sums(self, connector: str) -> list[Sum]:
        """What a connector of it has reported: the sums that there are, of closed intervals and of the open one."""
        return [held[connector] for held in (self.totals, self.open) if connector in held]

    def save_numbers(self) -> SavedSource:
        """All that is known but the stats, for `restored`."""
        above = self.taken.above
        return SavedSource(
            self.encoded,
            self.taken.floor,
            above.to_bytes((above.bit_length() + 7) // 8, "little"),
            self.final_seq,
            self.lost,
            self.clock_offset,
            {},
            {},
            self.num_ranks,
            self.period,
            self.most_ranks,
        )

    @classmethod
    def restored(cls, saved: SavedSource, now: float) -> "KnownSource":
        """A source as it was saved; stats of connectors that are not registered here are left out."""
        known = cls(decode_source(saved.encoded), saved.encoded, now)
        known.taken = TakenSeqs(saved.floor, int.from_bytes(saved.above, "little"))
        known.final_seq, known.lost, known.clock_offset = saved.final_seq, saved.lost, saved.clock_offset
        known.num_ranks, known.period = saved.num_ranks, saved.period
        known.most_ranks = max(saved.most_ranks, saved.num_ranks)
        for held, parts in ((known.open, saved.stats), (known.totals, saved.totals)):
            loaded = {connector: load_stats(connector, payload) for connector, payload in parts.items()}
            held |= {connector: Sum(stats) for connector, stats in loaded.items() if stats is not None}
        return known


class Sources:
    """The publishers by the bytes that each of their messages carries; those that are gone make room for others.

    The numbers of some are remembered after that (see `forgotten`): one that comes back goes on from them.
    """

    def __init__(self, config: CollectorConfig) -> None:
        """Know nobody."""
        self._config = config
        self.by_bytes: dict[bytes, KnownSource] = {}
        self._by_id: dict[str, KnownSource] = {}
        self._num_bytes = 0
        # Ordered, as the first goes again and again: a dict would look through the holes of all that went before.
        self._gone: OrderedDict[bytes, None] = OrderedDict()
        self._relays: dict[bytes, KnownSource] = {}
        self._unacknowledged: dict[bytes, KnownSource] = {}
        self._strangers: set[str] = set()
        self.forgotten = Forgotten()
        self.evicted: list[KnownSource] = []
        """Who was forgotten, for the aggregator to forget too."""
        self.num_lost = 0
        self.num_departed = 0
        """How often one was taken to be gone."""
        self._departed: dict[bytes, Source] = {}
        self._told_silent: set[bytes] = set()
        self.wants_commit = False
        """Whether somebody waits for the acknowledgement to end."""

    def __len__(self) -> int:
        """The number known."""
        return len(self.by_bytes)

    def get(self, encoded: bytes) -> KnownSource | None:
        """The source of these bytes, if it is known."""
        return self.by_bytes.get(encoded)

    def admit(self, encoded: bytes, now: float) -> KnownSource:
        """The source of these bytes, made known if it was not; raises `PeerError` where it cannot be."""
        known = self.by_bytes.get(encoded)
        if known is not None:
            return known
        source = decode_source(encoded)
        if source.id in self._by_id:  # an acknowledgement for one would free the reports of the other
            message = f"a second source that calls itself {source.id}"
            raise ImplausibleError(message)
        most, most_bytes = self._config.max_sources, self._config.max_sources * SOURCE_BYTES
        try:
            while len(self.by_bytes) >= most or self._num_bytes + len(encoded) > most_bytes:
                self._evict()
            numbers = self.forgotten.pop(encoded)
        finally:  # not sooner: who comes back makes room there for who went
            self.forgotten.shrink(most, most_bytes)
        return self.add(KnownSource(source, encoded, now) if numbers is None else KnownSource.restored(numbers, now))

    def add(self, known: KnownSource) -> KnownSource:
        """Take a source over from an earlier collector."""
        self._num_bytes += len(known.encoded)
        self.by_bytes[known.encoded] = self._by_id[known.source.id] = known
        if known.is_gone:
            self._gone[known.encoded] = None
        if known.most_ranks > 1:
            self._relays[known.encoded] = known
        return known

    def greet(self, now: float) -> None:
        """Take all to live now: that nothing was heard of them while no collector was there was not their fault."""
        for known in self.by_bytes.values():
            known.last_seen = now

    def _evict(self) -> None:
        if not self._gone:
            message = f"{len(self.by_bytes)} sources are known already"
            raise TooManySourcesError(message)
        encoded, _ = self._gone.popitem(last=False)
        self._relays.pop(encoded, None)
        if encoded not in self._told_silent:  # who was told of it would take it to be back
            self._departed.pop(encoded, None)
        self._num_bytes -= len(encoded)
        known = self.by_bytes.pop(encoded)
        del self._by_id[known.source.id]
        self._unacknowledged.pop(encoded, None)
        self.forgotten.add(known.save_numbers())
        self.evicted.append(known)

    # --- what they send

    def take(self, known: KnownSource, report: Report, now: float) -> bool:
        """Take the number of a report; False if it was taken before. Either way its publisher is told."""
        new = known.taken.take(report.seq, report.oldest)
        known.last_seen = now
        if new:
            known.period = max(0.0, min(report.end - report.start, MAX_PERIOD_SECONDS))
        if known.is_gone and new and report.seq > (known.final_seq or 0):  # it was only thought to be gone
            known.final_seq = None
            self._gone.pop(known.encoded, None)
            self._departed.pop(known.encoded, None)
        self.acknowledge(known)
        self._settle(known)
        return new

    def part(self, known: KnownSource, goodbye: Goodbye, now: float) -> None:
        """Note that a source ends; raises `ImplausibleError` for one that claims more than a source can have sent."""
        known.taken.settle(goodbye.oldest)
        if goodbye.seq - known.taken.floor > MAX_OUTSTANDING:
            message = f"a goodbye after {goodbye.seq} reports, of which {known.taken.floor} came"
            raise ImplausibleError(message)
        known.last_seen = now
        self._leave(known, max(goodbye.seq, known.final_seq or 0))
        self.acknowledge(known)
        self.wants_commit = True

    def _leave(self, known: KnownSource, final_seq: int) -> None:
        if not known.is_gone:  # to the end: a restored collector lets them make room in the same order
            self.by_bytes[known.encoded] = self.by_bytes.pop(known.encoded)
            self._gone[known.encoded] = None
            self._departed[known.encoded] = known.source
        known.final_seq = final_seq
        self.num_departed += 1
        self._settle(known)

    def _settle(self, known: KnownSource) -> None:
        """Count what is lost for good: the gaps of a source that is gone."""
        lost = known.taken.missing(known.final_seq) if known.final_seq is not None else 0
        self.num_lost += lost - known.lost
        known.lost = lost

    def speaks_for(self, known: KnownSource, num_ranks: int) -> None:
        """Note how many publishers a source speaks for."""
        known.num_ranks, known.most_ranks = num_ranks, max(num_ranks, known.most_ranks)
        self._relays[known.encoded] = known

    def num_ranks(self, sources: set[bytes], *, ever: bool = False) -> int:
        """How many publishers these are, with those that they speak for, now or ``ever``."""
        # The intersection goes through the smaller of the two: relays of very many groups would be quadratic otherwise.
        relays = [self._relays[encoded] for encoded in self._relays.keys() & sources]
        return len(sources) + sum((known.most_ranks if ever else known.num_ranks) - 1 for known in relays)

    # --- who lives

    def state(self, known: KnownSource, now: float) -> SourceState:
        """Whether a source lives."""
        if known.is_gone:
            return SourceState.GONE
        silent = now - known.last_seen >= max(self._config.silent_seconds, PERIODS * known.period)
        return SourceState.SILENT if silent else SourceState.LIVE

    def count_states(self, now: float) -> dict[str, int]:
        """How many sources there are in each state."""
        num_silent, num_gone = len(self._unheard(now, self._config.silent_seconds)), len(self._gone)
        counts = (len(self.by_bytes) - num_silent - num_gone, num_silent, num_gone)
        return {state.value: count for state, count in zip(SourceState, counts, strict=True)}

    def silent(self, now: float) -> tuple[Source, ...]:
        """The sources that were expected to report and did not."""
        return tuple(known.source for known in self._unheard(now, self._config.silent_seconds))

    def absent(self, now: float) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
        """Those that are silent, and those that left since this was last asked, which are taken."""
        departed, self._departed = self._departed, {}
        silent = self._unheard(now, self._config.silent_seconds)
        self._told_silent = {known.encoded for known in silent}
        return tuple(known.source for known in silent), tuple(departed.values())

    def expire(self, now: float) -> None:
        """Give up those that were not heard of for ``gone_seconds``: killed, or cut off for good."""
        for known in self._unheard(now, self._config.gone_seconds):
            self._leave(known, known.taken.floor + known.taken.above.bit_length())

    def _unheard(self, now: float, seconds: float) -> list[KnownSource]:
        """Those of whom nothing was heard for so long, and who are not gone."""
        # Looks at each, three times an interval: 4 ms for 100,000.
        return [
            known
            for known in self.by_bytes.values()
            if now - known.last_seen >= seconds
            and known.final_seq is None
            and now - known.last_seen >= PERIODS * known.period
        ]

    # --- acknowledging

    def acknowledge(self, known: KnownSource) -> None:
        """Note that a source is to be told how far its reports are committed."""
        self._unacknowledged[known.encoded] = known

    def subscribed(self, source_id: str) -> None:
        """Note that a source listens from now on: what it was told before has passed it by.

        One that is not known is told that nothing of it is here, so that it sends again at once what it has sent to an
        earlier collector.
        """
        known = self._by_id.get(source_id)
        if known is not None:
            self.acknowledge(known)
        elif len(self._strangers) < MAX_STRANGERS:
            self._strangers.add(source_id)

    def drain_acks(self) -> list[tuple[str, int]]:
        """Take whom to tell what: source id and the number up to which all was taken. To be called after a commit."""
        acks = [(known.source.id, known.taken.floor) for known in self._unacknowledged.values()]
        acks += [(source_id, 0) for source_id in self._strangers if source_id not in self._by_id]
        self._unacknowledged.clear()
        self._strangers.clear()
        self.wants_commit = False
        return acks
