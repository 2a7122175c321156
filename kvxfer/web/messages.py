"""What a route gets and gives. A route is plain code: no socket, no thread."""

from collections.abc import Callable, Generator, Mapping
from http import HTTPStatus
from typing import Final, TypeAlias
from urllib.parse import parse_qsl

import msgspec

from kvxfer.wire import plain

JSON: Final = "application/json"
PLAIN: Final = "text/plain; charset=utf-8"

SAFE_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    # Nothing that a worker named is ever run, whatever a browser takes it for.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of each response; a route may give its own instead."""


class Request(msgspec.Struct, frozen=True):
    """A GET or HEAD: the path, the query's last value of each name, and the Accept header."""

    path: str
    query: dict[str, str] = {}
    accept: str = ""


class Response(msgspec.Struct, frozen=True):
    """What is answered."""

    body: bytes
    content_type: str = PLAIN
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = {}
    stream: Generator[bytes] | None = None
    """Instead of a body, what comes as long as the connection is open; it is closed with it."""


Route: TypeAlias = Callable[[Request], Response]
"""Answers the requests of one path; it may be called on many threads at once. What it raises is a 500."""


class QueryError(ValueError):
    """A query that cannot be answered; its message is."""


def parse_query(text: str) -> dict[str, str]:
    """The parameters of a query; raises `QueryError` for very many."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=16))
    except ValueError as error:
        message = "more than 16 parameters"
        raise QueryError(message) from error


def as_json(content: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """A response of plain data."""
    return Response(msgspec.json.encode(content, enc_hook=plain), JSON, status)


def failure(status: HTTPStatus, message: str) -> Response:
    """A response that says what is wrong: ``{"error": message}``."""
    return as_json({"error": message}, status)
