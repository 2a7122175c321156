"""What an operator is to be told of workers: who fell silent, who is back, who is slower than the others.

Intervals in, sentences out: no socket, no clock, no thread, no log. What stays as it is is said once, and what comes
in crowds is counted: a broken switch makes one line for a thousand workers.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final, NamedTuple

from kvxfer.contract import KVConnectorStats
from kvxfer.interval import Interval, SourceView
from kvxfer.reporting import printable
from kvxfer.wire import Source

MOST_NAMED: Final = 5
"""Workers that are named for one reason in an interval; more are counted."""

MIN_TRANSFERS: Final = 20
"""Of a worker in an interval: a mean and a P90 of fewer say little."""

MIN_OTHERS: Final = 2
"""With one other it is open which of the two is the odd one."""

SLOW_FACTOR: Final = 3.0
"""Ranks of one group differ by some ten per cent; a NIC that fell back to tcp, or a throttled host, by more than 3."""

REPEAT_SECONDS: Final = 600.0
"""A worker that stays slow, or is slow now and then, is said so often at most."""

_CONFIRMED: Final = 2  # intervals in a row: one alone is a compaction somewhere, or a neighbour's checkpoint


class Place(NamedTuple):
    """One connector of one source."""

    source: str
    connector: str


class Pace(NamedTuple):
    """How fast a worker was in an interval: seconds per byte, and the P90 of its transfers in seconds."""

    seconds_per_byte: float
    p90_seconds: float


class SilentWatch:
    """Says of each source that it fell silent, once, and what became of it, once: it is back, or has left."""

    def __init__(self) -> None:
        """Know of nobody that is silent."""
        self._said: dict[str, Source] = {}

    def take(self, interval: Interval) -> list[str]:
        """The sentences of an interval."""
        silent = {source.id: source for source in interval.silent}
        departed = {source.id for source in interval.departed}
        ended = [source for source in self._said.values() if source.id not in silent]
        fallen = [source for source in silent.values() if source.id not in self._said]
        self._said = silent
        return [
            *_named("is silent: no report, and no sign that it lives", "are silent", fallen),
            *_named("is back: it reports again", "are back", [each for each in ended if each.id not in departed]),
            *_named("was silent and has left", "that were silent have left", [s for s in ended if s.id in departed]),
        ]


def _named(one: str, many: str, sources: Sequence[Source]) -> Iterable[str]:
    for source in sources[:MOST_NAMED]:
        yield f"Worker {name_of(source)} {one}"
    if len(sources) > MOST_NAMED:
        yield f"{len(sources) - MOST_NAMED:,} more workers {many}"


def name_of(source: Source) -> str:
    """A source as an operator knows it: labels, host and pid."""
    who = source.labels | {"host": source.host, "pid": str(source.pid)}
    return printable(", ".join(f"{name}={value}" for name, value in who.items()))


class _Slow:
    """One worker that is, or was, slow: intervals in a row and since it was last said, and when that was."""

    __slots__ = ("in_a_row", "said_at", "unsaid")

    def __init__(self) -> None:
        self.in_a_row = 0
        self.said_at: float | None = None
        self.unsaid = 0


class SlowWatch:
    """Says of a source that it is ``factor`` times slower than the median of its group.

    Slower is who takes so much longer for a byte, and whose P90 is so much longer too: the one alone may be smaller
    transfers, the other larger ones. It takes two intervals in a row, 20 transfers in each, and two others. Each is
    said once in ten minutes, with the intervals that went by unsaid. ``group_by``: the labels that make a group.
    """

    def __init__(self, factor: float, group_by: Sequence[str]) -> None:
        """Know of nobody that is slow."""
        self._factor = factor
        self._group_by = group_by
        self._slow: dict[Place, _Slow] = {}

    def take(self, interval: Interval) -> list[str]:
        """The sentences of an interval."""
        found = [each for group in self._paces(interval.sources).values() for each in self._outliers(group)]
        self._forget(interval.end, {Place(view.source.id, view.connector) for view, _ in found})
        due = [(view, words) for view, words in found if self._is_due(view, interval.end)]
        sentences = [self._sentence(view, words, interval.end) for view, words in due[:MOST_NAMED]]
        if len(due) > MOST_NAMED:
            sentences.append(f"{len(due) - MOST_NAMED:,} more workers are slower than the others of their groups")
        return sentences

    def _paces(self, views: Iterable[SourceView]) -> dict[tuple[str | None, ...], list[tuple[SourceView, Pace]]]:
        groups: dict[tuple[str | None, ...], list[tuple[SourceView, Pace]]] = {}
        for view in views:
            pace = _pace(view.stats)
            if pace is not None:
                key = (view.connector, *(view.source.labels.get(label) for label in self._group_by))
                groups.setdefault(key, []).append((view, pace))
        return groups

    def _outliers(self, group: Sequence[tuple[SourceView, Pace]]) -> Iterable[tuple[SourceView, str]]:
        for number, times in outliers([pace for _, pace in group], self._factor):
            view, pace = group[number]
            p90 = f"P90 {pace.p90_seconds * 1e3:.3g} ms, {times.p90_seconds:.1f} times that of the group"
            yield view, f"{p90}, and {times.seconds_per_byte:.1f} times as long for a byte"

    def _is_due(self, view: SourceView, now: float) -> bool:
        """Count the interval; whether it is to be said in it."""
        slow = self._slow.setdefault(Place(view.source.id, view.connector), _Slow())
        slow.in_a_row += 1
        is_due = slow.said_at is None or now - slow.said_at >= REPEAT_SECONDS
        if slow.in_a_row < _CONFIRMED or not is_due:
            slow.unsaid += slow.said_at is not None
            return False
        return True

    def _sentence(self, view: SourceView, words: str, now: float) -> str:
        slow = self._slow[Place(view.source.id, view.connector)]
        again = f"; in {slow.unsaid} more intervals since this was last said" if slow.unsaid else ""
        slow.said_at, slow.unsaid = now, 0
        return f"Worker {name_of(view.source)} is slow in {view.connector}: {words}{again}"

    def _forget(self, now: float, slow: set[Place]) -> None:
        """Those that are not slow now begin anew; who was said is remembered for as long as it is not said again."""
        for place in [place for place in self._slow if place not in slow]:
            held = self._slow[place]
            held.in_a_row = 0
            if held.said_at is None or now - held.said_at >= REPEAT_SECONDS:
                del self._slow[place]


def outliers(group: Sequence[Pace], factor: float) -> Iterable[tuple[int, Pace]]:
    """The positions of those that are so many times slower than the median of a group, and how many times."""
    if len(group) <= MIN_OTHERS:
        return
    # With its own among them: one of three does not move it, and half of a group is no outlier.
    usual = Pace(*(median(column) for column in zip(*group, strict=True)))
    for number, pace in enumerate(group):
        times = Pace(*(mine / common if common else 0.0 for mine, common in zip(pace, usual, strict=True)))
        if min(times) >= factor:
            yield number, times


def _pace(stats: KVConnectorStats) -> Pace | None:
    """None for too few transfers, or where the connector does not know them."""
    try:
        durations, moved = stats.durations(), stats.moved()
        if durations is None or moved is None or durations.count < MIN_TRANSFERS or not moved.num_bytes:
            return None
        return Pace(moved.busy_seconds / moved.num_bytes, durations.quantile(0.9))
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return None
