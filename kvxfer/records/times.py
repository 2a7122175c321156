"""Which intervals are meant: moments as people write them, and the range that follows from them.

No I/O and no clock: what is relative is relative to the end of what a file holds, so the same command means the same
an hour later, and for a collector that runs that end is at most an interval ago.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from kvxfer.errors import RecordError
from kvxfer.records.files import Span

_UNIT_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_RELATIVE: Final = re.compile(r"-(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
_LASTING: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
_UNIX: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_INTERVALS: Final = re.compile(r"(\d+)i", re.ASCII)


class Moment(NamedTuple):
    """Unix seconds, or, ``is_relative``, seconds before the end of a file."""

    seconds: float
    is_relative: bool

    def at(self, end: float) -> float:
        """Unix seconds, for a file that ends then."""
        return end - self.seconds if self.is_relative else self.seconds


class WarmUp(NamedTuple):
    """What is left out at the start of a run: so many seconds, and so many intervals."""

    seconds: float = 0.0
    num_intervals: int = 0


def read_moment(text: str) -> Moment:
    """A moment: ``1764108000.5`` (Unix seconds), ``2026-11-25T22:00`` (local, or with an offset), ``-10m``.

    Raises ValueError for anything else.
    """
    relative = _RELATIVE.fullmatch(text)
    if relative:
        return Moment(float(relative[1]) * _UNIT_SECONDS[relative[2]], is_relative=True)
    if _UNIX.fullmatch(text):
        return Moment(float(text), is_relative=False)
    # Python 3.10 does not read the Z of UTC.
    moment = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
    return Moment(moment.timestamp(), is_relative=False)


def read_warm_up(text: str) -> WarmUp:
    """What is to be left out: ``30`` or ``30s``, ``5m``, or ``3i``, three intervals; ValueError for anything else."""
    intervals = _INTERVALS.fullmatch(text)
    if intervals:
        return WarmUp(num_intervals=int(intervals[1]))
    lasting = _LASTING.fullmatch(text)
    if not lasting:
        raise ValueError(text)
    return WarmUp(float(lasting[1]) * _UNIT_SECONDS[lasting[2]])


class Range(NamedTuple):
    """The intervals that ended after ``since`` and until ``until``, without the warm-up.

    Where a bound is not given, the range is that of the run: from the first interval in which something was reported,
    to the last. The warm-up begins there, or at ``since``.
    """

    since: Moment | None = None
    until: Moment | None = None
    warm_up: WarmUp = WarmUp()


WHOLE: Final = Range()
"""All of a run."""


class Chosen(NamedTuple):
    """The intervals of a range, at least one; ``before`` is the one in front of them, None where there is none."""

    spans: Sequence[Span]
    before: Span | None


def choose(path: object, spans: Sequence[Span], wanted: Range) -> Chosen:
    """The intervals that ended in a range, the warm-up among them; raises `RecordError` where there are none."""
    if not spans:
        message = f"{path}: holds no interval yet: one is written when it ends"
        raise RecordError(message)
    first, last = spans[0], spans[-1]
    since = -1.0 if wanted.since is None else wanted.since.at(last.end)
    until = last.end if wanted.until is None else wanted.until.at(last.end)
    begin = next((number for number, span in enumerate(spans) if since < span.end <= until), len(spans))
    end = next((number for number in range(begin, len(spans)) if spans[number].end > until), len(spans))
    if begin >= end:
        message = (
            f"{path}: no interval ended in that range: it holds {len(spans)}, from {clock(first.start)}"
            f" to {clock(last.end)}"
        )
        raise RecordError(message)
    return Chosen(spans[begin:end], spans[begin - 1] if begin else None)


def clock(seconds: float) -> str:
    """Unix seconds as local time, with the offset."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):  # no time of any calendar
        return f"{seconds:g}"
