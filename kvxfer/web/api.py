"""The routes of a collector: metrics, health, and JSON for who writes a page or a script.

``/api/v1/snapshot?sources=1``
    One record (`kvxfer.exporters.jsonl`) of all since the beginning: ``{"version", "start", "end", "groups",
    "sources", "pipeline", "silent"}``, times in Unix seconds, durations in seconds, sizes in bytes. ``sources=0``
    leaves those out, and costs far less. What is given may be a second old, with very many sources up to 30.

``/api/v1/history?start=&end=&limit=&sources=0``
    ``{"version": 1, "intervals": [record, ...], "is_cut": false}``: the closed intervals that ended after ``start``
    and until ``end`` (Unix seconds), oldest first, the last ``limit`` of them (100, at most 1,000; with ``sources=1``
    10, at most 20). ``is_cut``: there are earlier ones. From the journal; without one from memory, then without
    sources.

``/readyz``
    ``{"ready": true, "reasons": []}``, or 503 and what is wrong, a sentence each.

What cannot be answered is ``{"error": message}`` with status 400 (a parameter), 404, 405 or 503 (a journal that cannot
be read).
"""

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kvxfer.errors import JournalError
from kvxfer.exporters.jsonl import as_record
from kvxfer.exporters.prometheus import OPENMETRICS, PROTOBUF, TEXT, Counted, Exposition, Format, Options, choose
from kvxfer.saved import decode_interval
from kvxfer.web.cached import Cached
from kvxfer.web.messages import QueryError, Request, Response, Route, as_json, failure
from kvxfer.web.page import Events, static_routes
from kvxfer.web.recent import Recent
from kvxfer.wire import plain

if TYPE_CHECKING:
    from kvxfer.collector import Collector

VERSION: Final = 1
"""Of the schema; it only grows, what changes gets another number."""

STALLED_SECONDS: Final = 5.0
"""A collector whose loop has not run for so long does not collect; it does every 0.1 s."""

MAX_HISTORY_BYTES: Final = 32 << 20
"""Of the records of one response; a record of a thousand groups has some MB."""

MAX_HISTORIES: Final = 4
"""Requests for history at once; one is answered, the others wait. The rest of the room is for scrapes and probes."""

_LIMITS: Final = {False: (100, 1000), True: (10, 20)}  # default and most, without and with sources


class Api:
    """Answers for one collector; what is costly is made once for all who ask, see `cached`."""

    def __init__(self, collector: "Collector", options: Options) -> None:
        """Ask nothing yet."""
        self._collector = collector
        self._recent = Recent(history=collector.config.journal is None, then=self._let_go)
        self._exposition = Exposition(options)
        self._families = Cached(self._expose)
        self._formats = {each: Cached(partial(self._write, each)) for each in (TEXT, OPENMETRICS, PROTOBUF)}
        self._snapshots = {sources: Cached(partial(self._snapshot, sources=sources)) for sources in (False, True)}
        self._one_history = threading.Lock()
        self._history_seats = threading.BoundedSemaphore(MAX_HISTORIES)
        self._events = Events(self._recent, self.snapshot, collector.config.group_by)
        collector.add_exporter(self._recent)

    @property
    def routes(self) -> Mapping[str, Route]:
        """What answers at which path."""
        return {
            "/metrics": self.metrics,
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/api/v1/snapshot": self.snapshot,
            "/api/v1/history": self.history,
            "/events": self._events.route,
            **static_routes(),
        }

    def end(self) -> None:
        """End what goes on."""
        self._events.end()
        self._collector.remove_exporter(self._recent)

    def _let_go(self) -> None:
        for cached in (self._families, *self._formats.values(), *self._snapshots.values()):
            cached.let_go()

    # --- metrics

    def metrics(self, request: Request) -> Response:
        """The series, in the format that the request likes best."""
        chosen = choose(request.accept)
        return Response(self._formats[chosen].get(), chosen.content_type, headers={"Vary": "Accept"})

    def _write(self, chosen: Format) -> bytes:
        return chosen.write(self._families.get())

    def _expose(self) -> Any:  # noqa: ANN401 - what a format takes
        sources = self._exposition.options.sources > 0
        # The families are made within a format, whose CPU theirs is a part of.
        spent = Counted(self._families.num_made, sum(each.cpu_seconds for each in self._formats.values()))
        snapshot = self._collector.snapshot(sources=sources)
        last = self._recent.last
        if last is None and snapshot.seconds > self._collector.config.interval_seconds:
            # A journal's totals: their gauges are of any time, and none has been read since.
            last = msgspec.structs.replace(snapshot, groups=(), sources=())
        return self._exposition.families(snapshot, last, self._collector.health(), spent)

    # --- health

    def healthz(self, _: Request) -> Response:
        """That the process answers."""
        return Response(b"ok\n")

    def readyz(self, _: Request) -> Response:
        """Whether it collects; if not, why."""
        health = self._collector.health()
        reasons = []
        if health.loop_age_seconds > STALLED_SECONDS:
            reasons.append(f"the collector's loop has not run for {health.loop_age_seconds:.1f} s")
        if health.is_journal_behind:
            reasons.append("the journal cannot be written: what is collected is in memory alone")
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        return as_json({"ready": not reasons, "reasons": reasons}, status)

    # --- records

    def snapshot(self, request: Request) -> Response:
        """All since the beginning."""
        return self._snapshots[_flag(request.query, "sources", default=True)].get()

    def _snapshot(self, *, sources: bool) -> Response:
        return as_json(as_record(self._collector.snapshot(sources=sources)))

    def history(self, request: Request) -> Response:
        """Closed intervals."""
        sources = _flag(request.query, "sources", default=False)
        start, end = (_number(request.query, name, default) for name, default in (("start", 0.0), ("end", math.inf)))
        usual, most = _LIMITS[sources]
        limit = _number(request.query, "limit", float(usual))
        if not 1 <= limit <= most:
            message = f"limit: expected 1 to {most}, got {limit:g}"
            raise QueryError(message)
        if not self._history_seats.acquire(blocking=False):
            return failure(HTTPStatus.SERVICE_UNAVAILABLE, "others ask for history: ask again in a moment")
        try:
            with self._one_history, self._newest(start, end) as newest:  # each takes a thread's whole attention
                records, is_cut = _records(newest, int(limit), sources=sources)
        except JournalError as error:
            return failure(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        finally:
            self._history_seats.release()
        return as_json({"version": VERSION, "intervals": records, "is_cut": is_cut})

    @contextmanager
    def _newest(self, start: float, end: float) -> Iterator[Iterator[bytes]]:
        path = self._collector.config.journal
        if path is None:
            yield self._recent.newest(start, end)
            return
        from kvxfer.journal import History  # noqa: PLC0415 - sqlite3, only where it is used

        history = History(path)
        try:
            yield history.newest(start, end)
        finally:
            history.close()


def _records(newest: Iterator[bytes], limit: int, *, sources: bool) -> tuple[list[msgspec.Raw], bool]:
    """The records of the newest intervals, oldest first, and whether there are more.

    Making them takes half of the CPU that there is, so that collecting goes on.
    """
    records: list[msgspec.Raw] = []
    num_bytes = 0
    for saved in newest:
        if len(records) == limit or num_bytes > MAX_HISTORY_BYTES:
            return records[::-1], True
        began = time.monotonic()
        record = as_record(decode_interval(saved, sources=sources))
        records.append(msgspec.Raw(msgspec.json.encode(record, enc_hook=plain)))
        num_bytes += len(bytes(records[-1]))
        time.sleep(time.monotonic() - began)
    return records[::-1], False


def _flag(query: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = query.get(name, "1" if default else "0")
    if text not in ("0", "1"):
        message = f"{name}: expected 0 or 1, got {text[:40]!r}"
        raise QueryError(message)
    return text == "1"


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = math.nan
    if math.isnan(number):
        message = f"{name}: expected a number, got {text[:40]!r}"
        raise QueryError(message)
    return number
