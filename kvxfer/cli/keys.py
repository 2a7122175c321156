"""What the keys of ``kvxfer top`` do to its view: sorting, filtering, pausing. No terminal, no clock."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kvxfer.records.columns import COLUMNS, Column
from kvxfer.records.live import GONE, IDLE, LIVE, SILENT, SLOW, LiveRow

HELP: Final = (
    ("q", "quit"),
    ("s", "sort the ranks by the next column"),
    ("r", "reverse the order"),
    ("f", "filter: ranks in whose labels this text is; Enter keeps, Esc drops it"),
    ("p", "pause: keep what is shown"),
    ("?", "this help"),
)

_STATES: Final = {state: number for number, state in enumerate((SILENT, SLOW, GONE, LIVE, IDLE))}
_BY_KEY: Final = {column.key: column for column in COLUMNS}
_MOST_TYPED: Final = 60


class Order(NamedTuple):
    """One way to sort: its name, and what is compared; ``falling``: the highest first, as one looks for it."""

    title: str
    key: Callable[[LiveRow], Any]
    falling: bool = True


def _number(column: Column) -> Callable[[LiveRow], float]:
    def key(row: LiveRow) -> float:
        bounds = column.read(row.row)
        return -1.0 if bounds is None else bounds.high

    return key


def _natural(row: LiveRow) -> list[tuple[bool, int, str]]:
    """Names with the numbers in them as numbers: rank 10 comes after rank 9."""
    words = row.name.split(" ")
    return [(not word.isdecimal(), int(word) if word.isdecimal() and len(word) < 20 else 0, word) for word in words]  # noqa: PLR2004


ORDERS: Final = (
    Order("rank", _natural, falling=False),
    Order("state", lambda row: (_STATES.get(row.state, 9), _natural(row)), falling=False),
    *(
        Order(_BY_KEY[key].title, _number(_BY_KEY[key]))
        for key in ("num_transfers", "bytes_per_second", "bytes_per_busy_second", "p50_seconds", "p99_seconds")
    ),
    Order("failures", _number(_BY_KEY["num_failures"])),
)


class View:
    """How the table is looked at."""

    def __init__(self) -> None:
        """Begin with all ranks in their order."""
        self._order = 0
        self._is_reversed = False
        self.filter = ""
        self.typed: str | None = None
        """The filter that is being typed, None where none is."""
        self.is_paused = False
        self.shows_help = False
        self.has_ended = False

    def __repr__(self) -> str:
        """Give what differs from the beginning."""
        return f"<View {self.order} filter={self.filter!r} typed={self.typed!r} paused={self.is_paused}>"

    @property
    def order(self) -> str:
        """The column that is sorted by, and which way."""
        order = ORDERS[self._order]
        return f"{order.title} {'v' if order.falling != self._is_reversed else '^'}"

    def press(self, key: str) -> None:
        """Take one key; those that mean nothing do nothing."""
        if self.typed is not None:
            self._type(key)
        elif self.shows_help and key != "q":
            self.shows_help = False
        else:
            self._command(key)

    def _command(self, key: str) -> None:
        if key == "q":
            self.has_ended = True
        elif key == "s":
            self._order = (self._order + 1) % len(ORDERS)
        elif key == "r":
            self._is_reversed = not self._is_reversed
        elif key == "f":
            self.typed = self.filter
        elif key == "p":
            self.is_paused = not self.is_paused
        elif key == "?":
            self.shows_help = True

    def _type(self, key: str) -> None:
        typed = self.typed or ""
        if key in ("\r", "\n"):
            self.filter, self.typed = typed, None
        elif key == "\x1b":
            self.filter, self.typed = "", None
        elif key in ("\x7f", "\b"):
            self.typed = typed[:-1]
        elif key.isprintable() and len(typed) < _MOST_TYPED:
            self.typed = typed + key

    def chosen(self, rows: list[LiveRow]) -> list[LiveRow]:
        """The rows that the filter leaves."""
        wanted = (self.filter if self.typed is None else self.typed).casefold()
        return [row for row in rows if wanted in _text(row)] if wanted else rows

    def sorted(self, rows: list[LiveRow]) -> list[LiveRow]:
        """The rows in their order; equal ones by name."""
        order = ORDERS[self._order]
        named = sorted(rows, key=_natural)
        return sorted(named, key=order.key, reverse=order.falling != self._is_reversed)


def _text(row: LiveRow) -> str:
    return " ".join([row.name, row.state, *(f"{name}={value}" for name, value in row.row.labels.items())]).casefold()
