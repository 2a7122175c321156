"""What a connector is to kvxfer: a name and the class of its stats. Connectors declare; the rest is elsewhere."""

from collections.abc import Mapping
from typing import Any, ClassVar

from kvxfer.contract import KVConnectorStats
from kvxfer.distribution import DistributionState
from kvxfer.fields import Counter, Distribution
from kvxfer.stats import TransferStats
from kvxfer.units import mib, ms


class Connector:
    """Base of the connector classes: names the class of the stats, which takes a payload as its only argument."""

    stats_class: ClassVar[type[KVConnectorStats]]

    @classmethod
    def build_kv_connector_stats(cls, data: Mapping[str, Any] | None = None) -> KVConnectorStats | None:
        """The stats of a payload, empty ones without; None would say that this connector has none."""
        return cls.stats_class(dict(data or {}))


class MovedBytesStats(TransferStats):
    """What every connector that moves bytes between two processes measures; it adds its own fields and its row."""

    transfer_duration = Distribution("s", "From the start of a transfer to its completion.")
    bytes_transferred = Distribution("By", "Bytes of one transfer.")
    num_failed_transfers = Counter("{transfer}", "Transfers that failed.", failure=True)

    def record_failed_transfer(self) -> None:
        """Count a failed transfer."""
        self.num_failed_transfers.add(1)


def milliseconds(label: str, durations: DistributionState) -> dict[str, float]:
    """vLLM's two keys of a duration: mean and P90 in ms, to 3 digits; 0 for none."""
    return {
        f"Avg {label} (ms)": rounded(ms(durations.mean), durations),
        f"P90 {label} (ms)": rounded(ms(durations.quantile(0.9)), durations),
    }


def mebibytes(sizes: DistributionState, durations: DistributionState) -> dict[str, float]:
    """vLLM's two keys of a size, to 3 digits; its "throughput" divides by the summed durations, so by busy time."""
    busy = durations.sum
    return {
        "Avg MB per transfer": rounded(mib(sizes.mean), sizes),
        "Throughput (MB/s)": round(mib(sizes.sum) / busy, 3) if busy else 0,
    }


def rounded(number: float, of: DistributionState, digits: int = 3) -> float:
    """A number read off a distribution; of an empty one 0 as int, which is how vLLM prints it."""
    return round(number, digits) if of.count else 0
