"""JSON lines: one interval a line, idle ones too, for who measures and wants records.

A record is ``{"version", "start", "end", "groups", "sources", "pipeline", "silent", "departed"}``: times in Unix
seconds, groups and sources with ``connector``, ``labels``, ``reduced`` (the keys of the log), ``fields`` (count, sum,
extremes, quantiles) and, whatever the fields are called, ``failures`` (by counter), ``durations`` (of the transfers, as
a field, in seconds), ``num_bytes``, ``busy_seconds`` and the rates, unrounded, where the connector knows them, and
``in_flight`` (``num_transfers``, ``oldest_seconds``) where workers tell of it; with ``error`` where its own class
failed. ``silent`` lists the sources that were expected to report and did not, ``departed`` those that left.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from kvxfer.contract import KVConnectorStats
from kvxfer.errors import RecordError
from kvxfer.interval import Interval, rates
from kvxfer.reading import describe
from kvxfer.wire import Source, plain

VERSION: Final = 1
_START: Final = b'{"version":'


def as_record(interval: Interval) -> dict[str, Any]:
    """The interval as plain data of JSON."""
    return {
        "version": VERSION,
        "start": interval.start,
        "end": interval.end,
        "groups": [
            {
                "connector": group.connector,
                "labels": group.labels,
                "num_ranks": group.num_ranks,
                **_numbers(group.stats, interval.seconds),
            }
            for group in interval.groups
        ],
        "sources": [
            {
                "connector": view.connector,
                **who(view.source),
                "state": view.state,
                "last_seen": view.last_seen,
                "clock_offset_seconds": view.clock_offset_seconds,
                **_numbers(view.stats, interval.seconds),
            }
            for view in interval.sources
        ],
        "pipeline": msgspec.to_builtins(interval.pipeline),
        "silent": [who(source) for source in interval.silent],
        "departed": [who(source) for source in interval.departed],
    }


def who(source: Source) -> dict[str, Any]:
    """A source, as records name it."""
    return {"source": source.id, "host": source.host, "pid": source.pid, "labels": source.labels}


def _numbers(stats: KVConnectorStats, seconds: float) -> dict[str, Any]:
    try:
        found = {"reduced": stats.reduce(), "fields": stats.summary(), "failures": stats.failures()}
        durations, moved, in_flight = stats.durations(), stats.moved(), stats.in_flight()
        if durations is not None:
            found["durations"] = describe(durations)
        if in_flight is not None:
            found["in_flight"] = in_flight._asdict()
        return found if moved is None else found | moved._asdict() | msgspec.to_builtins(rates(moved, seconds))
    except Exception as error:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return {"reduced": {}, "fields": {}, "error": f"{type(error).__name__}: {error}"}


class JsonlExporter:
    """Appends to a file, one write a line, so that a killed process leaves at most one torn line at the end.

    Raises `RecordError` for a path that cannot be written or holds something else; a torn line of an earlier process
    is cut off.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file to append."""
        self._path = Path(path)
        try:
            _cut_torn_line(self._path)
            # A file that we make is for its owner alone: names of hosts and labels are in it.
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(file, "ab", buffering=0)
        except OSError as error:
            message = f"{path}: {error.strerror}: name a file that can be written"
            raise RecordError(message) from error

    def export(self, interval: Interval) -> None:
        """Write the interval's line."""
        line = msgspec.json.encode(as_record(interval), enc_hook=plain) + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        if self._file.write(line) != len(line):  # the disk is full: no half line in the middle of the file
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    torn = content[content.rfind(b"\n") + 1 :]
    if not content.startswith(_START[: len(content)]):
        message = f"{path}: holds no intervals of kvxfer: name another file"
        raise RecordError(message)
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(content) - len(torn))


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a file. A torn last line is passed over; another broken one is a `RecordError` with its number."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        message = f"{path}: {error.strerror}: name a file of intervals"
        raise RecordError(message) from error
    for number, line in enumerate(lines, 1):
        try:
            if line:
                yield msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if number < len(lines):
                message = f"{path}:{number}: {error}: remove the line, or the file is none of kvxfer's"
                raise RecordError(message) from error
