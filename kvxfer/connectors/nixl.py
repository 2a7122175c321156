"""vLLM's NixlConnector: KV pulled between engines over NIXL."""

from typing import Any

from kvxfer.connectors.base import Connector, MovedBytesStats, mebibytes, milliseconds, rounded
from kvxfer.fields import Counter, Distribution
from kvxfer.rows import Row
from kvxfer.states import CounterState


class NixlConnectorStats(MovedBytesStats):
    """Transfers of one NIXL agent, and what failed; the reduced keys are vLLM 0.33's."""

    post_duration = Distribution("s", "Time that posting the transfer took.")
    num_descriptors = Distribution("{descriptor}", "Descriptors of one transfer.")
    num_failed_notifications = Counter("{notification}", "Notifications that could not be sent.", failure=True)
    num_failed_handshakes = Counter("{handshake}", "Handshakes with another engine that failed.", failure=True)
    num_kv_expired_reqs = Counter("{request}", "Requests whose KV expired before it was pulled.", failure=True)
    num_notifications_after_expiry = Counter(
        "{notification}", "Notifications of pulls that came after expiry.", failure=True
    )
    record_transfer = Row(
        MovedBytesStats.transfer_duration,
        post_duration,
        MovedBytesStats.bytes_transferred,
        num_descriptors,
        duration=MovedBytesStats.transfer_duration,
        size=MovedBytesStats.bytes_transferred,
    )

    def record_failed_notification(self) -> None:
        """Count a failed notification."""
        self.num_failed_notifications.add(1)

    def record_failed_handshake(self) -> None:
        """Count a failed handshake."""
        self.num_failed_handshakes.add(1)

    def record_kv_expired_req(self) -> None:
        """Count a request whose KV expired."""
        self.num_kv_expired_reqs.add(1)

    def record_notification_after_expiry(self) -> None:
        """Count a notification after expiry."""
        self.num_notifications_after_expiry.add(1)

    def reduce(self) -> dict[str, Any]:
        """vLLM's keys; "Num failed transfers" sums failed transfers, notifications and handshakes, as there."""
        failures = (self.num_failed_transfers, self.num_failed_notifications, self.num_failed_handshakes)
        return {
            "Num successful transfers": self.transfer_duration.count + self._num_only_counted(),
            **milliseconds("xfer time", self.transfer_duration),
            **milliseconds("post time", self.post_duration),
            **mebibytes(self.bytes_transferred, self.transfer_duration),
            "Avg number of descriptors": rounded(self.num_descriptors.mean, self.num_descriptors, 1),
            "Num failed transfers": sum(failure.value for failure in failures),
            "Num KV expired reqs": self.num_kv_expired_reqs.value,
            "Num notifs after expiry": self.num_notifications_after_expiry.value,
        }

    def _num_only_counted(self) -> float:
        """Transfers of a vLLM 0.11.0, which counts them and measures nothing; no other tells this number."""
        told = self.data.get("num_successful_transfers")
        return told.value if isinstance(told, CounterState) else 0


class NixlConnector(Connector):
    """The connector of these stats; also registered as NixlPullConnector and NixlPushConnector."""

    stats_class = NixlConnectorStats
