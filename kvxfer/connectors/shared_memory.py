"""kvxfer's own SharedMemoryConnector: KV blocks copied between shared-memory segments of one host."""

from typing import Any

from kvxfer.connectors.base import Connector, mebibytes, milliseconds
from kvxfer.fields import Counter, Distribution
from kvxfer.rows import Row
from kvxfer.stats import TransferStats


class SharedMemoryConnectorStats(TransferStats):
    """Copies of one decode worker, and what failed; the reduced keys are worded as vLLM's."""

    transfer_duration = Distribution("s", "Time that copying the blocks took.")
    bytes_transferred = Distribution("By", "Bytes of one transfer.")
    num_blocks = Distribution("{block}", "KV blocks of one transfer.")
    num_failed_transfers = Counter("{transfer}", "Transfers whose bytes did not arrive as they were sent.")
    record_transfer = Row(
        transfer_duration,
        bytes_transferred,
        num_blocks,
        duration=transfer_duration,
        size=bytes_transferred,
    )

    def record_failed_transfer(self) -> None:
        """Count a failed transfer."""
        self.num_failed_transfers.add(1)

    def reduce(self) -> dict[str, Any]:
        """The keys of vLLM's line, with blocks for descriptors."""
        return {
            "Num successful transfers": self.transfer_duration.count,
            **milliseconds("xfer", self.transfer_duration),
            **mebibytes(self.bytes_transferred, self.transfer_duration),
            "Avg number of blocks": round(self.num_blocks.mean, 1),
            "Num failed transfers": self.num_failed_transfers.value,
        }


class SharedMemoryConnector(Connector):
    """The connector of these stats."""

    stats_class = SharedMemoryConnectorStats
