"""The seam between the processes of a workload and what moves the blocks; and the movers there are."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from kvxfer.errors import ConfigError
from kvxfer.workload.blocks import Blocks, PoolShape
from kvxfer.workload.nixl import NixlMover
from kvxfer.workload.shared_memory import SharedMemoryMover


class Pool(Protocol):
    """The prefill end of a pair: blocks that the other end may pull."""

    blocks: Blocks
    address: bytes

    def close(self) -> None:
        """Give up what this process holds."""


class Puller(Protocol):
    """The decode end of a pair: blocks of the same shape as the pool it pulls from."""

    blocks: Blocks

    def pull(self, slots: Sequence[int]) -> tuple[float, ...] | None:
        """Move the blocks of these slots into the same slots here.

        Returns the row to record, in the order of the mover's ``fields``; None when they could not be moved, and then
        the slots hold anything.
        """

    def close(self) -> None:
        """Give up what this process holds, while the prefill end is still there."""


class Mover(Protocol):
    """How one pair moves blocks: made in the parent, pickled into both processes, closed in the parent at the end.

    ``fields`` and ``counters`` are the names under which the connector's stats hold what is recorded.
    """

    fields: ClassVar[tuple[str, ...]]
    counters: ClassVar[tuple[str, ...]]

    def __init__(self, shape: PoolShape) -> None: ...

    def open_pool(self) -> Pool:
        """Open the prefill end, in the process that is it."""

    def open_puller(self, address: bytes) -> Puller:
        """Open the decode end, in the process that is it, for the pool with this address."""

    def close(self) -> None:
        """Remove what outlives the processes, when they have ended."""


MOVERS: dict[str, type[Mover]] = {"SharedMemoryConnector": SharedMemoryMover, "NixlConnector": NixlMover}
SHORT_NAMES = {"shared_memory": "SharedMemoryConnector", "nixl": "NixlConnector"}


def mover_class(connector: str) -> type[Mover]:
    """Give the class that moves for a connector; `ConfigError` when there is none."""
    if connector not in MOVERS:
        message = f"no workload moves blocks for {connector!r}: use one of {', '.join(MOVERS)}"
        raise ConfigError(message)
    return MOVERS[connector]
