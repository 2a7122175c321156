"""Stats of the connectors to stores and host memory as vLLM's: keys, rounding, empty intervals, what they record."""

import threading
from typing import Any

import pytest

from kvxfer.connectors.hf3fs import HF3FSKVConnectorStats
from kvxfer.connectors.hisparse import HiSparseConnectorStats
from kvxfer.connectors.mooncake_store import MooncakeStoreConnectorStats
from kvxfer.connectors.simple_cpu_offload import SimpleCPUOffloadConnectorStats
from kvxfer.connectors.umbp import UMBPStoreConnectorStats
from kvxfer.reporting import format_line

# --- Mooncake store


def store(*durations: float, operation: str = "save_put", **more: Any) -> MooncakeStoreConnectorStats:
    stats = MooncakeStoreConnectorStats()
    for duration in durations:
        stats.record_operation(operation, duration, 4, num_bytes=100, **more)
    return stats


def test_calls_of_a_store_reduce_per_operation_by_name_over_all_statuses() -> None:
    stats = store(0.001, 0.003).aggregate(store(0.008, status="error", num_failed_keys=4))
    stats.record_operation("load_get", 0.0005, 2)
    assert list(stats.reduce().items()) == [
        ("load_get_count", 1),
        ("load_get_avg_ms", 0.5),
        ("load_get_p90_ms", 0.5),
        ("load_get_total_keys", 2),
        ("load_get_total_bytes", 0),
        ("load_get_failed_keys", 0),
        ("load_get_error_count", 0),
        ("save_put_count", 3),
        ("save_put_avg_ms", 4.0),
        ("save_put_p90_ms", 8.0),
        ("save_put_total_keys", 12),
        ("save_put_total_bytes", 300),
        ("save_put_failed_keys", 4),
        ("save_put_error_count", 1),
    ]


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (2, 2), (9, 9), (10, 9), (11, 10), (30, 27), (110, 99)])
def test_the_p90_of_a_store_is_the_nearest_rank(count: int, rank: int) -> None:
    stats = store(*(number / 1000 for number in range(count, 0, -1)))
    assert stats.reduce()["save_put_p90_ms"] == rank


def test_an_operation_without_a_call_and_no_operation_are_nothing() -> None:
    for payload in ({}, {"save_put": []}):
        stats = MooncakeStoreConnectorStats(payload)
        assert stats.is_empty()
        assert stats.reduce() == {}


def test_a_row_that_is_none_is_refused_whole_and_the_others_count() -> None:
    row: dict[str, Any] = {"duration_seconds": 0.5, "num_keys": 1, "num_bytes": 2, "status": "ok", "num_failed_keys": 0}
    bad = [row | {"num_keys": -1}, row | {"num_bytes": "two"}, {"duration_seconds": 0.5}, 3, None]
    stats = MooncakeStoreConnectorStats({"load_get": [row, *bad, row]})
    assert stats.reduce()["load_get_count"] == 2
    assert stats.reduce()["load_get_total_bytes"] == 4
    assert stats.num_rejected() == len(bad)


def test_what_a_store_moved_are_gets_and_puts_and_failures_are_keys() -> None:
    stats = store(0.5, operation="load_get").aggregate(store(0.25, num_failed_keys=3))
    stats.aggregate(store(9.0, operation="lookup_exists"))
    assert stats.moved() == (200, 0.75)
    assert (stats.durations().count, stats.durations().sum) == (2, 0.75)
    assert stats.failures() == {"num_failed_keys": 3}


def test_statuses_and_operations_that_a_peer_makes_up_are_bounded() -> None:
    stats = MooncakeStoreConnectorStats()
    for number in range(500):
        stats.record_operation(f"operation-{number}", 0.5, 1)
    reduced = stats.reduce()
    assert len(reduced) == 7 * 101
    assert reduced["other_count"] == 400


# --- HF3FS


def test_tasks_of_3fs_reduce_as_vllms_when_there_were_saves_alone() -> None:
    stats = HF3FSKVConnectorStats()
    stats.record_save(0.010)
    stats.record_save(0.020)
    stats.record_failed_load()
    assert format_line(stats.reduce()) == (
        "KV Transfer metrics: Num transfers task=3, Num save task success=2, Num save task failed=0, "
        "Num load task success=0, Num load task failed=1, Avg save duration (ms)=15.0, P90 save duration (ms)=19.0, "
        "Avg load duration (ms)=0.0, P90 load duration (ms)=0.0"
    )
    assert stats.moved() is None
    assert stats.failures() == {"num_failed_save": 0, "num_failed_load": 1}


def test_no_task_of_3fs_reduces_to_the_keys_with_zeros() -> None:
    stats = HF3FSKVConnectorStats()
    assert stats.is_empty()
    assert len(stats.reduce()) == 9
    assert set(map(repr, stats.reduce().values())) == {"0"}


def test_loads_and_saves_of_3fs_are_its_durations() -> None:
    stats = HF3FSKVConnectorStats()
    stats.record_save(0.5)
    stats.record_load(0.25)
    stats.record_failed_save()
    durations = stats.durations()
    assert durations is not None
    assert (durations.count, durations.sum) == (2, 0.75)


# --- HiSparse


def test_deltas_of_hisparse_are_summed_and_levels_keep_the_latest() -> None:
    one, other = HiSparseConnectorStats(), HiSparseConnectorStats()
    one.record_snapshot(7, 3, 48)
    one.record_host_usage(0.4, 2)
    other.record_snapshot(5, 1, 16)
    other.record_host_usage(0.8, 1)
    other.record_host_usage(0.6, 0)
    assert one.aggregate(other).reduce() == {
        "HiSparse hot-buffer hits": 12,
        "HiSparse hot-buffer misses": 4,
        "HiSparse host-to-device bytes": 64,
        "HiSparse host KV cache usage %": 60.0,
    }
    assert one.pending_page_transfers.value == 0


def test_a_level_that_nobody_has_read_has_no_key() -> None:
    stats = HiSparseConnectorStats()
    stats.record_snapshot(1, 1, 1)
    assert len(stats.reduce()) == 3
    assert HiSparseConnectorStats({"host_cache_usage_perc": [0.5]}).reduce()["HiSparse host KV cache usage %"] == 50.0


def test_a_host_pool_in_blocks_has_the_keys_that_vllm_has_for_it() -> None:
    payload = {"host_blocks_used": [1, 8], "host_blocks_total": [10, 10], "pending_spills": [0]}
    reduced = HiSparseConnectorStats(payload).reduce()
    assert reduced["HiSparse host pool used blocks"] == 8
    assert reduced["HiSparse host pool usage %"] == 80.0


# --- UMBP


def test_operations_of_umbp_add_up_count_by_count() -> None:
    stats = UMBPStoreConnectorStats({"store": {"submitted": 3, "completed": 0, "failed": 0, "num_bytes": 64}})
    stats.record("store", completed=2, failed=1, num_bytes=32)
    stats.aggregate(UMBPStoreConnectorStats({"load": {"submitted": 1, "completed": 1, "failed": 0, "num_bytes": 8}}))
    assert list(stats.reduce().items()) == [
        ("store_submitted", 3),
        ("store_completed", 2),
        ("store_failed", 1),
        ("store_num_bytes", 96),
        ("load_submitted", 1),
        ("load_completed", 1),
        ("load_failed", 0),
        ("load_num_bytes", 8),
    ]
    assert stats.failures() == {"failed": 1}
    assert stats.moved() is None
    stats.reset()
    assert stats.is_empty()
    assert stats.reduce() == {}


def test_a_count_of_umbp_that_is_not_known_here_is_counted_as_refused() -> None:
    stats = UMBPStoreConnectorStats({"load": {"submitted": 1, "retried": 5}})
    assert stats.reduce()["load_submitted"] == 1
    assert stats.num_rejected() == 1


# --- SimpleCPUOffload


def test_what_simple_offload_is_configured_as_is_carried_and_never_reduced() -> None:
    info = "vllm:simple_kv_offload_info"
    payload = {
        "types": {info: "gauge", "vllm:simple_kv_offload_save_outcomes_total": "counter"},
        "data": {
            info: {("cpu", "true", "false", "4096"): 1},
            "vllm:simple_kv_offload_save_outcomes_total": {("stored",): 2, ("dropped_cpu_full",): 1},
        },
    }
    stats = SimpleCPUOffloadConnectorStats(payload)
    assert stats.aggregate(SimpleCPUOffloadConnectorStats(payload)).reduce() == {
        "vllm:simple_kv_offload_save_outcomes_total:('stored',)": 4,
        "vllm:simple_kv_offload_save_outcomes_total:('dropped_cpu_full',)": 2,
    }
    assert stats.to_dict()["data"][info] == payload["data"][info]


# --- taken while others record


def recorder_of(stats: Any) -> Any:
    return {
        MooncakeStoreConnectorStats: lambda: stats.record_operation("load_get", 0.5, 2, num_bytes=3),
        HF3FSKVConnectorStats: lambda: stats.record_load(0.5),
        HiSparseConnectorStats: lambda: stats.record_snapshot(1, 2, 3),
        UMBPStoreConnectorStats: lambda: stats.record("load", submitted=1, num_bytes=3),
    }[type(stats)]


@pytest.mark.parametrize(
    "stats_class",
    [MooncakeStoreConnectorStats, HF3FSKVConnectorStats, HiSparseConnectorStats, UMBPStoreConnectorStats],
)
def test_four_recording_threads_and_one_taking_snapshots_lose_nothing(stats_class: Any) -> None:
    stats, per_thread = stats_class(), 2_000
    record = recorder_of(stats)
    threads = [threading.Thread(target=lambda: [record() for _ in range(per_thread)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    total = stats_class()
    while any(thread.is_alive() for thread in threads):
        total.aggregate(stats.clone_and_reset())
    total.aggregate(stats.clone_and_reset())
    assert stats.is_empty()
    alone = stats_class()
    alone_record = recorder_of(alone)
    for _ in range(4 * per_thread):
        alone_record()
    assert total.reduce() == alone.reduce()
