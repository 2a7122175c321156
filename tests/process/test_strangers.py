"""What comes to an open port besides publishers: scans, floods of connections, of topics. Nobody else notices."""

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvxfer import Collector, CollectorConfig, StatsPublisher
from kvxfer.transport import make_keys

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)


def connected(endpoint: str, *, acks: bool = False) -> socket.socket:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port) + acks), timeout=10)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        threading.Event().wait(0.01)


def num_transfers(collector: Collector) -> int:
    return sum(group.stats.reduce()["Num successful transfers"] for group in collector.snapshot().groups)


def scans() -> list[bytes]:
    rng = random.Random(5)
    http = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)]
    old = [b"\x01\x00" + b"\x05\x00junk" * 3, b"\xff" + bytes(8) + b"\x7f\x01\x08" + b"\x00\x00" + b"\x00\x05junk!" * 3]
    halves = [GREETING[:10], GREETING, GREETING + b"\x04\x26\x05READY" + b"x" * 30, b""]
    return [*http, *old, *halves, *(rng.randbytes(200) for _ in range(50))]


@pytest.mark.parametrize("keys", [False, True], ids=["plain", "curve"])
@pytest.mark.parametrize("acks", [False, True], ids=["reports", "acknowledgements"])
def test_a_port_scan_is_counted_as_what_it_is_and_as_no_report(keys: bool, acks: bool, tmp_path: Any) -> None:  # noqa: FBT001
    client = make_keys(str(tmp_path / "k"), ["c"])[0]
    config = CollectorConfig(endpoint="tcp://127.0.0.1:*", curve=str(tmp_path / "k") if keys else None)
    with Collector(config) as collector:
        curve = str(client) if keys else ""
        with StatsPublisher("NixlConnector", collector.endpoint, curve=curve, flush_seconds=0.05) as publisher:
            publisher.stats.record_transfer(0.1, 0.1, 1, 1)
            assert publisher.flush(10)
            for scan in scans():
                with contextlib.suppress(OSError), connected(collector.endpoint, acks=acks) as peer:
                    peer.sendall(scan)
                    publisher.stats.record_transfer(0.1, 0.1, 1, 1)
            assert publisher.flush(10)
            wait_for(lambda: sum(collector.pipeline().connections_refused.values()) == len(scans()))
            pipeline = collector.pipeline()
            assert set(pipeline.connections_refused) <= {"no_handshake", "mechanism"}
            assert (pipeline.reports_rejected, pipeline.reports_duplicate) == ({}, 0)
            assert pipeline.reports_received == publisher.delivery.reports
            assert num_transfers(collector) == 1 + len(scans())


def subscribe(peer: socket.socket, topics: int, size: int) -> None:
    """Speak as a SUB that never tires."""
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"SUB"
    peer.sendall(GREETING + b"\x04" + bytes([len(ready)]) + ready)
    with peer.makefile("rb") as answer:
        answer.read(64 + 28)  # greeting and READY: who speaks on before the collector has answered is refused
    rng = random.Random(3)
    for _ in range(topics // 1000):
        frames = (b"\x00" + bytes([size + 1]) + b"\x01" + rng.randbytes(size) for _ in range(1000))
        peer.sendall(b"".join(frames))


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector at a port that whoever is on this host reaches."""
    with Collector(CollectorConfig(endpoint="tcp://127.0.0.1:*")) as running:
        yield running


def test_a_flood_of_topics_neither_fills_the_memory_nor_loses_a_count(collector: Collector) -> None:
    with StatsPublisher("NixlConnector", collector.endpoint, flush_seconds=0.05) as publisher:
        publisher.stats.record_transfer(0.1, 0.1, 1, 1)
        assert publisher.flush(10)
        before, most, recorded = resident(), 0, 1
        with connected(collector.endpoint, acks=True) as peer:
            flood = threading.Thread(target=flooding, args=(peer,), daemon=True)
            flood.start()
            while flood.is_alive():
                publisher.stats.record_transfer(0.1, 0.1, 1, 1)
                recorded += 1
                most = max(most, resident() - before)
                flood.join(0.005)
        assert publisher.flush(20)
        assert num_transfers(collector) == recorded
        assert collector.pipeline().connections_refused["subscriptions"] >= 1
        assert most < 400 << 20  # without a bound 100,000 topics of 200 bytes take 970 MiB


def flooding(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is cut off
        subscribe(peer, 100_000, 200)


def test_connections_that_are_refused_as_fast_as_they_come_keep_nobody_out(collector: Collector) -> None:
    number = 3000
    with StatsPublisher("NixlConnector", collector.endpoint, flush_seconds=0.05) as publisher:
        for _ in range(number):
            with connected(collector.endpoint) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        publisher.stats.record_transfer(0.1, 0.1, 1, 1)
        assert publisher.flush(10)
        wait_for(lambda: collector.pipeline().connections_refused == {"no_handshake": number})
        assert num_transfers(collector) == 1
