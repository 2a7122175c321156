"""Laws of the collector's state machine: whatever arrives in whatever order, each report counts once and where it came.

The cases one by one are in `test_aggregator`; here reports of several sources are dealt, doubled and shuffled.
"""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.interval import Interval
from kvxfer.wire import Goodbye, Report, Source, encode, encode_payload


def source(name: str, labels: dict[str, str] | None = None) -> bytes:
    return encode(Source(name, "host", 1, 0.0, labels or {}))


def transfers(durations: list[float]) -> dict[str, Any]:
    stats = NixlConnectorStats()
    for duration in durations:
        stats.record_transfer(duration, 0.001, 1024, 2)
    return stats.to_packed()


def report(seq: int, by: bytes, payload: dict[str, Any], connector: str = "NixlConnector") -> bytes:
    return encode(Report(1, by, connector, seq, 0.0, 1.0, encode_payload(payload)))


def goodbye(by: bytes, seq: int, oldest: int = 0) -> bytes:
    return encode(Goodbye(1, by, seq, oldest))


def reading(usage: float | None) -> dict[str, Any]:
    """A payload of the offloading connector: one operation, and the level of the cache where it was read."""
    types, data = {"operations": "counter"}, {"operations": {(): 1}}
    return {"types": types, "data": data} if usage is None else levelled(types, data, usage)


def levelled(types: dict[str, str], data: dict[str, Any], usage: float) -> dict[str, Any]:
    return {"types": types | {"usage": "gauge"}, "data": data | {"usage": {(): usage}}}


def busy(interval: Interval) -> Counter[str]:
    """The whole seconds that each engine's transfers took."""
    total: Counter[str] = Counter()
    for group in interval.groups:
        total[group.labels["engine"]] += group.stats.data["transfer_duration"].sum
    return total


def busy_by_source(intervals: list[Interval]) -> Counter[str]:
    total: Counter[str] = Counter()
    for interval in intervals:
        for view in interval.sources:
            total[view.source.id] += view.stats.data["transfer_duration"].sum
    return total


sources = st.lists(
    st.tuples(st.sampled_from(["prefill", "decode"]), st.lists(st.integers(1, 9), min_size=1, max_size=6)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(sources, st.integers(0, 6), st.randoms(use_true_random=False))
def test_reports_doubled_and_shuffled_over_many_intervals_count_once_in_their_group_and_source(
    published: list[tuple[str, list[int]]], views: int, rng: random.Random
) -> None:
    frames, by_engine, by_source = [], Counter[str](), Counter[str]()
    for number, (engine, durations) in enumerate(published):
        by = source(f"s{number}", {"engine": engine})
        frames += [report(seq, by, transfers([duration])) for seq, duration in enumerate(durations, 1)]
        by_engine[engine] += sum(durations)
        by_source[f"s{number}"] = sum(durations)
    once = len(frames)
    frames += rng.choices(frames, k=5)
    rng.shuffle(frames)
    made = Aggregator(CollectorConfig(max_source_views=views), 0.0)
    intervals = []
    for now, frame in enumerate(frames):
        made.feed(frame, now)
        if rng.random() < 0.2:
            intervals.append(made.close_interval(now))
    snapshot = made.snapshot(len(frames))
    intervals.append(made.close_interval(len(frames)))
    assert busy(snapshot) == by_engine
    assert sum((busy(interval) for interval in intervals), Counter()) == by_engine
    assert busy(made.snapshot(len(frames))) == by_engine
    assert busy_by_source([snapshot]) == busy_by_source(intervals)
    assert len(snapshot.sources) == min(views, len(published))
    assert busy_by_source([snapshot]) <= by_source
    assert repr(made) == (f"<Aggregator sources={len(published)} received={once} duplicate=5 rejected=0 lost=0>")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.none() | st.sampled_from([0.1, 0.2, 0.3, 0.4])), min_size=1, max_size=12),
    st.integers(0, 3),
)
def test_a_gauge_of_a_group_is_the_one_that_arrived_last(readings: list[tuple[int, float | None]], views: int) -> None:
    made = Aggregator(CollectorConfig(max_source_views=views), 0.0)
    for seq, (number, usage) in enumerate(readings, 1):
        made.feed(report(seq, source(f"s{number}"), reading(usage), "OffloadingConnector"), 1.0)
    last = [usage for _, usage in readings if usage is not None][-1:]
    wanted: dict[str, float] = {"operations": len(readings)}
    if last:
        wanted["usage"] = last[0]
    assert made.snapshot(2.0).groups[0].stats.reduce() == wanted
    assert made.close_interval(2.0).groups[0].stats.reduce() == wanted


def test_a_report_without_a_reading_leaves_the_gauge_where_another_source_put_it() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    for seq, (name, usage) in enumerate([("a", 0.1), ("b", 0.9), ("a", None)], 1):
        made.feed(report(seq, source(name), reading(usage), "OffloadingConnector"), 1.0)
    assert made.close_interval(2.0).groups[0].stats.reduce() == {"operations": 3, "usage": 0.9}


def test_a_gauge_of_a_source_beyond_the_views_wins_when_it_came_last() -> None:
    made = Aggregator(CollectorConfig(max_source_views=1), 0.0)
    for name, usage in (("a", 0.1), ("b", 0.9)):
        made.feed(report(1, source(name), reading(usage), "OffloadingConnector"), 1.0)
    assert made.close_interval(2.0).groups[0].stats.reduce() == {"operations": 2, "usage": 0.9}


def test_a_source_that_made_room_for_another_and_comes_back_within_the_interval_loses_no_count() -> None:
    one, other = source("a"), source("b")
    made = Aggregator(CollectorConfig(max_sources=1), 0.0)
    for frame in (
        report(1, one, transfers([1.0])),
        goodbye(one, 2),
        report(1, other, transfers([2.0])),
        goodbye(other, 1),
        report(2, one, transfers([4.0])),
    ):
        made.feed(frame, 1.0)
    assert made.pipeline(106.0).reports_received == 3
    assert made.close_interval(2.0).groups[0].stats.data["transfer_duration"].sum == 7.0


def test_sources_that_have_gone_give_their_views_to_those_that_come() -> None:
    made = Aggregator(CollectorConfig(max_source_views=2), 0.0)
    for number in range(6):
        by = source(f"s{number}")
        made.feed(report(1, by, transfers([1.0])), number)
        made.feed(goodbye(by, 1), number)
        (view,) = made.close_interval(number + 0.5).sources
        assert view.source.id == f"s{number}"


def test_a_goodbye_that_claims_more_reports_than_anyone_sends_does_not_spoil_the_count_of_lost_ones() -> None:
    honest, liar = source("a"), source("b")
    made = Aggregator(CollectorConfig(), 0.0)
    for frame in (
        report(1, honest, transfers([1.0])),
        goodbye(liar, 1 << 62),
        report(3, honest, transfers([1.0])),
        goodbye(honest, 3),
    ):
        made.feed(frame, 1.0)
    assert made.pipeline(106.0).reports_lost == 1
    assert sum(made.pipeline(106.0).reports_rejected.values()) == 1


@pytest.mark.parametrize(("oldest", "lost"), [(1, 4), (3, 2), (5, 0)])
def test_a_source_known_by_its_goodbye_alone_has_lost_what_nobody_acknowledged(oldest: int, lost: int) -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    made.feed(goodbye(source("a"), 4, oldest), 1.0)
    made.feed(goodbye(source("a"), 4, oldest), 1.0)
    assert made.pipeline(106.0).reports_lost == lost
    assert made.snapshot(2.0).groups == ()


def test_an_empty_report_is_received_and_makes_no_group() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    made.feed(report(1, source("a"), {}), 1.0)
    interval = made.close_interval(2.0)
    assert (interval.groups, len(interval.sources), interval.pipeline.reports_received) == ((), 0, 1)


def test_one_source_with_two_connectors_is_two_views_and_two_groups_with_one_row_of_numbers() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    by = source("a")
    made.feed(report(1, by, transfers([1.0])), 1.0)
    made.feed(report(2, by, transfers([2.0]), "NixlPullConnector"), 1.0)
    made.feed(report(2, by, transfers([2.0])), 1.0)
    interval = made.close_interval(2.0)
    assert [group.connector for group in interval.groups] == ["NixlConnector", "NixlPullConnector"]
    assert [(view.connector, view.stats.moved()) for view in interval.sources] == [
        ("NixlConnector", (1024, 1.0)),
        ("NixlPullConnector", (1024, 2.0)),
    ]
    assert interval.pipeline.reports_duplicate == 1


def test_what_workers_cut_and_refused_is_added_up() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    by = source("a")
    refusing = NixlConnectorStats()
    refusing.record_transfer(-1.0, 0.0, 1, 1)
    made.feed(encode(Report(1, by, "NixlConnector", 1, 0.0, 1.0, encode_payload(refusing.to_packed()), 7)), 1.0)
    made.feed(encode(Report(1, by, "NixlConnector", 2, 1.0, 2.0, encode_payload({}), 5)), 1.0)
    assert (made.pipeline(106.0).observations_cut, made.pipeline(106.0).observations_rejected) == (12, 1)
