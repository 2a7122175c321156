"""Payloads captured from vLLM, and made ones, through stats, logging and wire in one process: vLLM's numbers.

Through worker processes and a socket they go in ``tests/process``.
"""

import math
import random
from typing import Any

import msgspec
import pytest
from captured import ESTIMATED, NAMES, PAYLOADS, expected

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig, KVTransferConfig
from kvxfer.factory import KVConnectorFactory
from kvxfer.outbox import Outbox
from kvxfer.reporting import KVConnectorLogging, format_line
from kvxfer.wire import VERSION, Ack, Source

pytestmark = pytest.mark.skipif(not PAYLOADS.exists(), reason="the captured payloads are not beside this checkout")


def payloads(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = msgspec.msgpack.decode((PAYLOADS / f"{name}.msgpack").read_bytes())
    return found


def build(name: str, payload: Any = None) -> Any:
    connector = KVConnectorFactory.get_connector_class_by_name(expected(name)["connector"])
    return connector.build_kv_connector_stats(payload)


def check(name: str, reduced: dict[str, Any]) -> None:
    """Every key in vLLM's order, every value to its last digit (as it prints), estimated ones within their error."""
    wanted = expected(name)["reduced"]
    estimated = ESTIMATED.get(name, set())
    for key in estimated:
        assert math.isclose(reduced[key], wanted[key], rel_tol=0.011)
    assert repr({k: v for k, v in reduced.items() if k not in estimated}) == repr(
        {k: v for k, v in wanted.items() if k not in estimated}
    )


@pytest.mark.parametrize("name", NAMES)
def test_aggregated_in_order_and_reduced_they_give_vllms_numbers_and_line(name: str) -> None:
    total = build(name)
    for payload in payloads(name):
        total = total.aggregate(build(name, payload))
    check(name, total.reduce())
    if name not in ESTIMATED:
        assert format_line(total.reduce()) == expected(name)["log_line"]


@pytest.mark.parametrize("name", NAMES)
def test_each_payload_builds_an_object_that_gives_it_back(name: str) -> None:
    for payload in payloads(name)[:60]:
        stats = build(name, payload)
        assert build(name, stats.to_dict()) == stats
        assert build(name, stats.to_packed()).reduce().keys() == stats.reduce().keys()


@pytest.mark.parametrize("name", NAMES)
def test_observed_by_a_front_end_they_give_vllms_line(name: str) -> None:
    config = KVTransferConfig(kv_connector=expected(name)["connector"], kv_role="kv_both")
    front_end, lines = KVConnectorLogging(config), list[str]()
    for payload in payloads(name):
        front_end.observe(payload)
    front_end.log(lines.append)
    front_end.log(lines.append)
    if name not in ESTIMATED:
        assert lines == [expected(name)["log_line"]]
    else:
        assert len(lines) == 1


@pytest.mark.parametrize("name", NAMES)
def test_through_an_outbox_and_a_collector_whatever_the_flushes_they_give_vllms_numbers(name: str) -> None:
    rng = random.Random(3)
    box = Outbox(Source("id", "host", 1, 0.0), expected(name)["connector"], 0.0)
    made = Aggregator(CollectorConfig(), 0.0)
    for now, payload in enumerate(payloads(name)):
        box.observe(build(name, payload), now)
        if rng.random() < 0.3:
            box.flush(now)
        if rng.random() < 0.5:
            deliver(box, made, now)
    while box.flush(1e6) or not box.is_idle:
        deliver(box, made, 1e6)
    assert made.pipeline(1e6).reports_rejected == {}
    (group,) = made.snapshot(1e6).groups
    wanted = expected(name)["reduced"]
    compare_sums(name, group.stats.reduce(), wanted)


def deliver(box: Outbox, made: Aggregator, now: float) -> None:
    """Send all there is, and acknowledge it."""
    while (frame := box.next_frame) is not None:
        made.feed(frame, now)
        box.sent(now)
    for _, seq in made.sources.drain_acks():
        box.acknowledge(Ack(VERSION, "collector", seq), now)


def compare_sums(name: str, found: Any, wanted: Any, key: str = "") -> None:
    """As `check`, but for float sums that are not rounded: in which groups they were added decides their last bits."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for child, value in wanted.items():
            compare_sums(name, found[child], value, child)
    elif key in ESTIMATED.get(name, ()):
        assert math.isclose(found, wanted, rel_tol=0.011)
    elif key.endswith(("_time", "_sum")):
        assert type(found) is type(wanted)
        assert math.isclose(found, wanted, rel_tol=1e-15 * 25_000)
    else:
        assert repr(found) == repr(wanted), key
