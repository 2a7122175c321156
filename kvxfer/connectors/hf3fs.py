"""vLLM's HF3FSKVConnector: KV saved to and loaded from 3FS, a distributed file system."""

from typing import Any

from kvxfer.connectors.base import Connector, milliseconds
from kvxfer.distribution import DistributionState, merged
from kvxfer.fields import Counter, Distribution
from kvxfer.stats import TransferStats


class HF3FSKVConnectorStats(TransferStats):
    """Tasks that saved or loaded, and those that failed; the reduced keys are vLLM 0.33's.

    It tells no bytes, so that nothing is known of throughput.
    """

    save_duration = Distribution("s", "From the start of a save to its completion.")
    load_duration = Distribution("s", "From the start of a load to its completion.")
    num_failed_save = Counter("{task}", "Saves that failed.", failure=True)
    num_failed_load = Counter("{task}", "Loads that failed.", failure=True)
    num_transfer_task = Counter("{task}", "Saves and loads, failed ones among them.")

    def record_save(self, duration: float) -> None:
        """Add a save that took so many seconds."""
        self.save_duration.observe(duration)
        self.num_transfer_task.add(1)

    def record_load(self, duration: float) -> None:
        """Add a load that took so many seconds."""
        self.load_duration.observe(duration)
        self.num_transfer_task.add(1)

    def record_failed_save(self) -> None:
        """Count a save that failed."""
        self.num_failed_save.add(1)
        self.num_transfer_task.add(1)

    def record_failed_load(self) -> None:
        """Count a load that failed."""
        self.num_failed_load.add(1)
        self.num_transfer_task.add(1)

    def reduce(self) -> dict[str, Any]:
        """vLLM's keys."""
        times = milliseconds("save duration", self.save_duration) | milliseconds("load duration", self.load_duration)
        if self.num_transfer_task.value:  # then vLLM prints floats, also where there was no save or no load
            times = {key: float(value) for key, value in times.items()}
        return {
            "Num transfers task": self.num_transfer_task.value,
            "Num save task success": self.save_duration.count,
            "Num save task failed": self.num_failed_save.value,
            "Num load task success": self.load_duration.count,
            "Num load task failed": self.num_failed_load.value,
            **times,
        }

    def durations(self) -> DistributionState | None:
        """The seconds of all tasks that did not fail; not to be changed."""
        return merged((self.save_duration, self.load_duration))


class HF3FSKVConnector(Connector):
    """The connector of these stats."""

    stats_class = HF3FSKVConnectorStats
