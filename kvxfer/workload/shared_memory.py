"""Moves blocks between two segments of shared memory, one `multiprocessing.shared_memory` segment at each end.

The parent makes both segments and removes them, so that they go away whatever its children die of; if the parent itself
is killed, the resource tracker of `multiprocessing` removes them. Children get them by pickling and never unlink.
"""

import os
import secrets
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from time import perf_counter
from typing import ClassVar

import numpy as np

from kvxfer.errors import ConfigError
from kvxfer.workload.blocks import Blocks, PoolShape

SEGMENT_FILES = Path("/dev/shm")  # noqa: S108 - where Linux shows POSIX segments, not a place for files of ours


class SharedMemoryMover:
    """The segments of one pair. Raises `ConfigError` when the machine has no room for them."""

    fields: ClassVar[tuple[str, ...]] = ("transfer_duration", "bytes_transferred", "num_blocks")
    counters: ClassVar[tuple[str, ...]] = ("num_failed_transfers",)

    def __init__(self, shape: PoolShape) -> None:
        self._shape = shape
        self._offered = _segment(shape)
        try:
            self._received = _segment(shape)
        except ConfigError:
            _remove(self._offered)
            raise

    def open_pool(self) -> "SharedMemoryPool":
        """Open the prefill end."""
        return SharedMemoryPool(self._offered, self._shape)

    def open_puller(self, address: bytes) -> "SharedMemoryPuller":
        """Open the decode end; both ends know their segments from the start, so the address says nothing."""
        del address
        return SharedMemoryPuller(self._offered, self._received, self._shape)

    def close(self) -> None:
        """Remove both segments; to be called in the process that made them, after the ends are closed."""
        _remove(self._offered)
        _remove(self._received)


class SharedMemoryPool:
    """The prefill end: blocks that stand in shared memory."""

    address = b""

    def __init__(self, segment: SharedMemory, shape: PoolShape) -> None:
        self.blocks = _blocks(segment, shape)

    def close(self) -> None:
        """Let go of the segment, which stays."""
        del self.blocks  # a segment cannot be closed while an array stands on it


class SharedMemoryPuller:
    """The decode end: copies blocks from the prefill end's segment to the same slots of its own."""

    def __init__(self, offered: SharedMemory, received: SharedMemory, shape: PoolShape) -> None:
        self._remote = _blocks(offered, shape)
        self.blocks = _blocks(received, shape)
        self.blocks.fill(0)  # else the first transfers would measure the kernel mapping pages

    def pull(self, slots: Sequence[int]) -> tuple[float, int, int]:
        """Copy the blocks of these slots one by one and return duration (s), size (bytes) and number of blocks."""
        start = perf_counter()
        for slot in slots:
            self.blocks[slot] = self._remote[slot]
        duration = perf_counter() - start
        return duration, len(slots) * self.blocks.shape[1], len(slots)

    def close(self) -> None:
        """Let go of both segments, which stay."""
        del self.blocks, self._remote


def _segment(shape: PoolShape) -> SharedMemory:
    """Make a segment whose pages are there: in a full /dev/shm the first write to a missing page is a SIGBUS."""
    num_bytes = shape.num_blocks * shape.block_bytes
    segment = SharedMemory(f"kvxfer-{os.getpid()}-{secrets.token_hex(4)}", create=True, size=num_bytes)
    try:
        _reserve(SEGMENT_FILES / segment.name, num_bytes)
    except OSError as error:
        _remove(segment)
        message = (
            f"no room for {num_bytes} bytes in {SEGMENT_FILES} ({error.strerror}): "
            "use fewer workers or smaller blocks, or enlarge it (docker run --shm-size)"
        )
        raise ConfigError(message) from error
    return segment


def _reserve(file: Path, num_bytes: int) -> None:
    """Allocate the pages of a segment where the system shows it as a file."""
    if file.exists():
        with file.open("r+b") as segment:
            os.posix_fallocate(segment.fileno(), 0, num_bytes)


def _blocks(segment: SharedMemory, shape: PoolShape) -> Blocks:
    """View a segment as blocks."""
    blocks: Blocks = np.ndarray((shape.num_blocks, shape.block_bytes), dtype=np.uint8, buffer=segment.buf)
    return blocks


def _remove(segment: SharedMemory) -> None:
    """Close and unlink a segment of this process."""
    segment.close()
    segment.unlink()
