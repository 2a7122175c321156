"""The collector's sockets, and the files that they need: paths of ipc, locks."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import time
from collections import Counter as Tally
from pathlib import Path
from typing import Final

import zmq

from kvxfer.errors import EndpointError
from kvxfer.transport.endpoints import ACK_SUFFIX, IPC, ack_endpoint, check_endpoint
from kvxfer.transport.frames import MAX_ACK_BYTES, is_ipv6, received
from kvxfer.transport.gate import Gate
from kvxfer.transport.keys import CollectorKeys, for_us_alone
from kvxfer.wire import MAX_FRAME_BYTES

logger = logging.getLogger("kvxfer")

# Free ports come one by one: that the next one is taken too is rare, twenty times in a row it does not happen.
_PORT_TRIES: Final = 20

_RECEIVE_HIGH_WATER_MARK: Final = 128
# libzmq needs 48 times that for them; as many bytes are 127,000 publishers.
_MAX_TOPICS_BYTES: Final = 4 << 20
# A peer gives us its topics one by one, 5,000 a second; at a larger mark 100,000 at once hold us up for 2 s.
_TOPICS_HIGH_WATER_MARK: Final = 1
# Reports that come one by one are taken together, ten times cheaper; nobody sees numbers that are so much older.
_GATHER_SECONDS: Final = 0.005
# More than these are worth to be taken at once; and of one publisher no more than its high-water mark wait.
_ENOUGH: Final = 64
# What had come before all connections were cut off is taken, up to 1,024 reports; the rest is sent again.
_DRAINS_AT_ONCE: Final = 4


class CollectorSockets:
    """The collector's end: binds, receives, acknowledges. Raises `EndpointError` where it cannot bind.

    An ipc path is locked for as long as it is bound: a second collector is refused, a socket file that nobody listens
    on is replaced, any other file is left alone.
    """

    def __init__(self, endpoint: str, keys: CollectorKeys | None = None, *, private: bool = False) -> None:
        """Bind; with ``keys`` for those alone who have one, ``private``: only in a directory that is nobody else's."""
        check_endpoint(endpoint, to_bind=True)
        self._keys = keys
        self.refused: Tally[str] = Tally()
        """Connections that were refused, by the causes of `gate.CAUSES`. Clients try again: it counts attempts."""
        self._bound: list[Path] = []
        self._left: list[bytes] = []
        self._is_away = False
        self._last_drain = 0.0
        self._lock = _lock_path(Path(endpoint.removeprefix(IPC)), private=private) if endpoint.startswith(IPC) else None
        try:
            self.endpoint = self._open(endpoint)
            """Where it is bound; with the port that a ``:*`` was given."""
        except EndpointError:
            self._release()
            raise

    def _open(self, endpoint: str) -> str:
        self._context = zmq.Context()
        self._gate = Gate(self._context, self._keys, self.refused)
        self._pull = self._socket(zmq.PULL, endpoint)
        # A publisher keeps 64 reports and sends them again while we do not answer: what waits of each is bounded too.
        # At a finite mark an ipc PULL loses the tail of a sender that closes, hence a publisher waits for its answer.
        self._pull.rcvhwm = _RECEIVE_HIGH_WATER_MARK
        self._pull.maxmsgsize = MAX_FRAME_BYTES
        self._pub = self._socket(zmq.XPUB, endpoint)
        self._pub.maxmsgsize = MAX_ACK_BYTES
        self._pub.rcvhwm = _TOPICS_HIGH_WATER_MARK
        # Each subscription is told, so that who came late or came back hears again what has passed it by.
        self._pub.xpub_verbose = True
        self._topics_bytes = 0
        self._is_open = True
        try:
            bound = self._bind(endpoint)
        except EndpointError:
            self._shut()
            raise
        self._poller = zmq.Poller()
        for end in (self._pull, self._pub, self._gate.requests):
            if end is not None:
                self._poller.register(end, zmq.POLLIN)
        return bound

    def _socket(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        made = self._context.socket(kind)
        made.linger = 0
        made.ipv6 = is_ipv6(endpoint)
        self._gate.guard(made)
        return made

    def _bind(self, endpoint: str) -> str:
        tries = _PORT_TRIES if endpoint.endswith(":*") else 1
        for left in reversed(range(tries)):
            try:
                # Of an ipc path nobody else may reach the socket, not for a moment.
                with for_us_alone() if endpoint.startswith(IPC) else contextlib.nullcontext():
                    self._pull.bind(endpoint)
                    bound = bytes(self._pull.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
                    self._bind_acks(bound, last=not left)
            except _PortTakenError:
                self._pull.unbind(bound)
            except zmq.ZMQError as error:
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
        """Up to `MAX_DRAIN` frames, waiting for the first one, or a subscription, at most so long.

        With what had come just before it may be `_ENOUGH` more; what had come before all connections were cut off may
        be four times as much.
        """
        if self._keys is not None and self._keys.look(time.monotonic()):
            self._cut_off()
        if not self._is_open and not self._open_again():
            time.sleep(seconds)
            return []
        if self._left:
            frames, self._left = self._left, []
            return frames
        deadline = time.monotonic() + seconds
        self._wait(deadline)
        frames = received(self._pull)
        if 0 < len(frames) < _ENOUGH:
            time.sleep(max(0.0, min(deadline, self._last_drain + _GATHER_SECONDS) - time.monotonic()))
            frames += received(self._pull)
        self._last_drain = time.monotonic()
        return frames

    def _wait(self, deadline: float) -> None:
        """Until something has come that is no question of the gate, or time is up."""
        left = deadline - time.monotonic()
        ready = self._poller.poll(max(0, int(left * 1000)))
        self._gate.attend()
        while ready and left > 0 and all(socket is self._gate.requests for socket, _ in ready):
            left = deadline - time.monotonic()
            ready = self._poller.poll(max(0, int(left * 1000)))
            self._gate.attend()

    def subscriptions(self) -> list[bytes]:
        """The topics that are listened to since the last call."""
        if not self._is_open:
            return []
        topics = [frame[1:] for frame in received(self._pub) if frame[:1] == b"\1"]
        # Those that are given up again are not subtracted: a peer may give up what it has not.
        self._topics_bytes += sum(map(len, topics))
        if self._topics_bytes > _MAX_TOPICS_BYTES:
            self._gate.count("subscriptions")
            self._cut_off()
        return topics

    def acknowledge(self, frame: bytes) -> None:
        """Publish an acknowledgement; who does not hear it asks again."""
        with contextlib.suppress(zmq.ZMQError):
            self._pub.send(frame, zmq.NOBLOCK)

    def _cut_off(self) -> None:
        """End all connections. Who may connects again at once, and sends again what was not acknowledged.

        libzmq ends no single one of a PULL.
        """
        for _ in range(_DRAINS_AT_ONCE if self._is_open else 0):
            self._left += received(self._pull)
        self._shut()
        self._open_again()

    def _open_again(self) -> bool:
        """Bind again; while somebody else is there, or a forked child listens still, it is tried on."""
        try:
            self._open(self.endpoint)
        except EndpointError as error:
            if not self._is_away:
                logger.error("%s; until then nothing is collected", error)  # noqa: TRY400 - it says what to do
            self._is_away = True
            return False
        self._is_away = False
        return True

    def _shut(self, linger: float = 0.0) -> None:
        if self._is_open:
            self._is_open = False
            self._gate.close()
            self._pull.close()
            self._pub.close(int(linger * 1000))
            self._context.term()

    def close(self, linger: float = 0.0) -> None:
        """Give the endpoint free; acknowledgements are still delivered within ``linger`` seconds."""
        self._shut(linger)
        self._release()

    def _release(self) -> None:
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
            check_private(path.parent)
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


def check_private(directory: Path) -> None:
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
