"""Series of the connectors of stores and host memory, and of children of one class."""

from typing import Any

import pytest
from exposing import measured, of_stats, samples, transfers, value

from kvxfer.connectors.hisparse import HiSparseConnectorStats
from kvxfer.connectors.multi import MultiKVConnectorStats
from kvxfer.exporters.prometheus import Options
from kvxfer.factory import KVConnectorFactory


def test_children_of_one_class_share_their_names_and_are_told_apart_by_a_label() -> None:
    stats = MultiKVConnectorStats({"NixlConnector": transfers(1.0), "NixlConnector#2": transfers(2.0)})
    families = measured(of_stats(stats, "MultiConnector"))
    for child, busy in (("NixlConnector", 1.0), ("NixlConnector#2", 2.0)):
        assert value(families, "kvxfer_nixl_busy_seconds_total", child, parent="MultiConnector") == busy


@pytest.mark.parametrize(
    ("connector", "payload", "expected_names"),
    [
        (
            "MooncakeStoreConnector",
            {
                "save_put": [
                    {"duration_seconds": 0.5, "num_keys": 3, "num_bytes": 9, "status": "ok", "num_failed_keys": 1}
                ]
            },
            {
                'vllm:mooncake_store_operation_time_seconds_count{operation="save_put",status="ok"}': 1,
                'vllm:mooncake_store_operation_total{operation="save_put",status="ok"}': 1,
                'vllm:mooncake_store_operation_keys_total{operation="save_put",status="ok"}': 3,
                'vllm:mooncake_store_operation_bytes_total{operation="save_put",status="ok"}': 9,
                'vllm:mooncake_store_operation_failed_keys_total{operation="save_put",status="ok"}': 1,
            },
        ),
        (
            "HiSparseConnector",
            {"cache_hits": [3, 4], "host_cache_usage_perc": [0.5], "host_block_reuse_gap_seconds": [0.25]},
            {
                "vllm:hisparse_cache_hits_total": 7,
                "vllm:hisparse_host_cache_usage_perc": 0.5,
                "vllm:hisparse_host_block_reuse_gap_seconds_count": 1,
            },
        ),
        (
            "HF3FSKVConnector",
            {"save_duration": [0.5], "num_failed_load": 2, "num_transfer_task": 3},
            {"vllm:hf3fs_save_duration_seconds_count": 1, "vllm:hf3fs_num_failed_load_total": 2},
        ),
        (
            "UMBPStoreConnector",
            {"load": {"submitted": 3, "completed": 2, "failed": 1, "num_bytes": 64}},
            {
                'vllm:umbp_transfer_submitted_total{operation="load"}': 3,
                'vllm:umbp_transfer_bytes_total{operation="load"}': 64,
            },
        ),
        (
            "SimpleCPUOffloadConnector",
            {
                "types": {"vllm:simple_kv_offload_save_outcomes_total": "counter"},
                "data": {"vllm:simple_kv_offload_save_outcomes_total": {("stored",): 5}},
            },
            {'vllm:simple_kv_offload_save_outcomes_total{outcome="stored"}': 5},
        ),
    ],
)
def test_vllms_names_of_stores_and_host_memory(
    connector: str, payload: dict[str, Any], expected_names: dict[str, float]
) -> None:
    stats = KVConnectorFactory.get_connector_class_by_name(connector).build_kv_connector_stats(payload)
    assert stats is not None
    found = samples(measured(of_stats(stats, connector), Options(names="vllm")))
    by_text = {
        name + ("{" + ",".join(f'{key}="{text}"' for key, text in more) + "}" if more else ""): held
        for (name, labels), held in found.items()
        for more in [sorted(each for each in labels if each[0] != "connector")]
    }
    assert {name: by_text.get(name) for name in expected_names} == expected_names


def test_names_of_ours_for_part_of_one_say_ratio() -> None:
    stats = HiSparseConnectorStats({"host_cache_usage_perc": [0.5]})
    assert (
        value(
            measured(of_stats(stats, "HiSparseConnector")),
            "kvxfer_hi_sparse_host_cache_usage_ratio",
            "HiSparseConnector",
        )
        == 0.5
    )
