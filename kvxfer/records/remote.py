"""The intervals of a running collector, from its server: what its page listens to. Owns a connection and a thread.

Who answers is a peer as others are: what it sends is read up to a bound and decoded as records, or it is an error.
"""

import http.client
import threading
from collections import deque
from collections.abc import Iterator
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from kvxfer.errors import ConfigError, RecordError
from kvxfer.exporters.jsonl import VERSION
from kvxfer.records.files import Span
from kvxfer.records.observed import Line, Observed
from kvxfer.reporting import printable
from kvxfer.web import parse_address

MAX_BYTES: Final = 32 << 20
"""Of one answer or event: a record of a thousand groups and a thousand sources has some MB."""

QUIET_SECONDS: Final = 10.0
"""Without a byte for so long the collector is gone: its server says something each second."""

RETRY_SECONDS: Final = 2.0
MAX_WAITING: Final = 64
"""Intervals that wait for who watches; older ones are passed over."""

_MOST_WORDS: Final = 200


class _Failure(msgspec.Struct):
    error: str


_T = TypeVar("_T")


class Remote:
    """A collector's intervals as they close; when it goes away it is asked again and again, and ``trouble`` says so.

    Raises `ConfigError` for what is no address, `RecordError` where nobody answers, or somebody else.
    """

    def __init__(self, address: str) -> None:
        """Ask for the first time."""
        self.url = _url(address)
        self.trouble = ""
        """Why nothing comes; empty while it does."""
        self._waiting: deque[Observed] = deque(maxlen=MAX_WAITING)
        self._read: dict[int, Observed] = {}
        self._num_read = 0
        self._last: tuple[float, float] | None = None
        self._ended = threading.Event()
        self.known = self._totals()
        """All since the beginning, when it was first asked."""
        self._stream = self._listened()
        threading.Thread(target=self._listen, name="kvxfer-top", daemon=True).start()

    def __repr__(self) -> str:
        """Give the address, and what is wrong."""
        return f"<Remote {self.url} {self.trouble or 'connected'}>"

    def spans(self) -> list[Span]:
        """The intervals that have come since this was last asked."""
        self._read.clear()
        while self._waiting:
            self._num_read += 1
            self._read[self._num_read] = self._waiting.popleft()
        return [Span(each.start, each.end, number) for number, each in self._read.items()]

    def read(self, span: Span) -> Observed | None:
        """One of them."""
        return self._read.get(span.place)

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    # --- the thread

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                for number, line in enumerate(_intervals(self._stream)):
                    self.trouble = ""
                    self._take(line, is_first=number == 0)
                    if self._ended.is_set():
                        return
                self.trouble = "it has ended the connection"
            except (OSError, http.client.HTTPException, RecordError) as error:
                self.trouble = _words(error)
            self._stream.close()
            self._connect_again()

    def _connect_again(self) -> None:
        while not self._ended.wait(RETRY_SECONDS):
            try:
                self._stream = self._listened()
            except RecordError as error:
                self.trouble = _words(error.__cause__ or error)
            else:
                self.trouble = ""
                return

    def _take(self, line: Line, *, is_first: bool) -> None:
        before, self._last = self._last, (line.start, line.end)
        if not (is_first and self._last == before):  # that one was told before the connection broke
            self._waiting.append(line.observed())

    # --- HTTP

    def _listened(self) -> http.client.HTTPResponse:
        response = self._answer("events")
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise self._stranger("its events are none")
        return response

    def _totals(self) -> Observed:
        with self._answer("api/v1/snapshot") as response:
            try:
                return _decoded(response.read(MAX_BYTES + 1), Line).observed()
            except (OSError, http.client.HTTPException, RecordError) as error:
                raise self._stranger(_words(error)) from error

    def _answer(self, path: str) -> http.client.HTTPResponse:
        """The response to a request, of which the head is read."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=QUIET_SECONDS)
        try:
            connection.request("GET", f"{parts.path}/{path}", headers={"Connection": "close"})
            response = connection.getresponse()  # the connection ends with it
        except http.client.HTTPException as error:
            connection.close()
            raise self._stranger(_words(error)) from error
        except (OSError, ValueError) as error:
            connection.close()
            message = f"{self.url}: {_words(error)}: start `kvxfer collect --http`, or name another address"
            raise RecordError(message) from error
        if response.status != http.client.OK:
            with response:
                said = _said(response)
            if response.status == http.client.SERVICE_UNAVAILABLE:
                message = f"{self.url} has no room for one more now: {said}: try again later"
                raise RecordError(message)
            why = f"{response.status} {said}"
            raise self._stranger(why)
        return response

    def _stranger(self, why: str) -> RecordError:
        return RecordError(f"{self.url} answers, but not as a collector does: {why}: name the address of its --http")


def _url(address: str) -> str:
    """The URL of an address, with nothing behind its path."""
    if not address.startswith(("http://", "https://")):
        host, port = parse_address(address)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        parts = urlsplit(address)
        is_url = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment or parts.username)
    except ValueError:
        is_url = False
    if not is_url:
        message = f"expected HOST:PORT, or http://HOST:PORT, of a collector's --http, got {address!r}"
        raise ConfigError(message)
    return address.rstrip("/")


def _intervals(stream: http.client.HTTPResponse) -> Iterator[Line]:
    """The records of the events that tell an interval."""
    name = b""
    while text := stream.readline(MAX_BYTES + 1):
        _check_size(text)
        field, _, value = text.strip().partition(b": ")
        if field == b"event":
            name = value
        elif field == b"data" and name == b"interval":
            yield _decoded(value, Line)


def _check_size(content: bytes) -> None:
    if len(content) > MAX_BYTES:
        message = f"it sends more than {MAX_BYTES >> 20} MiB at once"
        raise RecordError(message)


def _decoded(content: bytes, kind: type[_T]) -> _T:
    _check_size(content)
    try:
        found = msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(str(error)) from error
    if isinstance(found, Line) and found.version > VERSION:
        message = f"it has records of version {found.version}, this kvxfer reads {VERSION}: upgrade kvxfer"
        raise RecordError(message)
    return found


def _said(response: http.client.HTTPResponse) -> str:
    try:
        return printable(_decoded(response.read(1 << 16), _Failure).error[:_MOST_WORDS])
    except (OSError, http.client.HTTPException, RecordError):
        return printable(response.reason[:_MOST_WORDS])


def _words(error: BaseException) -> str:
    return printable(str(getattr(error, "strerror", None) or error or type(error).__name__)[:_MOST_WORDS])
