"""Gauges of many sources: of each source the last reading counts, and those of several become one by the rule."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.base import Connector
from kvxfer.factory import KVConnectorFactory
from kvxfer.fields import Gauge
from kvxfer.interval import Interval
from kvxfer.outbox import MAX_KEPT, Outbox
from kvxfer.relay import Relay
from kvxfer.states import MAX_READINGS, GaugeState
from kvxfer.stats import TransferStats
from kvxfer.wire import Report, Source, decode, decode_payload, encode, encode_payload


class LevelStats(TransferStats):
    """One level by each rule."""

    blocks = Gauge("{block}", "Blocks in use.", merge="sum")
    oldest = Gauge("s", "Age of the oldest.", merge="max")
    free = Gauge("1", "Free part of the fullest.", merge="min")
    by_tier = Gauge("{block}", "Blocks in use.", labels=("tier",), merge="sum")


class LevelConnector(Connector):
    """Their connector."""

    stats_class = LevelStats


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVConnectorFactory, "_loaders", dict(KVConnectorFactory._loaders))
    monkeypatch.setattr(KVConnectorFactory, "_classes", dict(KVConnectorFactory._classes))
    KVConnectorFactory.register_connector("LevelConnector", __name__, "LevelConnector")


RULES = {"blocks": sum, "oldest": max, "free": min}


def read(value: float) -> LevelStats:
    stats = LevelStats()
    for name in RULES:
        getattr(stats, name).set(value)
    stats.by_tier.labels("host").set(value)
    return stats


def frame(number: int, seq: int, payload: Any, connector: str = "LevelConnector") -> bytes:
    by = encode(Source(f"s{number}", "host", number, 0.0, {}))
    return encode(Report(1, by, connector, seq, 0.0, 1.0, encode_payload(payload)))


def levels(stats: Any) -> dict[str, float]:
    return {name: getattr(stats, name).value for name in RULES} | {"host": stats.by_tier.labels("host").value}


def wanted(last: list[float]) -> dict[str, float]:
    return {name: rule(last) for name, rule in RULES.items()} | {"host": sum(last)}


def of_group(interval: Interval) -> dict[str, float]:
    (group,) = interval.groups
    return levels(group.stats)


readings = st.lists(st.lists(st.integers(-9, 99), min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(readings, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_last_of_each_source_counts_in_any_order_of_sources(
    published: list[list[int]], views: int, rng: random.Random
) -> None:
    config = CollectorConfig(max_source_views=views)
    made = Aggregator(config, 0.0)
    last = [values[-1] for values in published]
    for interval in (1, 2):
        turns = [number for number, values in enumerate(published) for _ in values]
        rng.shuffle(turns)
        told = [iter(values) for values in published]
        for turn in turns:
            value = next(told[turn])
            seq = interval * 10 + len(list(published[turn])) - told[turn].__length_hint__()
            made.feed(frame(turn, seq, read(value).to_packed()), 10.0 * interval)
            if rng.random() < 0.2:
                saved = made.save()
                made = Aggregator(config, 0.0)
                made.restore(saved)
        assert of_group(made.snapshot(10.0 * interval)) == wanted(last)
        closed = made.close_interval(10.0 * interval + 5)
        assert of_group(closed) == wanted(last)
        assert of_group(made.snapshot(10.0 * interval + 5)) == wanted(last)
        assert [levels(view.stats) for view in closed.sources] == [
            wanted([last[view.source.pid]]) for view in closed.sources
        ]


def test_one_that_tells_no_level_in_an_interval_is_not_in_it() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    for number in range(3):
        made.feed(frame(number, 1, read(10).to_packed()), 1.0)
    made.close_interval(10.0)
    made.feed(frame(0, 2, read(7).to_packed()), 11.0)
    assert of_group(made.close_interval(20.0)) == wanted([7])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations([0.1, 0.2, 0.3, 1e16, -1e16, 0.7]))
def test_a_sum_of_floats_is_the_same_in_any_order(values: list[float]) -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    for number, value in enumerate(values):
        made.feed(frame(number, 1, read(value).to_packed()), 1.0)
    assert of_group(made.close_interval(10.0))["blocks"] == sum(sorted(values))


def test_a_gauge_holds_a_bounded_number_of_readings_and_more_count_by_the_rule() -> None:
    for made in (GaugeState("sum"), GaugeState("max")):
        for number in range(MAX_READINGS + 10):
            one = GaugeState(made.merge_rule)
            one.set(number)
            one.sign(f"s{number}")
            made.merge(one)
        assert len(made.readings) == MAX_READINGS + 1
        loaded = GaugeState(made.merge_rule)
        loaded.load(made.to_value() | {f"t{number}": 1 for number in range(10)})
        assert len(loaded.readings) == MAX_READINGS + 1
        numbers = [*range(MAX_READINGS + 10), *[1] * 10]
        assert loaded.value == (sum(numbers) if made.merge_rule == "sum" else max(numbers))


@pytest.mark.parametrize("odd", [float("nan"), float("-inf"), 10**400])
def test_a_reading_that_is_not_finite_is_refused_and_those_beside_it_count(odd: Any) -> None:
    made = GaugeState("sum")
    made.load({"a": 1, "b": odd, None: 2})
    assert (made.value, made.rejected) == (3, 1)


def test_a_sum_that_no_readers_int_holds_is_a_float() -> None:
    made = GaugeState("sum")
    made.load(dict.fromkeys("abc", (1 << 63) - 1))
    assert isinstance(made.value, float)


def test_a_publisher_that_may_not_close_tells_the_last_level() -> None:
    outbox = Outbox(Source("s", "host", 1, 0.0, {}), "LevelConnector", 0.0)
    for value in range(MAX_KEPT + 10):
        outbox.observe(read(value), float(value))
        if value < MAX_KEPT:
            assert outbox.flush(float(value))
    outbox = Outbox.restored(outbox.save(), 100.0)
    outbox.observe(read(5), 100.0)
    assert levels(outbox._open) == wanted([5])


def test_a_collector_above_gets_the_sum_of_the_one_below() -> None:
    made, relay = Aggregator(CollectorConfig(), 0.0), Relay(Source("node", "host", 1, 0.0))
    for interval in range(2):
        for number in range(3):
            made.feed(frame(number, interval + 1, read(number + interval).to_packed()), 1.0)
        relay.take(made.close_interval(10.0 * (interval + 1)).groups, 10.0)
    (outbox,) = relay.outboxes.values()
    above = Aggregator(CollectorConfig(), 0.0)
    while outbox.next_frame is not None:
        report = decode(outbox.next_frame)
        assert isinstance(report, Report)
        assert isinstance(decode_payload(report.payload)["blocks"], int)
        above.feed(outbox.next_frame, 1.0)
        outbox.sent(1.0)
    assert of_group(above.close_interval(20.0)) == wanted([1, 2, 3])


def test_children_of_a_multi_connector_add_up_over_sources_alone() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    for seq in (1, 2, 3):
        for number in range(2):
            payload = {"LevelConnector": read(seq + number).to_packed()}
            made.feed(frame(number, seq, payload, "MultiConnector"), 1.0)
    (group,) = made.close_interval(10.0).groups
    assert levels(group.stats["LevelConnector"]) == wanted([3, 4])  # type: ignore[index]


def test_a_peer_that_signs_for_others_is_one_source() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    made.feed(frame(1, 1, {"blocks": 5}), 1.0)
    made.feed(frame(2, 1, {"blocks": {"s1": 1000, "s3": 1}}), 1.0)
    made.feed(frame(2, 2, {"blocks": 2}), 1.0)
    (group,) = made.close_interval(10.0).groups
    assert group.stats.blocks.value == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("odd", [{"a": "1"}, {"a": {"b": 1}}, {1: 1}, {"a": None}])
def test_what_is_no_level_is_rejected(odd: Any) -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    made.feed(frame(1, 1, {"blocks": odd}), 1.0)
    assert made.num_rejected == 1


def test_stats_of_somebody_who_signs_nothing_add_up() -> None:
    assert levels(read(1).aggregate(read(2))) == wanted([1, 2])
    assert levels(read(1).follow(read(2))) == wanted([2])
