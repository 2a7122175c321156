"""Which report numbers of one source were taken, in memory that does not grow with them."""

from typing import Final

from kvxfer.wire import MAX_OUTSTANDING

_WINDOW: Final = MAX_OUTSTANDING


class TakenSeqs:
    """The numbers taken: all up to ``floor``, and single ones above it: ``<TakenSeqs ..56 58 60>``.

    ``floor`` is what may be acknowledged. Numbers up to it were taken here, or are not kept by their publisher any
    more, since an earlier collector has acknowledged them. ``above`` has a bit per number above it, at most
    `MAX_OUTSTANDING` of them: a publisher that sends one further up has given up what is that far below.
    """

    __slots__ = ("above", "floor")

    def __init__(self, floor: int = 0, above: int = 0) -> None:
        """Begin with no number taken, or go on where another one was."""
        self.floor = floor
        self.above = above

    def __repr__(self) -> str:
        """Give the numbers."""
        single = [str(self.floor + 1 + bit) for bit in range(self.above.bit_length()) if self.above >> bit & 1]
        return f"<TakenSeqs {' '.join([f'..{self.floor}', *single])}>"

    def holds(self, seq: int) -> bool:
        """Whether a number was taken."""
        return seq <= self.floor or bool(self.above >> (seq - self.floor - 1) & 1)

    def take(self, seq: int, oldest: int) -> bool:
        """Take a number of a publisher that keeps from ``oldest`` on (0: unknown); False if it was taken before."""
        if seq == self.floor + 1 and not self.above:  # nearly all of them
            self.floor = seq
            return True
        self.settle(max(oldest, seq - _WINDOW + 1))
        if self.holds(seq):
            return False
        self.above |= 1 << (seq - self.floor - 1)
        self._close_up()
        return True

    def settle(self, oldest: int) -> None:
        """Note that what is below ``oldest`` will not come: it was acknowledged by somebody."""
        passed = oldest - 1 - self.floor
        if passed > 0:
            self.floor += passed
            self.above >>= passed
            self._close_up()

    def _close_up(self) -> None:
        ones = (~self.above & (self.above + 1)).bit_length() - 1
        self.floor += ones
        self.above >>= ones

    def missing(self, last: int) -> int:
        """The numbers up to ``last`` that were never taken."""
        span = last - self.floor
        return span - (self.above & ((1 << span) - 1)).bit_count() if span > 0 else 0
