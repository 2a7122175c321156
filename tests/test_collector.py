"""The collector over real sockets: bad input is counted and costs nobody else anything, exporters are isolated."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sending import send_all

from kvxfer.aggregator import Aggregator
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.errors import EndpointError, JournalHeldError
from kvxfer.exporters.jsonl import JsonlExporter, read_records
from kvxfer.exporters.log import LogExporter
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Interval
from kvxfer.transport import CollectorSockets, PublisherSockets
from kvxfer.wire import Report, Source, encode, encode_payload

SOURCE = encode(Source("good", "host", 1, 0.0, {"engine": "e"}))
TWIN = encode(Source("good-2", "host", 3, 0.0, {"engine": "e"}))
NESTED = msgspec.Raw(b"\x81\xa1a" + b"\x91" * 500_000 + b"\xc0")


class Keeping:
    """An exporter that keeps what it gets."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self.closed = 0

    def export(self, interval: Interval) -> None:
        self.intervals.append(interval)

    def close(self) -> None:
        self.closed += 1


class Failing(Keeping):
    """An exporter that fails at everything."""

    def export(self, interval: Interval) -> None:
        super().export(interval)
        message = "the disk is full"
        raise OSError(message)

    def close(self) -> None:
        message = "still full"
        raise OSError(message)


class Hanging(Keeping):
    """An exporter that waits for a peer that does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = threading.Event()

    def export(self, interval: Interval) -> None:
        self.answered.wait(20)
        super().export(interval)


class BareConnector:
    """A connector of somebody else whose stats implement nothing of the contract."""

    @classmethod
    def build_kv_connector_stats(cls, data: Any = None) -> KVConnectorStats:
        return KVConnectorStats(data or {})


def transfers(*durations: float) -> dict[str, Any]:
    stats = NixlConnectorStats()
    for duration in durations:
        stats.record_transfer(duration, 0.001, 1024, 2)
    return stats.to_packed()


def report(seq: int, payload: Any = None, **changes: Any) -> bytes:
    raw = (
        payload if isinstance(payload, msgspec.Raw) else encode_payload(transfers(0.5) if payload is None else payload)
    )
    made = Report(1, SOURCE, "NixlConnector", seq, 100.0, 101.0, raw)
    return encode(msgspec.structs.replace(made, **changes))


def bad(**changes: Any) -> bytes:
    """A report of another source."""
    payload = changes.pop("payload", None)
    return report(1, payload, **({"source": encode(Source("bad", "host", 2, 0.0, {}))} | changes))


def send(endpoint: str, *frames: bytes) -> None:
    push = PublisherSockets(endpoint)
    send_all(push, *frames)
    push.close(10)


def config(endpoint: str, **changes: Any) -> CollectorConfig:
    return CollectorConfig(endpoint=endpoint, **changes)


def num_transfers(interval: Interval) -> int:
    return sum(
        group.stats.reduce()["Num successful transfers"]
        for group in interval.groups
        if group.connector == "NixlConnector" and group.labels == {"engine": "e"}
    )


BAD: dict[str, tuple[bytes, dict[str, int], int]] = {
    "unknown connector": (bad(connector="TelepathyConnector"), {"unknown_connector": 1}, 0),
    "unregistered child": (
        bad(connector="MultiConnector", payload={"TelepathyConnector": {}}),
        {"unknown_connector": 1},
        0,
    ),
    "malformed": (b"nonsense", {"undecodable": 1}, 0),
    "nothing": (b"", {"undecodable": 1}, 0),
    "truncated": (bad()[:-7], {"undecodable": 1}, 0),
    "wrong version": (bad(version=2), {"version": 1}, 0),
    "deep payload": (bad(payload=NESTED), {"undecodable": 1}, 0),
    "deep frame": (b"\x98" * 1_000_000, {"undecodable": 1}, 0),
    "duration that is no number": (bad(payload={"transfer_duration": [float("nan")]}), {}, 1),
    "infinite duration": (bad(payload={"transfer_duration": [float("inf")]}), {}, 1),
    "negative duration": (bad(payload={"transfer_duration": [-0.5]}), {}, 1),
    "negative duration, packed": (bad(payload={"transfer_duration": b"\x00" + b"\x00" * 7 + b"\xbf"}), {}, 1),
    "negative bytes": (bad(payload={"bytes_transferred": [-1]}), {}, 1),
    "negative count": (bad(payload={"num_failed_transfers": -1}), {}, 1),
    "times that are none": (bad(start=float("nan")), {"implausible": 1}, 0),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_counted_and_the_reports_around_it_all_arrive(name: str, ipc_endpoint: str) -> None:
    frame, rejected, refused = BAD[name]
    with Collector(config(ipc_endpoint)) as collector:
        send(ipc_endpoint, report(1), frame, report(2))
    snapshot = collector.snapshot()
    assert num_transfers(snapshot) == 2
    assert snapshot.pipeline.reports_rejected == rejected
    assert snapshot.pipeline.observations_rejected == refused
    assert snapshot.pipeline.reports_received == 3 - sum(rejected.values())


def test_reports_doubled_and_out_of_order_with_a_clock_an_hour_off_count_once(ipc_endpoint: str) -> None:
    with Collector(config(ipc_endpoint)) as collector:
        send(ipc_endpoint, report(3), report(1), report(3), report(2, end=1e12), report(1, source=TWIN, start=-3600.0))
    snapshot = collector.snapshot()
    assert num_transfers(snapshot) == 4
    assert [group.num_ranks for group in snapshot.groups] == [2]
    assert (snapshot.pipeline.reports_received, snapshot.pipeline.reports_duplicate) == (4, 1)


def test_a_huge_frame_costs_its_sender_the_connection_and_nobody_else_anything(ipc_endpoint: str) -> None:
    with Collector(config(ipc_endpoint)) as collector:
        send(ipc_endpoint, report(1))
        liar = PublisherSockets(ipc_endpoint)
        send_all(liar, bytes((1 << 20) + 1))
        send(ipc_endpoint, report(2))
        liar.close(0)
    assert num_transfers(collector.snapshot()) == 2


def test_a_connector_class_that_fails_does_not_end_the_collector(
    ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KVConnectorFactory._loaders, "BareConnector", lambda: BareConnector)
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})
    collector = Collector(config(ipc_endpoint))
    try:
        send(ipc_endpoint, report(1), bad(connector="BareConnector"), report(2))
        for _ in range(20):
            collector.poll(0.05)
        snapshot = collector.snapshot()
    finally:
        collector.stop()
    assert num_transfers(snapshot) == 2
    assert snapshot.pipeline.reports_rejected == {"connector_failed": 1}


def test_a_collector_that_fails_gives_its_endpoint_free(ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(*arguments: object) -> None:
        raise ZeroDivisionError(arguments)

    collector = Collector(config(ipc_endpoint))
    monkeypatch.setattr(Aggregator, "feed_all", feed)
    try:
        send(ipc_endpoint, report(1))
        with pytest.raises(ZeroDivisionError):
            collector.run()
        CollectorSockets(ipc_endpoint).close()
    finally:
        collector.stop()


def test_an_interval_goes_to_every_exporter_and_the_last_one_is_finished_by_stopping(ipc_endpoint: str) -> None:
    exporters = Keeping(), Keeping()
    collector = Collector(config(ipc_endpoint, interval_seconds=0.05), exporters)
    send(ipc_endpoint, report(1))
    while not exporters[0].intervals or not exporters[0].intervals[-1].groups:
        collector.poll(0.05)
    send(ipc_endpoint, report(2))
    collector.stop()
    collector.stop()
    assert exporters[0].intervals == exporters[1].intervals
    assert [exporter.closed for exporter in exporters] == [1, 1]
    intervals = exporters[0].intervals
    assert sum(map(num_transfers, intervals)) == 2
    assert [later.start for later in intervals[1:]] == [earlier.end for earlier in intervals[:-1]]


def test_an_exporter_that_fails_is_logged_once_counted_each_time_and_costs_the_others_nothing(
    ipc_endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing, keeping = Failing(), Keeping()
    collector = Collector(config(ipc_endpoint, interval_seconds=0.01), [failing, keeping])
    with caplog.at_level(logging.ERROR, "kvxfer"):
        while len(keeping.intervals) < 3:
            collector.poll(0.02)
        send(ipc_endpoint, report(1))
        collector.stop()
    assert len(failing.intervals) == len(keeping.intervals)
    assert num_transfers(keeping.intervals[-1]) == 1
    assert collector.snapshot().pipeline.exports_failed == len(failing.intervals) + 1
    assert keeping.closed == 1
    (record,) = caplog.records
    assert record.getMessage() == "Failing failed; later failures are only counted"
    assert "the disk is full" in caplog.text


def test_an_exporter_that_hangs_holds_up_neither_the_others_nor_collecting_nor_the_end(
    ipc_endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvxfer.collector._EXPORT_SECONDS", 0.2)
    hanging, keeping = Hanging(), Keeping()
    collector = Collector(config(ipc_endpoint, interval_seconds=0.01), [hanging, keeping])
    seq = 0
    while len(keeping.intervals) < 20:
        seq += 1
        send(ipc_endpoint, report(seq))
        collector.poll(0.02)
    start = time.monotonic()
    collector.stop()
    assert time.monotonic() - start < 5
    assert sum(map(num_transfers, keeping.intervals)) == num_transfers(collector.snapshot()) == seq
    # One is in its hands, eight wait; the rest it has missed, and the end.
    assert hanging.intervals == []
    assert collector.snapshot().pipeline.exports_failed == len(keeping.intervals) - 9 + 1
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [message.partition(";")[0] for message in said] == ["Hanging takes longer for an interval than that lasts"]
    hanging.answered.set()


def test_an_exporter_that_is_slow_has_what_waited_for_it_in_the_end(ipc_endpoint: str) -> None:
    hanging, keeping = Hanging(), Keeping()
    collector = Collector(config(ipc_endpoint, interval_seconds=0.01), [hanging, keeping])
    while len(keeping.intervals) < 5:
        collector.poll(0.02)
    hanging.answered.set()
    send(ipc_endpoint, report(1))
    collector.stop()
    assert hanging.intervals == keeping.intervals
    assert (hanging.closed, collector.snapshot().pipeline.exports_failed) == (1, 0)


def test_a_snapshot_from_another_thread_is_a_copy(ipc_endpoint: str) -> None:
    with Collector(config(ipc_endpoint)) as collector:
        send(ipc_endpoint, report(1))
        waited = threading.Event()
        while not (groups := collector.snapshot().groups):
            waited.wait(0.01)
        groups[0].stats.reset()
        assert num_transfers(collector.snapshot()) == 1


def test_a_taken_endpoint_is_an_error_and_leaves_the_first_collector_as_it_was(ipc_endpoint: str) -> None:
    with Collector(config(ipc_endpoint)) as collector:
        with pytest.raises(EndpointError, match="stop it or choose another endpoint"):
            Collector(config(ipc_endpoint))
        send(ipc_endpoint, report(1))
    assert num_transfers(collector.snapshot()) == 1


def test_over_tcp_all_is_the_same_and_the_port_is_told() -> None:
    with Collector(config("tcp://127.0.0.1:*")) as collector:
        with pytest.raises(EndpointError, match="another process listens there"):
            Collector(config(collector.endpoint))
        send(collector.endpoint, report(1), b"nonsense", report(2))
    snapshot = collector.snapshot()
    assert num_transfers(snapshot) == 2
    assert snapshot.pipeline.reports_rejected == {"undecodable": 1}


@pytest.mark.parametrize("endpoint", ["ipc:///" + "x" * 103, "ipc://@abstract", "ipc://*", "ipc://a\0b", "udp://x:1"])
def test_an_endpoint_that_cannot_be_bound_is_an_endpoint_error(
    endpoint: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EndpointError):
        Collector(config(endpoint)).stop()
    assert list(tmp_path.iterdir()) == []


def test_a_path_of_103_bytes_is_bound_and_reached(ipc_endpoint: str) -> None:
    directory = ipc_endpoint.removesuffix("c.ipc")
    endpoint = directory + "c" * (103 - len(directory.removeprefix("ipc://")))
    with Collector(config(endpoint)) as collector:
        send(endpoint, report(1))
    assert num_transfers(collector.snapshot()) == 1


def test_a_collector_that_is_stopped_and_started_again_goes_on_with_its_journal(
    ipc_endpoint: str, tmp_path: Path
) -> None:
    kept, exporter = config(ipc_endpoint, journal=str(tmp_path / "journal.db")), Keeping()
    with Collector(kept, [exporter]) as first:
        send(ipc_endpoint, report(1), report(2), b"nonsense")
    with Collector(kept, [exporter]) as second:
        assert num_transfers(second.snapshot()) == 2
        send(ipc_endpoint, report(2), report(3), b"nonsense")
    assert first.id != second.id
    assert num_transfers(second.snapshot()) == 3
    assert second.snapshot().start == first.snapshot().start
    pipeline = second.snapshot().pipeline
    assert (pipeline.reports_received, pipeline.reports_duplicate) == (3, 1)
    assert pipeline.reports_rejected == {"undecodable": 2}
    assert [num_transfers(interval) for interval in exporter.intervals] == [2, 1]
    assert exporter.intervals[1].start == exporter.intervals[0].end


def test_while_an_interval_is_written_no_report_is_waited_for(
    ipc_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvxfer.collector._STEP_SECONDS", 0.0)
    collector = Collector(config(ipc_endpoint, journal=str(tmp_path / "journal.db"), interval_seconds=0.3))
    drain, timeouts = collector._sockets.drain, list[float]()

    def noted(timeout: float) -> list[bytes]:
        timeouts.append(timeout)
        return drain(timeout)

    monkeypatch.setattr(collector._sockets, "drain", noted)
    while not collector._commits.is_writing:
        collector.poll(0.1)
    timeouts.clear()
    collector.poll(60.0)
    collector.stop()
    assert timeouts[0] == 0.0


def test_a_journal_that_is_in_use_is_an_error_that_gives_the_endpoint_free(ipc_endpoint: str, tmp_path: Path) -> None:
    held = config(f"{ipc_endpoint}2", journal=str(tmp_path / "journal.db"))
    with Collector(held):
        with pytest.raises(JournalHeldError):
            Collector(config(ipc_endpoint, journal=held.journal))
        CollectorSockets(ipc_endpoint).close()


def test_a_collector_reads_itself(ipc_endpoint: str) -> None:
    with Collector(config(ipc_endpoint)) as collector:
        send(ipc_endpoint, report(1), report(1), b"nonsense")
    assert repr(collector) == (
        f"<Collector {ipc_endpoint} <Aggregator sources=1 received=1 duplicate=1 rejected=1 lost=0>>"
    )


@pytest.mark.parametrize(
    "name", ["reduce", "aggregate", "fold", "is_empty", "data", "_lock", "_waiting", "record_transfer"]
)
def test_a_field_that_is_named_as_a_part_of_the_stats_spoils_nobody_elses_numbers(name: str, ipc_endpoint: str) -> None:
    lines: list[str] = []
    with Collector(config(ipc_endpoint), [LogExporter(lines.append)]) as collector:
        send(ipc_endpoint, report(1), bad(source=TWIN, payload={name: 3}), report(2))
    assert num_transfers(collector.snapshot()) == 2
    assert [line.partition(",")[0] for line in lines] == ["KV Transfer metrics: Num successful transfers=2"]
    assert collector.snapshot().pipeline.exports_failed == 0


@pytest.mark.parametrize(
    "payload",
    [{("a", "b"): 3}, {(): [1.5]}, {3: 4}, {b"x": 1}, {True: 1}, {0.5: [1]}, {"\0": 3}, {"x" * 10_000: 3}],
    ids=lambda payload: repr(payload)[:20],
)
def test_a_field_whose_name_is_no_word_costs_nobody_their_record(
    payload: dict[Any, Any], ipc_endpoint: str, tmp_path: Path
) -> None:
    with Collector(config(ipc_endpoint), [JsonlExporter(tmp_path / "a.jsonl")]) as collector:
        send(ipc_endpoint, report(1), bad(source=TWIN, payload=payload), report(2))
    (record,) = read_records(tmp_path / "a.jsonl")
    assert [group["reduced"]["Num successful transfers"] for group in record["groups"]] == [2]
    assert num_transfers(collector.snapshot()) == 2
