"""vLLM's SimpleCPUOffloadConnector: KV blocks kept in host memory. Its payload describes itself."""

from kvxfer.connectors.base import Connector
from kvxfer.connectors.described import DescribedStats


class SimpleCPUOffloadConnectorStats(DescribedStats):
    """Outcomes of saves, blocks loaded, used and pending; what it is configured as is carried and never reduced."""

    prefix = "vllm:simple_kv_offload"
    left_out = "vllm:simple_kv_offload_info"


class SimpleCPUOffloadConnector(Connector):
    """The connector of these stats."""

    stats_class = SimpleCPUOffloadConnectorStats
