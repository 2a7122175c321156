"""The collector's state machine: frames in, intervals out.

No socket, no clock, no thread: every step takes ``now`` (Unix seconds of the collector). What a peer did wrong is
caught here, once, and counted by its cause; it costs no other peer anything.
"""

import contextlib
from collections import Counter as Tally
from collections.abc import Sequence
from typing import Final

from kvxfer.config import CollectorConfig
from kvxfer.contract import KVConnectorStats
from kvxfer.errors import ConfigError, JournalError, KVXferError, PeerError, UnknownConnectorError
from kvxfer.groups import Groups
from kvxfer.interval import Group, Interval, Pipeline
from kvxfer.opening import cause_of, class_of_somebody_else, empty_stats, open_stats
from kvxfer.packed import PackedReport, in_parts, open_all
from kvxfer.saved import (
    AT_ONCE,
    SavedCounts,
    SavedState,
    Steps,
    at_once,
    decode_counts,
    decode_state,
    encode_counts,
    encode_state,
)
from kvxfer.sources import KnownSource, Sources
from kvxfer.sums import Sum, add_batch, add_up, save_all
from kvxfer.views import ClosedViews, Seen, Views
from kvxfer.wire import Goodbye, Report, decode, decode_or_error, source_of_topic

_MOST: Final = 1 << 62
"""Where counts that peers tell us end: what no int of msgpack holds could not be saved."""


class IntervalFullError(PeerError):
    """A report whose stats only grow, of which the interval has enough."""

    cause = "interval_full"


MAX_GROWING_BYTES: Final = 64 << 20
"""Bytes of reports in an interval whose stats keep lists: 1.8 million transfers of four values, 235 MB in memory."""


class Aggregator:
    """Dedupes reports by their numbers, merges them per group and source, and closes an interval when it is time.

    Up to ``max_source_views`` sources keep their own numbers too; those that are gone make room for others.
    Law: the same frames and times in the same order give the same state, and so does a state that was saved, restored
    and fed with what came after.
    """

    def __init__(self, config: CollectorConfig, now: float) -> None:
        """Begin an interval that starts now."""
        self._config = config
        self._begin = self._start = now
        self.due = now + config.interval_seconds
        """When the interval ends, in Unix seconds."""
        self.sources = Sources(config)
        self._views = Views(config.max_source_views)
        self._groups = Groups(config)
        self._growing_bytes = 0
        self._received = self._duplicate = self._rejected_observations = self._cut = 0
        self._rejected: Tally[str] = Tally()
        # Reports that an earlier collector took, of connectors that are not registered here.
        self._carried: list[bytes] = []

    def __repr__(self) -> str:
        """Give the counts."""
        return (
            f"<Aggregator sources={len(self.sources)} received={self._received} duplicate={self._duplicate}"
            f" rejected={self.num_rejected} lost={self.sources.num_lost}>"
        )

    # --- in

    def feed(self, frame: bytes, now: float) -> bool:
        """Take one frame of a peer, whatever is in it; whether it changed what is to be kept."""
        return self.feed_all([frame], now)[0]

    def feed_all(self, frames: Sequence[bytes], now: float) -> list[bool]:
        """Take frames in their order, which costs far less than one by one; of each, whether it changed anything."""
        taken: list[bool] = []
        for some in in_parts(frames):
            messages = [decode_or_error(frame) for frame in some]
            packed = open_all(messages)
            taken += [self._feed(message, part, now) for message, part in zip(messages, packed, strict=True)]
            for batch in {id(part.batch): part.batch for part in packed if part is not None}.values():
                add_batch(batch)
        return taken

    def _feed(self, message: Report | Goodbye | KVXferError, part: PackedReport | None, now: float) -> bool:
        try:
            if isinstance(message, Report):
                return self._take(message, part, now)
            if isinstance(message, KVXferError):
                raise message
            self.sources.part(self._admitted(message, now), message, now)
        except KVXferError as error:
            self.reject(error)
            # Its publisher keeps what is of an unknown connector, until a collector comes that knows it.
            is_kept = isinstance(error, UnknownConnectorError)
            return isinstance(message, Report) and not is_kept and self._settle(message, now)
        else:
            return True

    def _settle(self, report: Report, now: float) -> bool:
        """Take the number of a report that cannot be read, or its publisher would send it for ever."""
        known = self.sources.get(report.source)
        if known is not None:
            self.sources.take(known, report, now)
        return known is not None

    def replay(self, frames: Sequence[bytes], now: float) -> None:
        """Take frames that an earlier collector took; what no class here opens is carried on, its number is taken."""
        for frame, taken in zip(frames, self.feed_all(frames, now), strict=True):
            if not taken:
                with contextlib.suppress(KVXferError):
                    self._carry(frame, decode(frame), now)

    def _carry(self, frame: bytes, message: Report | Goodbye, now: float) -> None:
        if isinstance(message, Report) and self.sources.take(self._admitted(message, now), message, now):
            self._received += 1
            self._carried.append(frame)

    def reject(self, error: KVXferError) -> None:
        """Count what was refused."""
        self._rejected[cause_of(error)] += 1

    @property
    def num_rejected(self) -> int:
        """What was refused so far."""
        return sum(self._rejected.values())

    def subscribed(self, subscription: bytes) -> None:
        """Take the topic that a peer listens to from now on."""
        with contextlib.suppress(PeerError):
            self.sources.subscribed(source_of_topic(subscription))

    def _take(self, report: Report, part: PackedReport | None, now: float) -> bool:
        known = self.sources.get(report.source)
        if known is not None and known.taken.holds(report.seq):
            self.sources.take(known, report, now)
            self._duplicate += 1
            return False
        # First, since what cannot be read makes no source known.
        stats = self._opened(report) if part is None else part
        if known is None:
            known = self._admitted(report, now)
        if not self.sources.take(known, report, now):  # known again, since it was forgotten: that is to be kept
            self._duplicate += 1
            return True
        known.clock_offset = now - report.end
        if report.ranks != known.num_ranks:
            self.sources.speaks_for(known, report.ranks)
        self._received += 1
        self._cut = min(self._cut + report.cut, _MOST)
        self._count_in(report.connector, known, stats)
        return True

    def _opened(self, report: Report) -> KVConnectorStats:
        stats = open_stats(report)
        with class_of_somebody_else():
            self._check_room(report, stats)
        return stats

    def _admitted(self, message: Report | Goodbye, now: float) -> KnownSource:
        known = self.sources.admit(message.source, now)
        for evicted in self.sources.evicted:
            self._groups.forget(evicted.encoded)
            self._views.forget(evicted)
        self.sources.evicted.clear()
        self._views.admit(known)
        return known

    def _count_in(self, connector: str, known: KnownSource, part: KVConnectorStats | PackedReport) -> None:
        if isinstance(part, PackedReport):
            self._add(connector, known, part)
        else:
            with class_of_somebody_else():
                self._add(connector, known, part)

    def _add(self, connector: str, known: KnownSource, part: KVConnectorStats | PackedReport) -> None:
        self._rejected_observations = min(self._rejected_observations + part.num_rejected(), _MOST)
        group = known.groups.get(connector)
        if group is None:  # that it is in use is known before it observes anything
            group = known.groups[connector] = self._groups.of(known.source, connector)
        if part.is_empty():
            return
        part.sign(known.source.id)
        group.ranks.add(known.encoded)  # the one object that is kept anyway
        group.open.add(part)
        view = self._views.of(known, connector, self.sources.num_departed)
        if view is not None:
            view.own(part)

    def _check_room(self, report: Report, stats: KVConnectorStats) -> None:
        """Raise `IntervalFullError` where stats that only grow have grown too far in this interval."""
        if not stats.is_bounded():
            self._growing_bytes += len(bytes(report.payload))
            if self._growing_bytes > MAX_GROWING_BYTES:
                message = f"{report.connector} keeps lists, of which {MAX_GROWING_BYTES} bytes came in one interval"
                raise IntervalFullError(message)

    # --- out

    def tick(self, now: float) -> list[Interval]:
        """The interval that is due, if one is."""
        return [self.close_interval(now)] if now >= self.due else []

    def close_interval(self, now: float) -> Interval:
        """Close the interval now and begin the next one."""
        self.sources.expire(now)
        viewed = self._views.close()
        add_up(group.open for group in self._groups.by_key.values())
        groups = tuple(
            Group(key.connector, self._groups.labels(key), stats, self.sources.num_ranks(group.ranks))
            for key, group in self._groups.by_key.items()
            if (stats := group.open.stats) is not None
        )
        views = ClosedViews([self._seen(known, connector, held, now) for known, connector, held in viewed])
        interval = Interval(self._start, now, groups, views, self.pipeline(now), *self.sources.absent(now))
        for group in self._groups.by_key.values():
            self._add_to(group.totals, group.open)
            # Not those that reported, were gone and made room within this interval: nobody would forget them later.
            group.total_ranks |= group.ranks & self.sources.by_bytes.keys()
            group.open, group.ranks = Sum(), set()
        for known, connector, held in viewed:
            self._add_to(known.totals.setdefault(connector, Sum()), held)
        self._views.note_full()
        self._growing_bytes = 0
        self._start = now
        if now >= self.due:
            ended = int((now - self.due) / self._config.interval_seconds) + 1
            self.due += ended * self._config.interval_seconds
        return interval

    def step(self) -> bool:
        """Add up what a few sources have reported since long; whether there are more of them."""
        return self._views.add_up_some()

    def snapshot(self, now: float, *, sources: bool = True) -> Interval:
        """All since the beginning, as one interval; the stats are copies. Classes that only grow are left out.

        ``sources``: with what each source reported by itself.
        """
        by_key = self._groups.by_key
        # In its place, so that nobody adds it up once more; and together, which costs a tenth.
        add_up(part for group in by_key.values() for part in (group.totals, group.open))
        sums = {key: self._sum(group.totals, group.open) for key, group in by_key.items()}
        groups = [
            Group(key.connector, self._groups.labels(key), stats, self.sources.num_ranks(ranks, ever=True))
            for key, total in sums.items()
            for ranks in [by_key[key].total_ranks | by_key[key].ranks]
            if (stats := empty_stats(key.connector) if total.stats is None else total.stats) is not None
        ]
        views = [
            self._seen(known, place.connector, self._sum(*known.sums(place.connector)), now)
            for place, known in (self._views.known.items() if sources else ())
        ]
        pipeline, silent = self.pipeline(now), self.sources.silent(now)
        return Interval(self._begin, now, tuple(groups), ClosedViews(views), pipeline, silent)

    def _seen(self, known: KnownSource, connector: str, held: Sum, now: float) -> Seen:
        state = self.sources.state(known, now).value
        return Seen(held.parts(), known.source, connector, known.clock_offset, known.last_seen, state)

    def _sum(self, *parts: Sum) -> Sum:
        """The sum of the parts, which stay as they are, for who reads: what a class fails at is left out, uncounted."""
        total = Sum()
        for part in parts:
            with contextlib.suppress(KVXferError), class_of_somebody_else():
                total.add_parts(part.parts())
        return total

    def _add_to(self, total: Sum, part: Sum) -> None:
        """Add a sum that stays as it is, unless it only grows; a class that fails is counted."""
        try:
            with class_of_somebody_else():
                total.add_parts(part.parts())
        except KVXferError as error:
            self.reject(error)

    def pipeline(self, now: float) -> Pipeline:
        """What the pipeline counts of itself."""
        return Pipeline(
            reports_received=self._received,
            reports_duplicate=self._duplicate,
            reports_lost=self.sources.num_lost,
            reports_rejected=dict(self._rejected),
            observations_rejected=self._rejected_observations,
            observations_cut=self._cut,
            sources=self.sources.count_states(now),
        )

    # --- kept over a restart

    def save(self) -> bytes:
        """All that is known, for `restore`."""
        return at_once(self.saving())

    def saving(self, *, after_close: bool = False) -> Steps:
        """The same, some sources in each step.

        ``after_close``: begun when an interval has just been closed, and at its end before the next one is, it may be
        fed in between: what comes after the first step is not in it.
        """
        known = list(self.sources.by_bytes.values())
        positions = {each.encoded: number for number, each in enumerate(known)}
        state = SavedState(
            self._begin,
            self._start,
            self.due,
            self._config.group_by,
            self._groups.save(positions),
            [each.save_numbers() for each in known],
            self._received,
            self.sources.num_lost,
            self._cut,
            self._rejected_observations,
            list(self._carried),
            self.sources.forgotten.save(),
            self._views.save(positions),
        )
        yield
        for start in range(0, len(known), AT_ONCE):
            some = known[start : start + AT_ONCE]
            opened = [{} if after_close else each.open for each in some]
            add_up(held for parts in (*opened, *(each.totals for each in some)) for held in parts.values())
            for each, parts, saved in zip(some, opened, state.sources[start : start + AT_ONCE], strict=True):
                saved.stats, saved.totals = save_all(parts), save_all(each.totals)
            yield
        return encode_state(state)

    def save_counts(self) -> bytes:
        """What was counted of messages that `feed` was false for, for `restore_counts`."""
        return encode_counts(SavedCounts(self._duplicate, dict(self._rejected)))

    def restore_counts(self, saved: bytes) -> None:
        """Go on from saved counts, after `restore` and what came after it; raises `JournalError` for none."""
        counts = decode_counts(saved)
        self._duplicate, self._rejected = counts.duplicate, Tally(counts.rejected)

    def restore(self, saved: bytes) -> None:
        """Go on from a saved state, in an aggregator that has taken nothing yet.

        Raises `JournalError` for bytes that are none, `ConfigError` for a state that is grouped by other labels.
        """
        state = decode_state(saved)
        if state.group_by != self._config.group_by:
            message = (
                f"the journal groups by {','.join(state.group_by) or 'nothing'}, this collector by"
                f" {','.join(self._config.group_by) or 'nothing'}: group as before, or name another journal"
            )
            raise ConfigError(message)
        try:
            with class_of_somebody_else():
                self._restore(state)
        except KVXferError as error:
            message = f"the saved state cannot be used: {error}"
            raise JournalError(message) from error

    def _restore(self, state: SavedState) -> None:
        self._begin, self._start, self.due = state.begin, state.start, state.due
        self._received, self._cut, self._rejected_observations = (
            state.received,
            state.cut,
            state.rejected_observations,
        )
        self.sources.num_lost = state.lost
        known = [self.sources.add(KnownSource.restored(source, self._start)) for source in state.sources]
        self.sources.forgotten.restore(state.forgotten)
        self._views.restore(state.views, known)
        self._groups.restore(state.groups, [source.encoded for source in state.sources])
        for frame in state.carried:
            try:
                self._restore_carried(frame)
            except KVXferError:  # still no class here opens it
                self._carried.append(frame)

    def _restore_carried(self, frame: bytes) -> None:
        report = decode(frame)
        if isinstance(report, Report):
            stats = open_stats(report)
            known = self._admitted(report, self._start)
            self._count_in(report.connector, known, stats)

    def resume(self, now: float) -> None:
        """Go on at ``now`` with what was restored: nobody was silent meanwhile, and no clock turned back stops it."""
        self.sources.greet(now)
        self._begin, self._start = min(self._begin, now), min(self._start, now)
        self.due = min(self.due, now + self._config.interval_seconds)
