"""vLLM's HiSparseConnector: sparse attention over KV on the host, with hot blocks on the device."""

from typing import Any

from kvxfer.connectors.base import Connector
from kvxfer.fields import Counter, Distribution, Gauge
from kvxfer.stats import TransferStats


class HiSparseConnectorStats(TransferStats):
    """Hits and misses of the hot buffer are summed, levels of the host keep the latest; the reduced keys are vLLM's.

    vLLM has told the host's level in two ways; here is what either of them reports.
    """

    cache_hits = Counter("{block}", "Blocks that were in the hot buffer.")
    cache_misses = Counter("{block}", "Blocks that were not in the hot buffer.")
    host_to_device_bytes = Counter("By", "Bytes copied from the host into the hot buffer.")
    host_cache_usage_perc = Gauge("1", "Part of the host's KV cache in use.")
    pending_page_transfers = Gauge("{page}", "Pages on their way to the host.")
    host_blocks_used = Gauge("{block}", "Blocks of the host in use.")
    host_blocks_total = Gauge("{block}", "Blocks of the host.")
    host_blocks_usage = Gauge("1", "Part of the host's blocks in use.")
    pending_spills = Gauge("{page}", "Pages on their way to the host.")
    host_block_lifetime_seconds = Distribution("s", "From allocation to eviction of a block on the host.")
    host_block_idle_before_evict_seconds = Distribution("s", "How long an evicted block had not been read.")
    host_block_reuse_gap_seconds = Distribution("s", "Between two reads of a block on the host.")

    def record_snapshot(self, hits: int, misses: int, host_to_device_bytes: int) -> None:
        """Count what was hit, missed and copied since the last snapshot."""
        self.cache_hits.add(hits)
        self.cache_misses.add(misses)
        self.host_to_device_bytes.add(host_to_device_bytes)

    def record_host_usage(self, usage: float, pending_page_transfers: int) -> None:
        """Note the level of the host's KV cache (0 to 1), and what is on its way there."""
        self.host_cache_usage_perc.set(usage)
        self.pending_page_transfers.set(pending_page_transfers)

    def reduce(self) -> dict[str, Any]:
        """vLLM's keys; those of a level only once it was read."""
        self.fold()
        usage, used, total = (
            level.value for level in (self.host_cache_usage_perc, self.host_blocks_used, self.host_blocks_total)
        )
        reduced = {
            "HiSparse hot-buffer hits": self.cache_hits.value,
            "HiSparse hot-buffer misses": self.cache_misses.value,
            "HiSparse host-to-device bytes": self.host_to_device_bytes.value,
        }
        if usage is not None:
            reduced["HiSparse host KV cache usage %"] = round(100 * usage, 1)
        if used is not None:
            reduced["HiSparse host pool used blocks"] = used
            reduced["HiSparse host pool usage %"] = round(100 * used / total, 1) if total else 0.0
        return reduced


class HiSparseConnector(Connector):
    """The connector of these stats."""

    stats_class = HiSparseConnectorStats
