"""Every exit that runs exit handlers delivers what was recorded, the others what was flushed, and none hangs."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workers import CONNECTOR, FLUSHED, PENDING, flush_and_stay, publish, record_into, transfers, wait_until

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.publisher import StatsPublisher
from kvxfer.reporting import has_kv_transfer_group

# From 3.12 on Python warns of every fork in a process with threads, which a collector's process has.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")

METHODS = ("fork", "spawn", "forkserver")
EXITS = (("return", 0), ("exit", 0), ("raise", 1))
LINGER_AND_MARGIN = 1.0 + 3.0


def run(method: str, *arguments: Any) -> int | None:
    process = multiprocessing.get_context(method).Process(target=publish, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("ending", "code"), EXITS)
def test_a_child_that_ends_by_itself_delivers_everything(
    collector: Collector, method: str, ending: str, code: int
) -> None:
    assert run(method, collector.endpoint, 500, ending) == code
    collector.stop()
    assert transfers(collector) == 500


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", ["thread", "executor"])
def test_a_child_delivers_what_its_threads_record_after_its_function_returned(
    collector: Collector, method: str, ending: str
) -> None:
    assert run(method, collector.endpoint, 500, ending) == 0
    collector.stop()
    assert transfers(collector) == 500


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", ["os._exit", "terminate", "kill"])
def test_a_child_that_ends_without_handlers_delivers_what_it_flushed(
    collector: Collector, method: str, ending: str
) -> None:
    context = multiprocessing.get_context(method)
    flushed, leave = context.Event(), context.Event()
    process = context.Process(target=flush_and_stay, args=(collector.endpoint, flushed, leave))
    process.start()
    assert flushed.wait(60)
    wait_until(lambda: transfers(collector) == FLUSHED)
    {"os._exit": leave.set, "terminate": process.terminate, "kill": process.kill}[ending]()
    process.join(LINGER_AND_MARGIN)
    assert process.exitcode == {"os._exit": 0, "terminate": -signal.SIGTERM, "kill": -signal.SIGKILL}[ending]
    collector.stop()
    assert FLUSHED <= transfers(collector) <= FLUSHED + PENDING


def run_script(code: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parent, check=True, timeout=60)


def test_a_script_that_ends_by_itself_delivers_everything(collector: Collector) -> None:
    run_script(f"from workers import publish; publish({collector.endpoint!r}, 500)")
    collector.stop()
    assert transfers(collector) == 500


def test_plain_forks_that_end_by_sys_exit_deliver_everything_each_as_a_source(collector: Collector) -> None:
    run_script(f"from workers import fork_and_exit; fork_and_exit({collector.endpoint!r}, 2)")
    collector.stop()
    # The first process 100 + 10, its child 10 + 10, the child of that 10.
    assert transfers(collector) == 140
    assert collector.snapshot().pipeline.sources["gone"] == 3


def test_an_exit_with_no_collector_there_ends_within_linger(ipc_endpoint: str) -> None:
    def start(method: str, ending: str) -> tuple[Any, Any, int]:
        context = multiprocessing.get_context(method)
        recorded = context.Event()
        process = context.Process(target=publish, args=(ipc_endpoint, 500, ending, recorded))
        process.start()
        return process, recorded, dict(EXITS)[ending]

    started = [start(method, ending) for method in METHODS for ending, _ in EXITS]
    assert all(recorded.wait(60) for _, recorded, _ in started)
    deadline = time.monotonic() + LINGER_AND_MARGIN
    for process, _, code in started:
        process.join(max(0.0, deadline - time.monotonic()))
        assert process.exitcode == code


def in_a_fork(work: Callable[[], None]) -> None:
    """Run in a plain fork, which is killed if it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
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
    record_into(stats, 100)
    record = stats.record_transfer

    def child() -> None:
        for _ in range(10):
            record(0.001, 0.0001, 1024, 2)
        publisher.close(10)

    in_a_fork(child)
    in_a_fork(child)
    publisher.close(10)
    collector.stop()
    assert transfers(collector) == 120
    assert collector.snapshot().pipeline.sources["gone"] == 3


def test_a_fork_before_first_use_leaves_both_to_publish_what_they_record(collector: Collector) -> None:
    publisher = StatsPublisher(CONNECTOR, collector.endpoint, flush_seconds=60)

    def child() -> None:
        record_into(publisher.stats, 10)
        publisher.close(10)

    in_a_fork(child)
    record_into(publisher.stats, 100)
    publisher.close(10)
    collector.stop()
    assert transfers(collector) == 110


def test_forks_of_a_parent_that_records_in_threads_lose_nothing_on_either_side(collector: Collector) -> None:
    publisher = StatsPublisher(CONNECTOR, collector.endpoint, flush_seconds=0.01)
    stats = publisher.stats
    stop = threading.Event()
    recorded = [0, 0]

    def work(number: int) -> None:
        while not stop.is_set():
            record_into(stats, 10)
            recorded[number] += 10

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()

    def child() -> None:
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
    assert transfers(collector) == sum(recorded)


def test_a_process_is_a_worker_as_long_as_it_publishes(ipc_endpoint: str) -> None:
    assert not has_kv_transfer_group()
    publisher = StatsPublisher(CONNECTOR, ipc_endpoint)
    assert has_kv_transfer_group()
    publisher.close(0)
    publisher.close(0)
    assert not has_kv_transfer_group()


def test_a_forked_child_of_a_collecting_process_leaves_without_stopping_its_parents_collector(
    collector: Collector,
) -> None:
    def child() -> None:
        signal.alarm(20)
        collector.stop()

    in_a_fork(child)
    with StatsPublisher(CONNECTOR, collector.endpoint) as publisher:
        record_into(publisher.stats, 3)
    wait_until(lambda: transfers(collector) == 3)


def test_a_collector_comes_back_while_a_child_that_was_forked_beside_it_lives(ipc_endpoint: str) -> None:
    read_end, write_end = os.pipe()
    collector = Collector(CollectorConfig(endpoint=ipc_endpoint)).start()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    try:
        collector.stop()
        with Collector(CollectorConfig(endpoint=ipc_endpoint)) as again:
            with StatsPublisher(CONNECTOR, ipc_endpoint) as publisher:
                record_into(publisher.stats, 3)
            wait_until(lambda: transfers(again) == 3)
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(pid, 0)


def test_a_fork_while_a_childs_stats_are_being_folded_does_not_hang(ipc_endpoint: str) -> None:
    publisher = StatsPublisher("MultiConnector", ipc_endpoint)
    nixl = NixlConnectorStats()
    publisher.stats.data["NixlConnector"] = nixl

    def child() -> None:
        signal.alarm(20)
        nixl.record_failed_transfer()
        assert nixl.num_failed_transfers.value == 1

    with nixl._lock:
        # Forked from another thread, the lock's owner is not there in the child.
        forking = threading.Thread(target=in_a_fork, args=(child,))
        forking.start()
        forking.join()
    publisher.close(0)
