"""What stands at the endpoint in a collector's place: nobody, a frozen one, bytes of another service, nonsense acks."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.impostors import GREETED, Endpoint
from examples.vllm_disagg.engines import free_ports
from kvxfer.publisher import StatsPublisher

MAX_GROWTH_MIB = 32
FRAME_BYTES = 64 << 20


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(free_ports()) as made:
        yield made


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def record_for(publisher: StatsPublisher, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        publisher.stats.record_transfer(0.1, 0.1, 1, 1)
        time.sleep(0.001)


@pytest.mark.parametrize("who", ["absent", "garbage", "malformed", "frozen"])
def test_a_worker_neither_grows_nor_hangs_and_delivers_when_a_collector_comes(endpoint: Endpoint, who: str) -> None:
    endpoint.be("live" if who == "frozen" else who)
    with StatsPublisher("NixlConnector", endpoint.name, flush_seconds=0.05) as publisher:
        record_for(publisher, 0.5)
        if who != "absent":
            endpoint.wait_until_heard(10 if who == "garbage" else 1)
        if who == "frozen":
            endpoint.freeze()
        before = resident_mib()
        record_for(publisher, 3)
        assert not publisher.flush(0.1)
        assert publisher.delivery.unacknowledged > 1
        assert resident_mib() - before < MAX_GROWTH_MIB
        endpoint.be("live")
        assert publisher.flush(30), publisher


@pytest.mark.parametrize("who", ["absent", "garbage", "malformed", "frozen"])
def test_a_worker_that_ends_waits_no_longer_than_it_lingers(endpoint: Endpoint, who: str) -> None:
    endpoint.be("live" if who == "frozen" else who)
    publisher = StatsPublisher("NixlConnector", endpoint.name, flush_seconds=0.05, linger=1)
    record_for(publisher, 0.5)
    if who != "absent":
        endpoint.wait_until_heard()
    if who == "frozen":
        endpoint.freeze()
    record_for(publisher, 0.2)
    begun = time.monotonic()
    publisher.close()
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "beginning", [GREETED + b"\x02", b"\x01\x00\xff"], ids=["of today", "of ZeroMQ's first version"]
)
def test_who_sends_an_endless_frame_instead_of_taking_reports_is_cut_off(beginning: bytes) -> None:
    port = free_ports()
    with (
        socket.create_server(("127.0.0.1", port)) as server,
        StatsPublisher("NixlConnector", f"tcp://127.0.0.1:{port}", flush_seconds=0.05, linger=0) as publisher,
    ):
        server.settimeout(20)
        publisher.stats.record_transfer(0.1, 0.1, 1, 1)
        peer, _ = server.accept()
        peer.settimeout(20)
        with peer, pytest.raises(ConnectionError):
            peer.sendall(beginning + FRAME_BYTES.to_bytes(8, "big") + bytes(FRAME_BYTES))
