"""vLLM's MooncakeConnector: KV sent between engines over Mooncake's transfer engine."""

from typing import Any

from kvxfer.connectors.base import Connector, MovedBytesStats, mebibytes, milliseconds, rounded
from kvxfer.fields import Counter, Distribution
from kvxfer.rows import Row


class MooncakeConnectorStats(MovedBytesStats):
    """Transfers of one Mooncake engine, and what failed; the reduced keys are vLLM 0.33's."""

    num_descriptors = Distribution("{descriptor}", "Descriptors of one transfer.")
    num_failed_recvs = Counter("{request}", "Receptions that failed.", failure=True)
    num_kv_expired_reqs = Counter("{request}", "Requests whose KV expired before it was pulled.", failure=True)
    record_transfer = Row(
        MovedBytesStats.transfer_duration,
        MovedBytesStats.bytes_transferred,
        num_descriptors,
        duration=MovedBytesStats.transfer_duration,
        size=MovedBytesStats.bytes_transferred,
    )

    def record_failed_recv(self) -> None:
        """Count a failed reception."""
        self.num_failed_recvs.add(1)

    def record_kv_expired_req(self) -> None:
        """Count a request whose KV expired."""
        self.num_kv_expired_reqs.add(1)

    def reduce(self) -> dict[str, Any]:
        """vLLM's keys."""
        return {
            "Num successful transfers": self.transfer_duration.count,
            **milliseconds("xfer time", self.transfer_duration),
            **mebibytes(self.bytes_transferred, self.transfer_duration),
            "Avg number of descriptors": rounded(self.num_descriptors.mean, self.num_descriptors, 1),
            "Num failed transfers": self.num_failed_transfers.value,
            "Num failed recvs": self.num_failed_recvs.value,
            "Num KV expired reqs": self.num_kv_expired_reqs.value,
        }


class MooncakeConnector(Connector):
    """The connector of these stats."""

    stats_class = MooncakeConnectorStats
