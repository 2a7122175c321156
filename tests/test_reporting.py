"""`KVConnectorLogging` as vLLM's: one line an interval, nothing for nothing, and only in the front end."""

import logging
import os
from typing import Any

import pytest

from kvxfer.config import KVTransferConfig
from kvxfer.connectors.multi import MultiConnector
from kvxfer.connectors.nixl import NixlConnector, NixlConnectorStats
from kvxfer.errors import RoleError, UnknownConnectorError
from kvxfer.factory import KVConnectorFactory
from kvxfer.publisher import StatsPublisher
from kvxfer.reporting import KVConnectorLogging, format_line, has_kv_transfer_group


class SilentConnector:
    """Collects stats and builds none."""

    @classmethod
    def build_kv_connector_stats(cls, data: Any = None) -> None:  # noqa: ARG003 - as the factory calls it
        return None


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> KVConnectorLogging:
    monkeypatch.setitem(KVConnectorFactory._loaders, "SilentConnector", lambda: SilentConnector)
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})
    return logging_of("SilentConnector")


def logging_of(connector: str | None) -> KVConnectorLogging:
    role = "kv_both" if connector else None
    return KVConnectorLogging(KVTransferConfig(kv_connector=connector, kv_role=role))


def payload(count: int = 1) -> dict[str, Any]:
    stats = NixlConnectorStats()
    for _ in range(count):
        stats.record_transfer(0.001, 0.0005, 2**20, 4)
    return stats.to_dict()


def lines(of: KVConnectorLogging) -> list[str]:
    found: list[str] = []
    of.log(found.append)
    return found


def test_what_was_observed_is_one_line_and_then_forgotten() -> None:
    front_end = logging_of("NixlConnector")
    assert front_end.connector_cls is NixlConnector
    assert front_end.transfer_stats_accumulator is None
    front_end.observe(payload())
    front_end.observe(payload(2))
    assert front_end.transfer_stats_accumulator is not None
    (line,) = lines(front_end)
    assert line == (
        "KV Transfer metrics: Num successful transfers=3, Avg xfer time (ms)=1.0, P90 xfer time (ms)=1.0, "
        "Avg post time (ms)=0.5, P90 post time (ms)=0.5, Avg MB per transfer=1.0, Throughput (MB/s)=1000.0, "
        "Avg number of descriptors=4.0, Num failed transfers=0, Num KV expired reqs=0, Num notifs after expiry=0"
    )
    assert front_end.transfer_stats_accumulator is None
    assert lines(front_end) == []


def test_an_interval_with_failures_alone_has_its_line() -> None:
    front_end = logging_of("NixlConnector")
    front_end.observe({"num_kv_expired_reqs": [1]})
    (line,) = lines(front_end)
    assert "Num successful transfers=0" in line
    assert "Num KV expired reqs=1" in line


def test_nothing_observed_is_no_line() -> None:
    front_end = logging_of("NixlConnector")
    assert lines(front_end) == []
    front_end.observe({})
    assert lines(front_end) == []
    front_end.observe(payload())
    front_end.observe({})
    assert len(lines(front_end)) == 1


def test_a_reset_forgets_what_was_observed() -> None:
    front_end = logging_of("NixlConnector")
    front_end.observe(payload())
    front_end.reset()
    assert front_end.transfer_stats_accumulator is None
    assert lines(front_end) == []


def test_a_multi_is_one_line_with_its_children_nested() -> None:
    front_end = logging_of("MultiConnector")
    assert front_end.connector_cls is MultiConnector
    for _ in range(2):
        front_end.observe({"NixlConnector": {"data": payload()}, "NixlPullConnector": payload(2)})
    (line,) = lines(front_end)
    assert line.startswith("KV Transfer metrics: NixlConnector={'Num successful transfers': 2, ")
    assert ", NixlPullConnector={'Num successful transfers': 4, " in line


def test_a_connector_that_builds_no_stats_is_warned_of_once(
    silent: KVConnectorLogging, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kvxfer"):
        for _ in range(3):
            silent.observe(payload())
            silent.log()
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "SilentConnector" in warning.getMessage()
    assert silent.transfer_stats_accumulator is None


def test_without_a_log_function_the_line_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    front_end = logging_of("NixlConnector")
    front_end.observe(payload())
    with caplog.at_level(logging.INFO, "kvxfer"):
        front_end.log()
    assert [record.getMessage()[:20] for record in caplog.records] == ["KV Transfer metrics:"]


@pytest.mark.parametrize("config", [None, KVTransferConfig()])
def test_without_a_connector_it_observes_nothing(config: KVTransferConfig | None) -> None:
    front_end = KVConnectorLogging(config)
    front_end.observe(payload())
    assert front_end.connector_cls is None
    assert lines(front_end) == []
    front_end.reset()


def test_an_unknown_connector_is_said_when_it_is_made() -> None:
    with pytest.raises(UnknownConnectorError, match=r"Connector 'Telepathy' is not registered\."):
        logging_of("Telepathy")


def test_it_belongs_to_the_front_end(ipc_endpoint: str) -> None:
    assert not has_kv_transfer_group()
    with (
        StatsPublisher("NixlConnector", ipc_endpoint, linger=0.0),
        StatsPublisher("NixlConnector", ipc_endpoint, linger=0.0) as second,
    ):
        second.close()
        assert has_kv_transfer_group()
        with pytest.raises(RoleError, match="KVConnectorLogging belongs to the front end, this process publishes"):
            logging_of("NixlConnector")
    assert not has_kv_transfer_group()
    logging_of("NixlConnector")


def test_a_child_of_a_worker_does_not_publish_by_its_parent(ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with StatsPublisher("NixlConnector", ipc_endpoint, linger=0.0):
        real = os.getpid()
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: real + 1)
            assert not has_kv_transfer_group()
        assert has_kv_transfer_group()


def test_a_line_is_keys_and_values_in_order() -> None:
    assert format_line({"b": 1, "a": 0.5}) == "KV Transfer metrics: b=1, a=0.5"
