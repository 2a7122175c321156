"""A collector that is started again comes up, be its port taken or its journal still held, and says where."""

import json
import logging
import threading
import urllib.request
from pathlib import Path

import pytest

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.errors import ConfigError, EndpointError
from kvxfer.integrations.resuming import resume, serve, tell_prometheus


def test_a_port_that_is_taken_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    with Collector(CollectorConfig(endpoint="tcp://127.0.0.1:*")) as first:
        again = resume(CollectorConfig(endpoint=first.endpoint))
        assert again.endpoint != first.endpoint
        again.stop()
    assert "another process listens there" in caplog.text
    assert resumed_at(first.endpoint) == first.endpoint


def resumed_at(endpoint: str) -> str:
    collector = resume(CollectorConfig(endpoint=endpoint))
    collector.stop()
    return collector.endpoint


def test_a_path_that_is_taken_and_an_endpoint_that_is_refused_are_errors(ipc_endpoint: str) -> None:
    with Collector(CollectorConfig(endpoint=ipc_endpoint)), pytest.raises(EndpointError, match="a collector listens"):
        resume(CollectorConfig(endpoint=ipc_endpoint))
    with pytest.raises(ConfigError, match="beyond this host"):
        resume(CollectorConfig(endpoint="tcp://0.0.0.0:*"))


def test_a_journal_that_the_one_before_still_holds_is_waited_for(ipc_endpoint: str, tmp_path: Path) -> None:
    journal = str(tmp_path / "j.db")
    before = Collector(CollectorConfig(endpoint=ipc_endpoint, journal=journal)).start()
    ending = threading.Timer(0.3, before.stop)
    ending.start()
    resume(CollectorConfig(endpoint=f"{ipc_endpoint}2", journal=journal)).stop()
    ending.join()


def test_prometheus_is_told_of_a_server_at_another_port_than_the_one_that_was_taken(
    ipc_endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    file = tmp_path / "targets.json"
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as collector:
        first = serve(collector, "127.0.0.1:0")
        second = serve(collector, f"127.0.0.1:{first.port}")
        tell_prometheus(file, second, "192.0.2.1", "kvxfer")
        (entry,) = json.loads(file.read_bytes())
        assert entry == {"targets": [f"127.0.0.1:{second.port}"], "labels": {"kvxfer_collector": "kvxfer"}}
        with urllib.request.urlopen(f"http://{entry['targets'][0]}/healthz", timeout=10) as response:
            assert response.read() == b"ok\n"
        tell_prometheus(tmp_path / "none" / "targets.json", second, "192.0.2.1", "kvxfer")
        first.stop()
        second.stop()
    assert "any free port is used" in caplog.text
    assert "Prometheus does not find this collector" in caplog.text
    assert [each.name for each in tmp_path.iterdir()] == ["targets.json"]


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "[::]"])  # noqa: S104 - what is asked about
@pytest.mark.parametrize(("address", "told"), [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "[2001:db8::1]")])
def test_prometheus_is_told_the_hosts_address_of_a_server_that_listens_at_all(
    ipc_endpoint: str, tmp_path: Path, wildcard: str, address: str, told: str
) -> None:
    file = tmp_path / "targets.json"
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as collector:
        server = serve(collector, f"{wildcard}:0")
        tell_prometheus(file, server, address, "kvxfer")
        server.stop()
    (entry,) = json.loads(file.read_bytes())
    assert entry["targets"] == [f"{told}:{server.port}"]
