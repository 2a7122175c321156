"""The ZeroMQ sockets: the only file that imports zmq. One frame is one message; nothing here knows what is in it.

An endpoint is two: reports go to it by PUSH and PULL, acknowledgements come back by PUB and SUB at the same path plus
``.ack``, for tcp at the next port.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
from pathlib import Path
from typing import Final

import zmq

from kvxfer.errors import EndpointError
from kvxfer.wire import MAX_FRAME_BYTES

IPC: Final = "ipc://"
ACK_SUFFIX: Final = ".ack"
_TCP: Final = re.compile(r"tcp://.+:(\d{1,5}|\*)")
_LAST_PORT: Final = 65_534
# Free ports come one by one: that the next one is taken too is rare, twenty times in a row it does not happen.
_PORT_TRIES: Final = 20

MAX_IPC_PATH: Final = 107 - len(ACK_SUFFIX)
"""Bytes of a path that fit, with the suffix, into a ``sockaddr_un`` of Linux."""

MAX_DRAIN: Final = 256
"""Messages of one drain: larger batches do not merge faster and hold the caller longer."""

# The queue belongs in the outbox, where it can merge; a few frames here keep the io thread busy.
_SEND_HIGH_WATER_MARK: Final = 16
_RECEIVE_HIGH_WATER_MARK: Final = 128
# 3-14 ms until a collector that came back is found, where libzmq's 100 ms take up to 170.
_RECONNECT_MS: Final = 10
_RECONNECT_MAX_MS: Final = 1000
# Who only listens never learns that the other host was cut off: without it no acknowledgement would come again. What
# was on its way when a connection is given up is sent again, so it costs nothing but a duplicate.
_HEARTBEAT_MS: Final = 10_000
_HEARTBEAT_TTL_MS: Final = 60_000
# A topic of 201 bytes, a collector's id of 200 characters and two numbers.
_MAX_ACK_BYTES: Final = 4096


def check_endpoint(endpoint: str, *, to_bind: bool = False) -> None:
    """Raise `EndpointError` unless it is ``ipc://PATH`` (of at most 107 bytes) or ``tcp://HOST:PORT``.

    ``to_bind``: the port may be ``*``, for any that is free.
    """
    if endpoint.startswith(IPC):
        _check_path(endpoint.removeprefix(IPC))
        return
    match = _TCP.fullmatch(endpoint)
    port = match.group(1) if match else ""
    if not (port == "*" and to_bind) and not (port.isdigit() and int(port) <= _LAST_PORT):
        message = f"expected ipc://PATH or tcp://HOST:PORT, got {endpoint!r}"
        raise EndpointError(message)


def _check_path(path: str) -> None:
    size = len(os.fsencode(path))
    if path == "*" or path.startswith("@") or "\0" in path:
        message = f"{IPC}{path!r} names no file: give a path"
        raise EndpointError(message)
    if not 0 < size <= MAX_IPC_PATH:
        message = f"the path of {IPC}{path} has {size} bytes, it may have 1 to {MAX_IPC_PATH}: choose another"
        raise EndpointError(message)


def ack_endpoint(endpoint: str) -> str:
    """Where the acknowledgements of an endpoint are published."""
    if endpoint.startswith(IPC):
        return endpoint + ACK_SUFFIX
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + 1}"


class PublisherSockets:
    """A worker's end: connects, sends without ever waiting, hears the acknowledgements of its topic.

    Raises `EndpointError` for an endpoint that is none.
    """

    def __init__(self, endpoint: str, topic: bytes) -> None:
        """Connect in the background; there need be no collector yet."""
        check_endpoint(endpoint)
        self._context = zmq.Context()
        # Whatever ends this process without close() must not hang on an absent collector.
        self._context.linger = 0
        self._push = self._context.socket(zmq.PUSH)
        self._push.sndhwm = _SEND_HIGH_WATER_MARK
        # Refuse at once while there is no connection: what waits in the outbox can merge, what waits here is stale.
        self._push.immediate = True
        self._sub = self._context.socket(zmq.SUB)
        self._sub.maxmsgsize = _MAX_ACK_BYTES
        self._sub.subscribe(topic)
        try:
            self._connect(self._push, endpoint)
            self._connect(self._sub, ack_endpoint(endpoint))
        except zmq.ZMQError as error:
            self.close(0)
            message = f"cannot connect to {endpoint}: {error}"
            raise EndpointError(message) from error

    def _connect(self, socket: "zmq.Socket[bytes]", endpoint: str) -> None:
        socket.heartbeat_ivl = _HEARTBEAT_MS
        socket.heartbeat_ttl = _HEARTBEAT_TTL_MS
        socket.reconnect_ivl = _RECONNECT_MS
        socket.reconnect_ivl_max = _RECONNECT_MAX_MS
        socket.connect(endpoint)

    def send(self, frame: bytes) -> bool:
        """Hand a frame over; False if the socket refuses it now."""
        try:
            self._push.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def acks(self) -> list[bytes]:
        """The acknowledgements that have arrived."""
        return _received(self._sub)

    def close(self, linger: float) -> None:
        """Close; frames handed over are still delivered within ``linger`` seconds, in which this waits."""
        self._sub.close(0)
        self._push.close(max(0, int(linger * 1000)))
        self._context.term()


def _received(socket: "zmq.Socket[bytes]") -> list[bytes]:
    """Up to `MAX_DRAIN` frames that have arrived."""
    frames: list[bytes] = []
    receive = socket.recv
    with contextlib.suppress(zmq.Again):
        while len(frames) < MAX_DRAIN:
            frames.append(receive(zmq.NOBLOCK))
    return frames


class CollectorSockets:
    """The collector's end: binds, receives, acknowledges. Raises `EndpointError` where it cannot bind.

    An ipc path is locked for as long as it is bound: a second collector is refused, a socket file that nobody listens
    on is replaced, any other file is left alone.
    """

    def __init__(self, endpoint: str, *, private: bool = False) -> None:
        """Bind; ``private``: only in a directory that nobody else can enter."""
        check_endpoint(endpoint, to_bind=True)
        self._bound: list[Path] = []
        self._lock = _lock_path(Path(endpoint.removeprefix(IPC)), private=private) if endpoint.startswith(IPC) else None
        self._context = zmq.Context()
        self._pull = self._socket(zmq.PULL)
        # A publisher keeps 64 reports and sends them again while we do not answer: what waits of each is bounded too.
        # At a finite mark an ipc PULL loses the tail of a sender that closes, hence a publisher waits for its answer.
        self._pull.rcvhwm = _RECEIVE_HIGH_WATER_MARK
        self._pull.maxmsgsize = MAX_FRAME_BYTES
        self._pub = self._socket(zmq.XPUB)
        self._pub.maxmsgsize = _MAX_ACK_BYTES
        # Each subscription is told, so that who came late or came back hears again what has passed it by.
        self._pub.xpub_verbose = True
        self.endpoint = self._bind(endpoint)
        """Where it is bound; with the port that a ``:*`` was given."""
        self._poller = zmq.Poller()
        self._poller.register(self._pull, zmq.POLLIN)
        self._poller.register(self._pub, zmq.POLLIN)

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.linger = 0
        # With a domain set, the bytes of a port scan are refused in the handshake and are no messages.
        socket.zap_domain = b"kvxfer"
        return socket

    def _bind(self, endpoint: str) -> str:
        tries = _PORT_TRIES if endpoint.endswith(":*") else 1
        for left in reversed(range(tries)):
            try:
                self._pull.bind(endpoint)
                bound = bytes(self._pull.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
                self._bind_acks(bound, last=not left)
            except _PortTakenError:
                self._pull.unbind(bound)
            except zmq.ZMQError as error:
                self.close()
                taken = ": another process listens there" if error.errno == errno.EADDRINUSE else f": {error}"
                message = f"cannot bind {endpoint}{taken}; stop it or choose another endpoint"
                raise EndpointError(message) from error
            else:
                break
        if endpoint.startswith(IPC):
            self._bound = [Path(bound.removeprefix(IPC)), Path(ack_endpoint(bound).removeprefix(IPC))]
            for path in self._bound:
                path.chmod(0o600)
        return bound

    def _bind_acks(self, bound: str, *, last: bool) -> None:
        try:
            self._pub.bind(ack_endpoint(bound))
        except zmq.ZMQError as error:
            if last or error.errno != errno.EADDRINUSE:
                raise
            raise _PortTakenError from error

    def drain(self, seconds: float) -> list[bytes]:
        """Up to `MAX_DRAIN` frames, waiting for the first one, or a subscription, at most so long."""
        return _received(self._pull) if self._poller.poll(max(0, int(seconds * 1000))) else []

    def subscriptions(self) -> list[bytes]:
        """The topics that are listened to since the last call."""
        return [frame[1:] for frame in _received(self._pub) if frame[:1] == b"\1"]

    def acknowledge(self, frame: bytes) -> None:
        """Publish an acknowledgement; who does not hear it asks again."""
        with contextlib.suppress(zmq.ZMQError):
            self._pub.send(frame, zmq.NOBLOCK)

    def close(self, linger: float = 0.0) -> None:
        """Give the endpoint free; acknowledgements are still delivered within ``linger`` seconds."""
        self._pull.close()
        self._pub.close(int(linger * 1000))
        self._context.term()
        if self._lock is not None:
            # A forked child listens on the same path: let go of it for all.
            for path in self._bound:
                path.unlink(missing_ok=True)
            release_file(self._lock)
            self._lock = None


class _PortTakenError(Exception):
    """The port after a free one is taken."""


_locks: Final[set[int]] = set()


def lock_file(path: Path) -> int:
    """Lock a file for this process, which holds it by the descriptor; BlockingIOError where another one does."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    _locks.add(lock)
    return lock


def release_file(lock: int) -> None:
    """Give a locked file free; in a forked child, which does not hold it, do nothing."""
    if lock in _locks:
        _locks.remove(lock)
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _forget_locks() -> None:
    """In a forked child: a process that outlives its parent does not keep what that had locked."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_forget_locks)


def _lock_path(path: Path, *, private: bool) -> int:
    """Lock the path for this process and make it free to bind; the descriptor holds the lock."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private:
            _check_private(path.parent)
        lock = lock_file(Path(f"{path}.lock"))
    except EndpointError:
        raise
    except BlockingIOError as error:
        message = f"cannot bind {IPC}{path}: a collector listens there; stop it or choose another endpoint"
        raise EndpointError(message) from error
    except OSError as error:
        message = f"cannot use {path}: {error.strerror}; choose another endpoint"
        raise EndpointError(message) from error
    try:
        for socket_path in (path, Path(f"{path}{ACK_SUFFIX}")):
            _remove_stale(socket_path)
    except (OSError, EndpointError) as error:
        release_file(lock)
        message = f"cannot bind {IPC}{path}: {error}; stop it or choose another endpoint"
        raise EndpointError(message) from error
    return lock


def _check_private(directory: Path) -> None:
    """Raise `EndpointError` for a directory that somebody else made, or may enter."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        message = f"{directory} is not a directory of this user alone: remove it or choose another endpoint"
        raise EndpointError(message)


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on; `EndpointError` for a live one and for any other file."""
    if not path.exists() and not path.is_symlink():
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        message = "it is a file and no socket"
        raise EndpointError(message)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            message = "another process listens there"
            raise EndpointError(message)
    path.unlink()
