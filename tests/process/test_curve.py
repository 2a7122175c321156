"""Collectors with keys: who has one sends, who has none does not, whatever else holds for the workers."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvxfer import Collector, CollectorConfig, StatsPublisher
from kvxfer.errors import ConfigError
from kvxfer.exporters.jsonl import read_records
from kvxfer.transport import make_keys

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")

WORKER = """
import sys
from kvxfer import StatsPublisher
with StatsPublisher("NixlConnector", sys.argv[1], linger=10) as publisher:
    for _ in range(1000):
        publisher.stats.record_transfer(0.001, 0.0001, 1 << 20, 4)
    sys.exit(0 if publisher.flush(20) else 3)
"""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A collector's keys with clients, and those of a stranger."""
    make_keys(str(tmp_path / "keys"), ["one", "two"])
    make_keys(str(tmp_path / "other"), ["stranger"])
    return tmp_path / "keys"


@pytest.fixture(params=["ipc", "tcp"])
def collector(request: pytest.FixtureRequest, ipc_endpoint: str, keys: Path) -> Iterator[Collector]:
    """A collector with keys, on a thread."""
    endpoint = ipc_endpoint if request.param == "ipc" else "tcp://127.0.0.1:*"
    with Collector(CollectorConfig(endpoint=endpoint, curve=str(keys))) as running:
        yield running


def worker(collector: Collector, directory: Path | str) -> StatsPublisher:
    return StatsPublisher("NixlConnector", collector.endpoint, curve=str(directory), flush_seconds=0.1)


def record(publisher: StatsPublisher) -> None:
    publisher.stats.record_transfer(0.001, 0.0001, 1 << 20, 4)


def counted(collector: Collector) -> dict[str, int]:
    """The transfers of each source."""
    return {view.source.id: view.stats.data["transfer_duration"].count for view in collector.snapshot().sources}


def refused(collector: Collector) -> dict[str, int]:
    return collector.pipeline().connections_refused


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        threading.Event().wait(0.01)


def check_unharmed(publisher: StatsPublisher) -> None:
    """A worker that is not let in records, flushes and closes as if there were no collector."""
    started = time.monotonic()
    for _ in range(1000):
        record(publisher)
    assert not publisher.flush(0.2)
    assert publisher.delivery.unacknowledged == 1
    publisher.close(0.5)
    assert time.monotonic() - started < 5


def test_with_the_right_keys_everything_arrives_and_is_acknowledged(collector: Collector, keys: Path) -> None:
    with worker(collector, keys / "clients/one") as one, worker(collector, keys / "clients/two") as two:
        for publisher in (one, two):
            record(publisher)
            assert publisher.flush(10)
        assert counted(collector) == {one.source.id: 1, two.source.id: 1}
    assert refused(collector) == {}
    wait_for(lambda: collector.pipeline().sources["gone"] == 2)


@pytest.mark.parametrize(
    ("client", "causes"),
    [
        ("other/clients/stranger", {"wrong_server_key"}),
        ("mixed", {"unauthorized_key"}),
        ("", {"mechanism", "no_handshake"}),
    ],
    ids=["wrong server key", "wrong client key", "no key"],
)
def test_without_them_nothing_gets_in_it_is_counted_and_the_worker_is_unharmed(
    collector: Collector, keys: Path, client: str, causes: set[str]
) -> None:
    mixed = keys.parent / "mixed"  # the stranger's own key, and the right one of the collector
    mixed.mkdir(mode=0o700)
    for file in ("client.key_secret", "client.key"):
        (mixed / file).write_bytes((keys.parent / "other/clients/stranger" / file).read_bytes())
    (mixed / "client.key_secret").chmod(0o600)
    (mixed / "server.key").write_bytes((keys / "server.key").read_bytes())
    stranger = worker(collector, keys.parent / client if client else "")
    check_unharmed(stranger)
    wait_for(lambda: refused(collector))
    assert set(refused(collector)) <= causes
    assert collector.pipeline().reports_received == 0
    assert len(collector.snapshot().sources) == 0
    with worker(collector, keys / "clients/one") as honest:
        record(honest)
        assert honest.flush(10)


def test_a_revoked_key_is_cut_off_within_a_second_and_the_others_lose_nothing(collector: Collector, keys: Path) -> None:
    one, two = worker(collector, keys / "clients/one"), worker(collector, keys / "clients/two")
    stop = threading.Event()
    recorded = 0

    def go_on() -> None:
        nonlocal recorded
        while not stop.wait(0.001):
            record(two)
            recorded += 1

    honest = threading.Thread(target=go_on)
    honest.start()
    try:
        record(one)
        assert one.flush(10)
        (keys / "authorized/one.key").unlink()
        wait_for(lambda: refused(collector).get("revoked_key"), 3.0)
        check_unharmed(one)
    finally:
        stop.set()
        honest.join()
    assert two.flush(10)
    assert counted(collector) == {one.source.id: 1, two.source.id: recorded}
    assert set(refused(collector)) <= {"revoked_key", "no_handshake"}
    two.close()


def test_a_worker_whose_key_is_authorized_later_sends_what_it_has_without_a_restart(
    collector: Collector, keys: Path
) -> None:
    file = keys / "authorized/one.key"
    content = file.read_bytes()
    file.unlink()
    with worker(collector, keys / "clients/one") as early:
        record(early)
        assert not early.flush(1.5)
        file.write_bytes(content)
        assert early.flush(15)
        assert counted(collector) == {early.source.id: 1}


def test_a_worker_with_keys_waits_for_a_collector_that_has_some(ipc_endpoint: str, keys: Path) -> None:
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as plain:
        early = worker(plain, keys / "clients/one")
        record(early)
        assert not early.flush(0.5)
        wait_for(lambda: refused(plain))
        assert set(refused(plain)) <= {"mechanism", "no_handshake"}
        assert counted(plain) == {}
    with Collector(CollectorConfig(endpoint=ipc_endpoint, curve=str(keys))) as guarded:
        assert early.flush(15)
        assert counted(guarded) == {early.source.id: 1}
        early.close()


def test_keys_outlive_a_fork(collector: Collector, keys: Path) -> None:
    with worker(collector, keys / "clients/one") as parent:
        record(parent)
        assert parent.flush(10)
        child = os.fork()
        if not child:
            record(parent)
            os._exit(0 if parent.flush(10) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    assert sorted(counted(collector).values()) == [1, 1]


def test_over_the_command_line_with_keys_from_keygen(ipc_endpoint: str, tmp_path: Path) -> None:
    kvxfer = [sys.executable, "-m", "kvxfer"]
    directory, records = tmp_path / "k", tmp_path / "intervals.jsonl"
    done = subprocess.run(
        [*kvxfer, "keygen", str(directory), "--client", "w0"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"collector: kvxfer collect --curve {directory}",
        f"client w0: move {directory}/clients/w0 to its worker, set KVXFER_CURVE to where it is there",
        f"to revoke: rm {directory}/authorized/w0.key",
    ]
    command = [*kvxfer, "collect", "--endpoint", ipc_endpoint, "--jsonl", str(records), "--interval", "60"]
    environment = os.environ | {"KVXFER_CURVE": str(directory)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        assert "collecting at" in running.stdout.readline()
        codes = [
            subprocess.run(
                [sys.executable, "-c", WORKER, ipc_endpoint],
                env=os.environ | {"KVXFER_CURVE": str(directory / "clients/w0")},
                timeout=60,
                check=False,
            ).returncode
        ]
        with StatsPublisher("NixlConnector", ipc_endpoint, linger=0.2) as stranger:
            record(stranger)
        running.send_signal(signal.SIGTERM)
        out, _ = running.communicate(timeout=30)
    assert (codes, running.returncode) == ([0], 0)
    assert "a connection was refused: " in out
    (written,) = read_records(records)
    assert written["groups"][0]["reduced"]["Num successful transfers"] == 1000
    assert sum(written["pipeline"]["connections_refused"].values()) > 0
    assert records.stat().st_mode & 0o777 == 0o600


def test_a_collector_asks_for_keys_before_it_is_reached_from_beyond_this_host(keys: Path) -> None:
    with pytest.raises(ConfigError, match="can be reached from beyond this host"):
        Collector(CollectorConfig(endpoint="tcp://*:*"))
    for config in ({"insecure": True}, {"curve": str(keys)}):
        with contextlib.closing(Closing(CollectorConfig(endpoint="tcp://*:*", **config))) as collector:
            assert collector.endpoint.startswith("tcp://0.0.0.0:")


class Closing(Collector):
    """A collector that is closed as other things are."""

    def close(self) -> None:
        self.stop()


def test_a_worker_whose_keys_cannot_be_used_is_told_when_it_starts(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"client\.key_secret: there is no such key"):
        StatsPublisher("NixlConnector", "ipc:///tmp/none", curve=str(keys))
    monkeypatch.setenv("KVXFER_CURVE", str(keys / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere: No such file or directory"):
        StatsPublisher("NixlConnector", "ipc:///tmp/none")
