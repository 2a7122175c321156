"""The files of CURVE, in the format of `zmq.auth`: reading them, making them, noticing that one was removed. No socket.

A collector's directory holds ``server.key`` and ``server.key_secret``, and in ``authorized`` the public key of each
client that may send, one file each: removing the file revokes the key. A client's directory, which is copied to its
worker, holds ``client.key``, ``client.key_secret`` and the collector's ``server.key``.
"""

import contextlib
import logging
import os
import re
import shutil
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from kvxfer.errors import ConfigError

logger = logging.getLogger("kvxfer")

AUTHORIZED: Final = "authorized"
CLIENTS: Final = "clients"
LOOK_SECONDS: Final = 1.0
"""How often a collector looks whether a key was added or removed, besides when one of them connects."""

_MAKE: Final = "make keys with `kvxfer keygen`"
_KEY_BYTES: Final = 32
_CLIENT_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class PublisherKeys(NamedTuple):
    """What a worker needs: its own pair and the collector's public key, in Z85."""

    public: bytes
    secret: bytes
    server: bytes

    def __repr__(self) -> str:
        """Give the public keys; never a secret."""
        return f"<PublisherKeys {self.public.decode()} for {self.server.decode()}>"

    @classmethod
    def load(cls, directory: str) -> "PublisherKeys":
        """Read a client's directory; raises `ConfigError` that names the file and what to do."""
        public, secret = _read_pair(Path(directory), "client")
        return cls(public, secret, _read_public(Path(directory) / "server.key"))


class CollectorKeys:
    """The collector's pair and the clients that may send; raises `ConfigError` that names the file and what to do."""

    def __init__(self, directory: str) -> None:
        """Read a collector's directory."""
        path = Path(directory)
        self.public, self.secret = _read_pair(path, "server")
        self._directory = path / AUTHORIZED
        _check_directory(self._directory)
        for file in self._directory.glob("*.key"):
            _read_public(file)
        self.revoked: frozenset[bytes] = frozenset()
        """The public keys, of 32 bytes, that were removed since the collector started."""
        self._authorized: dict[bytes, _File] = {}
        self._files: set[_File] = set()
        self._look_at = 0.0
        self._has_removed = False
        self._look()

    def __repr__(self) -> str:
        """Give the directory; never a secret."""
        return (
            f"<CollectorKeys {self._directory.parent} authorized={len(self._authorized)} revoked={len(self.revoked)}>"
        )

    def look(self, now: float) -> bool:
        """Look again, once in `LOOK_SECONDS`; whether a key was removed since the last call.

        ``now`` in seconds of any clock. What cannot be read lets nobody in and is said in the log: no file that is left
        there stops a collector.
        """
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        removed, self._has_removed = self._has_removed, False
        return removed

    def is_authorized(self, key: bytes) -> bool:
        """Whether a key is authorized at this moment."""
        file = self._authorized.get(key)
        if file is not None and not file.is_unchanged():
            self._look()
        return key in self._authorized

    def _look(self) -> None:
        try:
            with os.scandir(self._directory) as entries:
                files = {_File.at(entry.path) for entry in entries if entry.name.endswith(".key")}
        except OSError:  # the directory, or one of them, was removed while we looked
            files = set()
        if files != self._files:
            self._files = files
            found = dict(_readable(files))
            removed = self._authorized.keys() - found.keys()
            self._has_removed |= bool(removed)
            self._authorized, self.revoked = found, (self.revoked | removed) - found.keys()


class _File(NamedTuple):
    path: str
    inode: int
    changed: int
    size: int

    @classmethod
    def at(cls, path: str) -> "_File":
        seen = os.stat(path)  # noqa: PTH116 - a Path for each of a thousand costs more than all the rest
        return cls(path, seen.st_ino, seen.st_mtime_ns, seen.st_size)

    def is_unchanged(self) -> bool:
        try:
            return self == _File.at(self.path)
        except OSError:
            return False


def _readable(files: set[_File]) -> Iterator[tuple[bytes, _File]]:
    for file in sorted(files):
        try:
            yield z85.decode(_read_public(Path(file.path))), file
        except ConfigError as error:
            logger.warning("%s; nobody is let in by it", error)


# --- reading


def _read_pair(directory: Path, name: str) -> tuple[bytes, bytes]:
    _check_directory(directory)
    file = directory / f"{name}.key_secret"
    public, secret = _read(file)
    if file.stat().st_mode & 0o077:
        message = f"{file}: others can read it: run chmod 600 on it, and make new keys if it was so for long"
        raise ConfigError(message)
    try:
        is_pair = secret is not None and zmq.curve_public(secret) == public
    except (zmq.ZMQError, ValueError):
        is_pair = False
    if secret is None or not is_pair:
        message = f"{file}: holds no secret key that belongs to its public one: {_MAKE}"
        raise ConfigError(message)
    return public, secret


def _read_public(file: Path) -> bytes:
    return _read(file)[0]


def _read(file: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(file)
        malformed = len(z85.decode(public)) != _KEY_BYTES
    except PermissionError as error:
        message = f"{file}: {error.strerror}: run as the user whom it belongs to"
        raise ConfigError(message) from error
    except OSError as error:
        message = f"{file}: there is no such key: {_MAKE}"
        raise ConfigError(message) from error
    except (ValueError, LookupError, struct.error):
        malformed = True
    if malformed:
        message = f"{file}: holds no CURVE key: {_MAKE}"
        raise ConfigError(message)
    return public, secret


def _check_directory(directory: Path) -> None:
    try:
        mode = directory.stat().st_mode
    except OSError as error:
        message = f"{directory}: {error.strerror}: {_MAKE}"
        raise ConfigError(message) from error
    if not stat.S_ISDIR(mode):
        message = f"{directory}: is no directory: name the directory of the keys"
        raise ConfigError(message)
    if mode & 0o022:
        message = f"{directory}: others can write to it: run chmod go-w on it and look at what it holds"
        raise ConfigError(message)


# --- making


def make_keys(directory: str, clients: Sequence[str] = ()) -> list[Path]:
    """Make the collector's pair, where there is none, and clients that are authorized; what to copy to their workers.

    Raises `ConfigError`, with nothing written, for a pair or a client that is there already, or no name of a file.
    """
    path = Path(directory)
    has_pair = (path / "server.key_secret").exists()
    if has_pair:
        _read_pair(path, "server")
    if has_pair and not clients:
        message = f"{path}: has a key pair, which workers may use: add clients with --client, or name another directory"
        raise ConfigError(message)
    for name in clients:
        _check_client(path, name)
    try:
        with for_us_alone():
            if not has_pair:
                _make_pair(path, "server")
            (path / AUTHORIZED).mkdir(exist_ok=True)
            return [_add_client(path, name) for name in dict.fromkeys(clients)]
    except OSError as error:
        message = f"{error.filename}: {error.strerror}: name a directory that can be written"
        raise ConfigError(message) from error


def _check_client(directory: Path, name: str) -> None:
    if not _CLIENT_NAME.fullmatch(name):
        message = f"--client {name!r}: expected letters, digits, '.', '_' and '-', at most 100"
        raise ConfigError(message)
    for taken in (directory / CLIENTS / name, directory / AUTHORIZED / f"{name}.key"):
        if taken.exists():
            message = f"{taken}: is there already: choose another name, or remove it first"
            raise ConfigError(message)


@contextlib.contextmanager
def for_us_alone() -> Iterator[None]:
    """What is made within is 0700 and 0600 from its first moment."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _make_pair(directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    _check_directory(directory)
    create_certificates(directory, name)


def _add_client(directory: Path, name: str) -> Path:
    made = directory / CLIENTS / name
    _make_pair(made, "client")
    shutil.copyfile(directory / "server.key", made / "server.key")
    shutil.copyfile(made / "client.key", directory / AUTHORIZED / f"{name}.key")
    return made
