"""The views of an aggregator: sources whose numbers are kept by themselves too, as many as are wanted.

No socket, no clock, no thread; who reports and what is the aggregator's affair.
"""

from typing import NamedTuple

from kvxfer.packed import Sum
from kvxfer.sources import KnownSource


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
        """Those of them that reported in the open interval."""
        self._searched = -1

    def of(self, known: KnownSource, connector: str, num_departed: int) -> Sum | None:
        """What a source reports in this interval by itself; None where there are views enough.

        ``num_departed`` counts the sources that have left so far: room is looked for once after one has.
        """
        view = known.open.get(connector)
        return view if view is not None else self._begun(Place(known.encoded, connector), known, num_departed)

    def _begun(self, place: Place, known: KnownSource, num_departed: int) -> Sum | None:
        if place not in self.known:
            if len(self.known) >= self._most and num_departed != self._searched:
                self._make_room(num_departed)
            if len(self.known) >= self._most:
                return None
            self.known[place] = known
        self.open[place] = known
        known.open[place.connector] = view = Sum()
        return view

    def _make_room(self, num_departed: int) -> None:
        ended = (place for place, known in self.known.items() if known.is_gone and place not in self.open)
        place = next(ended, None)
        if place is None:
            self._searched = num_departed
        else:
            self.known.pop(place).totals.pop(place.connector, None)

    def restore(self, known: KnownSource) -> None:
        """Take over the views of a source that was restored."""
        self.known |= {Place(known.encoded, connector): known for connector in (*known.totals, *known.open)}
        self.open |= {Place(known.encoded, connector): known for connector in known.open}

    def close(self) -> dict[Place, Sum]:
        """Take the sums of the open interval, and begin the next one."""
        sums = {place: known.open.pop(place.connector) for place, known in self.open.items()}
        self.open = {}
        self._searched = -1
        return sums
