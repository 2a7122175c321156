"""What was pushed waits for the thread, in bounded memory, and nobody waits with it."""

import threading
import time
from typing import Any

import pytest
from list_stats import ListStats

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.delivering import Delivering
from kvxfer.publisher import StatsPublisher
from kvxfer.pushed import MAX_PUSHED, Pushed

ONE_TRANSFER: dict[str, Any] = {
    "transfer_duration": [0.5],
    "post_duration": [0.001],
    "bytes_transferred": [1024],
    "num_descriptors": [2],
}


def test_no_push_waits_for_a_thread_that_is_held_up_and_all_of_it_arrives_afterwards(
    ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, released = threading.Event(), threading.Event()
    exchange = Delivering.exchange

    def hold(*given: Any) -> None:
        held.set()
        released.wait(60)
        exchange(*given)

    monkeypatch.setattr(Delivering, "exchange", hold)
    collector = Collector(CollectorConfig(endpoint=ipc_endpoint, group_by=()))
    with collector, StatsPublisher("NixlConnector", ipc_endpoint, flush_seconds=0.01) as worker:
        assert held.wait(10)
        began = time.monotonic()
        threads = [threading.Thread(target=push_many, args=(worker, 500)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        assert MAX_PUSHED <= len(worker._draining.pushed) <= MAX_PUSHED + len(threads)
        released.set()
        assert worker.flush(10)
    assert took < 20  # one push that waits does so for a second: a thousand take less than 1 s
    (group,) = collector.snapshot().groups
    assert group.stats.reduce()["Num failed transfers"] == 1000
    assert group.stats.reduce()["Num successful transfers"] == 1000


def push_many(worker: StatsPublisher, number: int) -> None:
    for _ in range(number):
        worker.push({**ONE_TRANSFER, "num_failed_transfers": 1})


def test_of_stats_that_only_grow_what_comes_while_the_thread_is_held_up_is_cut_and_counted() -> None:
    pushed = Pushed()
    for _ in range(MAX_PUSHED + 2):
        pushed.put(ListStats({"durations": [1.5, 2.5]}))
    pushed.count_cut(1)
    assert len(pushed) == MAX_PUSHED
    assert pushed.take_cut() == 5
    assert pushed.take_cut() == 0


def test_threads_that_put_while_another_takes_lose_nothing_and_nothing_is_taken_twice() -> None:
    pushed = Pushed()
    putting = [threading.Thread(target=put_many, args=(pushed, 2000)) for _ in range(3)]
    for thread in putting:
        thread.start()
    taken = NixlConnectorStats()
    while any(thread.is_alive() for thread in putting) or pushed:
        part = pushed.take()
        if part is not None:
            taken.aggregate(part)
    assert taken.reduce()["Num failed transfers"] == 6000
    assert pushed.take_cut() == 0


def put_many(pushed: Pushed, number: int) -> None:
    for _ in range(number):
        pushed.put(NixlConnectorStats({"num_failed_transfers": 1}))
