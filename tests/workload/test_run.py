"""Pairs of real processes that really move blocks."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.errors import ConfigError, KVXferError
from kvxfer.workload.blocks import BlockWriter, checksum
from kvxfer.workload.run import Workload
from kvxfer.workload.shared_memory import SEGMENT_FILES
from kvxfer.workload.tally import Tally
from kvxfer.workload.trace import Transfer

TRANSFERS = [Transfer(0.0, tuple(range(5 * n, 5 * n + n % 4))) for n in range(40)]
NUM_TRANSFERS = sum(1 for transfer in TRANSFERS if transfer.blocks)
NUM_BLOCKS = sum(len(transfer.blocks) for transfer in TRANSFERS)


@pytest.fixture
def collector(ipc_endpoint: str) -> Iterator[Collector]:
    with Collector(CollectorConfig(endpoint=ipc_endpoint), []) as collector:
        yield collector


def segments() -> set[str]:
    return {file.name for file in SEGMENT_FILES.glob(f"kvxfer-{os.getpid()}-*")} if SEGMENT_FILES.exists() else set()


def collected(collector: Collector) -> dict[str, Any]:
    (group,) = collector.snapshot().groups
    return group.stats.summary()


def move(collector: Collector, connector: str) -> dict[str, Any]:
    with Workload(connector, collector.endpoint, workers=2, block_bytes=4096, pool_blocks=16) as workload:
        outcome = workload.run(TRANSFERS)
    assert outcome.requests == len(TRANSFERS)
    return outcome.recorded


def test_what_the_workers_recorded_is_what_the_collector_holds(collector: Collector) -> None:
    recorded = move(collector, "SharedMemoryConnector")
    assert recorded["num_blocks"] == {"count": NUM_TRANSFERS, "sum": NUM_BLOCKS}
    assert recorded["bytes_transferred"] == {"count": NUM_TRANSFERS, "sum": NUM_BLOCKS * 4096}
    assert recorded["num_failed_transfers"] == 0
    collector.stop()
    found = collected(collector)
    assert {name: found["num_blocks"][name] for name in ("count", "sum")} == recorded["num_blocks"]
    assert {name: found["bytes_transferred"][name] for name in ("count", "sum")} == recorded["bytes_transferred"]
    assert found["transfer_duration"]["sum"] == pytest.approx(recorded["transfer_duration"]["sum"])
    assert not segments()


@pytest.mark.extra
def test_what_nixl_measured_is_what_the_collector_holds(collector: Collector) -> None:
    pytest.importorskip("nixl_cu12", reason="NIXL is not installed")
    recorded = move(collector, "NixlConnector")
    assert recorded["num_descriptors"] == {"count": NUM_TRANSFERS, "sum": NUM_BLOCKS}
    assert recorded["bytes_transferred"] == {"count": NUM_TRANSFERS, "sum": NUM_BLOCKS * 4096}
    collector.stop()
    found = collected(collector)
    for field in ("bytes_transferred", "num_descriptors", "transfer_duration", "post_duration"):
        assert found[field]["count"] == recorded[field]["count"]
        assert found[field]["sum"] == pytest.approx(recorded[field]["sum"], rel=1e-12)


def test_a_request_larger_than_the_pool_is_moved_in_parts(collector: Collector) -> None:
    with Workload("SharedMemoryConnector", collector.endpoint, workers=1, block_bytes=64, pool_blocks=4) as workload:
        outcome = workload.run([Transfer(0.0, tuple(range(10)))])
    assert outcome.recorded["num_blocks"] == {"count": 3, "sum": 10}


@pytest.mark.parametrize("role", [0, 1])
@pytest.mark.parametrize("connector", ["SharedMemoryConnector", pytest.param("NixlConnector", marks=pytest.mark.extra)])
def test_a_killed_worker_ends_the_run_with_its_name_and_leaves_nothing(
    collector: Collector, connector: str, role: int
) -> None:
    workload = Workload(connector, collector.endpoint, workers=2, block_bytes=4096)
    victim = workload._pairs[1].processes[role]

    def kill(requests: int) -> None:
        if requests == 20:
            os.kill(victim.pid, signal.SIGKILL)

    endless = (Transfer(0.0, (n, n + 1)) for n in range(1_000_000))
    with workload, pytest.raises(KVXferError, match=f"{victim.name} ended with exit code -9"):
        workload.run(endless, on_progress=kill)
    assert not segments()


def test_a_block_that_is_not_the_one_written_does_not_pass() -> None:
    block, other = np.zeros((2, 256), np.uint8)
    writer = BlockWriter(256)
    expected = writer.write(block, 7)
    writer.write(other, 8)
    assert checksum(block, 7) == expected
    assert checksum(other, 7) != expected
    assert checksum(block, 8) != expected
    block[100] ^= 1
    assert checksum(block, 7) != expected


def test_a_tally_adds_whole_numbers_exactly_and_counts_failures() -> None:
    tally = Tally(("duration", "size"), ("failed",))
    for _ in range(5000):
        tally.add((0.1, 2**53 + 1))
    tally.count("failed")
    assert tally.recorded() == {
        "duration": {"count": 5000, "sum": pytest.approx(500.0, rel=1e-14)},
        "size": {"count": 5000, "sum": 5000 * (2**53 + 1)},
        "failed": 1,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "at least one worker"),
        ({"block_bytes": 12}, "multiple of 8"),
        ({"pool_blocks": 0}, "holds nothing"),
    ],
)
def test_a_number_out_of_range_is_said(ipc_endpoint: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Workload("SharedMemoryConnector", ipc_endpoint, **options)


def test_a_connector_that_nothing_moves_with_is_said(ipc_endpoint: str) -> None:
    with pytest.raises(ConfigError, match="no workload moves blocks for 'MooncakeConnector'"):
        Workload("MooncakeConnector", ipc_endpoint)
