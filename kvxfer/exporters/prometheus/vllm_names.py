"""The names and buckets of vLLM 0.33, so that dashboards made for it work unchanged (``--metric-names vllm``).

A field that vLLM exports has its name here; what it does not export keeps kvxfer's. Histograms of these names have
classic buckets alone: that is what those dashboards ask for.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class VllmMetric(NamedTuple):
    """A metric of vLLM; ``boundaries`` of a histogram."""

    name: str
    boundaries: tuple[float, ...] = ()


_POST: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
_TRANSFER: Final = _POST[1:]
_BYTES: Final = tuple(float(1 << power) for power in range(11, 34, 2))
_DESCRIPTORS: Final = tuple(map(float, (10, 20, 30, 50, 75, 100, 200, 400, 1000, 2000, 4000, 10_000, 20_000, 50_000)))

_OPERATION: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
_RESIDENCY: Final = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1200.0, 1800.0,
)  # fmt: skip
_HISPARSE: Final = (
    "cache_hits",
    "cache_misses",
    "host_to_device_bytes",
    "host_cache_usage_perc",
    "pending_page_transfers",
    "host_blocks_used",
    "host_blocks_total",
    "host_blocks_usage",
    "pending_spills",
)
_GAPS: Final = ("lifetime", "idle_before_evict", "reuse_gap")


def _moving(prefix: str) -> dict[str, VllmMetric]:
    return {
        "transfer_duration": VllmMetric(f"vllm:{prefix}_xfer_time_seconds", _TRANSFER),
        "bytes_transferred": VllmMetric(f"vllm:{prefix}_bytes_transferred", _BYTES),
        "num_descriptors": VllmMetric(f"vllm:{prefix}_num_descriptors", _DESCRIPTORS),
        "num_failed_transfers": VllmMetric(f"vllm:{prefix}_num_failed_transfers"),
        "num_kv_expired_reqs": VllmMetric(f"vllm:{prefix}_num_kv_expired_reqs"),
    }


VLLM_NAMES: Final[Mapping[str, Mapping[str, VllmMetric]]] = {
    "nixl": {
        **_moving("nixl"),
        "post_duration": VllmMetric("vllm:nixl_post_time_seconds", _POST),
        "num_failed_notifications": VllmMetric("vllm:nixl_num_failed_notifications"),
        "num_notifications_after_expiry": VllmMetric("vllm:nixl_num_notifications_after_expiry"),
    },
    "mooncake_store": {
        "operation_duration": VllmMetric("vllm:mooncake_store_operation_time_seconds", _OPERATION),
        "num_operations": VllmMetric("vllm:mooncake_store_operation"),
        "num_keys": VllmMetric("vllm:mooncake_store_operation_keys"),
        "num_bytes": VllmMetric("vllm:mooncake_store_operation_bytes"),
        "num_failed_keys": VllmMetric("vllm:mooncake_store_operation_failed_keys"),
    },
    "hi_sparse": {name: VllmMetric(f"vllm:hisparse_{name}") for name in _HISPARSE}
    | {
        f"host_block_{name}_seconds": VllmMetric(f"vllm:hisparse_host_block_{name}_seconds", _RESIDENCY)
        for name in _GAPS
    },
    "hf3fskv": {
        "save_duration": VllmMetric("vllm:hf3fs_save_duration_seconds", _POST),
        "load_duration": VllmMetric("vllm:hf3fs_load_duration_seconds", _POST),
        "num_failed_save": VllmMetric("vllm:hf3fs_num_failed_save"),
        "num_failed_load": VllmMetric("vllm:hf3fs_num_failed_load"),
    },
    "umbp_store": {
        "submitted": VllmMetric("vllm:umbp_transfer_submitted"),
        "completed": VllmMetric("vllm:umbp_transfer_completed"),
        "failed": VllmMetric("vllm:umbp_transfer_failed"),
        "num_bytes": VllmMetric("vllm:umbp_transfer_bytes"),
    },
    "mooncake": {**_moving("mooncake"), "num_failed_recvs": VllmMetric("vllm:mooncake_num_failed_recvs")},
}
"""By connector and field."""

_SIZES: Final = (1e6, 5e6, 10e6, 20e6, 40e6, 60e6, 80e6, 100e6, 150e6, 200e6)
_SYNC: Final = (1e-5, 5e-5, 1e-4, 5e-4, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)

OFFLOAD_BOUNDARIES: Final = {
    "vllm:kv_offload_size": _SIZES,
    "vllm:kv_offload_load_size": _SIZES,
    "vllm:kv_offload_store_size": _SIZES,
    "vllm:kv_offload_lookup_sync_delay_seconds": _SYNC,
    "vllm:kv_offload_lookup_async_delay_seconds": (*_SYNC[2:], 5.0, 10.0),
}

DEFAULT_BOUNDARIES: Final = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""What a histogram of vLLM has that names none: prometheus_client's."""
