"""Whom the collector tells what: how far a source is committed, once for all that came, and to who listens anew."""

from typing import Any

import pytest

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.sources import MAX_STRANGERS
from kvxfer.wire import Goodbye, Report, Source, encode, encode_payload, topic

A = encode(Source("a", "host", 1, 0.0))


def report(seq: int, oldest: int = 0, payload: Any = None, connector: str = "NixlConnector") -> bytes:
    stats = NixlConnectorStats()
    stats.record_transfer(0.5, 0.001, 1024, 2)
    packed = encode_payload(stats.to_packed() if payload is None else payload)
    return encode(Report(1, A, connector, seq, 1.0, 2.0, packed, 0, oldest))


def collector(*frames: bytes) -> Aggregator:
    made = Aggregator(CollectorConfig(), 0.0)
    for frame in frames:
        made.feed(frame, 1.0)
    return made


@pytest.mark.parametrize(
    ("frames", "acknowledged"),
    [
        ((report(1), report(2)), 2),
        ((report(1), report(3)), 1),
        ((report(3), report(2), report(1)), 3),
        ((report(7, oldest=7),), 7),  # an earlier collector has acknowledged what is below
        ((report(7, oldest=6),), 5),
        ((report(1), report(1)), 1),
        ((report(1), report(2, payload={"bytes_transferred": "none"})), 2),  # it would be sent for ever
        ((report(1), report(2, connector="UnknownConnector")), 1),  # a collector may come that knows it
        ((report(1), encode(Goodbye(1, A, 1))), 1),
    ],
)
def test_a_source_is_told_the_number_up_to_which_all_is_here(frames: tuple[bytes, ...], acknowledged: int) -> None:
    sources = collector(*frames).sources
    assert sources.drain_acks() == [("a", acknowledged)]
    assert sources.drain_acks() == []


def test_who_listens_anew_is_told_again_and_a_stranger_that_nothing_of_it_is_here() -> None:
    made = collector(report(1))
    made.sources.drain_acks()
    made.subscribed(topic("a"))
    made.subscribed(topic("b"))
    assert made.sources.drain_acks() == [("a", 1), ("b", 0)]


def test_a_stranger_that_reports_before_it_is_answered_is_told_of_its_report() -> None:
    made = collector()
    made.subscribed(topic("a"))
    made.feed(report(1), 1.0)
    assert made.sources.drain_acks() == [("a", 1)]


def test_topics_that_are_none_or_too_many_cost_nothing() -> None:
    made = collector()
    made.subscribed(b"\xff\xfe\0")
    for number in range(2 * MAX_STRANGERS):
        made.subscribed(topic(str(number)))
    assert len(made.sources.drain_acks()) == MAX_STRANGERS


def test_a_goodbye_asks_for_a_commit_until_it_is_acknowledged() -> None:
    sources = collector(report(1), encode(Goodbye(1, A, 1))).sources
    assert sources.wants_commit
    sources.drain_acks()
    assert not sources.wants_commit
