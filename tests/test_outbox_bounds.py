"""Laws of the outbox: whatever is observed is in exactly one report or counted as cut, and memory stays bounded."""

import gc
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer import Counter, Distribution, TransferStats
from kvxfer.connectors.multi import MultiKVConnectorStats
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.outbox import MAX_KEPT, MAX_KEPT_BYTES, Outbox
from kvxfer.wire import MAX_FRAME_BYTES, Ack, Report, Source, decode, decode_payload, encode_payload


def outbox(connector: str = "NixlConnector") -> Outbox:
    return Outbox(Source("id", "host", 1, 0.0), connector, 0.0)


def transfers(count: int, duration: float = 1.0) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for _ in range(count):
        stats.record_transfer(duration, 0.001, 1024, 2)
    return stats


def send(box: Outbox, most: int = 1 << 30) -> list[Report]:
    reports: list[Report] = []
    while len(reports) < most and (frame := box.next_frame) is not None:
        report = decode(frame)
        assert isinstance(report, Report)
        reports.append(report)
        box.sent(0.0)
        box.acknowledge(Ack(1, "c", report.seq), 0.0)
    return reports


steps = st.lists(
    st.tuples(st.just("observe"), st.integers(1, 130))
    | st.tuples(st.just("flush"), st.just(0))
    | st.tuples(st.just("send"), st.integers(1, 3)),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_whatever_is_observed_flushed_and_sent_in_whatever_order_arrives_once(steps: list[tuple[str, int]]) -> None:
    box, observed, reports = outbox(), 0, []
    for now, (step, number) in enumerate(steps):
        if step == "observe":
            box.observe(transfers(number), now)
            observed += number
        elif step == "flush":
            box.flush(now)
        else:
            reports += send(box, number)
    reports += send(box)
    if box.flush(len(steps)):
        reports += send(box)
    assert box.is_idle
    assert [report.seq for report in reports] == list(range(1, len(reports) + 1))
    assert [report.start for report in reports[1:]] == [report.end for report in reports[:-1]]
    arrived = [NixlConnectorStats(decode_payload(report.payload)) for report in reports]
    assert sum(stats.transfer_duration.count for stats in arrived) == observed
    assert sum(stats.transfer_duration.sum for stats in arrived) == observed


def test_bytes_that_wait_are_bounded_as_reports_are() -> None:
    box, width = outbox("OffloadingConnector"), 2000
    names = [f"metric-{number}" for number in range(25)]
    observed = 0
    for now in range(80):
        children = {(str(tier),): [float(width + now)] * 100 for tier in range(4)}
        payload: dict[str, Any] = {
            "types": dict.fromkeys(names, "histogram"),
            "data": dict.fromkeys(names, children),
        }
        box.observe(OffloadingConnectorStats(payload), now)
        box.flush(now)
        observed += 100
    assert box._kept_bytes < MAX_KEPT_BYTES + MAX_FRAME_BYTES
    assert len(box._kept) < MAX_KEPT
    reports = send(box)
    while box.flush(1000.0):
        reports += send(box)
    arrived = [OffloadingConnectorStats(decode_payload(report.payload)).reduce() for report in reports]
    assert sum(reduced["metric-7:('3',)_count"] for reduced in arrived) == observed
    assert sum(report.cut for report in reports) == 0


def crowded(kind: str, value: Any) -> OffloadingConnectorStats:
    """More label sets than fit into a report: 256 metrics of 100."""
    names = [f"metric-{number}" for number in range(256)]
    children = {(f"{number:060}",): value for number in range(100)}
    return OffloadingConnectorStats({"types": dict.fromkeys(names, kind), "data": dict.fromkeys(names, children)})


@pytest.mark.parametrize(("kind", "value"), [("counter", 1), ("gauge", 0.5)])
def test_what_does_not_fit_into_a_report_travels_in_several(kind: str, value: Any) -> None:
    box, whole = outbox("OffloadingConnector"), crowded(kind, value)
    whole.data["info"]["model"] = "m"
    assert len(bytes(encode_payload(whole.to_packed()))) > MAX_FRAME_BYTES
    box.observe(whole.copy(), 1.0)
    assert box.flush(2.0)
    reports = send(box)
    assert len(reports) > 1
    arrived = OffloadingConnectorStats()
    for report in reports:
        arrived.aggregate(OffloadingConnectorStats(decode_payload(report.payload)))
    assert arrived == whole
    assert [report.cut for report in reports] == [0] * len(reports)


class PeerStats(TransferStats):
    """Transfers with each of many peers."""

    duration = Distribution("s", "From request to last byte.", labels=("peer",))
    waited = Distribution("s", "Until there was a buffer.", labels=("peer",))
    size = Distribution("By", "Bytes.", labels=("peer",))
    num_misses = Counter("{page}", "Pages that were not there.")


@pytest.fixture
def small_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvxfer.outbox.MAX_PAYLOAD_BYTES", 100_000)


@pytest.mark.usefixtures("small_reports")
def test_label_sets_of_very_many_values_travel_in_several_reports_and_none_is_lost() -> None:
    box, random = outbox(), np.random.default_rng(0)
    stats, num_sets = PeerStats(), 100
    for peer in range(num_sets):
        for field in (stats.duration, stats.waited, stats.size):
            field.labels(str(peer)).load((10 ** random.uniform(-300, 300, 5000)).tolist())
    stats.num_misses.add(3)
    box.observe(stats.copy(), 1.0)
    assert box.flush(2.0)
    reports = send(box)
    assert len(reports) > 1
    arrived = PeerStats()
    for report in reports:
        arrived.aggregate(PeerStats(decode_payload(report.payload)))
    assert arrived.num_misses.value == 3
    for peer in range(num_sets):
        assert arrived.duration.labels(str(peer)).histogram() == stats.duration.labels(str(peer)).histogram()
    assert [report.cut for report in reports] == [0] * len(reports)
    assert [report.seq for report in reports] == list(range(1, len(reports) + 1))
    assert {(report.start, report.end) for report in reports} == {(0.0, 2.0)}


def test_children_too_large_for_a_report_travel_in_several() -> None:
    whole = MultiKVConnectorStats({name: crowded("counter", 1) for name in ("OffloadingConnector", "Other")})
    box = outbox("MultiConnector")
    box.observe(whole.copy(), 1.0)
    assert box.flush(2.0)
    reports = send(box)
    num_counters = sum(
        sum(map(len, child["data"].values())) for report in reports for child in decode_payload(report.payload).values()
    )
    assert (num_counters, sum(report.cut for report in reports)) == (2 * 256 * 100, 0)


@pytest.mark.usefixtures("small_reports")
def test_of_what_cannot_be_taken_apart_each_observation_is_counted_as_cut() -> None:
    class Whole(PeerStats):
        def split(self) -> Sequence[TransferStats]:
            return ()

    box, stats = outbox(), Whole()
    for peer in range(100):
        for field in (stats.duration, stats.waited, stats.size):
            field.labels(str(peer)).load((2.0 ** np.linspace(-1000, 1000, 5000)).tolist())
    box.observe(stats, 1.0)
    assert box.flush(2.0)
    assert [report.cut for report in send(box)] == [3 * 100 * 5000]


def test_stats_that_cannot_be_packed_are_cut_and_what_comes_after_them_is_sent() -> None:
    class Failing(PeerStats):
        def to_packed(self) -> dict[str, Any]:
            raise RuntimeError

    box, stats = outbox(), Failing()
    stats.num_misses.add(1)
    box.observe(stats, 1.0)
    assert box.flush(2.0)
    box.observe(transfers(1), 2.0)
    assert box.flush(3.0)
    assert [report.cut for report in send(box)] == [1, 0]


def test_a_cut_is_told_even_when_nothing_else_is_there_to_report() -> None:
    class Growing(KVConnectorStats):
        def is_empty(self) -> bool:
            return False

    box = outbox()
    box.observe(Growing({"durations": [0.5] * 200_000}), 1.0)
    assert repr(box) == "<Outbox open=0 unacked=0 sent=0 cut=200000>"
    assert not box.is_idle
    assert box.flush(2.0)
    assert repr(box) == "<Outbox open=0 unacked=1 (1..1) sent=0>"
    (report,) = send(box)
    assert (report.cut, decode_payload(report.payload)) == (200_000, {})
    assert box.is_idle


def test_an_hour_without_a_collector_takes_no_more_memory_than_its_first_minute_and_loses_no_count() -> None:
    box, every = outbox(), 0.25
    parts = [transfers(200, 2.0 ** (number % 7)) for number in range(7)]
    tracemalloc.start()
    held = {}
    for step in range(int(3600 / every)):
        now = step * every
        box.observe(parts[step % 7].copy(), now)
        box.flush(now)
        if step in (2 * MAX_KEPT, int(3600 / every) - 1):
            gc.collect()
            held[step] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    early, late = held.values()
    assert late < early + 50_000
    assert repr(box).startswith(f"<Outbox open={int(3600 / every) - MAX_KEPT} unacked=64 (1..64)")
    reports = send(box)
    assert box.flush(3600.0)
    counts = [NixlConnectorStats(decode_payload(each.payload)).transfer_duration.count for each in reports + send(box)]
    assert sum(counts) == 200 * 3600 / every
