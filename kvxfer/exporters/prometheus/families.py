"""Families of series as plain data: what is exposed, before any format. Names are made valid elsewhere (`naming`)."""

import enum
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from kvxfer.histogram import Histogram

MAX_FAMILIES: Final = 2048
"""Families of one exposition; some names are chosen by workers. One more is left out, and counted."""

MAX_LINES: Final = 250_000
"""Lines of its text, 40 MB: a thousand groups of NIXL take 70 % of them. What is above is left out, and counted."""

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values, each name once."""


class Kind(enum.Enum):
    """The types of Prometheus; an info is a gauge at 1 where a format has no infos."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"
    INFO = "info"


class Measured(NamedTuple):
    """The observations of a histogram; ``sum`` is what is exposed as such."""

    histogram: Histogram
    sum: float


class Counted(NamedTuple):
    """The observations of a summary, of which no quantiles are told."""

    num_values: int
    sum: float


Value: TypeAlias = float | Measured | Counted


class Family(NamedTuple):
    """What a family is. ``name`` is without the suffixes of samples (``_total``, ``_bucket``, ``_info``).

    ``unit`` is the word at the end of the name, empty where it has none. ``boundaries`` are those of the classic
    buckets of a histogram; ``is_native``: it has native buckets too, where a format has them.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    boundaries: tuple[float, ...] = ()
    is_native: bool = True

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names of its samples in text, and its own."""
        return tuple(self.name + suffix for suffix in _SUFFIXES[self.kind])

    @property
    def num_lines(self) -> int:
        """Lines of one series."""
        return len(self.boundaries) + 3 if self.kind is Kind.HISTOGRAM else len(_SUFFIXES[self.kind])


_SUFFIXES: Final = {
    Kind.COUNTER: ("", "_total"),
    Kind.GAUGE: ("",),
    Kind.HISTOGRAM: ("", "_bucket", "_count", "_sum"),
    Kind.SUMMARY: ("", "_count", "_sum"),
    Kind.INFO: ("", "_info"),
}


class Families:
    """The families of one exposition, in the order in which they came; what does not fit in is left out and counted.

    Law: no two series have the same name and labels, and no two families a sample name in common, whatever names
    workers choose.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._series: dict[str, tuple[Family, dict[Labels, Value]]] = {}
        self._taken: set[str] = set()
        self._num_lines = 0
        self.num_refused = 0
        """Series that were left out."""

    def __repr__(self) -> str:
        """Give the counts."""
        return f"<Families {len(self._series)} lines={self._num_lines} refused={self.num_refused}>"

    def __iter__(self) -> Iterator[tuple[Family, dict[Labels, Value]]]:
        """Each family with its series."""
        return iter(self._series.values())

    def add(self, family: Family, labels: Labels, value: Value) -> None:
        """Add a series."""
        series, num_lines = self.declare(family), self._num_lines + family.num_lines
        if series is None or labels in series or num_lines > MAX_LINES:
            self.num_refused += 1
        else:
            self._num_lines = num_lines
            series[labels] = value

    def correct(self, family: Family, labels: Labels, value: Value) -> None:
        """Change a series that is there."""
        self._series[family.name][1][labels] = value

    def declare(self, family: Family) -> dict[Labels, Value] | None:
        """The series of a family, which may have none yet; None where its name is another's."""
        held = self._series.get(family.name)
        if held is not None:
            same = (held[0].kind, held[0].boundaries) == (family.kind, family.boundaries)
            return held[1] if same else None
        names = family.sample_names
        if len(self._series) >= MAX_FAMILIES or not self._taken.isdisjoint(names):
            return None
        self._taken.update(names)
        series: dict[Labels, Value] = {}
        self._series[family.name] = family, series
        return series
