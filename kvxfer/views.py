"""The views of an aggregator: sources whose numbers are kept by themselves too, as many as are wanted.

No socket, no clock, no thread; who reports and what is the aggregator's affair.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, overload

from kvxfer.interval import SourceView
from kvxfer.saved import AT_ONCE
from kvxfer.sources import KnownSource
from kvxfer.sums import Parts, Sum, add_up, stats_of
from kvxfer.wire import Source

FULL_AT_ONCE: Final = 16
"""Totals of 40 reports that are added up between two receives: 8 ms, as long as a full drain takes."""


class Place(NamedTuple):
    """One connector of one source."""

    source: bytes
    connector: str


class Views:
    """Up to ``most`` places; those of sources that are gone make room for others."""

    def __init__(self, most: int) -> None:
        """View nobody."""
        self._most = most
        self.known: dict[Place, KnownSource] = {}
        """All that have a view."""
        self.open: dict[Place, KnownSource] = {}
        """Those that reported in the open interval, some of whom may have been forgotten since."""
        # Who was forgotten since, and reported before, by its bytes; and how many views that were.
        self._ended: dict[bytes, KnownSource] = {}
        self._num_ended = 0
        self._searched = -1
        self._full: list[Sum] = []

    def of(self, known: KnownSource, connector: str, num_departed: int) -> Sum | None:
        """What a source reports in this interval by itself; None where there are views enough.

        ``num_departed`` counts the sources that have left so far: room is looked for once after one has.
        """
        view = known.open.get(connector)
        if view is not None:
            return view
        if num_departed == self._searched and connector not in known.totals:  # most reports of very many sources
            return None
        return self._begun(Place(known.encoded, connector), known, num_departed)

    def _begun(self, place: Place, known: KnownSource, num_departed: int) -> Sum | None:
        if place not in self.known:
            if self._is_full and num_departed != self._searched:
                self._make_room(num_departed)
            if self._is_full:
                return None
            self.known[place] = known
        self.open[place] = known
        known.open[place.connector] = view = Sum()
        return view

    @property
    def _is_full(self) -> bool:
        return len(self.known) + self._num_ended >= self._most

    def _make_room(self, num_departed: int) -> None:
        ended = (place for place, known in self.known.items() if known.is_gone and place not in self.open)
        place = next(ended, None)
        if place is None:
            self._searched = num_departed
        else:
            self.known.pop(place).totals.pop(place.connector, None)

    def forget(self, known: KnownSource) -> None:
        """Take a source out; what it reported in the open interval stays in that."""
        for connector in {*known.totals, *known.open}:
            self.known.pop(Place(known.encoded, connector), None)
        if known.open:
            self._ended[known.encoded] = known
            self._num_ended += len(known.open)

    def admit(self, known: KnownSource) -> None:
        """Let a source that is new here go on with what it reported in this interval before it was forgotten."""
        before = self._ended.pop(known.encoded, None)
        if before is not None:
            known.open = before.open
            self._num_ended -= len(before.open)
            self._take_over(known)

    def close(self) -> list[tuple[KnownSource, str, Sum]]:
        """Take the sums of the open interval, with source and connector of each, and begin the next one."""
        sums = [(known, place.connector, known.open.pop(place.connector)) for place, known in self.open.items()]
        self.open, self._ended, self._num_ended = {}, {}, 0
        self._searched = -1
        return sums

    def note_full(self) -> None:
        """Note the totals that hold many reports, for `add_up_some`: of 1,000 sources at once it takes 0.5 s."""
        add_up(self._full)
        self._full = [total for known in self.known.values() for total in known.totals.values() if total.is_full]

    def add_up_some(self) -> bool:
        """Add up a few of those that are noted; whether there are more."""
        some, self._full = self._full[:FULL_AT_ONCE], self._full[FULL_AT_ONCE:]
        add_up(some)
        return bool(self._full)

    # --- kept over a restart

    def save(self, positions: dict[bytes, int]) -> list[tuple[int, str]]:
        """All in their order, in which they make room; ``positions`` numbers the sources."""
        return [(positions[place.source], place.connector) for place in self.known if place.source in positions]

    def restore(self, saved: Sequence[tuple[int, str]], sources: Sequence[KnownSource]) -> None:
        """Take over the views of sources that were restored, those that were saved in their order."""
        for known in sources:
            self._take_over(known)
        places = (Place(sources[number].encoded, connector) for number, connector in saved)
        # What nobody here can read has no view any more.
        self.known = {place: self.known[place] for place in places if place in self.known} | self.known

    def _take_over(self, known: KnownSource) -> None:
        self.known |= {Place(known.encoded, connector): known for connector in (*known.totals, *known.open)}
        self.open |= {Place(known.encoded, connector): known for connector in known.open}


class Seen(NamedTuple):
    """A view that nobody has read yet: see `SourceView`."""

    parts: Parts
    source: Source
    connector: str
    clock_offset_seconds: float
    last_seen: float
    state: str


class ClosedViews(Sequence[SourceView]):
    """The views of a closed interval, which are added up when the first of them is read: often nobody does."""

    def __init__(self, seen: Sequence[Seen]) -> None:
        """Hold what is to be added up."""
        self._seen = [each for each in seen if each.parts.payloads or each.parts.stats is not None]
        self._views: tuple[SourceView, ...] | None = None

    def __repr__(self) -> str:
        """Give how many there are."""
        return f"<ClosedViews {len(self)}>"

    def __len__(self) -> int:
        """The number of views."""
        return len(self._seen)

    @overload
    def __getitem__(self, number: int) -> SourceView: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[SourceView]: ...
    def __getitem__(self, number: int | slice) -> SourceView | Sequence[SourceView]:
        """One view, or some."""
        return self._read()[number]

    def __iter__(self) -> Iterator[SourceView]:
        """All views."""
        return iter(self._read())

    def _read(self) -> tuple[SourceView, ...]:
        for _ in self.reading():
            pass
        return self._views or ()

    def reading(self) -> Iterator[None]:
        """Add them up, `AT_ONCE` in each step, for who has something else to do in between."""
        views: list[SourceView] = []
        # Who reads at the same time on another thread makes equal ones.
        for start in range(0, len(self._seen) if self._views is None else 0, AT_ONCE):
            some = self._seen[start : start + AT_ONCE]
            views += (
                SourceView(each.source, each.connector, stats, *each[3:])
                for each, stats in zip(some, stats_of([each.parts for each in some]), strict=True)
                if stats is not None
            )
            yield
        self._views = self._views or tuple(views)
