"""Sums are added up when there is enough, or somebody reads: when that is changes nothing, and little waits."""

from typing import Any

import numpy as np
import pytest

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.factory import KVConnectorFactory
from kvxfer.packed import MAX_BYTES_AT_ONCE, form_of, open_all
from kvxfer.packing import pack_exact
from kvxfer.sums import MAX_WAITING, MAX_WAITING_BYTES, Sum, add_batch, add_up
from kvxfer.views import FULL_AT_ONCE
from kvxfer.wire import Report, Source, encode, encode_payload


def source(number: int) -> bytes:
    return encode(Source(f"s{number}", "host", 1, 0.0, {"engine": "e"}))


def report(seq: int, number: int = 0, transfers: int = 3, connector: str = "NixlConnector", **more: Any) -> bytes:
    stats = NixlConnectorStats()
    for _ in range(transfers):
        stats.record_transfer(0.5, 0.25, 1024, 2)
    return encode(Report(1, source(number), connector, seq, 0.0, 1.0, encode_payload(stats.to_packed() | more)))


def durations(count: int) -> bytes:
    return pack_exact(np.ones(count).tobytes(), whole=False)


def test_a_view_that_is_read_late_is_of_its_own_interval() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    intervals = []
    for seq in range(1, 60):
        made.feed(report(seq, transfers=seq), 1.0)
        if seq % 7 == 0:
            intervals.append((made.close_interval(1.0), sum(range(seq - 6, seq + 1))))
            if seq % 3 == 0:
                made.snapshot(1.0)
    for interval, transfers in intervals:
        for _ in range(2):
            assert [view.stats.transfer_duration.count for view in interval.sources] == [transfers]
        assert len(interval.sources) == 1
        assert interval.sources[0].source.id == "s0"
        assert repr(interval.sources) == "<ClosedViews 1>"
    assert made.snapshot(1.0).sources[0].stats.transfer_duration.count == sum(range(1, 60))


@pytest.mark.parametrize(("steps", "most"), [(0, 3), (1, 2), (9, 1)])
def test_totals_of_many_sources_are_added_up_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, steps: int, most: int
) -> None:
    added: list[int] = []
    monkeypatch.setattr("kvxfer.views.add_up", lambda sums: (added.append(len(sums)), add_up(sums)))
    made, sources = Aggregator(CollectorConfig(), 0.0), 3 * FULL_AT_ONCE
    for seq in range(2 * MAX_WAITING):
        made.feed_all([report(seq + 1, number) for number in range(sources)], 1.0)
        if seq % 4 == 3:  # so few that they wait
            made.close_interval(1.0)
            for _ in range(steps):
                made.step()
    assert max(added) == most * FULL_AT_ONCE
    assert [view.stats.transfer_duration.count for view in made.snapshot(1.0).sources] == [6 * MAX_WAITING] * sources


def test_few_reports_wait_and_no_large_ones() -> None:
    large = MAX_WAITING_BYTES // 8
    (small,) = open_all(
        [Report(1, source(0), "NixlConnector", 1, 0.0, 1.0, encode_payload({"post_duration": durations(9)}))]
    )
    (big,) = open_all(
        [Report(1, source(0), "NixlConnector", 1, 0.0, 1.0, encode_payload({"post_duration": durations(large)}))]
    )
    assert small is not None
    assert big is not None
    held = Sum()
    for number in range(1, 40):
        held.add(small)
        add_batch(small.batch)
        assert held.is_waiting is (number % MAX_WAITING > 0)
    held.add(big)
    add_batch(big.batch)
    assert not held.is_waiting
    assert held.stats.post_duration.count == 39 * 9 + large


def test_large_frames_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        "kvxfer.aggregator.open_all", lambda messages: opened.append(len(messages)) or open_all(messages)
    )
    frames = [report(seq, post_duration=durations(100_000)) for seq in range(1, 21)]
    made = Aggregator(CollectorConfig(), 0.0)
    assert made.feed_all(frames, 1.0) == [True] * 20
    assert sum(opened) == 20
    assert max(opened) * len(frames[0]) <= MAX_BYTES_AT_ONCE + 2 * len(frames[0])
    assert made.close_interval(2.0).groups[0].stats.post_duration.count == 2_000_000


class Odd:
    """A connector of somebody who has forgotten what it is for."""


def test_a_connector_that_builds_nothing_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = KVConnectorFactory.get_connector_class_by_name
    monkeypatch.setattr(
        KVConnectorFactory, "get_connector_class_by_name", lambda name: Odd if name == "Odd" else found(name)
    )
    assert form_of("Odd") is None
    made = Aggregator(CollectorConfig(), 0.0)
    assert made.feed_all([report(1), report(1, 1, connector="Odd"), report(2)], 1.0) == [True, False, True]
    assert made.pipeline(1.0).reports_rejected == {"connector_failed": 1}
    assert made.snapshot(1.0).groups[0].stats.transfer_duration.count == 6
