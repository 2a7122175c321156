"""The numbers of sources that made room for others: one that comes back goes on from them, and is not counted twice.

No socket, no clock, no thread; who is forgotten, and when, is the affair of `sources`.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from kvxfer.saved import SavedSource

MAX_FORGOTTEN: Final = 16_384
"""A state of 2 MB more, which is written with each interval; who comes back does so soon."""


class Forgotten:
    """Numbers by the bytes of their source, in the order in which they were forgotten."""

    def __init__(self) -> None:
        """Remember nobody."""
        # Ordered, as the first goes again and again: a dict would look through the holes of all that went before.
        self._by_bytes: OrderedDict[bytes, SavedSource] = OrderedDict()
        self._num_bytes = 0

    def __repr__(self) -> str:
        """Give how many there are, and the bytes of their sources."""
        return f"<Forgotten sources={len(self)} bytes={self._num_bytes}>"

    def __len__(self) -> int:
        """The number remembered."""
        return len(self._by_bytes)

    def add(self, numbers: SavedSource) -> None:
        """Remember numbers of a source that is not in here; they stay as they are."""
        self._by_bytes[numbers.encoded] = numbers
        self._num_bytes += len(numbers.encoded)

    def pop(self, encoded: bytes) -> SavedSource | None:
        """Take out the numbers of a source, if they are remembered."""
        numbers = self._by_bytes.pop(encoded, None)
        if numbers is not None:
            self._num_bytes -= len(encoded)
        return numbers

    def shrink(self, most: int, most_bytes: int) -> None:
        """Remember at most so many, and `MAX_FORGOTTEN`, of so many bytes; the oldest go first."""
        while len(self._by_bytes) > min(most, MAX_FORGOTTEN) or self._num_bytes > most_bytes:
            encoded, _ = self._by_bytes.popitem(last=False)
            self._num_bytes -= len(encoded)

    # --- kept over a restart

    def save(self) -> list[SavedSource]:
        """All that is remembered, the oldest first; not to be changed."""
        return list(self._by_bytes.values())

    def restore(self, saved: Iterable[SavedSource]) -> None:
        """Go on from what was saved, where nothing is remembered yet."""
        for numbers in saved:
            self.add(numbers)
