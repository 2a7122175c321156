"""Forks: each process counts its own rows once, as a source of its own, and none hangs or disturbs another."""

import os
import signal
import threading
from pathlib import Path

import pytest
from workers import CONNECTOR, FLUSHED, PENDING, in_a_fork, record_into, run_script, transfers, wait_until

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.publisher import StatsPublisher

# From 3.12 on Python warns of every fork in a process with threads, which a collector's process has.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")


def test_plain_forks_that_end_by_sys_exit_deliver_everything_each_as_a_source(collector: Collector) -> None:
    run_script(f"from workers import fork_and_exit; fork_and_exit({collector.endpoint!r}, 2)")
    collector.stop()
    # The first process 100 + 10, its child 10 + 10, the child of that 10.
    assert transfers(collector) == 140
    assert collector.snapshot().pipeline.sources["gone"] == 3


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


def test_forks_of_a_parent_that_records_and_flushes_in_threads_lose_nothing_on_either_side(
    collector: Collector,
) -> None:
    publisher = StatsPublisher(CONNECTOR, collector.endpoint, flush_seconds=0.01)
    stats = publisher.stats
    stop = threading.Event()
    recorded = [0, 0]

    def work(number: int) -> None:
        while not stop.is_set():
            record_into(stats, 100)
            recorded[number] += 100
            stop.wait(0.001)  # two threads that never pause are faster than their rows are folded: some would be cut

    def flush() -> None:
        while not stop.is_set():
            publisher.flush(0.001)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    threads.append(threading.Thread(target=flush))
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


def test_forks_within_forks_under_load_lose_nothing_in_any_of_them(collector: Collector) -> None:
    recorded = run_script(f"from workers import fork_under_load; fork_under_load({collector.endpoint!r}, 3)")
    collector.stop()
    assert len(recorded.split()) == 4
    assert transfers(collector) == sum(map(int, recorded.split()))
    assert collector.snapshot().pipeline.sources == {"live": 0, "silent": 0, "gone": 4}


def leave_at_once() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def test_children_that_leave_at_once_take_nothing_from_their_parent(collector: Collector) -> None:
    with StatsPublisher(CONNECTOR, collector.endpoint, flush_seconds=600) as publisher:
        for _ in range(20):
            record_into(publisher.stats, 1)
            leave_at_once()
            assert publisher.flush(timeout=10)
        assert (publisher.delivery.reports, publisher.delivery.resent) == (20, 0)
    collector.stop()
    assert transfers(collector) == 20
    assert collector.snapshot().pipeline.sources == {"live": 0, "silent": 0, "gone": 1}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not acknowledged is sent again soon."""
    monkeypatch.setattr("kvxfer.outbox.RESEND_SECONDS", 0.3)


@pytest.mark.usefixtures("impatient")
def test_a_child_that_holds_both_ends_of_a_connection_keeps_its_parent_from_no_new_collector(ipc_endpoint: str) -> None:
    read_end, write_end = os.pipe()
    publisher = StatsPublisher(CONNECTOR, ipc_endpoint)
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as first:
        record_into(publisher.stats, 1)
        assert publisher.flush(timeout=10)
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
    try:
        with Collector(CollectorConfig(endpoint=ipc_endpoint)) as second:
            record_into(publisher.stats, 2)
            assert publisher.flush(timeout=10)
        publisher.close(0)
        assert (transfers(first), transfers(second)) == (1, 2)
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(pid, 0)


def test_a_child_that_is_forked_while_its_parent_closes_records_and_leaves_without_hanging(ipc_endpoint: str) -> None:
    publisher = StatsPublisher(CONNECTOR, ipc_endpoint)
    stats = publisher.stats
    closing = threading.Thread(target=publisher.close, args=(0.5,))

    def child() -> None:
        stats.record_failed_transfer()
        assert stats.num_failed_transfers.value == 0  # nobody would drain it
        publisher.push(stats)
        publisher.flush(10)
        publisher.close(10)

    with stats._lock:
        closing.start()
        wait_until(lambda: publisher._is_closing)
        # Forked from another thread, the locks' owner is not there in the child.
        forking = threading.Thread(target=in_a_fork, args=(child,))
        forking.start()
        forking.join()
    closing.join()
    in_a_fork(child)


def test_a_fork_while_another_thread_makes_a_publisher_leaves_those_that_are_made_to_the_child(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [StatsPublisher(CONNECTOR, collector.endpoint) for _ in range(5)]
    parent, forked = os.getpid(), []

    def child() -> None:
        for publisher in made:
            record_into(publisher.stats, 1)
            publisher.close(10)

    def fork_in_the_middle() -> str:
        if os.getpid() == parent and not forked:
            forked.append(True)
            in_a_fork(child)
        return "host"

    monkeypatch.setattr("kvxfer.publisher.platform.node", fork_in_the_middle)
    monkeypatch.setattr("sys.unraisablehook", lambda _: os._exit(3))
    made.append(StatsPublisher(CONNECTOR, collector.endpoint))
    for publisher in made:
        publisher.close(10)
    collector.stop()
    assert transfers(collector) == 5


@pytest.mark.parametrize(("ending", "saved"), [("become", 0), ("close", PENDING)])
def test_a_program_that_becomes_another_hands_on_nothing_and_what_it_flushed_or_closed_is_counted(
    collector: Collector, ending: str, saved: int
) -> None:
    call = f"publish_and_become_another({collector.endpoint!r}, {ending!r})"
    held = run_script(f"from workers import publish_and_become_another; {call}")
    assert held.strip() == "[]"
    collector.stop()
    assert transfers(collector) == FLUSHED + saved + 1
    gone = 2 if saved else 1  # who is replaced says no goodbye
    assert collector.snapshot().pipeline.sources == {"live": 2 - gone, "silent": 0, "gone": gone}


@pytest.mark.usefixtures("impatient")
def test_a_collecting_program_that_becomes_another_gives_endpoint_and_journal_free(
    ipc_endpoint: str, tmp_path: Path
) -> None:
    journal = str(tmp_path / "journal.db")
    call = f"collect_and_become_another({ipc_endpoint!r}, {journal!r})"
    with StatsPublisher(CONNECTOR, ipc_endpoint, flush_seconds=0.05) as publisher:
        record_into(publisher.stats, 1)
        script = threading.Thread(target=run_script, args=(f"from workers import collect_and_become_another; {call}",))
        script.start()
        wait_until(lambda: publisher.delivery.unacknowledged == 0 < publisher.delivery.reports)
        record_into(publisher.stats, 1)
        script.join()
