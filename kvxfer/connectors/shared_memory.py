"""kvxfer's own SharedMemoryConnector: KV blocks copied between shared-memory segments of one host."""

from typing import Any

from kvxfer.connectors.base import Connector, MovedBytesStats, mebibytes, milliseconds, rounded
from kvxfer.fields import Distribution
from kvxfer.rows import Row


class SharedMemoryConnectorStats(MovedBytesStats):
    """Copies of one decode worker, and what failed; the reduced keys are worded as vLLM's."""

    num_blocks = Distribution("{block}", "KV blocks of one transfer.")
    record_transfer = Row(
        MovedBytesStats.transfer_duration,
        MovedBytesStats.bytes_transferred,
        num_blocks,
        duration=MovedBytesStats.transfer_duration,
        size=MovedBytesStats.bytes_transferred,
    )

    def reduce(self) -> dict[str, Any]:
        """The keys of vLLM's line, with blocks for descriptors."""
        return {
            "Num successful transfers": self.transfer_duration.count,
            **milliseconds("xfer time", self.transfer_duration),
            **mebibytes(self.bytes_transferred, self.transfer_duration),
            "Avg number of blocks": rounded(self.num_blocks.mean, self.num_blocks, 1),
            "Num failed transfers": self.num_failed_transfers.value,
        }


class SharedMemoryConnector(Connector):
    """The connector of these stats."""

    stats_class = SharedMemoryConnectorStats
