"""What an operator is to be told of workers: who fell silent, who is back, who is slower than the others.

Intervals in, sentences out: no socket, no clock, no thread, no log. What stays as it is is said once, what comes in
crowds is counted (a broken switch makes one line for a thousand workers), and so is what comes again and again.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, NamedTuple

from kvxfer.contract import KVConnectorStats
from kvxfer.interval import Interval, SourceView
from kvxfer.pace import Pace, Slow, pace_of, slow_among
from kvxfer.reporting import printable
from kvxfer.wire import Source

MOST_NAMED: Final = 5
"""Workers that are named for one reason in an interval; more are counted."""

REPEAT_SECONDS: Final = 600.0
"""A worker that stays slow, or is slow now and then, is said so often at most."""

MOST_SILENCES: Final = 2
"""Of one worker in `REPEAT_SECONDS`: that it came back and fell silent again is news, what follows is a habit."""

MOST_SENTENCES: Final = 60
"""Of all workers in `REPEAT_SECONDS`: ten intervals in which a crowd fell silent."""

_CONFIRMED: Final = 2  # intervals in a row: one alone is a compaction somewhere, or a neighbour's checkpoint


class Watched(NamedTuple):
    """One connector of one source."""

    source: str
    connector: str


class Ration:
    """Lets through `MOST_SENTENCES` in `REPEAT_SECONDS`; those that are left out are counted, and that is said."""

    def __init__(self) -> None:
        """Have let nothing through."""
        self._began = float("-inf")
        self._num_said = self._num_left_out = 0

    def take(self, sentences: Sequence[str], now: float) -> list[str]:
        """Those of these sentences that are to be said at ``now``."""
        said: list[str] = []
        if now - self._began >= REPEAT_SECONDS:
            if self._num_left_out:
                said.append(f"{self._num_left_out:,} more warnings were left out since")
            self._began, self._num_said, self._num_left_out = now, 0, 0
        room = MOST_SENTENCES - self._num_said
        left_out = len(sentences[room:])
        said += sentences[:room]
        if left_out and not self._num_left_out:
            said.append(f"Too many warnings: for up to {REPEAT_SECONDS / 60:.0f} minutes they are only counted")
        self._num_said += len(sentences) - left_out
        self._num_left_out += left_out
        return said


class _Silence:
    """One source that is, or was, silent: whether that is what was said of it last, when, and what went by unsaid."""

    __slots__ = ("is_said", "is_silent", "said_at", "source", "unsaid")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.is_silent = self.is_said = False
        self.said_at: deque[float] = deque(maxlen=MOST_SILENCES)
        self.unsaid = 0

    def may_be_said(self, now: float) -> bool:
        return len(self.said_at) < MOST_SILENCES or now - self.said_at[0] >= REPEAT_SECONDS

    def is_over(self, now: float) -> bool:
        return not (self.is_silent or self.unsaid) and now - max(self.said_at, default=now) >= REPEAT_SECONDS

    def say(self, now: float) -> int:
        """Note that it is said now; how often it fell silent and nothing was said."""
        self.said_at.append(now)
        unsaid, self.unsaid = self.unsaid, 0
        return unsaid


class SilentWatch:
    """Says of each source that it fell silent, once, and what became of it, once: it is back, or has left.

    Of one that falls silent again and again that is said `MOST_SILENCES` times in `REPEAT_SECONDS`, then with the times
    that went by unsaid; what is so for longer than that is always said.
    """

    def __init__(self) -> None:
        """Know of nobody that is silent."""
        self._known: dict[str, _Silence] = {}

    def take(self, interval: Interval) -> list[str]:
        """The sentences of an interval."""
        now = interval.end
        silent = {source.id: source for source in interval.silent}
        departed = {source.id for source in interval.departed}
        for source in silent.values():
            self._known.setdefault(source.id, _Silence(source))
        ended = [each for source_id, each in self._known.items() if each.is_silent and source_id not in silent]
        left = [each for each in ended if each.source.id in departed]
        back = [each for each in ended if each.is_said and each.source.id not in departed]
        for each in ended:
            each.is_silent = each.is_said = False
        for source_id in departed:
            self._known.pop(source_id, None)
        fallen = [(each, each.say(now) - 1) for each in self._fallen(silent, now)]
        often = [(each, each.say(now)) for each in self._known.values() if self._is_over_at_last(each, now)]
        self._known = {name: each for name, each in self._known.items() if not each.is_over(now)}
        return [
            *_named("is silent: no report, and no sign that it lives{}", "are silent", fallen),
            *_named("is back: it reports again", "are back", [(each, 0) for each in back]),
            *_named("was silent and has left", "that were silent have left", [(each, 0) for each in left]),
            *_named("reports, and was silent{}", "report, and were silent meanwhile", often),
        ]

    def _fallen(self, silent: Iterable[str], now: float) -> Iterable[_Silence]:
        for source_id in silent:
            each = self._known[source_id]
            each.unsaid += not each.is_silent
            each.is_silent = True
            if not each.is_said and each.may_be_said(now):
                each.is_said = True
                yield each

    def _is_over_at_last(self, each: _Silence, now: float) -> bool:
        return not each.is_silent and each.unsaid > 0 and each.may_be_said(now)


def _named(one: str, many: str, silences: Sequence[tuple[_Silence, int]]) -> Iterable[str]:
    """A sentence of each of the first; in the place of ``{}`` how often it was so before, and not said."""
    for each, unsaid in silences[:MOST_NAMED]:
        again = f"; {unsaid} more times since this was last said" if unsaid else ""
        yield f"Worker {name_of(each.source)} {one.format(again)}"
    if len(silences) > MOST_NAMED:
        yield f"{len(silences) - MOST_NAMED:,} more workers {many}"


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

    By the rule of `pace`, in two intervals in a row. Each is said once in ten minutes, with the intervals that went by
    unsaid. ``group_by``: the labels that make a group.
    """

    def __init__(self, factor: float, group_by: Sequence[str]) -> None:
        """Know of nobody that is slow."""
        self._factor = factor
        self._group_by = group_by
        self._slow: dict[Watched, _Slow] = {}

    def take(self, interval: Interval) -> list[str]:
        """The sentences of an interval."""
        found = [
            (view, _words(slow))
            for view, slow in slow_among(
                ((view, self._group(view), _pace(view.stats)) for view in interval.sources), self._factor
            )
        ]
        self._forget(interval.end, {Watched(view.source.id, view.connector) for view, _ in found})
        due = [(view, words) for view, words in found if self._is_due(view, interval.end)]
        sentences = [self._sentence(view, words, interval.end) for view, words in due[:MOST_NAMED]]
        if len(due) > MOST_NAMED:
            sentences.append(f"{len(due) - MOST_NAMED:,} more workers are slower than the others of their groups")
        return sentences

    def _group(self, view: SourceView) -> Hashable:
        return (view.connector, *(view.source.labels.get(label) for label in self._group_by))

    def _is_due(self, view: SourceView, now: float) -> bool:
        """Count the interval; whether it is to be said in it."""
        slow = self._slow.setdefault(Watched(view.source.id, view.connector), _Slow())
        slow.in_a_row += 1
        is_due = slow.said_at is None or now - slow.said_at >= REPEAT_SECONDS
        if slow.in_a_row < _CONFIRMED or not is_due:
            slow.unsaid += slow.said_at is not None
            return False
        return True

    def _sentence(self, view: SourceView, words: str, now: float) -> str:
        slow = self._slow[Watched(view.source.id, view.connector)]
        again = f"; in {slow.unsaid} more intervals since this was last said" if slow.unsaid else ""
        slow.said_at, slow.unsaid = now, 0
        return f"Worker {name_of(view.source)} is slow in {view.connector}: {words}{again}"

    def _forget(self, now: float, slow: set[Watched]) -> None:
        """Those that are not slow now begin anew; who was said is remembered for as long as it is not said again."""
        for place in [place for place in self._slow if place not in slow]:
            held = self._slow[place]
            held.in_a_row = 0
            if held.said_at is None or now - held.said_at >= REPEAT_SECONDS:
                del self._slow[place]


def _words(slow: Slow) -> str:
    pace, times = slow
    p90 = f"P90 {pace.p90_seconds * 1e3:.3g} ms, {times.p90_seconds:.1f} times that of the group"
    return f"{p90}, and {times.seconds_per_byte:.1f} times as long for a byte"


def _pace(stats: KVConnectorStats) -> Pace | None:
    try:
        durations, moved = stats.durations(), stats.moved()
        if durations is None or moved is None:
            return None
        return pace_of(durations.count, *moved, durations.quantile(0.9) if durations.count else 0.0)
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return None
