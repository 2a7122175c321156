"""`WebServer`: the socket and the threads. What is answered is in `api`, how in `handler`."""

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from kvxfer.errors import EndpointError
from kvxfer.exporters.prometheus import Names, Options
from kvxfer.web.address import DEFAULT_ADDRESS, is_loopback, parse_address
from kvxfer.web.api import Api
from kvxfer.web.handler import Handler
from kvxfer.web.messages import Route

if TYPE_CHECKING:
    from typing_extensions import Self

    from kvxfer.collector import Collector

MAX_CONNECTIONS: Final = 64
"""Open at once; one more is closed before anything of it is read. Above half of them none outlives its response."""


class _Server(ThreadingHTTPServer):
    """Bounded in connections, and made without asking a name server."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, family: int, address: Any) -> None:  # noqa: ANN401 - as the family has it
        self.address_family = family
        self.routes: Mapping[str, Route] = {}
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_stopping = False
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def is_crowded(self) -> bool:
        return self._is_stopping or len(self._open) > MAX_CONNECTIONS // 2

    def is_known(self, name: str) -> bool:
        # On loopback: a page of somewhere else may have given its own name to this address.
        return not name or is_loopback(name) or not is_loopback(self.server_name)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base class
        with self._lock:
            has_room = len(self._open) < MAX_CONNECTIONS and not self._is_stopping
            if has_room:
                self._open.add(request)
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as the base class
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that are open."""
        with self._lock:
            self._is_stopping = True
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RD)  # what is being sent goes on

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base class
        """Say nothing: what a peer does is not worth a line each time."""


class WebServer:
    """Shows a collector over HTTP, on threads of its own; a context manager.

    It binds when it is made: `ConfigError` for an address that is none, `EndpointError` for one that is taken or not of
    this host. ``metric_names``: "vllm" for those of vLLM where it has some. ``sources``: of so many sources series of
    their own. ``routes``: answered too, by their paths, instead of what is there otherwise. Forked children do not
    have it.
    """

    def __init__(
        self,
        collector: "Collector",
        address: str = DEFAULT_ADDRESS,
        *,
        metric_names: Names = "kvxfer",
        sources: int = 0,
        routes: Mapping[str, Route] | None = None,
    ) -> None:
        """Bind the address."""
        host, port = parse_address(address)
        self._server = _bound(host, port)
        try:
            self._api = Api(collector, Options(metric_names, sources))
            answered = self._api.routes
        except BaseException:
            self._server.server_close()
            raise
        self._server.routes = {**answered, **(routes or {})}
        self._thread = threading.Thread(target=self._server.serve_forever, name="kvxfer-web", daemon=True)
        self._pid = os.getpid()
        _servers.add(self)

    def __repr__(self) -> str:
        """Give the address."""
        return f"<WebServer {self.url}>"

    @property
    def url(self) -> str:
        """Where it serves: ``http://127.0.0.1:9464``."""
        host = self._server.server_name
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def port(self) -> int:
        """The port, also where any free one was asked for."""
        return self._server.server_port

    def start(self) -> "Self":
        """Serve."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Take no more connections, and end those that are open after the response they wait for."""
        self._api.end()
        if self._pid == os.getpid() and self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.hang_up()
        self._server.server_close()

    def close_inherited(self) -> None:
        """In a forked child: give the port free, which is the parent's."""
        self._server.server_close()

    def __enter__(self) -> "Self":
        """Serve until the end of the block."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()


_servers: "weakref.WeakSet[WebServer]" = weakref.WeakSet()


def _close_inherited() -> None:
    for server in list(_servers):
        server.close_inherited()


os.register_at_fork(after_in_child=_close_inherited)


def _bound(host: str, port: int) -> _Server:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return _Server(family, address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"cannot serve at http://{host}:{port}: {reason}: choose another address"
        raise EndpointError(message) from error
