"""What dead workers have left in shared memory: the collector's end of `shared`.

The kernel tells who is dead: a worker locks its file for as long as it lives. A file is as hostile as a peer's bytes:
it is bounded, checked and counted, and lies in a directory that only this user may enter.
"""

import contextlib
import fcntl
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kvxfer.area import AREA, rows_in, whole
from kvxfer.errors import EndpointError, KVXferError, PeerError
from kvxfer.shared import AREAS_AT, MAGIC, SLOT, SLOT_BYTES, SLOTS_AT, directory_of, own_files
from kvxfer.takeover import decode_worker, frames_of
from kvxfer.transport import check_private

MAX_FILE_BYTES: Final = 64 << 20
MAX_WIDTH: Final = 64
"""Values of a row."""


class LeftFileError(PeerError):
    """A file that no worker has left, or that cannot be read."""

    cause = "unreadable_file"


class LeftFiles:
    """The files at an endpoint whose workers are dead; one that cannot be taken over is looked at once."""

    def __init__(self, endpoint: str) -> None:
        """Look at nothing yet."""
        self._directory = directory_of(endpoint)
        self._passed: set[str] = set()
        self._taken: list[Path] = []

    def look(self, now: float) -> Iterator[list[bytes] | KVXferError]:
        """The frames of each worker that has died since; for a file that cannot be taken over, why."""
        with contextlib.suppress(OSError, EndpointError):
            check_private(self._directory)
            for name in sorted(os.listdir(self._directory)):  # noqa: PTH208 - names
                # Closing a file of this very process, which may publish too, would give its lock free.
                path = self._directory / name
                if path in own_files or name in self._passed:
                    continue
                try:
                    content = _content_of_dead(path)
                    if content is not None:
                        frames = _frames(path, content, now)
                        self._taken.append(path)
                        self._passed.add(name)
                        yield frames
                except KVXferError as error:
                    self._passed.add(name)
                    yield error

    def keep_last(self) -> None:
        """Do not remove the file that was given last: not all of it was taken."""
        self._taken.pop()

    def remove_taken(self) -> None:
        """Remove the files that were given; to be called when what was in them is committed."""
        for path in self._taken:
            path.unlink(missing_ok=True)
            self._passed.discard(path.name)
        self._taken.clear()


def _content_of_dead(path: Path) -> bytes | None:
    """All bytes of a file that nobody locks; None for a living worker's."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:  # its worker has ended well meanwhile
        return None
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise LeftFileError(message) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_size > MAX_FILE_BYTES:
            message = f"{path} is no file of a worker"
            raise LeftFileError(message)
        return os.pread(file, found.st_size, 0) if found.st_nlink else None  # else its worker has just removed it
    except OSError:  # its worker lives
        return None
    finally:
        os.close(file)


def _frames(path: Path, content: bytes, now: float) -> list[bytes]:
    saved = max(filter(None, (_slot(content, number) for number in range(2))), default=None)
    if not content.startswith(MAGIC) or saved is None:
        message = f"{path} holds no state"
        raise LeftFileError(message)
    worker = decode_worker(saved[1])
    return frames_of(worker.outbox, list(_areas(content, worker.floors)), now)


def _slot(content: bytes, which: int) -> tuple[int, bytes] | None:
    start = SLOTS_AT + SLOT_BYTES * which
    if len(content) < start + SLOT_BYTES:
        return None
    number, size, checksum = SLOT.unpack_from(content, start)
    state = content[start + SLOT.size : start + SLOT.size + min(size, SLOT_BYTES)]
    return (number, state) if number and zlib.crc32(state) == checksum else None


def _areas(content: bytes, floors: dict[str, int]) -> Iterator[tuple[str, list[list[float]]]]:
    at = AREAS_AT
    while at + AREA.size <= len(content):
        magic, size, removed, width, name_bytes, name = AREA.unpack_from(content, at)
        if magic != MAGIC or not (AREA.size < size <= len(content) - at and 0 < width <= MAX_WIDTH):
            return
        decoded = name[:name_bytes].decode(errors="replace")
        rows = rows_in(content[at : at + size], width, max(0, floors.get(decoded, 0) - removed))
        yield decoded.rpartition("#")[0], whole(rows).T.tolist()
        at += size
