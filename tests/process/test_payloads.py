"""Real payloads through real publisher processes and a real socket give what vLLM makes of them."""

import math
import multiprocessing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from captured import ESTIMATED, NAMES, PAYLOADS, expected

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.interval import Group
from kvxfer.publisher import StatsPublisher
from kvxfer.reporting import format_line

LEVELS = ("_usage_perc", "usage %", "_used_blocks", "_pending_store_blocks")


def publish(name: str, connector: str, endpoint: str, rank: int, ranks: int) -> None:
    """Push this rank's share of the payloads, as it comes from the engine."""
    payloads = msgspec.msgpack.decode((PAYLOADS / f"{name}.msgpack").read_bytes())
    with StatsPublisher(connector, endpoint, {"rank": str(rank)}, linger=20) as publisher:
        for payload in payloads[rank::ranks]:
            publisher.push(payload)
            if ranks == 1:
                publisher.flush(timeout=10)


def collect(name: str, connector: str, endpoint: str, ranks: int) -> Group:
    context = multiprocessing.get_context("spawn")
    with Collector(CollectorConfig(endpoint=endpoint), []) as collector:
        workers = [context.Process(target=publish, args=(name, connector, endpoint, n, ranks)) for n in range(ranks)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers] == [0] * ranks
    snapshot = collector.snapshot()
    assert snapshot.pipeline.reports_rejected == {}
    assert snapshot.pipeline.observations_rejected == 0
    (group,) = snapshot.groups
    assert group.num_ranks == ranks
    return group


def compare(found: Any, wanted: Any, same: Callable[[str, Any, Any], bool], key: str = "") -> None:
    """Every key in order, every value as ``same`` says."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            compare(found[name], value, same, name)
    else:
        assert same(key, found, wanted), f"{key}: {found!r}, vLLM has {value!r}"


@pytest.mark.parametrize("name", NAMES)
def test_one_publisher_gives_vllms_numbers_and_line_to_the_last_digit(name: str, ipc_endpoint: str) -> None:
    vllm = expected(name)
    group = collect(name, vllm["connector"], ipc_endpoint, 1)
    estimated = ESTIMATED.get(name, ())

    def same(key: str, found: Any, wanted: Any) -> bool:
        return math.isclose(found, wanted, rel_tol=0.011) if key in estimated else repr(found) == repr(wanted)

    compare(group.stats.reduce(), vllm["reduced"], same)
    if not estimated:
        assert format_line(group.stats.reduce()) == vllm["log_line"]


@pytest.mark.parametrize("ranks", [3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_several_publishers_give_vllms_numbers_in_whatever_order_they_report(
    name: str, ranks: int, ipc_endpoint: str
) -> None:
    vllm = expected(name)
    group = collect(name, vllm["connector"], ipc_endpoint, ranks)
    estimated = ESTIMATED.get(name, ())

    def same(key: str, found: Any, wanted: Any) -> bool:
        if key.endswith(LEVELS):  # a gauge keeps what came last, which no order of several decides
            return type(found) is type(wanted) and found >= 0
        if key in estimated:
            return math.isclose(found, wanted, rel_tol=0.011)
        if key.endswith(("_time", "_sum")):  # unrounded sums: floats added in another order differ in their last bits
            return type(found) is type(wanted) and math.isclose(found, wanted, rel_tol=1e-14)
        return repr(found) == repr(wanted)

    compare(ordered_like(group.stats.reduce(), vllm["reduced"]), vllm["reduced"], same)


def ordered_like(found: Any, wanted: Any) -> Any:
    """The same keys in vLLM's order: which metric or child was met first depends on who reports first."""
    if not isinstance(wanted, dict) or set(found) != set(wanted):
        return found
    return {key: ordered_like(found[key], value) for key, value in wanted.items()}
