"""Who gets in: answers libzmq's questions about keys (ZAP, RFC 27) and counts the connections that were refused.

Lives on the thread of its sockets and does nothing between two calls of `attend`: a handshake waits for the next.
"""

import contextlib
import logging
from collections import Counter as Tally
from collections.abc import Iterator
from struct import Struct
from typing import Final

import zmq

from kvxfer.transport.keys import CollectorKeys

logger = logging.getLogger("kvxfer")

CAUSES: Final = {
    "unauthorized_key": "its key is not in authorized/",
    "revoked_key": "its key was removed from authorized/",
    "wrong_server_key": "it expects another collector's key",
    "mechanism": "one side uses CURVE, the other does not",
    "no_handshake": "it spoke something else, or left before it had spoken",
    "subscriptions": "all were cut off, since topics filled the memory; publishers come back by themselves",
}
"""Why a connection is refused."""

_ZAP: Final = "inproc://zeromq.zap.01"
_DOMAIN: Final = b"kvxfer"
_EVENTS: Final = (
    zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)
# Whoever connects as fast as we look does not keep us from the reports of the others.
_AT_ONCE: Final = 1000
_TOLD: Final = Struct("=HI")  # event and value, before the endpoint; zmq.utils.monitor, which reads it, imports asyncio
_NEVER: Final = object()
_PROTOCOL_CAUSES: Final[dict[int, str]] = {
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "wrong_server_key",
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "mechanism",
}


class Gate:
    """Guards the sockets of one context. ``keys``: None lets everybody in who speaks ZeroMQ without CURVE."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", keys: CollectorKeys | None, refused: Tally[str]
    ) -> None:
        """Begin to answer; ``refused`` is what it counts into, by the causes of `CAUSES`."""
        self._context = context
        self._keys = keys
        self._refused = refused
        self._watches: list[_Watch] = []
        self.requests: zmq.Socket[bytes] | None = None
        """Where libzmq asks; None without keys."""
        if keys is not None:
            self.requests = context.socket(zmq.REP)
            self.requests.bind(_ZAP)

    def guard(self, socket: "zmq.Socket[bytes]") -> None:
        """Let through this socket only who may; to be called before it is bound."""
        # With a domain set, the bytes of a port scan are refused in the handshake and are no messages.
        socket.zap_domain = _DOMAIN
        if self._keys is not None:
            socket.curve_publickey, socket.curve_secretkey = self._keys.public, self._keys.secret
            socket.curve_server = True
        self._watches.append(_Watch(socket))

    def attend(self) -> None:
        """Answer what was asked, count what was refused."""
        if self.requests is not None:
            with contextlib.suppress(zmq.Again):
                for _ in range(_AT_ONCE):
                    self.requests.send_multipart(self._answer(self.requests.recv_multipart(zmq.NOBLOCK)))
        for watch in self._watches:
            for cause in watch.refused():
                self.count(cause)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number, _, _, _, mechanism, *credentials = request
        allowed = self._keys is not None and mechanism == b"CURVE" and self._is_authorized(self._keys, credentials[0])
        # 400 and not 300: a client that is told so leaves, instead of coming back a hundred times a second.
        status = (b"200", b"OK") if allowed else (b"400", b"not authorized")
        return [version, number, *status, b"", b""]

    def _is_authorized(self, keys: CollectorKeys, key: bytes) -> bool:
        if keys.is_authorized(key):
            return True
        self.count("revoked_key" if key in keys.revoked else "unauthorized_key")
        return False

    def count(self, cause: str) -> None:
        """Count one that was refused; the first of each cause is said in the log."""
        if not self._refused[cause]:
            logger.warning("a connection was refused: %s; more of the kind are only counted", CAUSES[cause])
        self._refused[cause] += 1

    def close(self) -> None:
        """Stop answering."""
        for watch in self._watches:
            watch.close()
        if self.requests is not None:
            self.requests.close(0)


class _Watch:
    """The handshakes of one socket, as its monitor tells them.

    libzmq tells of a connection by its descriptor when it is accepted and when it ends, but not when its handshake
    succeeds, and says nothing of one that it ends for speaking no ZeroMQ. So each success is taken for the connection
    that came last, and one that ends without any is refused: two handshakes at once may be counted in each other's
    stead, never twice.
    """

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        """Begin to watch."""
        self._socket = socket
        self._monitor = socket.get_monitor_socket(_EVENTS)
        # At a finite mark the io thread waits for whoever reads here, and with it all connections.
        self._monitor.rcvhwm = 0
        self._pending: dict[int, None] = {}
        self._has_failed = False

    def refused(self) -> Iterator[str]:
        """The causes of those that were refused since the last call, but for keys, which `Gate` counts."""
        with contextlib.suppress(zmq.Again):
            for _ in range(_AT_ONCE):
                told, _ = self._monitor.recv_multipart(zmq.NOBLOCK)
                yield from self._cause(*_TOLD.unpack(told))

    def _cause(self, event: int, value: int) -> Iterator[str]:
        if event == zmq.Event.ACCEPTED:
            self._pending[value] = None
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            if self._pending:
                self._pending.popitem()
        elif event == zmq.Event.DISCONNECTED:
            was_pending = self._pending.pop(value, _NEVER) is None
            if self._has_failed and not was_pending and self._pending:
                self._pending.popitem()  # that of the one which was taken for this one
            if was_pending and not self._has_failed:
                yield "no_handshake"
            self._has_failed = False
        else:
            self._has_failed = True
            if event == zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
                yield _PROTOCOL_CAUSES.get(value, "no_handshake")
            elif event == zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
                yield "no_handshake"

    def close(self) -> None:
        """Stop watching."""
        self._socket.disable_monitor()
        self._monitor.close(0)
