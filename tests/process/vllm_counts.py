"""What vLLM's own metrics say of NIXL, and what kvxfer has collected of the same engine."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from examples.vllm_disagg.engines import Engine, hand_over
from kvxfer.collector import Collector

BLOCK_BYTES = 2 * 2 * 2 * 32 * 32 * 4  # layers, K and V, heads, their size, tokens of a block, float32
LONG = "x" * 200  # seven blocks with what is put before it
PATIENCE_SECONDS = 120

OBSERVED = {
    "transfer_duration": "vllm:nixl_xfer_time_seconds",
    "post_duration": "vllm:nixl_post_time_seconds",
    "bytes_transferred": "vllm:nixl_bytes_transferred",
    "num_descriptors": "vllm:nixl_num_descriptors",
}
COUNTED = {
    "num_failed_transfers": ("num_failed_transfers", "num_failed_handshakes", "num_failed_notifications"),
    "num_failed_notifications": ("num_failed_notifications",),
    "num_kv_expired_reqs": ("num_kv_expired_reqs",),
    "num_notifications_after_expiry": ("num_notifications_after_expiry",),
}


def stats_of(collector: Collector, engine: str) -> Any:
    """All that was collected of an engine, None before the first report."""
    found = [group.stats for group in collector.snapshot().groups if group.labels["engine"] == engine]
    assert len(found) <= 1
    return found[0] if found else None


def ranks_of(collector: Collector, engine: str) -> list[Any]:
    """The sources of an engine, by rank."""
    found = [view for view in collector.snapshot().sources if view.source.labels["engine"] == engine]
    return sorted(found, key=lambda view: view.source.labels.get("rank", ""))


def is_as_vllm_counts(engine: Engine, stats: Any) -> bool:
    """Whether counts and bytes are vLLM's own exactly, and seconds but for the order of their sum."""
    found, equal = engine.metrics(), []
    for field, name in OBSERVED.items():
        state = getattr(stats, field)
        equal += [state.count == found[f"{name}_count"], state.sum == pytest.approx(found[f"{name}_sum"])]
    equal.append(stats.bytes_transferred.sum == found["vllm:nixl_bytes_transferred_sum"])
    for name, counters in COUNTED.items():
        counted = sum(getattr(stats, counter).value for counter in counters)
        equal.append(counted == found[f"vllm:nixl_{name}_total"])
    return all(equal)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for what engines do, which on a busy machine takes its time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        threading.Event().wait(0.1)


def nothing_was_cut(collector: Collector) -> bool:
    """Whether the pipeline has lost, refused and cut nothing."""
    pipeline = collector.snapshot().pipeline
    return (pipeline.reports_lost, pipeline.reports_rejected, pipeline.observations_cut) == (0, {}, 0)


def hand_over_some(prefill: Engine, decode: Engine, name: str, count: int = 4) -> None:
    """So many requests, with seven blocks of KV each."""
    for number in range(count):
        assert hand_over(prefill, decode, f"{name} {number} {LONG}")
