"""One connection: requests in, responses out, as long as both sides keep it open.

The head of a request is read here, whole, and only then given to the standard library's parser: its own reading bounds
neither the time that a peer takes nor the size of all headers together.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Final, Protocol, cast
from urllib.parse import unquote

from kvxfer.web.address import host_of
from kvxfer.web.messages import SAFE_HEADERS, QueryError, Request, Response, Route, failure, parse_query

logger = logging.getLogger("kvxfer")

MAX_HEAD_BYTES: Final = 8192
HEAD_SECONDS: Final = 5.0
"""In which a request's head comes, from its first byte on; the first one also from when the connection opened."""

IDLE_SECONDS: Final = 75.0
"""Until the next one: Prometheus keeps its connection from one scrape to the next, a minute by default."""

SEND_SECONDS: Final = 10.0
"""In which a peer takes something of a response."""

_END: Final = b"\r\n\r\n"


class Host(Protocol):
    """What a handler asks of its server."""

    routes: Mapping[str, Route]

    @property
    def is_crowded(self) -> bool:
        """Whether a connection is to be closed after its response."""

    def is_known(self, name: str) -> bool:
        """Whether it goes by this name."""


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD by the routes of its server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 4,000 requests a second instead of 23
    wbufsize = -1  # head and body in one packet
    timeout = HEAD_SECONDS

    @property
    def _host(self) -> Host:
        return cast("Host", self.server)

    def setup(self) -> None:
        """Begin with nothing read."""
        super().setup()
        self._unread = b""
        self._deadline = time.monotonic() + HEAD_SECONDS

    def handle_one_request(self) -> None:
        """Read a head, answer it, or end the connection."""
        self.close_connection = True
        try:
            head = self._read_head()
            if head is None:
                return
            self.raw_requestline, _, rest = head.partition(b"\n")
            self.rfile = BytesIO(rest)
            if self.parse_request():
                self.request_version = max(self.request_version, "HTTP/1.0")  # that of 0.9 would have no headers
                self._answer()
            self.wfile.flush()
        except OSError:  # gone, or too slow
            self.close_connection = True
        self._deadline = time.monotonic() + IDLE_SECONDS

    def _read_head(self) -> bytes | None:
        """The head of the next request; None where there is none, or a larger one."""
        buffer = self._unread
        while _END not in buffer and len(buffer) <= MAX_HEAD_BYTES:
            if buffer:
                self._deadline = min(self._deadline, time.monotonic() + HEAD_SECONDS)
            self.connection.settimeout(max(0.001, self._deadline - time.monotonic()))
            part = self.connection.recv(MAX_HEAD_BYTES)
            if not part:
                return None
            buffer += part
        self.connection.settimeout(SEND_SECONDS)
        head, end, self._unread = buffer.partition(_END)
        if not end or len(head) > MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return None
        return head.lstrip(b"\r\n") + _END

    def _refuse(self, status: HTTPStatus) -> None:
        self.raw_requestline, self.requestline, self.request_version, self.command = b"", "", "HTTP/1.1", "GET"
        self._send(failure(status, status.phrase), keep=False)
        self.wfile.flush()

    def _answer(self) -> None:
        # A body that nobody reads would be taken for the next request.
        has_body = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        keep = not self.close_connection and not has_body and not self._host.is_crowded
        if self.command not in ("GET", "HEAD"):
            refused = failure(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or HEAD")
            response = Response(refused.body, refused.content_type, refused.status, {"Allow": "GET, HEAD"})
        else:
            response = failure(HTTPStatus.BAD_REQUEST, "no route takes a body") if has_body else self._routed()
        self._send(response, keep=keep)

    def _routed(self) -> Response:
        path, _, query = self.path.partition("?")
        if not self._host.is_known(host_of(self.headers.get("Host", ""))):
            return failure(HTTPStatus.MISDIRECTED_REQUEST, "this server is asked by the name of its host, or localhost")
        route = self._host.routes.get(unquote(path))
        if route is None:
            return failure(HTTPStatus.NOT_FOUND, f"nothing is here: use one of {', '.join(self._host.routes)}")
        try:
            return route(Request(path, parse_query(query), ",".join(self.headers.get_all("Accept", []))))
        except QueryError as error:
            return failure(HTTPStatus.BAD_REQUEST, str(error))
        except Exception:
            logger.exception("%s cannot be answered", path)
            return failure(HTTPStatus.INTERNAL_SERVER_ERROR, "this is an error of kvxfer: its log says more")

    def _send(self, response: Response, *, keep: bool) -> None:
        self.send_response(response.status)
        keep = keep and response.stream is None
        length = {} if response.stream is not None else {"Content-Length": str(len(response.body))}
        for name, value in {
            **SAFE_HEADERS,
            "Content-Type": response.content_type,
            **length,
            **response.headers,
        }.items():
            self.send_header(name, value)
        self.send_header("Connection", "keep-alive" if keep else "close")  # sets close_connection too
        self.end_headers()
        try:
            if self.command != "HEAD":
                self.wfile.write(response.body)
                for part in response.stream or ():
                    self.wfile.write(part)
                    self.wfile.flush()
        finally:
            if response.stream is not None:
                response.stream.close()

    def finish(self) -> None:
        """Close; a peer that is gone is no error."""
        with suppress(OSError):
            super().finish()

    def version_string(self) -> str:
        """What the Server header says: no version, which would be told to everybody."""
        return "kvxfer"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
        """Log nothing: a scrape is no event."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the parser refuses, in our own form."""
        del explain
        self.request_version = (
            self.protocol_version
        )  # a head that cannot be read is taken for HTTP/0.9, without headers
        self.command = getattr(self, "command", None) or "GET"
        self._send(failure(HTTPStatus(code), message or HTTPStatus(code).phrase), keep=False)
