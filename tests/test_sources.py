"""Who lives: sources go from live to silent to gone and back, and no change of state costs or doubles a count."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer import CollectorConfig
from kvxfer.aggregator import Aggregator
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.interval import Interval
from kvxfer.outbox import BEAT_SECONDS, Outbox
from kvxfer.wire import Ack, Goodbye, Report, Source, encode, encode_payload

STATES = ("live", "silent", "gone")
HOUR = 3600
CONFIG = CollectorConfig(interval_seconds=10.0, silent_seconds=30.0, gone_seconds=600.0)


def source(name: str = "a", **labels: str) -> bytes:
    return encode(Source(name, "host", 1, 0.0, labels))


def transfers(count: int = 1) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for _ in range(count):
        stats.record_transfer(0.5, 0.001, 1024, 2)
    return stats


def report(seq: int, by: bytes, *, oldest: int = 0) -> bytes:
    packed = encode_payload(transfers().to_packed())
    return encode(Report(1, by, "NixlConnector", seq, 0.0, 1.0, packed, oldest=oldest))


def states(made: Aggregator, now: float) -> tuple[int, ...]:
    counted = made.pipeline(now).sources
    return tuple(counted[state] for state in STATES)


def silent(interval: Interval) -> list[str]:
    return [source.id for source in interval.silent]


def total(made: Aggregator, now: float) -> int:
    groups = made.snapshot(now).groups
    return sum(group.stats.reduce()["Num successful transfers"] for group in groups)


def test_a_source_that_is_not_heard_of_turns_silent_then_gone_and_lives_when_it_is_heard_of_again() -> None:
    made = Aggregator(CONFIG, 0.0)
    made.feed(report(1, source()), 1.0)
    assert states(made, 30.9) == (1, 0, 0)
    assert states(made, 31.0) == (0, 1, 0)
    assert silent(made.close_interval(600.9)) == ["a"]
    assert silent(made.close_interval(601.0)) == []
    assert states(made, 601.0) == (0, 0, 1)
    made.feed(report(2, source()), 700.0)
    assert states(made, 700.0) == (1, 0, 0)
    assert total(made, 700.0) == 2
    assert made.pipeline(700.0).reports_lost == 0


def test_a_source_that_reports_seldom_is_silent_after_three_of_its_periods() -> None:
    def covering(seq: int, seconds: float) -> bytes:
        packed = encode_payload(transfers().to_packed())
        return encode(Report(1, source(), "NixlConnector", seq, 0.0, seconds, packed))

    made = Aggregator(CONFIG, 0.0)
    made.feed(covering(1, 300.0), 0.0)
    assert states(made, 899.9) == (1, 0, 0)
    again = Aggregator(CONFIG, 0.0)
    again.restore(made.save())
    for each in (made, again):
        assert silent(each.close_interval(899.9)) == []
        assert states(each, 900.0) == (0, 1, 0)
        each.close_interval(900.0)
        assert states(each, 900.0) == (0, 0, 1)
    made.feed(covering(2, 1e300), 1000.0)  # nobody is believed to be that patient
    assert states(made, 1000.0 + 3 * 3600) == (0, 1, 0)


def test_a_silent_source_that_reports_is_live_at_once_and_in_the_next_interval_not_named() -> None:
    made = Aggregator(CONFIG, 0.0)
    for name in ("a", "b"):
        made.feed(report(1, source(name)), 0.0)
    made.feed(report(2, source("b")), 35.0)
    assert silent(made.close_interval(40.0)) == ["a"]
    made.feed(report(2, source("a")), 41.0)
    assert silent(made.close_interval(50.0)) == []


def test_a_goodbye_makes_a_source_gone_at_once_and_never_silent() -> None:
    made = Aggregator(CONFIG, 0.0)
    made.feed(report(1, source()), 0.0)
    made.feed(encode(Goodbye(1, source(), 1)), 1.0)
    assert states(made, 1.0) == (0, 0, 1)
    assert silent(made.close_interval(100.0)) == []


def test_a_view_says_the_state_of_its_source_and_when_it_was_last_heard_of() -> None:
    made = Aggregator(CONFIG, 0.0)
    for name in ("a", "b", "c"):
        made.feed(report(1, source(name)), 1.0)
    made.feed(report(2, source("b")), 35.0)
    made.feed(encode(Goodbye(1, source("c"), 1)), 36.0)
    views = {view.source.id: (view.state, view.last_seen) for view in made.close_interval(40.0).sources}
    assert views == {"a": ("silent", 1.0), "b": ("live", 35.0), "c": ("gone", 36.0)}


def test_what_comes_late_of_a_source_taken_for_gone_is_counted_once_and_is_lost_no_more() -> None:
    made = Aggregator(CONFIG, 0.0)
    made.feed(report(1, source()), 0.0)
    made.feed(report(3, source()), 0.0)
    made.close_interval(700.0)
    assert (states(made, 700.0), made.pipeline(700.0).reports_lost) == ((0, 0, 1), 1)
    made.feed(report(2, source()), 710.0)
    made.feed(report(3, source()), 710.0)
    assert (total(made, 710.0), made.pipeline(710.0).reports_lost) == (3, 0)
    made.feed(report(4, source()), 711.0)
    assert (states(made, 711.0), total(made, 711.0)) == ((1, 0, 0), 4)


def test_a_source_that_was_gone_and_forgotten_and_comes_back_loses_nothing() -> None:
    made = Aggregator(CollectorConfig(silent_seconds=30.0, gone_seconds=600.0, max_sources=1), 0.0)
    made.feed(report(1, source()), 0.0)
    made.close_interval(600.0)
    made.feed(report(1, source("b")), 601.0)
    made.feed(encode(Goodbye(1, source("b"), 1)), 602.0)
    made.feed(report(2, source(), oldest=2), 603.0)
    assert (total(made, 603.0), made.pipeline(603.0).reports_lost) == (3, 0)


def test_an_idle_publisher_lives_by_its_signs_of_life_alone() -> None:
    made = Aggregator(CONFIG, 0.0)
    box = Outbox(Source("a", "host", 1, 0.0), "NixlConnector", 0.0)
    box.observe(transfers(), 0.0)
    received = 0
    for now in range(HOUR):
        box.flush(now)
        while (frame := box.next_frame) is not None:
            made.feed(frame, now)
            box.sent(now)
            received += 1
        for _, seq in made.sources.drain_acks():
            box.acknowledge(Ack(1, "c", seq), now)
        assert states(made, now) == (1, 0, 0)
    assert total(made, HOUR) == 1
    assert received == pytest.approx(HOUR / BEAT_SECONDS, abs=1)
    assert states(made, HOUR + CONFIG.silent_seconds) == (0, 1, 0)


def test_a_restarted_collector_takes_the_sources_it_knew_for_live_until_it_has_listened_as_long() -> None:
    made = Aggregator(CONFIG, 0.0)
    made.feed(report(1, source()), 0.0)
    again = Aggregator(CONFIG, 1000.0)
    again.restore(made.save())
    again.sources.greet(1000.0)
    assert states(again, 1029.0) == (1, 0, 0)
    assert states(again, 1030.0) == (0, 1, 0)


steps = st.lists(st.sampled_from(["report", "restart", "goodbye", "kill", "wait", "close"]), max_size=60)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_workers_that_restart_with_the_same_labels_never_lower_the_groups_totals(steps: list[str]) -> None:
    made = Aggregator(CollectorConfig(silent_seconds=30.0, gone_seconds=60.0, max_source_views=2), 0.0)
    life, seq, counted, now = 0, 0, 0, 0.0
    reported: set[int] = set()

    def worker() -> bytes:
        return source(str(life), engine="e", rank="0")

    for step in steps:
        now += 40.0 if step == "wait" else 1.0
        if step == "report":
            seq += 1
            counted += 1
            reported.add(life)
            made.feed(report(seq, worker()), now)
        elif step == "goodbye" and seq:
            made.feed(encode(Goodbye(1, worker(), seq)), now)
        elif step in ("restart", "kill"):
            if step == "restart" and seq:
                made.feed(encode(Goodbye(1, worker(), seq)), now)
            life, seq = life + 1, 0
        elif step == "close":
            made.close_interval(now)
        assert total(made, now) == counted
    assert made.pipeline(now).reports_lost == 0
    assert [group.labels for group in made.snapshot(now).groups] == [{"engine": "e"}] * bool(counted)
    assert sum(states(made, now)) == len(reported)


def test_a_restarted_worker_beside_its_dead_predecessor_is_named_by_its_pid() -> None:
    made = Aggregator(CONFIG, 0.0)
    labels = {"engine": "e", "rank": "0"}
    for pid, now in ((1, 0.0), (2, 35.0)):
        made.feed(report(1, encode(Source(f"life {pid}", "host", pid, 0.0, labels))), now)
    interval = made.close_interval(40.0)
    (gone_silent,) = interval.silent
    (group,) = interval.groups
    assert (gone_silent.pid, gone_silent.labels) == (1, labels)
    assert (group.labels, group.num_ranks) == ({"engine": "e"}, 2)


def departed(interval: Interval) -> list[str]:
    return [source.id for source in interval.departed]


def test_who_leaves_is_named_in_the_interval_in_which_it_did_and_once() -> None:
    made = Aggregator(CONFIG, 0.0)
    for name in ("a", "b"):
        made.feed(report(1, source(name)), 1.0)
    made.feed(encode(Goodbye(1, source("a"), 1)), 2.0)
    made.feed(encode(Goodbye(1, source("a"), 1)), 3.0)
    assert departed(made.close_interval(10.0)) == ["a"]
    made.feed(encode(Goodbye(1, source("a"), 1)), 11.0)
    assert departed(made.close_interval(20.0)) == []
    assert departed(made.close_interval(700.0)) == ["b"]


def test_who_is_back_in_the_same_interval_has_not_left() -> None:
    made = Aggregator(CONFIG, 0.0)
    made.feed(report(1, source()), 1.0)
    made.feed(encode(Goodbye(1, source(), 1)), 2.0)
    made.feed(report(2, source()), 3.0)
    assert departed(made.close_interval(10.0)) == []


def test_who_was_told_to_be_silent_is_told_to_have_left_though_it_is_forgotten() -> None:
    made = Aggregator(CollectorConfig(max_sources=2), 0.0)
    made.feed(report(1, source("a")), 1.0)
    closed = made.close_interval(100.0)
    assert [each.id for each in closed.silent] == ["a"]
    made.feed(encode(Goodbye(1, source("a"), 1)), 101.0)
    for name in ("b", "c"):
        made.feed(report(1, source(name)), 102.0)
    assert departed(made.close_interval(110.0)) == ["a"]


def test_who_left_and_was_forgotten_takes_no_room() -> None:
    made = Aggregator(CollectorConfig(max_sources=2), 0.0)
    for number in range(10):
        made.feed(report(1, source(str(number))), 1.0)
        made.feed(encode(Goodbye(1, source(str(number)), 1)), 1.0)
    assert departed(made.close_interval(10.0)) == ["8", "9"]
