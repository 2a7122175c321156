"""A worker's sockets: they connect, and nothing here ever waits but `PublisherSockets.close`."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Final

import zmq

from kvxfer.errors import EndpointError
from kvxfer.transport.collecting import check_private
from kvxfer.transport.endpoints import IPC, ack_endpoint, check_endpoint
from kvxfer.transport.frames import MAX_ACK_BYTES, is_ipv6, received
from kvxfer.transport.keys import PublisherKeys

# The queue belongs in the outbox, where it can merge; a few frames here keep the io thread busy.
_SEND_HIGH_WATER_MARK: Final = 16
# 3-14 ms until a collector that came back is found, where libzmq's 100 ms take up to 170.
_RECONNECT_MS: Final = 10
_RECONNECT_MAX_MS: Final = 1000
# Who only listens never learns that the other host was cut off: without it no acknowledgement would come again. What
# was on its way when a connection is given up is sent again, so it costs nothing but a duplicate.
_HEARTBEAT_MS: Final = 10_000
_HEARTBEAT_TTL_MS: Final = 60_000
# libzmq gives a connection up that was refused for its key, and asks 85 times a second where the other's was wrong.
_REFUSED_SECONDS: Final = 5.0
_TERM_SECONDS: Final = 0.1


class PublisherSockets:
    """A worker's end: connects, sends without ever waiting, hears the acknowledgements of its topics.

    Raises `EndpointError` for an endpoint that is none.
    """

    def __init__(self, endpoint: str, keys: PublisherKeys | None = None, *, private: bool = False) -> None:
        """Connect in the background; there need be no collector yet. ``private``: as for `CollectorSockets`."""
        check_endpoint(endpoint)
        if private:
            _make_private(Path(endpoint.removeprefix(IPC)).parent)
        self._ends = endpoint, ack_endpoint(endpoint)
        self._has_keys = keys is not None
        self._refused_since: float | None = None
        self._context = zmq.Context()
        # Whatever ends this process without close() must not hang on an absent collector.
        self._context.linger = 0
        self._push = self._context.socket(zmq.PUSH)
        self._push.sndhwm = _SEND_HIGH_WATER_MARK
        # Refuse at once while there is no connection: what waits in the outbox can merge, what waits here is stale.
        self._push.immediate = True
        self._sub = self._context.socket(zmq.SUB)
        for end in (self._push, self._sub):
            # Reports have no answers, yet ZeroMQ takes in what whoever is there sends back, a frame of any size.
            end.maxmsgsize = MAX_ACK_BYTES
            end.ipv6 = is_ipv6(endpoint)
            end.heartbeat_ivl = _HEARTBEAT_MS
            end.heartbeat_ttl = _HEARTBEAT_TTL_MS
            end.reconnect_ivl = _RECONNECT_MS
            end.reconnect_ivl_max = _RECONNECT_MAX_MS
            if keys is not None:
                end.curve_publickey, end.curve_secretkey = keys.public, keys.secret
                end.curve_serverkey = keys.server
        try:
            self._connect()
        except zmq.ZMQError as error:
            self.close(0)
            message = f"cannot connect to {endpoint}: {error}"
            raise EndpointError(message) from error

    def _connect(self) -> None:
        for socket, end in zip((self._push, self._sub), self._ends, strict=True):
            socket.connect(end)

    def _connect_again(self, now: float) -> None:
        self._refused_since = now
        for socket, end in zip((self._push, self._sub), self._ends, strict=True):
            with contextlib.suppress(zmq.ZMQError):  # it has
                socket.disconnect(end)
            if self._has_keys:  # of which the collector may know none, and each handshake costs it 0.2 ms
                socket.reconnect_ivl = _RECONNECT_MAX_MS
        with contextlib.suppress(zmq.ZMQError):  # as the first time, in the background
            self._connect()

    def listen(self, topic: bytes) -> None:
        """Hear the acknowledgements behind this topic from now on, and what has passed it by."""
        self._sub.subscribe(topic)

    def send(self, frame: bytes) -> bool:
        """Hand a frame over; False if the socket refuses it now.

        What is not taken for long is no sign of an absent collector alone: libzmq may have given the connection up, and
        is told to connect again. What is taken and not answered is the outbox's to notice.
        """
        try:
            self._push.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError:
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            if now - self._refused_since > _REFUSED_SECONDS:
                self._connect_again(now)
            return False
        self._refused_since = None
        return True

    def acks(self) -> list[bytes]:
        """The acknowledgements that have arrived."""
        return received(self._sub)

    def close(self, linger: float) -> None:
        """Close; frames handed over are still delivered within ``linger`` seconds, for which and 0.1 s this waits."""
        self._sub.close(0)
        self._push.close(max(0, int(linger * 1000)))
        _term(self._context, max(0.0, linger) + _TERM_SECONDS)


def _term(context: "zmq.Context[zmq.Socket[bytes]]", seconds: float) -> None:
    """End a context whose sockets are closed, and wait so long for it; what is not over then goes on by itself.

    It is over in a millisecond, or when the system gives up looking for the host of an endpoint: 19 s have been seen.
    """
    ending = threading.Thread(target=context.term, name="kvxfer-ending", daemon=True)
    try:
        ending.start()
    except RuntimeError:  # the interpreter ends, or no thread is left: then the context stays as it is, for ever
        _left.append(context)
    else:
        ending.join(seconds)


_left: "Final[list[zmq.Context[zmq.Socket[bytes]]]]" = []


def _make_private(directory: Path) -> None:
    """Make the directory before somebody else does, who would take what is sent; raises `EndpointError`."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot use {directory}: {error.strerror}; choose another endpoint"
        raise EndpointError(message) from error
    check_private(directory)
