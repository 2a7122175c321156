"""The collector's state machine: what is counted once, what is refused, and that it costs nobody else anything."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer import CollectorConfig
from kvxfer.aggregator import Aggregator
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Interval
from kvxfer.wire import Goodbye, Report, Source, encode, encode_payload


def source(name: str = "a", **labels: str) -> bytes:
    return encode(Source(name, "host", 1, 0.0, labels))


def transfers(*durations: float) -> dict[str, Any]:
    stats = NixlConnectorStats()
    for duration in durations:
        stats.record_transfer(duration, 0.001, 1024, 2)
    return stats.to_packed()


def report(seq: int, payload: Any = None, *, by: bytes | None = None, **changes: Any) -> bytes:
    packed = encode_payload(transfers(0.5) if payload is None else payload)
    made = Report(1, by or source(), "NixlConnector", seq, 100.0, 101.0, packed)
    return encode(msgspec.structs.replace(made, **changes))


def aggregator(**config: Any) -> Aggregator:
    return Aggregator(CollectorConfig(interval_seconds=10.0, **config), 100.0)


def fed(*frames: bytes, **config: Any) -> Aggregator:
    made = aggregator(**config)
    for frame in frames:
        made.feed(frame, 105.0)
    return made


def num_transfers(interval: Interval) -> list[int]:
    return [group.stats.reduce()["Num successful transfers"] for group in interval.groups]


def test_an_interval_closes_when_it_is_due_and_holds_what_came_in_it() -> None:
    made = fed(report(1), report(2))
    assert made.tick(109.9) == []
    (interval,) = made.tick(110.0)
    assert (interval.start, interval.end, interval.seconds) == (100.0, 110.0, 10.0)
    assert num_transfers(interval) == [2]
    assert num_transfers(made.close_interval(111.0)) == []
    assert made.due == 120.0


def test_intervals_that_were_missed_are_not_made_up_for() -> None:
    made = fed(report(1))
    (interval,) = made.tick(147.0)
    assert interval.seconds == 47.0
    assert made.due == 150.0


def test_a_report_twice_changes_nothing_and_is_counted() -> None:
    made = fed(report(1), report(1), report(2), report(1))
    assert num_transfers(made.snapshot(106.0)) == [2]
    assert made.pipeline(106.0).reports_duplicate == 2
    assert made.pipeline(106.0).reports_received == 2


def test_reports_out_of_order_are_all_counted_once() -> None:
    made = fed(report(3), report(1), report(2), report(3))
    assert num_transfers(made.snapshot(106.0)) == [3]
    assert made.pipeline(106.0).reports_duplicate == 1


def test_a_gap_is_lost_when_its_source_says_goodbye_and_found_again_if_it_comes_after_all() -> None:
    made = fed(report(1), report(4))
    assert made.pipeline(106.0).reports_lost == 0
    made.feed(encode(Goodbye(1, source(), 5)), 106.0)
    assert made.pipeline(106.0).reports_lost == 3
    made.feed(report(2), 106.0)
    assert made.pipeline(106.0).reports_lost == 2


def test_two_publishers_with_the_same_labels_are_two_ranks_of_one_group() -> None:
    made = fed(report(1, by=source("a", engine="e")), report(1, by=source("b", engine="e")))
    (group,) = made.snapshot(106.0).groups
    assert (group.labels, group.num_ranks, group.stats.reduce()["Num successful transfers"]) == ({"engine": "e"}, 2, 2)


def test_a_worker_whose_clock_is_an_hour_off_counts_now_and_shows_its_offset() -> None:
    made = fed(report(1, start=100.0 - 3600, end=101.0 - 3600), report(1, by=source("b")))
    (interval,) = made.tick(110.0)
    assert num_transfers(interval) == [2]
    assert interval.seconds == 10.0
    assert [view.clock_offset_seconds for view in interval.sources] == [3604.0, 4.0]


def test_labels_that_are_grouped_by_part_the_groups_and_others_do_not() -> None:
    sources = [source(str(n), engine=f"e{n % 2}", rank=str(n)) for n in range(4)]
    made = fed(*(report(1, by=by) for by in sources))
    assert [group.labels for group in made.snapshot(106.0).groups] == [{"engine": "e0"}, {"engine": "e1"}]
    one = fed(*(report(1, by=by) for by in sources), group_by=())
    assert num_transfers(one.snapshot(106.0)) == [4]


def test_sources_beyond_the_views_count_in_their_group() -> None:
    made = fed(*(report(seq, by=source(f"s{n}")) for seq in (1, 2) for n in range(5)), max_source_views=2)
    (interval,) = made.tick(110.0)
    assert len(interval.sources) == 2
    assert (num_transfers(interval), interval.groups[0].num_ranks) == ([10], 5)
    assert num_transfers(made.snapshot(111.0)) == [10]


def test_sources_that_come_and_go_within_an_interval_leave_no_ranks_behind() -> None:
    made = aggregator(max_sources=2)
    for number in range(100):
        by = source(f"s{number}")
        made.feed(report(1, by=by), 105.0)
        made.feed(encode(Goodbye(1, by, 1)), 105.0)
    assert made.close_interval(110.0).groups[0].num_ranks == 100
    assert made.snapshot(110.0).groups[0].num_ranks == 2


def test_a_source_over_the_cap_is_counted_and_the_rest_go_on() -> None:
    made = fed(*(report(1, by=source(f"s{n}")) for n in range(5)), max_sources=3)
    assert made.pipeline(106.0).reports_rejected == {"too_many_sources": 2}
    assert num_transfers(made.snapshot(106.0)) == [3]
    made.feed(encode(Goodbye(1, source("s0"), 1)), 106.0)
    made.feed(report(1, by=source("s9")), 106.0)
    assert num_transfers(made.snapshot(107.0)) == [4]


def test_the_snapshot_is_the_sum_of_the_intervals_and_what_is_open() -> None:
    made = fed(report(1, transfers(0.25, 0.5)))
    made.close_interval(110.0)
    made.feed(report(2, transfers(1.0)), 111.0)
    snapshot = made.snapshot(112.0)
    (group,), (view,) = snapshot.groups, snapshot.sources
    assert (snapshot.start, snapshot.end) == (100.0, 112.0)
    assert group.stats.transfer_duration.sum == view.stats.transfer_duration.sum == 1.75
    assert num_transfers(made.close_interval(113.0)) == [1]


def test_what_an_interval_holds_does_not_change_with_what_comes_later() -> None:
    made = fed(report(1), report(1, by=source("b")))
    interval = made.close_interval(110.0)
    made.feed(report(2), 111.0)
    made.close_interval(120.0)
    assert num_transfers(interval) == [2]
    assert [view.stats.reduce()["Num successful transfers"] for view in interval.sources] == [1, 1]


def test_a_gauge_keeps_what_came_last_over_several_sources() -> None:
    def usage(value: float) -> dict[str, Any]:
        return {"types": {"usage": "gauge"}, "data": {"usage": {(): value}}}

    kind = {"connector": "OffloadingConnector"}
    made = fed(
        report(1, usage(0.1), **kind), report(1, usage(0.2), by=source("b"), **kind), report(2, usage(0.3), **kind)
    )
    (group,) = made.snapshot(106.0).groups
    assert group.stats.reduce() == {"usage": 0.3}


BAD: dict[str, tuple[bytes, str]] = {
    "no message": (b"nonsense", "undecodable"),
    "truncated": (report(1)[:-2], "undecodable"),
    "huge": (b"\x00" * (1 << 20) + b"\x00", "undecodable"),
    "deep": (b"\x92" * 100_000, "undecodable"),
    "deep payload": (report(1, payload=None)[:-100] + b"\x91" * 100, "undecodable"),
    "wrong version": (report(1, version=9), "version"),
    "unknown connector": (report(1, connector="TelepathyConnector"), "unknown_connector"),
    "a module's name": (report(1, connector="os.system"), "unknown_connector"),
    "unregistered child": (report(1, {"Telepathy": {}}, connector="MultiConnector"), "unknown_connector"),
    "multi in multi": (report(1, {"MultiConnector": {}}, connector="MultiConnector"), "implausible"),
    "payload that is no dict": (report(1, [1, 2]), "undecodable"),
    "field of another form": (report(1, {"transfer_duration": {"a": 1}}), "implausible"),
    "packed nonsense": (report(1, {"transfer_duration": b"\x01\x02\x03"}), "implausible"),
    "labels that are none": (report(1, {"types": [], "data": 3}, connector="OffloadingConnector"), "implausible"),
    "time that is none": (report(1, start=math.nan), "implausible"),
    "source that is none": (report(1, source=b"\xc1"), "undecodable"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_peer_does_wrong_is_counted_by_cause_and_costs_nobody_else_anything(name: str) -> None:
    frame, cause = BAD[name]
    made = fed(report(1, by=source("b")), frame, frame, report(2, by=source("b")))
    assert made.pipeline(106.0).reports_rejected == {cause: 2}
    assert num_transfers(made.snapshot(106.0)) == [2]
    assert num_transfers(made.close_interval(110.0)) == [2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0])
def test_values_that_cannot_be_true_are_refused_one_by_one_and_counted(bad: float) -> None:
    payload = {
        "transfer_duration": [0.5, bad, 0.25],
        "post_duration": [0.1] * 3,
        "bytes_transferred": [1024, 1024, 1024],
        "num_descriptors": [1] * 3,
    }
    made = fed(report(1, payload), report(2, {"num_failed_transfers": [1, bad]}))
    (group,) = made.snapshot(106.0).groups
    assert group.stats.reduce()["Num successful transfers"] == 2
    assert group.stats.reduce()["Num failed transfers"] == 1
    assert made.pipeline(106.0).observations_rejected == 2
    assert made.pipeline(106.0).reports_rejected == {}


def test_a_connector_class_that_fails_is_counted_and_the_others_go_on() -> None:
    KVConnectorFactory._loaders["BrokenConnector"] = lambda: BrokenConnector  # type: ignore[assignment, return-value]
    try:
        made = fed(report(1), report(1, by=source("b"), connector="BrokenConnector"), report(2))
    finally:
        del KVConnectorFactory._loaders["BrokenConnector"]
        KVConnectorFactory._classes.pop("BrokenConnector", None)
    assert made.pipeline(106.0).reports_rejected == {"connector_failed": 1}
    assert num_transfers(made.close_interval(110.0)) == [2]


class BrokenConnector:
    @classmethod
    def build_kv_connector_stats(cls, data: Any = None) -> None:
        raise ZeroDivisionError(str(data))


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["NixlConnector", "OffloadingConnector", "MultiConnector"]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_mutated_reports_never_raise_and_good_ones_in_between_count_once(
    connector: str, changes: list[tuple[int, int]]
) -> None:
    payloads: dict[str, Any] = {
        "NixlConnector": transfers(0.5, 0.25),
        "OffloadingConnector": {
            "types": {"a": "counter", "b": "histogram"},
            "data": {"a": {(): 1}, "b": {("x",): [2]}},
        },
    }
    payloads["MultiConnector"] = dict(payloads)
    mutant = bytearray(report(1, payloads[connector], by=source("m"), connector=connector))
    for position, byte in changes:
        mutant[position % len(mutant)] = byte
    made = fed(report(1), bytes(mutant), report(2))
    made.close_interval(110.0)
    ours = [
        group for group in made.snapshot(111.0).sources if group.source.id == "a" and group.connector == "NixlConnector"
    ]
    assert sum(view.stats.reduce()["Num successful transfers"] for view in ours) >= 2
