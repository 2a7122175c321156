"""The worker's end over real sockets: what is recorded or pushed arrives, and nothing here harms the host."""

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from list_stats import ListStats

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.errors import ConfigError, EndpointError, UnknownConnectorError
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Interval
from kvxfer.publisher import StatsPublisher
from kvxfer.pushed import MAX_PUSHED

OFFLOADED: dict[str, Any] = {"types": {"hits": "counter"}, "data": {"hits": {(): 3}}}


class ListConnector:
    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ListStats:
        return ListStats(data or {})


class Keeping:
    """An exporter that keeps what it gets."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []

    def export(self, interval: Interval) -> None:
        self.intervals.append(interval)

    def close(self) -> None:
        pass


def collecting(endpoint: str) -> Collector:
    """A collector of one interval, which ends when it stops."""
    return Collector(CollectorConfig(endpoint=endpoint, group_by=(), interval_seconds=600.0), [Keeping()])


@pytest.fixture
def collector(ipc_endpoint: str) -> Iterator[Collector]:
    with collecting(ipc_endpoint) as running:
        yield running


@pytest.fixture
def list_connector(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(KVConnectorFactory._loaders, "ListConnector", lambda: ListConnector)
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})
    return "ListConnector"


def publisher(collector: Collector, connector: str = "NixlConnector", **options: Any) -> StatsPublisher:
    return StatsPublisher(connector, collector.endpoint, linger=10.0, **options)


def reduced(collector: Collector) -> dict[str, Any]:
    """What the one group holds when all is in."""
    collector.stop()
    keeping: Any = collector._exporters[0]._exporter
    (interval,) = keeping.intervals
    assert interval.pipeline.reports_rejected == {}
    assert interval.pipeline.reports_lost == 0
    assert len(interval.groups) <= 1
    return dict(interval.groups[0].stats.reduce()) if interval.groups else {}


def test_what_is_recorded_arrives_when_the_block_ends(collector: Collector) -> None:
    with publisher(collector) as worker:
        for _ in range(1000):
            worker.stats.record_transfer(0.5, 0.001, 1024, 2)
        worker.stats.record_failed_transfer()
    found = reduced(collector)
    assert (found["Num successful transfers"], found["Num failed transfers"]) == (1000, 1)


def test_the_thread_sends_by_itself(collector: Collector) -> None:
    worker = publisher(collector, flush_seconds=0.02)
    worker.stats.record_transfer(0.5, 0.001, 1024, 2)
    deadline = time.monotonic() + 10
    while not collector.snapshot().groups and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert collector.snapshot().groups[0].stats.reduce()["Num successful transfers"] == 1
    worker.close()


def test_a_flush_waits_until_what_was_recorded_and_pushed_is_acknowledged(collector: Collector) -> None:
    worker = publisher(collector, flush_seconds=60.0)
    worker.stats.record_transfer(0.5, 0.001, 1024, 2)
    worker.push(worker.stats.to_dict())
    assert worker.flush(timeout=10.0)
    assert "unacked=0" in repr(worker)
    assert worker.stats.is_empty()
    worker.close()
    assert reduced(collector)["Num successful transfers"] == 2


def test_what_was_pushed_is_a_copy_that_its_owner_may_change(collector: Collector) -> None:
    pushed = NixlConnectorStats()
    pushed.record_failed_transfer()
    with publisher(collector, flush_seconds=60.0) as worker:
        worker.push(pushed)
        pushed.record_failed_transfer()
        worker.push(pushed)
        pushed.reset()
    assert reduced(collector)["Num failed transfers"] == 3


def test_stats_written_for_vllm_are_pushed_as_they_are(collector: Collector, list_connector: str) -> None:
    with publisher(collector, list_connector) as worker:
        worker.push(ListStats({"durations": [1.5, 2.5]}))
        worker.push({"durations": [4.0]})
    assert reduced(collector) == {"Sum of durations": 8.0}


def test_what_is_recorded_into_the_stats_of_any_registered_connector_arrives(
    collector: Collector, list_connector: str
) -> None:
    with publisher(collector, list_connector) as worker:
        worker.stats.aggregate(ListStats({"durations": [1.5]}))
        assert worker.flush(timeout=10.0)
        worker.stats.aggregate(ListStats({"durations": [2.5]}))
    assert reduced(collector) == {"Sum of durations": 4.0}


@pytest.mark.parametrize("connector", ["OffloadingConnector", "MultiConnector"])
def test_what_is_recorded_into_stats_that_are_no_rows_arrives(collector: Collector, connector: str) -> None:
    with publisher(collector, connector) as worker:
        other = OffloadingConnectorStats(OFFLOADED)
        if connector == "MultiConnector":
            worker.stats.data["OffloadingConnector"] = other
        else:
            worker.stats.aggregate(other)
    found = reduced(collector)
    assert found == ({"hits": 3} if connector == "OffloadingConnector" else {"OffloadingConnector": {"hits": 3}})


def test_four_threads_that_record_and_one_that_flushes_lose_nothing(collector: Collector) -> None:
    with publisher(collector, flush_seconds=0.02) as worker:
        record = worker.stats.record_transfer
        threads = [threading.Thread(target=lambda: [record(1, 2, 3, 4) for _ in range(5_000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            worker.flush()
        for thread in threads:
            thread.join()
    collector.stop()
    stats: Any = collector.snapshot().groups[0].stats
    columns = (stats.transfer_duration, stats.post_duration, stats.bytes_transferred, stats.num_descriptors)
    assert [(column.count, column.sum) for column in columns] == [(20_000, n * 20_000) for n in (1, 2, 3, 4)]


def test_two_publishers_with_the_same_labels_are_two_ranks(collector: Collector) -> None:
    for _ in range(2):
        with publisher(collector, labels={"rank": "0"}) as worker:
            worker.stats.record_failed_transfer()
    collector.stop()
    snapshot = collector.snapshot()
    assert [group.num_ranks for group in snapshot.groups] == [2]
    assert len({view.source.id for view in snapshot.sources}) == 2
    assert [view.source.labels for view in snapshot.sources] == [{"rank": "0"}] * 2


def test_what_was_recorded_before_the_collector_came_arrives(ipc_endpoint: str) -> None:
    worker = StatsPublisher("NixlConnector", ipc_endpoint, linger=10.0)
    worker.stats.record_failed_transfer()
    assert not worker.flush()
    assert "unacked=1 (1..1) sent=0" in repr(worker)
    worker.stats.record_failed_transfer()
    with collecting(ipc_endpoint) as collector:
        worker.close()
    assert reduced(collector)["Num failed transfers"] == 2


def test_closing_without_a_collector_takes_no_longer_than_its_linger(ipc_endpoint: str) -> None:
    worker = StatsPublisher("NixlConnector", ipc_endpoint, linger=0.1)
    worker.stats.record_failed_transfer()
    begun = time.monotonic()
    worker.close()
    worker.close()
    assert time.monotonic() - begun < 2.0


def test_a_closed_publisher_takes_calls_and_opens_nothing_again(collector: Collector) -> None:
    worker = publisher(collector)
    worker.stats.record_failed_transfer()
    worker.close()
    worker.push({"num_failed_transfers": 1})
    worker.flush()
    worker.stats.record_failed_transfer()
    worker.close()
    assert worker._draining._delivering._sockets is None
    assert not worker._thread.is_alive()


def test_what_is_recorded_after_the_end_takes_no_memory(ipc_endpoint: str) -> None:
    worker = StatsPublisher("NixlConnector", ipc_endpoint, linger=0.0)
    record, fail = worker.stats.record_transfer, worker.stats.record_failed_transfer
    record(0.5, 0.001, 1024, 2)
    worker.close()
    for _ in range(1000):
        record(0.5, 0.001, 1024, 2)
        worker.stats.record_transfer(0.5, 0.001, 1024, 2)
        fail()
        worker.stats.num_failed_transfers.add(1)
        worker.stats.num_failed_notifications.add(1)
    assert not any(worker.stats._waiting)
    assert worker.stats.is_empty()


def test_who_pushes_faster_than_the_thread_takes_waits_for_nobody_and_all_is_counted(collector: Collector) -> None:
    with publisher(collector, flush_seconds=60.0) as worker:
        for _ in range(2000):
            worker.push({"num_failed_transfers": 1})
            assert len(worker._draining.pushed) <= MAX_PUSHED
    assert reduced(collector)["Num failed transfers"] == 2000


@pytest.mark.parametrize(
    "unreadable",
    [{"transfer_duration": {"a": 1}}, {"num_failed_transfers": "three"}, {"x": object()}, object(), None, 3],
    ids=["field", "count", "value", "object", "nothing", "number"],
)
def test_a_push_that_cannot_be_read_is_said_once_counted_as_cut_and_harms_nobody(
    collector: Collector, caplog: pytest.LogCaptureFixture, unreadable: Any
) -> None:
    with caplog.at_level(logging.WARNING, "kvxfer"), publisher(collector) as worker:
        worker.push({"num_failed_transfers": 1})
        worker.push(unreadable)
        worker.push(unreadable)
        worker.push({"num_failed_transfers": 1})
    (said,) = caplog.messages
    assert said.startswith("kvxfer cannot publish stats of NixlConnector")
    assert said.endswith("this is said once")
    assert reduced(collector)["Num failed transfers"] == 2
    assert collector.snapshot().pipeline.observations_cut == 2


def test_recording_what_cannot_be_sent_is_said_once_and_cut_and_what_comes_after_it_arrives(
    collector: Collector, list_connector: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kvxfer"), publisher(collector, list_connector) as worker:
        worker.stats.data["durations"] = [object(), 1.5]
        worker.flush(timeout=10.0)
        worker.stats.data["durations"] = [1.5]
        worker.push({"durations": [2.5]})
        assert worker.flush(timeout=10.0)
        assert len(worker._draining.pushed) == 0
    assert len(caplog.messages) == 1
    assert reduced(collector) == {"Sum of durations": 4.0}
    assert collector.snapshot().pipeline.observations_cut == 2


def test_stats_that_cannot_merge_are_cut_with_all_that_they_hold(
    collector: Collector, list_connector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(ListStats, "aggregate", refuse)
    with publisher(collector, list_connector, flush_seconds=60.0) as worker:
        for _ in range(2):
            worker.push({"durations": [1.5] * 40})
    collector.stop()
    assert collector.snapshot().pipeline.observations_cut == 40


def test_a_flush_while_another_thread_closes_does_not_say_that_nothing_is_left(ipc_endpoint: str) -> None:
    for _ in range(20):
        worker = StatsPublisher("NixlConnector", ipc_endpoint, linger=0.05)
        worker.stats.record_failed_transfer()
        closing = threading.Thread(target=worker.close)
        closing.start()
        assert not worker.flush()
        closing.join()
        assert not worker.flush()


def test_what_is_not_drained_yet_is_read_by_who_asks(collector: Collector) -> None:
    with publisher(collector, flush_seconds=60.0) as worker:
        for _ in range(100):
            worker.stats.record_transfer(0.5, 0.001, 1024, 2)
            assert not worker.stats.is_empty()
        assert worker.stats.reduce()["Num successful transfers"] == 100
        worker.stats.aggregate(worker.stats.copy())
        assert worker.stats.reduce()["Num successful transfers"] == 200


def test_a_connector_that_is_not_registered_is_an_error_where_its_stats_are_asked_for(ipc_endpoint: str) -> None:
    with StatsPublisher("TelepathyConnector", ipc_endpoint, linger=0.0) as worker:
        with pytest.raises(UnknownConnectorError, match=r"Connector 'TelepathyConnector' is not registered\."):
            _ = worker.stats
        worker.flush()


def test_stats_of_a_connector_that_only_the_worker_knows_are_rejected_counted_and_lost_when_it_ends(
    collector: Collector,
) -> None:
    other = StatsPublisher("TelepathyConnector", collector.endpoint, linger=0.2)
    with publisher(collector) as worker:
        other.push(ListStats({"durations": [1.0]}))
        worker.stats.record_failed_transfer()
        assert not other.flush(timeout=0.2)
        other.close()
    collector.stop()
    snapshot = collector.snapshot()
    assert snapshot.pipeline.reports_rejected == {"unknown_connector": 1}
    assert snapshot.pipeline.reports_lost == 1
    assert [group.stats.reduce()["Num failed transfers"] for group in snapshot.groups] == [1]


@pytest.mark.parametrize(
    "endpoint",
    [
        "inproc://x",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:notaport",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:*",
        f"ipc:///{'x' * 103}",
        "nonsense",
    ],
)
def test_an_endpoint_that_is_none_is_said_by_the_constructor(endpoint: str) -> None:
    with pytest.raises(EndpointError, match=r"expected ipc://PATH or tcp://HOST:PORT|has 104 bytes"):
        StatsPublisher("NixlConnector", endpoint).close(0.0)


@pytest.mark.parametrize("labels", [{"x" * 201: "v"}, {"rank": "v" * 201}, {f"label-{n}": "v" for n in range(17)}])
def test_labels_that_no_report_holds_are_said_by_the_constructor(ipc_endpoint: str, labels: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="a publisher has at most 16 labels of at most 200 characters"):
        StatsPublisher("NixlConnector", ipc_endpoint, labels)


def test_a_connector_whose_name_no_report_holds_is_said_by_the_constructor(ipc_endpoint: str) -> None:
    for name in ("", "x" * 201):
        with pytest.raises((ConfigError, UnknownConnectorError)):
            StatsPublisher(name, ipc_endpoint, linger=0.0).close()


def test_a_publisher_reads_itself(ipc_endpoint: str) -> None:
    with StatsPublisher("NixlConnector", ipc_endpoint, flush_seconds=60.0, linger=0.0) as worker:
        worker.push({"num_failed_transfers": 1})
        deadline = time.monotonic() + 10
        while "open=0" in repr(worker) and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert repr(worker) == (f"<StatsPublisher NixlConnector -> {ipc_endpoint} <Outbox open=1 unacked=0 sent=0>>")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_flush_interval_that_would_spin_or_never_come_is_said_by_the_constructor(
    ipc_endpoint: str, seconds: float
) -> None:
    with pytest.raises(ConfigError, match="flush_seconds"):
        StatsPublisher("NixlConnector", ipc_endpoint, flush_seconds=seconds, linger=0.0).close()


def test_where_no_thread_can_start_what_is_flushed_and_closed_is_sent_all_the_same(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        message = f"can't start new thread: {thread.name}"
        raise RuntimeError(message)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        worker = publisher(collector)
    worker.stats.record_transfer(0.001, 0.0001, 1024, 2)
    assert worker.flush(timeout=10)
    worker.stats.record_transfer(0.001, 0.0001, 1024, 2)
    worker.close()
    assert reduced(collector)["Num successful transfers"] == 2
    assert "can't start new thread: kvxfer-publisher" in caplog.text
