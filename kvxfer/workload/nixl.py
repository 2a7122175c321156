"""Moves blocks with NIXL, the transfer engine behind vLLM's `NixlConnector`: one agent at each end, UCX below it.

NIXL is imported by the processes that move, never by the parent: it starts threads, and it is an extra.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import msgspec
import numpy as np

from kvxfer.errors import KVXferError
from kvxfer.workload.blocks import Blocks, PoolShape

# The wheel for CUDA 12, which also runs without a GPU, and what a build from source installs.
PACKAGES = ("nixl_cu12", "nixl")
# NIXL joins descriptors that are neighbours at both ends. Blocks of a paged KV cache are not (each layer stands apart),
# so a cache line between blocks keeps the telemetry at one descriptor per block.
GAP_BYTES = 64


class NixlMover:
    """How one pair moves blocks over NIXL. Raises `KVXferError` when NIXL is not installed."""

    fields: ClassVar[tuple[str, ...]] = ("transfer_duration", "post_duration", "bytes_transferred", "num_descriptors")
    counters: ClassVar[tuple[str, ...]] = (
        "num_failed_transfers",
        "num_failed_notifications",
        "num_failed_handshakes",
        "num_kv_expired_reqs",
        "num_notifications_after_expiry",
    )

    def __init__(self, shape: PoolShape) -> None:
        self._shape = shape
        self._package = next((name for name in PACKAGES if find_spec(name)), "")
        if not self._package:
            message = "NixlConnector needs NIXL, which is not installed: pip install 'kvxfer[nixl]'"
            raise KVXferError(message)

    def open_pool(self) -> "NixlPool":
        """Open the prefill end."""
        return NixlPool(_Agent(self._package, "prefill", self._shape))

    def open_puller(self, address: bytes) -> "NixlPuller":
        """Open the decode end, connected to the prefill end that has this address."""
        return NixlPuller(_Agent(self._package, "decode", self._shape), msgspec.msgpack.decode(address, type=_Address))

    def close(self) -> None:
        """Do nothing: all memory belongs to the processes that move."""


class _Address(msgspec.Struct, frozen=True):
    """Where the blocks of a prefill end are: its agent's metadata and the address of its first block."""

    metadata: bytes
    first_block: int


class _Agent:
    """A NIXL agent and the blocks it has registered."""

    def __init__(self, package: str, role: str, shape: PoolShape) -> None:
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")  # at INFO an agent prints some twenty lines
        module = import_module(f"{package}._api")
        # Only the prefill end needs a thread that answers its peer; the decode end makes progress while it polls.
        config = module.nixl_agent_config(role == "prefill", capture_telemetry=True, backends=["UCX"])
        self.nixl: Any = module.nixl_agent(f"{role}-{os.getpid()}", config)
        memory = np.zeros((shape.num_blocks, shape.block_bytes + GAP_BYTES), dtype=np.uint8)
        self.blocks: Blocks = memory[:, : shape.block_bytes]
        self.first_block: int = memory.ctypes.data
        self._registered = self.nixl.register_memory([(self.first_block, memory.nbytes, 0, "")], "DRAM")

    def descriptors(self, agent: str, first_block: int) -> Any:  # noqa: ANN401 - NIXL has no types
        """Prepare one descriptor per block of an agent's blocks, which have the same shape at both ends."""
        num_blocks, block_bytes = self.blocks.shape
        starts = range(first_block, first_block + num_blocks * self.blocks.strides[0], self.blocks.strides[0])
        return self.nixl.prep_xfer_dlist(agent, [(start, block_bytes, 0) for start in starts], "DRAM")

    def close(self) -> None:
        """Give the blocks back."""
        self.nixl.deregister_memory(self._registered)


class NixlPool:
    """The prefill end: blocks that a peer may read."""

    def __init__(self, agent: _Agent) -> None:
        self._agent = agent
        self.blocks = agent.blocks
        self.address = msgspec.msgpack.encode(_Address(agent.nixl.get_agent_metadata(), agent.first_block))

    def close(self) -> None:
        """Take the blocks out of the peer's reach."""
        self._agent.close()


class NixlPuller:
    """The decode end: reads blocks from the prefill end into the same slots of its own."""

    def __init__(self, agent: _Agent, remote: _Address) -> None:
        self._agent = agent
        self.blocks = agent.blocks
        self._peer = agent.nixl.add_remote_agent(remote.metadata)
        self._local = agent.descriptors("NIXL_INIT_AGENT", agent.first_block)
        self._remote = agent.descriptors(self._peer, remote.first_block)

    def pull(self, slots: Sequence[int]) -> tuple[float, float, int, int] | None:
        """Read the blocks of these slots and return what NIXL measured, or None when it could not move them.

        That is the duration and the time to post (both s, measured in whole microseconds), bytes and descriptors.
        """
        nixl, indices = self._agent.nixl, np.asarray(slots, dtype=np.int32)
        handle = nixl.make_prepped_xfer("READ", self._local, indices, self._remote, indices)
        try:
            state = nixl.transfer(handle)
            while state == "PROC":
                state = nixl.check_xfer_state(handle)
            return _measured(nixl.get_xfer_telemetry(handle)) if state == "DONE" else None
        finally:
            nixl.release_xfer_handle(handle)

    def close(self) -> None:
        """Disconnect from the prefill end, which must still be there."""
        nixl = self._agent.nixl
        nixl.release_dlist_handle(self._local)
        nixl.release_dlist_handle(self._remote)
        nixl.remove_remote_agent(self._peer)
        self._agent.close()


def _measured(telemetry: Any) -> tuple[float, float, int, int]:  # noqa: ANN401 - NIXL has no types
    """Turn NIXL's telemetry of one transfer, whose times are microseconds, into a row."""
    return (
        telemetry.xferDuration / 1_000_000,
        telemetry.postDuration / 1_000_000,
        telemetry.totalBytes,
        telemetry.descCount,
    )
