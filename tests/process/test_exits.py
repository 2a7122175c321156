"""Every exit that runs exit handlers delivers what was recorded, the others what was flushed, and none hangs."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from workers import CONNECTOR, publish

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.publisher import StatsPublisher
from kvxfer.reporting import has_kv_transfer_group

# From 3.12 on Python warns of every fork in a process with threads, which a collector's process has.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")


@pytest.fixture
def collector(ipc_endpoint: str) -> Any:
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as collector:
        yield collector


def transfers(collector: Collector) -> int:
    collector.stop()
    return sum(group.stats.reduce()["Num successful transfers"] for group in collector.snapshot().groups)


def run(method: str, *arguments: Any) -> int | None:
    process = multiprocessing.get_context(method).Process(target=publish, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(("ending", "code"), [("return", 0), ("exit", 0), ("raise", 1)])
def test_a_child_that_ends_by_itself_delivers_everything(
    collector: Collector, method: str, ending: str, code: int
) -> None:
    assert run(method, collector.endpoint, 500, ending) == code
    assert transfers(collector) == 500
    assert collector.snapshot().pipeline.reports_lost == 0


def test_a_child_that_ends_without_handlers_delivers_what_it_flushed(collector: Collector) -> None:
    assert run("spawn", collector.endpoint, 500, "os._exit") == 0
    assert transfers(collector) == 500


def test_a_script_that_ends_by_itself_delivers_everything(collector: Collector) -> None:
    code = f"from workers import publish; publish({collector.endpoint!r}, 500)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
    assert transfers(collector) == 500


@pytest.mark.parametrize("ending", ["return", "exit"])
def test_an_exit_with_no_collector_there_does_not_hang(ipc_endpoint: str, ending: str) -> None:
    started = time.monotonic()
    assert run("fork", ipc_endpoint, 500, ending) == 0
    assert time.monotonic() - started < 10


def in_a_fork(work: Any) -> None:
    """Run in a plain fork that ends like a script does."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_waits_in_a_parent_is_counted_once_and_a_forked_child_counts_its_own(collector: Collector) -> None:
    publisher = StatsPublisher(CONNECTOR, collector.endpoint, flush_seconds=60)
    stats = publisher.stats
    for _ in range(100):
        stats.record_transfer(0.001, 0.0001, 1024, 2)
    record = stats.record_transfer

    def child() -> None:
        for _ in range(10):
            record(0.001, 0.0001, 1024, 2)
        publisher.close(10)

    in_a_fork(child)
    in_a_fork(child)
    publisher.close(10)
    assert transfers(collector) == 120
    assert collector.snapshot().pipeline.sources_known == 3


def test_a_fork_of_a_parent_that_is_recording_in_threads_does_not_hang(collector: Collector) -> None:
    publisher = StatsPublisher(CONNECTOR, collector.endpoint, flush_seconds=0.01)
    stats = publisher.stats
    stop = multiprocessing.get_context("fork").Event()
    threads = [
        threading.Thread(
            target=lambda: [stats.record_transfer(0.001, 0.0001, 1024, 2) for _ in iter(stop.is_set, True)]
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()

    def child() -> None:
        signal.alarm(20)
        stats.record_failed_transfer()
        publisher.close(10)

    for _ in range(5):
        in_a_fork(child)
    stop.set()
    for thread in threads:
        thread.join()
    publisher.close(10)
    collector.stop()
    (group,) = collector.snapshot().groups
    assert group.stats.num_failed_transfers.value == 5
    assert group.num_ranks == 6


def test_a_process_is_a_worker_as_long_as_it_publishes(ipc_endpoint: str) -> None:
    assert not has_kv_transfer_group()
    publisher = StatsPublisher(CONNECTOR, ipc_endpoint)
    assert has_kv_transfer_group()
    publisher.close(0)
    publisher.close(0)
    assert not has_kv_transfer_group()
