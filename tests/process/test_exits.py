"""Every exit that runs exit handlers delivers what was recorded, the others what was flushed, and none hangs."""

import multiprocessing
import signal
import time
from typing import Any

import pytest
from workers import (
    CONNECTOR,
    FLUSHED,
    flush_and_stay,
    publish,
    publish_beside_a_child,
    run_script,
    transfers,
    wait_until,
)

from kvxfer.collector import Collector
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
def test_a_process_in_a_process_delivers_everything_as_its_parent_does(collector: Collector, method: str) -> None:
    arguments = (method, collector.endpoint, 500)
    process = multiprocessing.get_context(method).Process(target=publish_beside_a_child, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    collector.stop()
    assert transfers(collector) == 1500
    assert collector.snapshot().pipeline.sources["gone"] == 2


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
    assert transfers(collector) == FLUSHED  # what was recorded after it is lost
    assert collector.snapshot().pipeline.sources["live"] == 1  # it said no goodbye


def test_a_script_that_ends_by_itself_delivers_everything(collector: Collector) -> None:
    run_script(f"from workers import publish; publish({collector.endpoint!r}, 500)")
    collector.stop()
    assert transfers(collector) == 500


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


def test_a_process_with_many_publishers_and_no_collector_ends_within_one_linger(ipc_endpoint: str) -> None:
    begun = time.monotonic()
    run_script(f"from workers import publish_with_many; publish_with_many({ipc_endpoint!r}, 8)")
    assert time.monotonic() - begun < 2 * LINGER_AND_MARGIN


def test_a_process_is_a_worker_as_long_as_it_publishes(ipc_endpoint: str) -> None:
    assert not has_kv_transfer_group()
    publisher = StatsPublisher(CONNECTOR, ipc_endpoint)
    assert has_kv_transfer_group()
    publisher.close(0)
    publisher.close(0)
    assert not has_kv_transfer_group()
