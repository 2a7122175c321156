"""Who is slower than the others of its group: the one rule of the log, the page and the terminal.

Slower is who takes so much longer for a byte, and whose P90 is so much longer too: the one alone may be smaller
transfers, the other larger ones.
"""

from collections.abc import Hashable, Iterable, Sequence
from statistics import median
from typing import Final, NamedTuple, TypeVar

MIN_TRANSFERS: Final = 20
"""Of a worker in an interval: a mean and a P90 of fewer say little."""

MIN_OTHERS: Final = 2
"""With one other it is open which of the two is the odd one."""

SLOW_FACTOR: Final = 3.0
"""Ranks of one group differ by some ten per cent; a NIC that fell back to tcp, or a throttled host, by more than 3."""

T = TypeVar("T")


class Pace(NamedTuple):
    """How fast a worker was in an interval: seconds per byte, and the P90 of its transfers in seconds."""

    seconds_per_byte: float
    p90_seconds: float


class Slow(NamedTuple):
    """How fast a slow one was, and how many times slower than the median of its group."""

    pace: Pace
    times: Pace


def pace_of(num_transfers: int, num_bytes: float | None, busy_seconds: float | None, p90_seconds: float) -> Pace | None:
    """None for too few transfers, or where the connector does not know their bytes or seconds."""
    if num_transfers < MIN_TRANSFERS or not num_bytes or busy_seconds is None:
        return None
    return Pace(busy_seconds / num_bytes, p90_seconds)


def slow_among(paced: Iterable[tuple[T, Hashable, Pace | None]], factor: float = SLOW_FACTOR) -> list[tuple[T, Slow]]:
    """Of many, each with its group and pace: those that are ``factor`` times slower than the median of their group."""
    groups: dict[Hashable, list[tuple[T, Pace]]] = {}
    for who, group, pace in paced:
        if pace is not None:
            groups.setdefault(group, []).append((who, pace))
    return [each for members in groups.values() for each in _outliers(members, factor)]


def _outliers(members: Sequence[tuple[T, Pace]], factor: float) -> Iterable[tuple[T, Slow]]:
    if len(members) <= MIN_OTHERS:
        return
    # With its own among them: one of three does not move it, and half of a group is no outlier.
    usual = Pace(*(median(column) for column in zip(*(pace for _, pace in members), strict=True)))
    for who, pace in members:
        times = Pace(*(mine / common if common else 0.0 for mine, common in zip(pace, usual, strict=True)))
        if min(times) >= factor:
            yield who, Slow(pace, times)
