"""The page: files that are served as they are, nothing from elsewhere, and the events that it listens to.

``/events`` are server-sent events: ``interval``, the record of each interval when it has closed, with what is shown of
its sources (``is_slow``: by the rule of `kvxfer.pace`), and ``totals``, a record of all since the beginning, when there
is a new one.
"""

import threading
import time
from collections.abc import Generator, Hashable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final

import msgspec

from kvxfer.exporters.jsonl import as_record, who
from kvxfer.interval import Interval, SourceView
from kvxfer.pace import Pace, pace_of, slow_among
from kvxfer.reading import describe
from kvxfer.web.messages import Request, Response, Route, as_json, failure
from kvxfer.web.recent import Recent

EVENT_SECONDS: Final = 1.0
MAX_LISTENERS: Final = 16
"""Pages that are open at once; each has a thread."""

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".LICENSE": "text/plain; charset=utf-8",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)


def static_routes() -> Mapping[str, Route]:
    """The files, read once: ``/`` and ``/static/...``."""
    routes: dict[str, Route] = {}
    for file in files("kvxfer.web").joinpath("static").iterdir():
        kind = _TYPES.get(f".{file.name.rpartition('.')[2]}")
        if kind is not None:
            answer = Response(file.read_bytes(), kind, headers={"Content-Security-Policy": _POLICY})
            path = "/" if file.name == "index.html" else f"/static/{file.name}"
            routes[path] = partial(_given, answer)
    return routes


def _given(answer: Response, request: Request) -> Response:
    del request
    return answer


class Events:
    """Tells pages what closes, and the totals in between."""

    def __init__(self, recent: Recent, totals: Route, group_by: Sequence[str]) -> None:
        """Tell nobody yet; ``totals`` gives the record of all since the beginning, ``group_by`` what makes a group."""
        self._recent = recent
        self._totals = totals
        self._group_by = group_by
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._num_listening = 0
        self._told: tuple[Interval | None, bytes] = (None, b"")

    def route(self, _: Request) -> Response:
        """A stream of events, 503 where as many as may be listen."""
        if self._num_listening >= MAX_LISTENERS:
            return failure(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_LISTENERS} pages are open already: close one")
        return Response(b"", "text/event-stream", stream=self._stream())

    def end(self) -> None:
        """End all streams."""
        self._ended.set()

    def _stream(self) -> Generator[bytes]:
        interval: Interval | None = None
        totals = b""
        with self._lock:
            self._num_listening += 1
        try:
            while not self._ended.is_set():
                last, told = self._recent.last, totals
                if last is not None and last is not interval:
                    interval = last
                    yield _event("interval", self._record(last))
                totals = self._totals(Request("", {"sources": "0"})).body
                # What is costly is made less often than it is asked for. A line that says nothing finds who is gone.
                yield b": \n\n" if totals == told else _event("totals", totals)
                self._ended.wait(EVENT_SECONDS)
        finally:
            with self._lock:
                self._num_listening -= 1
                if not self._num_listening:
                    self._told = (None, b"")

    def _record(self, interval: Interval) -> bytes:
        with self._lock:  # made once for all who listen
            if self._told[0] is not interval:
                bare = msgspec.structs.replace(interval, sources=())
                self._told = interval, as_json(as_record(bare) | {"sources": self._sources(interval)}).body
            return self._told[1]

    def _sources(self, interval: Interval) -> list[dict[str, Any]]:
        sources = [source for view in interval.sources if (source := _shown(view)) is not None]
        paced = ((source, self._group(source), _pace(source)) for source in sources)
        for source, _ in slow_among(paced):
            source["is_slow"] = True
        return sources

    def _group(self, source: Mapping[str, Any]) -> Hashable:
        return (source["connector"], *map(source["labels"].get, self._group_by))


def _pace(source: Mapping[str, Any]) -> Pace | None:
    durations = source["durations"] or {"count": 0, "p90": 0.0}
    return pace_of(durations["count"], source.get("num_bytes"), source.get("busy_seconds"), durations["p90"])


def _shown(view: SourceView) -> dict[str, Any] | None:
    """What the page shows of a source; it takes half of the CPU that there is, so that collecting goes on."""
    began = time.monotonic()
    try:
        durations, moved, in_flight = view.stats.durations(), view.stats.moved(), view.stats.in_flight()
        shown = {
            **who(view.source),
            "connector": view.connector,
            "state": view.state,
            "last_seen": view.last_seen,
            "failures": view.stats.failures(),
            "durations": None if durations is None else describe(durations),
            "in_flight": None if in_flight is None else in_flight._asdict(),
        }
        return shown if moved is None else shown | moved._asdict()
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return None
    finally:
        time.sleep(time.monotonic() - began)


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
