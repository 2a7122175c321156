"""The ZeroMQ sockets: the only file that imports zmq. One frame is one message; nothing here knows what is in it."""

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
_TCP: Final = re.compile(r"tcp://.+:(\d{1,5}|\*)")
_LAST_PORT: Final = 65_535

MAX_IPC_PATH: Final = 107
"""Bytes of a path that fit into a ``sockaddr_un`` of Linux."""

MAX_DRAIN: Final = 256
"""Messages of one drain: larger batches do not merge faster and hold the caller longer."""

# The queue belongs in the outbox, where it can merge; a few frames here keep the io thread busy.
_SEND_HIGH_WATER_MARK: Final = 16
# 3-14 ms until a collector that came back is found, where libzmq's 100 ms take up to 170.
_RECONNECT_MS: Final = 10
_RECONNECT_MAX_MS: Final = 1000


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
        message = f"the path of {IPC}{path} has {size} bytes, a socket's may have 1 to {MAX_IPC_PATH}: choose another"
        raise EndpointError(message)


class PushSocket:
    """A worker's end: connects, sends without ever waiting. Raises `EndpointError` for an endpoint that is none."""

    def __init__(self, endpoint: str) -> None:
        """Connect in the background; there need be no collector yet."""
        check_endpoint(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.sndhwm = _SEND_HIGH_WATER_MARK
        # Refuse at once while there is no connection: what waits in the outbox can merge, what waits here is stale.
        self._socket.immediate = True
        self._socket.reconnect_ivl = _RECONNECT_MS
        self._socket.reconnect_ivl_max = _RECONNECT_MAX_MS
        # Whatever ends this process without close() must not hang on an absent collector.
        self._socket.linger = 0
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close(0)
            message = f"cannot connect to {endpoint}: {error}"
            raise EndpointError(message) from error

    def send(self, frame: bytes) -> bool:
        """Hand a frame over; False if the socket refuses it now."""
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def wait_writable(self, seconds: float) -> bool:
        """Wait until a frame would be taken, at most so long."""
        return bool(self._socket.poll(max(0, int(seconds * 1000)), zmq.POLLOUT))

    def close(self, linger: float) -> None:
        """Close; frames handed over are still delivered within ``linger`` seconds, in which this waits."""
        self._socket.close(max(0, int(linger * 1000)))
        self._context.term()


class PullSocket:
    """The collector's end: binds and receives. Raises `EndpointError` where it cannot bind.

    An ipc path is locked for as long as it is bound: a second collector is refused, a socket file that nobody listens
    on is replaced, any other file is left alone.
    """

    def __init__(self, endpoint: str, *, private: bool = False) -> None:
        """Bind; ``private``: only in a directory that nobody else can enter."""
        check_endpoint(endpoint, to_bind=True)
        self._bound_path: Path | None = None
        self._lock = _lock_path(Path(endpoint.removeprefix(IPC)), private=private) if endpoint.startswith(IPC) else None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        # At a finite mark an ipc PULL loses the tail of a sender that closes; what waits is bounded by draining.
        self._socket.rcvhwm = 0
        self._socket.maxmsgsize = MAX_FRAME_BYTES
        self._socket.linger = 0
        # With a domain set, the bytes of a port scan are refused in the handshake and are no messages.
        self._socket.zap_domain = b"kvxfer"
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            taken = ": another process listens there" if error.errno == errno.EADDRINUSE else f": {error}"
            message = f"cannot bind {endpoint}{taken}; stop it or choose another endpoint"
            raise EndpointError(message) from error
        self.endpoint = bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        """Where it is bound; with the port that a ``:*`` was given."""
        if self._lock is not None:
            self._bound_path = Path(endpoint.removeprefix(IPC))
            self._bound_path.chmod(0o600)

    def drain(self, seconds: float) -> list[bytes]:
        """Up to `MAX_DRAIN` frames, waiting for the first one at most so long."""
        frames: list[bytes] = []
        if not self._socket.poll(max(0, int(seconds * 1000)), zmq.POLLIN):
            return frames
        receive = self._socket.recv
        with contextlib.suppress(zmq.Again):
            while len(frames) < MAX_DRAIN:
                frames.append(receive(zmq.NOBLOCK))
        return frames

    def close(self) -> None:
        """Close and give the endpoint free."""
        self._socket.close()
        self._context.term()
        if self._lock is not None:
            # A forked child holds the same lock and listens on the same path: let go of both for all.
            if self._bound_path is not None:
                self._bound_path.unlink(missing_ok=True)
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None


def _lock_path(path: Path, *, private: bool) -> int:
    """Lock the path for this process and make it free to bind; the descriptor holds the lock."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private:
            _check_private(path.parent)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except EndpointError:
        raise
    except OSError as error:
        message = f"cannot use {path}: {error.strerror}; choose another endpoint"
        raise EndpointError(message) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_stale(path)
    except (OSError, EndpointError) as error:
        os.close(lock)
        reason = "a collector listens there" if isinstance(error, BlockingIOError) else error
        message = f"cannot bind {IPC}{path}: {reason}; stop it or choose another endpoint"
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
