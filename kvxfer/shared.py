"""Shared memory that outlives a worker: what it recorded and had not sent, for a collector on the same host.

A worker's file holds two slots, of which one always has a whole saved state (`takeover.SavedWorker`), and an area per
row and counter, to which recording appends. Every place is reserved when it is made: a write that finds no memory left
would end the process (SIGBUS). About 1 MiB a worker and 2 MiB a row, in ``/dev/shm``, of which docker gives 64 MiB.

The kernel tells who is dead: a worker locks its file for as long as it lives. A file is as hostile as a peer's bytes,
and lies in a directory that only this user may enter.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Final

from kvxfer.area import AREA, Area, SharedPending
from kvxfer.transport import IPC, check_private

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Linux keeps it

MAGIC: Final = b"kvxfer\0\1"
SLOT_BYTES: Final = 512 << 10
"""A state: 256 KiB of reports, and what is open. A larger one is saved without them: a kill loses them, counted."""

ROW_AREA_BYTES: Final = 1 << 20
"""26,000 rows of four values; there are two areas in turn."""

COUNTER_AREA_BYTES: Final = 64 << 10
MAX_FILES: Final = 256
"""Files of living workers and of dead ones that no collector has come for: a worker more gets none."""

_LOCK_SECONDS: Final = 1.0

SLOTS_AT: Final = mmap.PAGESIZE
SLOT: Final = struct.Struct("<QII")  # number, bytes, crc32
AREAS_AT: Final = SLOTS_AT + 2 * SLOT_BYTES


def directory_of(endpoint: str) -> Path:
    """Where the workers and the collector of an endpoint meet: named after the socket's path or the port."""
    if endpoint.startswith(IPC):
        path = os.path.abspath(endpoint.removeprefix(IPC))  # noqa: PTH100 - a path that need not be there
        name = hashlib.sha256(path.encode()).hexdigest()[:16]
    else:
        name = f"tcp-{endpoint.rpartition(':')[2]}"
    return SHARED_MEMORY / f"kvxfer-{os.getuid()}" / name


own_files: Final[set[Path]] = set()
"""Files of this process: its lock keeps nobody out who is in the same process, and is freed when one opens them there
and closes them again."""


class SharedBuffer:
    """The worker's end: a file, its slots and areas. Raises OSError where there is no place for it."""

    def __init__(self, endpoint: str, source_id: str, state: bytes) -> None:
        """Make the file, which has a name when it holds a first state: a worker killed before leaves nothing."""
        directory = _made(directory_of(endpoint))
        if len(os.listdir(directory)) >= MAX_FILES:  # noqa: PTH208 - a count
            message = "as many workers as may be have left their files here: start a collector, which takes them over"
            raise OSError(errno.EDQUOT, message, str(directory))
        self.path = directory / source_id
        self._file = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._file, 0, AREAS_AT)
            self._slots = mmap.mmap(self._file, AREAS_AT)
            self._slots[: len(MAGIC)] = MAGIC
            self._number = 0
            self.save(state)
            own_files.add(self.path)
            # With a descriptor given this is linkat(2), which follows the link that /proc has.
            os.link(f"/proc/self/fd/{self._file}", self.path, src_dir_fd=self._file, follow_symlinks=True)
        except OSError:
            own_files.discard(self.path)
            os.close(self._file)
            raise
        self._size = AREAS_AT
        self._lock = threading.Lock()
        self._pending: dict[str, SharedPending] = {}
        # Kept as long as the file: a map that goes closes a descriptor of it, and whichever is closed frees the lock.
        self._maps: list[mmap.mmap] = []

    def pending(self, pending: SharedPending) -> SharedPending:
        """Let rows of this name wait in areas here; where there is no place left they wait in process memory.

        Returns the one that had the name first.
        """
        first = self._pending.setdefault(pending.name, pending)
        # Not for ever: who makes areas may be interrupted by a signal handler that records a row of another name.
        if first is pending and self._lock.acquire(timeout=_LOCK_SECONDS):
            try:
                pending.attach([self._area(f"{pending.name}#{number}", pending.width) for number in range(2)])
            except OSError:
                pass
            finally:
                self._lock.release()
        return first

    def _area(self, name: str, width: int) -> Area:
        size = ROW_AREA_BYTES if width > 1 else COUNTER_AREA_BYTES
        os.posix_fallocate(self._file, self._size, size)
        memory = mmap.mmap(self._file, size, offset=self._size)
        self._maps.append(memory)
        self._size += size
        area = Area(name, width, memory)
        encoded = name.encode()
        # The magic last: without it there is no area yet.
        memory[: AREA.size] = AREA.pack(b"", size, 0, width, len(encoded), encoded)
        memory[: len(MAGIC)] = MAGIC
        return area

    def stop_crowded(self) -> None:
        """Before all that waits is folded: see `SharedPending.stop_crowded`."""
        for pending in list(self._pending.values()):
            pending.stop_crowded()

    def resume(self) -> None:
        """After what was folded is saved: empty the areas that were stopped."""
        for pending in list(self._pending.values()):
            pending.resume()

    @property
    def floors(self) -> dict[str, int]:
        """Per area, how many of its rows were taken; to be read while nobody folds."""
        return {area.name: area.floor for pending in list(self._pending.values()) for area in pending.areas}

    def save(self, state: bytes) -> bool:
        """Write a state into the slot that holds the older one; False where it is too large for a slot."""
        if len(state) > SLOT_BYTES - SLOT.size:
            return False
        self._number += 1
        start = SLOTS_AT + SLOT_BYTES * (self._number % 2)
        body = start + SLOT.size
        self._slots[body : body + len(state)] = state
        self._slots[start:body] = SLOT.pack(self._number, len(state), zlib.crc32(state))
        return True

    def abandon(self) -> list[SharedPending]:
        """In a forked child: leave the parent's file alone; what rows wait in, for a file of the child's own."""
        for pending in self._pending.values():
            pending.detach()
            pending.spill.clear()
        own_files.discard(self.path)
        os.close(self._file)
        return list(self._pending.values())

    def close(self, *, keep: bool) -> None:
        """Give the file free, to whom it is left, or remove it."""
        if not keep:
            self.path.unlink(missing_ok=True)
        for pending in list(self._pending.values()):
            pending.detach()
        self._maps.clear()
        os.close(self._file)
        own_files.discard(self.path)


def _made(directory: Path) -> Path:
    for each in (directory.parent, directory):
        each.mkdir(mode=0o700, exist_ok=True)
        check_private(each)
    return directory
