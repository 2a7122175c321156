"""What a block holds and how it is checked: the same for every way of moving it."""

import zlib
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from kvxfer.errors import ConfigError

Block: TypeAlias = npt.NDArray[np.uint8]  # shape (block_bytes,)
Blocks: TypeAlias = npt.NDArray[np.uint8]  # shape (num_blocks, block_bytes)

WORD_BYTES = 8


class PoolShape(msgspec.Struct, frozen=True):
    """How many blocks of how many bytes each end of a pair holds.

    Raises `ConfigError` when there is no block, or when a block is not made of whole words of 8 bytes.
    """

    num_blocks: int
    block_bytes: int

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            message = f"a pool of {self.num_blocks} blocks holds nothing: set pool_blocks to 1 or more"
            raise ConfigError(message)
        if self.block_bytes < WORD_BYTES or self.block_bytes % WORD_BYTES:
            message = f"a block of {self.block_bytes} bytes: set block_bytes to a multiple of {WORD_BYTES}"
            raise ConfigError(message)


class BlockWriter:
    """Fills blocks with what their hash ids say: a fixed noise with the id laid over every word of it.

    Blocks of different ids differ in every word, and words of a block differ from each other, so that a block that
    arrives in the wrong place, shifted or torn does not pass for the right one.
    """

    def __init__(self, block_bytes: int) -> None:
        words = np.random.default_rng(0).integers(0, 1 << 63, block_bytes // WORD_BYTES, dtype=np.uint64)
        self._noise = words

    def write(self, block: Block, hash_id: int) -> int:
        """Fill the block in place and return its checksum."""
        np.bitwise_xor(self._noise, np.uint64(hash_id), out=block.view(np.uint64))
        return checksum(block, hash_id)


def checksum(block: Block, hash_id: int) -> int:
    """CRC-32 of the block, started from its hash id: the right bytes under another id do not match either."""
    return zlib.crc32(block.data, hash_id & 0xFFFFFFFF)
