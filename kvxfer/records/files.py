"""The files that a collector leaves, opened by what is in them: its journal, or the lines of ``--jsonl``.

Both give the spans of their intervals first, and then each interval on its own, so that a week of them takes the
memory of one.
"""

from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol, TypeVar

import msgspec

from kvxfer.errors import RecordError
from kvxfer.exporters.jsonl import VERSION
from kvxfer.journal import History
from kvxfer.records.observed import Line, Observed, of_interval
from kvxfer.saved import decode_interval_and_rest

_SQLITE: Final = b"SQLite format 3\0"


class Span(NamedTuple):
    """Where an interval lies: in time (Unix seconds), and in its file."""

    start: float
    end: float
    place: int


class RecordFile(Protocol):
    """A file of intervals."""

    path: Path
    is_torn: bool
    """Whether the last line was written in part: it is left out."""

    def spans(self) -> list[Span]:
        """The intervals that have come since this was last asked, at first all, in the order of their ends."""

    def read(self, span: Span) -> Observed | None:
        """One of them, None where it was removed meanwhile (the journal's retention)."""

    def close(self) -> None:
        """Close the file."""


def open_records(path: str | Path) -> RecordFile:
    """Open a journal or a file of JSON lines; raises `RecordError` or `JournalError` for anything else."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        message = f"{path}: {getattr(error, 'strerror', None) or error}: name a journal or a file of --jsonl"
        raise RecordError(message) from error
    return JournalFile(path) if start == _SQLITE else LinesFile(path)


class JournalFile:
    """A journal, also beside the collector that writes it. Raises `JournalError` where it cannot be read."""

    is_torn = False

    def __init__(self, path: Path) -> None:
        """Open it."""
        self.path = path
        self._history = History(path)
        self._seen = 0

    def spans(self) -> list[Span]:
        """The intervals that have come since this was last asked."""
        spans = [Span(*found) for found in self._history.spans(self._seen)]
        self._seen = max([self._seen, *(span.place for span in spans)])
        return spans

    def read(self, span: Span) -> Observed | None:
        """One of them."""
        saved = self._history.saved(span.place)
        if saved is None:
            return None
        interval, unread = decode_interval_and_rest(saved)
        return of_interval(interval)._replace(unread=unread)

    def close(self) -> None:
        """Close the file."""
        self._history.close()


class _Beginning(msgspec.Struct):
    version: int
    start: float
    end: float


_L = TypeVar("_L", _Beginning, Line)


class LinesFile:
    """A file of JSON lines, also one that is being written. Raises `RecordError` that names file and line.

    A last line without an end is torn, or being written; it is left out.
    """

    def __init__(self, path: Path) -> None:
        """Open it."""
        self.path = path
        self.is_torn = False
        self._file: BinaryIO = path.open("rb")
        self._numbers: dict[int, int] = {}  # of the lines, by their places
        self._seen = self._num_seen = 0
        self._beginnings = msgspec.json.Decoder(_Beginning)
        self._lines = msgspec.json.Decoder(Line)

    def spans(self) -> list[Span]:
        """The intervals that have come since this was last asked."""
        self._file.seek(self._seen)
        self.is_torn = False
        spans = []
        for line in self._file:
            if not line.endswith(b"\n"):
                self.is_torn = True
                break
            self._num_seen += 1
            if line != b"\n":
                self._numbers[self._seen] = self._num_seen
                beginning = self._decoded(self._beginnings, line, self._num_seen)
                spans.append(Span(beginning.start, beginning.end, self._seen))
            self._seen += len(line)
        return sorted(spans, key=lambda span: span.end)

    def read(self, span: Span) -> Observed | None:
        """One of them."""
        self._file.seek(span.place)
        number = self._numbers.get(span.place, 0)
        return self._decoded(self._lines, self._file.readline(), number).observed()

    def _decoded(self, decoder: "msgspec.json.Decoder[_L]", line: bytes, number: int) -> _L:
        try:
            found = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            message = f"{self.path}:{number}: {error}: remove the line, or the file is none of kvxfer's"
            raise RecordError(message) from error
        if found.version > VERSION:
            message = f"{self.path}:{number}: has version {found.version}, this kvxfer reads {VERSION}: upgrade kvxfer"
            raise RecordError(message)
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()
