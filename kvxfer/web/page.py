"""The page: files that are served as they are, nothing from elsewhere, and the events that it listens to.

``/events`` are server-sent events: ``interval``, the record of each interval when it has closed, with its sources, and
``totals``, every `EVENT_SECONDS`, a record of all since the beginning, without them.
"""

import threading
from collections.abc import Generator, Mapping
from functools import partial
from importlib.resources import files
from typing import Final

from kvxfer.exporters.jsonl import as_record
from kvxfer.interval import Interval
from kvxfer.web.messages import Request, Response, Route, as_json
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

    def __init__(self, recent: Recent, totals: Route) -> None:
        """Tell nobody yet; ``totals`` gives the record of all since the beginning."""
        self._recent = recent
        self._totals = totals
        self._ended = threading.Event()
        self._seats = threading.BoundedSemaphore(MAX_LISTENERS)
        self._lock = threading.Lock()
        self._told: tuple[Interval | None, bytes] = (None, b"")

    def route(self, _: Request) -> Response:
        """A stream of events; it ends at once where as many as may be listen, and a browser asks again."""
        return Response(b"", "text/event-stream", stream=self._stream())

    def end(self) -> None:
        """End all streams."""
        self._ended.set()

    def _stream(self) -> Generator[bytes]:
        if not self._seats.acquire(blocking=False):
            return
        told: Interval | None = None
        try:
            while not self._ended.is_set():
                last = self._recent.last
                if last is not None and last is not told:
                    told = last
                    yield _event("interval", self._record(last))
                yield _event("totals", self._totals(Request("", {"sources": "0"})).body)
                self._ended.wait(EVENT_SECONDS)
        finally:
            self._seats.release()

    def _record(self, interval: Interval) -> bytes:
        with self._lock:  # made once for all who listen
            if self._told[0] is not interval:
                self._told = interval, as_json(as_record(interval)).body
            return self._told[1]


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
