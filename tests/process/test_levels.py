"""Two levels of collectors in real processes: what workers recorded is in the upper one once, whoever is killed."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
from workers import transfers, wait_until

from benchmarks.faults import Service, differences, endpoint_of
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig, private_endpoint
from kvxfer.errors import ConfigError, EndpointError
from kvxfer.interval import Interval
from kvxfer.publisher import StatsPublisher
from kvxfer.transport import make_keys

KILLS = 6


@pytest.mark.timeout(300)
def test_collectors_of_both_levels_killed_at_random_moments_count_everything_once_above() -> None:
    rng = random.Random(3)
    with endpoint_of("ipc") as (above, above_journal), endpoint_of("tcp") as (endpoint, journal):
        top = Service(CollectorConfig(endpoint=above, journal=above_journal, interval_seconds=0.5), workers=0)
        config = CollectorConfig(endpoint=endpoint, journal=journal, interval_seconds=0.3, upstream=above)
        with top, Service(config, workers=4) as node:
            for _ in range(KILLS):
                for service in (node, top):
                    time.sleep(rng.uniform(0.1, 2.0))
                    service.kill_collector()
                    service.start_collector()
            recorded = node.stop_workers()
            assert node.stop_collector() == 0
            expected = node.expected(recorded)
            assert differences(expected, node.committed()) == []
            found = committed_above(node, top, expected)
            assert differences(expected, found) == []
            # The most that reported in one of its intervals, which are shorter than theirs.
            assert [1 <= group.num_ranks <= 4 for group in found.groups] == [True]
            assert found.pipeline.reports_rejected == {}
            assert found.pipeline.reports_lost == 0


def committed_above(node: Service, top: Service, expected: Any) -> Interval:
    """What the upper one has committed; what it had not acknowledged in time is in the lower one's journal, and told
    by its next start.
    """
    for _ in range(10):
        assert top.stop_collector() == 0
        found = top.committed()
        if not differences(expected, found):
            break
        top.start_collector()
        node.start_collector()
        assert node.stop_collector() == 0
    return found


def record(endpoint: str, count: int) -> None:
    with StatsPublisher("NixlConnector", endpoint, {"engine": "e"}) as publisher:
        for _ in range(count):
            publisher.stats.record_transfer(0.5, 0.25, 1024, 2)


def test_a_node_that_stops_while_nobody_is_above_tells_it_after_its_next_start(tmp_path: Path) -> None:
    config = CollectorConfig(
        endpoint=f"ipc://{tmp_path}/n.ipc", journal=f"{tmp_path}/n.db", upstream=f"ipc://{tmp_path}/t.ipc"
    )
    with Collector(config) as node:
        record(node.endpoint, 5)
        start = time.monotonic()
    assert time.monotonic() - start < 4
    assert node.pipeline().relay_unacknowledged == 1
    with Collector(CollectorConfig(endpoint=config.upstream)) as top, Collector(config) as again:
        wait_until(lambda: transfers(top) == 5)
        wait_until(lambda: again.pipeline().relay_unacknowledged == 0)


def test_without_a_journal_a_node_relays_all_the_same(tmp_path: Path) -> None:
    with Collector(CollectorConfig(endpoint=f"ipc://{tmp_path}/t.ipc")) as top:
        config = CollectorConfig(endpoint=f"ipc://{tmp_path}/n.ipc", upstream=top.endpoint)
        for count in (3, 4):
            with Collector(config) as node:
                record(node.endpoint, count)
        wait_until(lambda: transfers(top) == 7)


def test_with_keys_a_node_is_let_in_above_and_without_it_is_not(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_keys(str(keys), ["node"])
    client = keys / "clients" / "node"
    with Collector(CollectorConfig(endpoint="tcp://127.0.0.1:*", curve=str(keys))) as top:
        for number, curve in enumerate([None, str(client)]):
            config = CollectorConfig(
                endpoint=f"ipc://{tmp_path}/n{number}.ipc", upstream=top.endpoint, upstream_curve=curve
            )
            with Collector(config) as node:
                record(node.endpoint, 3 + number)
        wait_until(lambda: transfers(top) == 4)


def test_a_collector_above_that_is_not_to_be_trusted_is_said_and_collecting_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "kvxfer").mkdir(mode=0o755)
    config = CollectorConfig(endpoint=f"ipc://{tmp_path}/n.ipc", upstream=private_endpoint(), interval_seconds=0.05)
    with Collector(config) as node:
        record(node.endpoint, 3)
        wait_until(lambda: "is not a directory of this user alone" in caplog.text)
        record(node.endpoint, 4)
        wait_until(lambda: transfers(node) == 7)
    assert caplog.text.count("nothing is told to the collector above") == 1


def test_what_cannot_be_above_is_said(tmp_path: Path) -> None:
    own = f"ipc://{tmp_path}/n.ipc"
    with pytest.raises(ConfigError, match="is this collector's own endpoint: name that of the one above"):
        Collector(CollectorConfig(endpoint=own, upstream=own))
    with pytest.raises(EndpointError, match="expected ipc://PATH or tcp://HOST:PORT"):
        Collector(CollectorConfig(endpoint=own, upstream="http://x"))
    with pytest.raises(ConfigError, match="none"):
        Collector(CollectorConfig(endpoint=own, upstream="tcp://127.0.0.1:1", upstream_curve=str(tmp_path / "none")))
