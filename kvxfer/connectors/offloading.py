"""vLLM's OffloadingConnector: KV moved between GPU, host and storage tiers. Its payload describes itself."""

from kvxfer.connectors.base import Connector
from kvxfer.connectors.described import DescribedStats
from kvxfer.contract import Moved


class OffloadingConnectorStats(DescribedStats):
    """Loads and stores, and whatever the tiers tell of themselves."""

    prefix = "vllm:kv_offload"

    def moved(self) -> Moved | None:
        """Bytes and seconds of loads and stores, None before the first."""
        num_bytes, seconds = (
            sum(self._counted(f"{self.prefix}_{way}_{what}") for way in ("load", "store")) for what in ("bytes", "time")
        )
        return Moved(num_bytes, seconds) if num_bytes or seconds else None

    def _counted(self, name: str) -> float:
        state = self.data["data"].get(name)
        counters = state.children.values() if state is not None and self.data["types"][name] == "counter" else ()
        total: float = sum(counter.to_value() for counter in counters)
        return total


class OffloadingConnector(Connector):
    """The connector of these stats."""

    stats_class = OffloadingConnectorStats
