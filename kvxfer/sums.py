"""The sums of an aggregator: what a source or a group has reported, added up when there is enough, or somebody reads.

No socket, no clock, no thread. Law: when it is added up, and with what else, changes nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec

from kvxfer.bulk import ROWS
from kvxfer.contract import KVConnectorStats
from kvxfer.opening import merged
from kvxfer.packed import Batch, Form, PackedReport, Payload
from kvxfer.saved import save_stats
from kvxfer.stats import TransferStats

MAX_WAITING: Final = 32
"""Reports that wait to be added up, of one source or group: more than an interval has, 55 kB."""

MAX_WAITING_BYTES: Final = 64 << 10
"""Their bytes: what comes in large reports is added up at once."""

_UNDER_WAY: Final = TransferStats.under_way.name

FEW: Final = 8
"""Reports of one source or group that wait for more to come: so few are not worth being added up by themselves."""


class Parts(NamedTuple):
    """What is to be added up to stats; nobody changes it."""

    stats: KVConnectorStats | None
    form: Form | None
    payloads: Sequence[Payload]
    num_bytes: int


class Sum:
    """The stats of one source or group; packed reports wait until there are some, or somebody asks."""

    __slots__ = ("_form", "_stats", "_waiting", "_waiting_bytes")

    def __init__(self, stats: KVConnectorStats | None = None) -> None:
        """Begin with stats, which are its own from here on."""
        self._stats = stats
        self._form: Form | None = None
        self._waiting: list[Payload] = []
        self._waiting_bytes = 0

    def __repr__(self) -> str:
        """Give the stats and how many reports wait."""
        return f"<Sum {self._stats} waiting={len(self._waiting)}>"

    def add(self, part: KVConnectorStats | PackedReport) -> None:
        """Add stats, which stay as they are, or a report, together with others of its batch; signed, where they can."""
        if isinstance(part, PackedReport):
            self._add_packed(part)
        else:
            self._stats = merged(self._stats, part)

    def own(self, part: KVConnectorStats | PackedReport) -> None:
        """Add what the same sources reported later, of which the stats are its own from here on."""
        if isinstance(part, PackedReport):
            self._add_packed(part)
        else:
            self._stats = part if self._stats is None else self._stats.follow(part)

    def _add_packed(self, part: PackedReport) -> None:
        batch, row = part
        batch.runs[self].append(row)
        source = batch.signed.get(row)
        if source is not None:  # levels are of each source: they are not added up with the batch
            if self._stats is None:
                self._stats = batch.form.stats_class()
            if isinstance(self._stats, TransferStats):
                level = batch.payloads[row].under_way
                self._stats.under_way.read(source, level.num, level.oldest)

    def wait(self, form: Form, payloads: Iterable[Payload], num_bytes: int) -> None:
        """Add payloads later: plausible ones, all of one form."""
        self._form = form
        self._waiting.extend(payloads)
        self._waiting_bytes += num_bytes

    def add_parts(self, parts: Parts) -> None:
        """Add to totals what the same sources reported later, and stays as it is, but not stats that only grow."""
        tells_levels_alone = isinstance(parts.stats, TransferStats) and parts.stats.data.keys() == {_UNDER_WAY}
        if tells_levels_alone and parts.payloads:  # most of what there is at the end of an interval: no copy of nothing
            pass
        elif parts.stats is not None and parts.stats.is_bounded():
            self._stats = parts.stats.copy() if self._stats is None else self._stats.follow(parts.stats)
            self._stats.forget_under_way()
        if parts.form is not None:
            self.wait(parts.form, parts.payloads, parts.num_bytes)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to add up."""
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether as many reports wait as may."""
        return len(self._waiting) >= MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES

    def parts(self) -> Parts:
        """What it is the sum of; to be read as long as nothing is added to it."""
        return Parts(self._stats, self._form, self._waiting, self._waiting_bytes)

    def replace_waiting(self, stats: KVConnectorStats) -> None:
        """Add the sum of what waits, in its place."""
        self._waiting, self._waiting_bytes = [], 0
        self.own(stats)

    @property
    def stats(self) -> KVConnectorStats | None:
        """The sum, None for nothing; not to be changed."""
        if self._waiting:
            add_up([self])
        return self._stats


def add_up(sums: Iterable[Sum]) -> None:
    """Add up what waits in each of these; many together cost far less than one by one."""
    waiting = [each for each in sums if each.is_waiting]
    for each, stats in zip(waiting, _sums([each.parts() for each in waiting]), strict=True):
        each.replace_waiting(stats)


def stats_of(all_parts: Sequence[Parts]) -> list[KVConnectorStats | None]:
    """The stats of each, all in one go; None for nothing."""
    waiting = iter(_sums([parts for parts in all_parts if parts.payloads]))
    found: list[KVConnectorStats | None] = []
    for parts in all_parts:
        if parts.payloads:
            stats = next(waiting)
            found.append(stats if parts.stats is None else stats.aggregate(parts.stats))
        else:
            found.append(parts.stats)
    return found


def add_batch(batch: Batch) -> None:
    """Add what is noted in its runs: of many payloads at once, a few wait in their sum."""
    many = {each: rows for each, rows in batch.runs.items() if len(rows) >= FEW}
    for each, stats in zip(many, batch.sums(list(many.values())), strict=True):
        each.own(stats)
    few = batch.runs.keys() - many.keys()
    sizes = batch.sizes.tolist()
    for each in few:
        rows = batch.runs[each]
        each.wait(batch.form, [batch.payloads[row] for row in rows], sum([sizes[row] for row in rows]))
    add_up(each for each in few if each.is_full)
    batch.runs.clear()


def save_all(sums: Mapping[str, Sum]) -> dict[str, msgspec.Raw]:
    """Their payloads, without loss; those that their own class cannot give are left out."""
    payloads = {name: save_stats(each.stats) for name, each in sums.items()}
    return {name: payload for name, payload in payloads.items() if payload is not None}


def _sums(all_parts: Sequence[Parts]) -> list[TransferStats]:
    """The sum of the payloads of each."""
    found: list[Any] = [None] * len(all_parts)
    by_form: defaultdict[Form, list[int]] = defaultdict(list)
    for number, parts in enumerate(all_parts):
        if parts.form is not None:
            by_form[parts.form].append(number)
    for form, numbers in by_form.items():
        for some in _in_batches(numbers, [len(all_parts[number].payloads) for number in numbers]):
            ends = list(accumulate(len(all_parts[number].payloads) for number in some))
            runs = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
            batch = Batch(form, [payload for number in some for payload in all_parts[number].payloads])
            for number, stats in zip(some, batch.sums(runs), strict=True):
                found[number] = stats
    return found


def _in_batches(numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """The numbers in as few lists as there can be, if each list may have `bulk.ROWS` payloads."""
    some: list[int] = []
    num_rows = 0
    for number, size in zip(numbers, sizes, strict=True):
        if some and num_rows + size > ROWS:
            yield some
            some, num_rows = [], 0
        some.append(number)
        num_rows += size
    yield some
