"""A collector over HTTP: what each route answers, and that no client can harm it."""

import contextlib
import http.client
import json
import os
import random
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exposing import parse_text

from kvxfer.aggregator import Aggregator
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.errors import ConfigError, EndpointError
from kvxfer.exporters.prometheus import OPENMETRICS, PROTOBUF, TEXT, Options
from kvxfer.publisher import StatsPublisher
from kvxfer.web import Request, Response, WebServer, api, parse_address
from kvxfer.web.cached import Cached
from kvxfer.web.handler import MAX_HEAD_BYTES
from kvxfer.web.recent import Recent
from kvxfer.web.server import MAX_CONNECTIONS

LABELS = {"engine": "e", "rank": "0"}
PATIENCE = 20.0


class Client:
    """Asks one server, over one connection."""

    def __init__(self, server: WebServer) -> None:
        self.server = server
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        self.connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        response = self.connection.getresponse()
        return response.status, response.headers, response.read()

    def json(self, path: str) -> Any:
        return json.loads(self.ask(path)[2])

    def raw(self, sent: bytes) -> bytes:
        """All that comes back over a connection of its own, until the server ends it."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            connection.sendall(sent)
            received = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    received += part
            return received


@pytest.fixture
def collector(ipc_endpoint: str) -> Iterator[Collector]:
    with Collector(CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.2)) as running:
        yield running


@pytest.fixture
def client(collector: Collector) -> Iterator[Client]:
    with WebServer(collector, "127.0.0.1:0", sources=5) as server:
        found = Client(server)
        yield found
        found.connection.close()


def record(collector: Collector, count: int = 3) -> None:
    with StatsPublisher("NixlConnector", collector.endpoint, LABELS, linger=10.0) as publisher:
        for _ in range(count):
            publisher.stats.record_transfer(0.5, 0.1, 1 << 20, 4)


def wait_for(told: Any) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := told()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    return found


# --- routes


def test_metrics_come_in_the_format_that_is_asked_for(collector: Collector, client: Client) -> None:
    record(collector)
    for accept, chosen in (
        ("*/*", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        (PROTOBUF.content_type, PROTOBUF),
    ):
        status, headers, body = client.ask("/metrics", Accept=accept)
        assert (status, headers["Content-Type"]) == (200, chosen.content_type)
        assert headers["Content-Length"] == str(len(body))
    values = {
        sample.name: sample.value
        for family in parse_text(client.ask("/metrics")[2].decode())
        for sample in family.samples
    }
    assert values["kvxfer_nixl_transfer_duration_seconds_count"] == 3
    assert values["kvxfer_collector_interval_close_seconds_count"] >= 0


def test_the_cpu_of_scrapes_is_counted_once(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("MIN_SECONDS", "MAX_SECONDS"):
        monkeypatch.setattr(f"kvxfer.web.cached.{bound}", 0.0)
    snapshot = collector.snapshot

    def costly(**options: Any) -> Any:
        began = time.thread_time()
        while time.thread_time() < began + 0.05:
            pass
        return snapshot(**options)

    monkeypatch.setattr(collector, "snapshot", costly)
    made = api.Api(collector, Options())
    began = time.thread_time()
    made.metrics(Request("/metrics"))
    spent = time.thread_time() - began
    lines = made.metrics(Request("/metrics")).body.decode().splitlines()
    told = dict(line.split() for line in lines if line.startswith("kvxfer_collector_scrape_cpu_seconds_"))
    assert 0.05 <= float(told["kvxfer_collector_scrape_cpu_seconds_sum"]) <= spent
    assert told["kvxfer_collector_scrape_cpu_seconds_count"] == "1"


def test_gauges_that_a_journal_has_folded_are_not_those_of_now(
    tmp_path: Path, ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvxfer.web.cached.MIN_SECONDS", 0.1)  # no interval goes by between two that are made
    monkeypatch.setattr("kvxfer.web.cached.SHARE", 1.0)
    name, journal = "vllm:kv_offload_cpu_cache_usage_perc", str(tmp_path / "j.db")
    payload = {"types": {name: "gauge"}, "data": {name: {(): 0.9}}}
    usage = re.compile(r"^kvxfer_offloading_cpu_cache_usage_ratio.* 0.9$", re.MULTILINE)
    for _ in range(2):
        config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=1.0, journal=journal)
        with Collector(config) as running:
            made = api.Api(running, Options())
            assert usage.search(made.metrics(Request("/metrics")).body.decode()) is None
            with StatsPublisher("OffloadingConnector", ipc_endpoint, LABELS, linger=10.0) as publisher:
                publisher.push(OffloadingConnectorStats(payload))
            wait_for(lambda made=made: usage.search(made.metrics(Request("/metrics")).body.decode()))  # type: ignore[misc]
            wait_for(lambda running=running: running.snapshot().seconds > 1.0)  # type: ignore[misc]


def test_every_response_has_safe_headers(client: Client) -> None:
    for path in ("/metrics", "/healthz", "/nowhere"):
        headers = client.ask(path)[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "kvxfer"


def test_a_head_request_gets_the_headers_alone_and_the_connection_goes_on(client: Client) -> None:
    status, headers, body = client.ask("/healthz", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "3", b"")
    assert client.ask("/healthz")[2] == b"ok\n"


def test_the_snapshot_is_a_record_with_or_without_sources(collector: Collector, client: Client) -> None:
    record(collector)
    found = client.json("/api/v1/snapshot")
    assert found["groups"][0]["fields"]["transfer_duration"]["count"] == 3
    assert [each["labels"] for each in found["sources"]] == [LABELS]
    assert client.json("/api/v1/snapshot?sources=0")["sources"] == []


def test_history_is_of_memory_without_a_journal(collector: Collector, client: Client) -> None:
    record(collector)
    found = wait_for(lambda: [each for each in client.json("/api/v1/history")["intervals"] if each["groups"]])
    assert sum(each["groups"][0]["fields"]["bytes_transferred"]["sum"] for each in found) == 3 << 20
    end = found[0]["end"]
    assert client.json(f"/api/v1/history?start={end - 0.01}&end={end}")["intervals"] == found[:1]
    one = wait_for(
        lambda: [client.json("/api/v1/history?limit=1")] if client.json("/api/v1/history")["intervals"] else []
    )
    assert (len(one[0]["intervals"]), one[0]["version"]) == (1, 1)


def test_a_long_history_is_cut_at_its_beginning(
    collector: Collector, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: len(client.json("/api/v1/history")["intervals"]) > 2)
    monkeypatch.setattr(api, "MAX_HISTORY_BYTES", 1)
    found = client.json("/api/v1/history")
    assert (len(found["intervals"]), found["is_cut"]) == (1, True)
    record(collector)


def test_history_is_of_the_journal_and_outlives_a_collector(ipc_endpoint: str, tmp_path: Path) -> None:
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.2, journal=str(tmp_path / "j.db"))
    with Collector(config) as first:
        record(first)
    with Collector(config) as second, WebServer(second, "127.0.0.1:0") as server:
        client = Client(server)
        found = [each for each in client.json("/api/v1/history?limit=1000")["intervals"] if each["groups"]]
        assert found[0]["groups"][0]["fields"]["transfer_duration"]["count"] == 3
        assert found[0]["sources"] == []
        one = client.json(f"/api/v1/history?limit=1&sources=1&end={found[0]['end']}")
        assert one["intervals"][0]["sources"][0]["labels"] == LABELS
        client.connection.close()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("limit=0", "limit: expected 1 to 1000, got 0"),
        ("limit=21&sources=1", "limit: expected 1 to 20, got 21"),
        ("start=soon", "start: expected a number, got 'soon'"),
        ("end=nan", "end: expected a number, got 'nan'"),
        ("sources=yes", "sources: expected 0 or 1, got 'yes'"),
        ("&".join(f"{name}=1" for name in range(17)), "more than 16 parameters"),
    ],
)
def test_a_query_that_cannot_be_answered_is_named(client: Client, query: str, said: str) -> None:
    status, _, body = client.ask(f"/api/v1/history?{query}")
    assert (status, json.loads(body)) == (400, {"error": said})


def test_a_route_that_fails_is_a_500_that_tells_nothing(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    def failing(_: Request) -> Response:
        message = "a secret"
        raise RuntimeError(message)

    client.server._server.routes = {"/fails": failing}
    status, _, body = client.ask("/fails")
    assert status == 500
    assert b"secret" not in body
    assert "a secret" in caplog.text


def test_a_program_may_add_routes(collector: Collector) -> None:
    with WebServer(collector, "127.0.0.1:0", routes={"/": lambda _: Response(b"<p>", "text/html")}) as server:
        client = Client(server)
        status, headers, body = client.ask("/")
        assert (status, headers["Content-Type"], body) == (200, "text/html", b"<p>")
        client.connection.close()


# --- health


def test_a_collector_whose_loop_does_not_run_is_not_ready(ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "STALLED_SECONDS", 0.2)
    collector = Collector(CollectorConfig(endpoint=ipc_endpoint))
    with WebServer(collector, "127.0.0.1:0") as server:
        client = Client(server)
        collector.poll()
        assert client.json("/readyz") == {"ready": True, "reasons": []}
        threading.Event().wait(0.3)
        status, _, body = client.ask("/readyz")
        assert status == 503
        assert "the collector's loop has not run for 0." in json.loads(body)["reasons"][0]
        assert client.ask("/healthz")[0] == 200
        client.connection.close()
    collector.stop()


def test_a_journal_that_cannot_be_written_is_told(ipc_endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = CollectorConfig(endpoint=ipc_endpoint, journal=str(tmp_path / "file" / "journal.db"))
    with Collector(config) as collector, WebServer(collector, "127.0.0.1:0") as server:
        client = Client(server)
        status, _, body = client.ask("/readyz")
        assert status == 503
        assert json.loads(body)["reasons"] == ["the journal cannot be written: what is collected is in memory alone"]
        assert client.ask("/api/v1/history")[0] == 503
        client.connection.close()


# --- clients that mean no good


def test_other_methods_paths_and_bodies_are_refused(client: Client) -> None:
    status, headers, _ = client.ask("/metrics", "DELETE")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert client.ask("/../etc/passwd")[0] == 404
    assert client.raw(b"GET /healthz HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").startswith(b"HTTP/1.1 400 ")
    assert client.raw(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert client.raw(b"GET /healthz\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("head", [b"GET /" + b"a" * MAX_HEAD_BYTES, b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES])
@pytest.mark.parametrize("end", [b"", b" HTTP/1.1\r\n\r\n"])
def test_a_head_that_is_too_large_is_refused(client: Client, head: bytes, end: bytes) -> None:
    assert client.raw(head + end).startswith(b"HTTP/1.1 431 ")


def test_a_head_that_comes_too_slowly_ends_the_connection(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvxfer.web.handler.HEAD_SECONDS", 0.3)
    began = time.monotonic()
    connection = socket.create_connection(("127.0.0.1", client.server.port), timeout=0.05)
    with connection, contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 5:
            connection.sendall(b"G")
            with contextlib.suppress(TimeoutError):
                if connection.recv(100) == b"":
                    break
    assert time.monotonic() - began < 2


def test_bytes_of_any_kind_do_no_harm(client: Client) -> None:
    rng = random.Random(1)
    request = b"GET /api/v1/history?limit=1 HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
    for _ in range(200):
        mutant = bytearray(request)
        for _ in range(rng.randint(1, 8)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        with socket.create_connection(("127.0.0.1", client.server.port), timeout=10) as connection:
            connection.sendall(bytes(mutant))
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(100)
        assert answer[:9] in (b"", b"HTTP/1.1 ", b"HTTP/1.0 ")
    assert client.ask("/healthz")[2] == b"ok\n"


def test_requests_of_one_packet_are_answered_one_after_the_other(client: Client) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /healthz HTTP/1.0\r\n\r\n"
    assert client.raw(one + one + last).count(b"\r\n\r\nok\n") == 3


def test_a_name_that_is_not_this_hosts_is_refused_on_loopback(client: Client) -> None:
    assert client.ask("/metrics", Host="attacker.example")[0] == 421
    for name in ("localhost:9464", "127.0.0.1", "[::1]:80"):
        assert client.ask("/healthz", Host=name)[0] == 200


def test_connections_are_bounded_and_those_that_are_closed_make_room(client: Client) -> None:
    address = ("127.0.0.1", client.server.port)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(address, timeout=10))
        wait_for(lambda: len(client.server._server._open) == MAX_CONNECTIONS)
        assert client.raw(b"GET /healthz HTTP/1.1\r\n\r\n") == b""
    wait_for(lambda: client.raw(b"GET /healthz HTTP/1.0\r\n\r\n").endswith(b"ok\n"))


def test_while_many_are_connected_none_is_kept_after_its_response(client: Client) -> None:
    address = ("127.0.0.1", client.server.port)
    assert client.ask("/healthz")[1]["Connection"] == "keep-alive"
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS // 2 + 1):
            stack.enter_context(socket.create_connection(address, timeout=10))
        wait_for(lambda: client.server._server.is_crowded)
        assert client.ask("/healthz")[1]["Connection"] == "close"


# --- what collecting does not pay


def test_what_is_costly_is_made_once_for_all_who_ask() -> None:
    now = [0.0]
    made = iter(range(100))
    cached = Cached(lambda: next(made), lambda: now[0])
    assert [cached.get(), cached.get()] == [0, 0]
    now[0] = 0.99
    assert cached.get() == 0
    now[0] = 1.0
    assert cached.get() == 1
    assert cached.num_made == 2


def test_what_costs_much_is_kept_for_long() -> None:
    now = [0.0]

    def make() -> float:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        return now[0]

    cached = Cached(make, lambda: now[0])
    cached.get()
    now[0] = 9.0
    assert cached.get() == 0.0  # a two-hundredth of a CPU at most
    now[0] = 31.0
    assert cached.get() == 31.0


def test_what_is_over_is_let_go() -> None:
    class Large:
        pass

    now = [0.0]
    cached = Cached(Large, lambda: now[0])
    held = weakref.ref(cached.get())
    cached.let_go()
    assert held() is cached.get()
    now[0] = 1.0
    cached.let_go()
    assert held() is None
    assert isinstance(cached.get(), Large)


def test_who_lets_go_does_not_wait_for_what_is_being_made() -> None:
    cached = Cached(lambda: cached.let_go() or 5)  # type: ignore[func-returns-value]
    assert cached.get() == 5


def test_what_nobody_asks_for_any_more_is_let_go_with_the_next_interval(client: Client) -> None:
    api, now = client.server._api, [0.0]
    kept = [api._families, *api._formats.values(), *api._snapshots.values()]
    for each in kept:
        each._now = lambda: now[0]
    client.ask("/metrics")
    client.ask("/api/v1/snapshot")
    assert sum(each._held is not None for each in kept) == 3
    now[0] = 1e9
    wait_for(lambda: all(each._held is None for each in kept))


def test_what_fails_is_made_again() -> None:
    results = iter([RuntimeError("no"), 5])

    def make() -> int:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    cached = Cached(make)
    with pytest.raises(RuntimeError):
        cached.get()
    assert cached.get() == 5


def test_scrapes_at_the_same_time_read_the_collector_once(collector: Collector, client: Client) -> None:
    asked = []
    snapshot = collector.snapshot
    collector.snapshot = lambda **options: asked.append(options) or snapshot(**options)  # type: ignore[method-assign,func-returns-value]
    threads = [
        threading.Thread(target=lambda: Client(client.server).ask("/metrics", Connection="close")) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [{"sources": True}]


def test_what_is_kept_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvxfer.web.recent.MAX_BYTES", 500)
    kept, made = Recent(history=True), Aggregator(CollectorConfig(), 0.0)
    for end in range(1, 100):
        kept.export(made.close_interval(float(end)))
    assert 1 < len(list(kept.newest(0.0, 1e9))) < 50
    assert len(list(kept.newest(98.0, 99.0))) == 1
    none = Recent(history=False)
    none.export(made.close_interval(100.0))
    assert none.last is not None
    assert list(none.newest(0.0, 1e9)) == []


# --- addresses


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),  # noqa: S104 - nothing is bound
        ("[::1]:80", ("::1", 80)),
        ("host.example:0", ("host.example", 0)),
    ],
)
def test_an_address_without_a_host_is_on_loopback(address: str, found: tuple[str, int]) -> None:
    assert parse_address(address) == found


@pytest.mark.parametrize("address", ["", "host", "host:", "host:x", "1:2:3", "h:65536", "http://h:1", "a b:1", "h:-1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT, got"):
        parse_address(address)


def test_a_port_that_is_taken_or_a_host_that_is_not_here_is_said(collector: Collector, client: Client) -> None:
    for address in (f"127.0.0.1:{client.server.port}", "203.0.113.7:0", "no-such-host.invalid:1"):
        with pytest.raises(EndpointError, match="cannot serve at http://"):
            WebServer(collector, address)


def test_it_serves_ipv6_and_says_where(collector: Collector) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with WebServer(collector, "[::1]:0") as server:
        assert repr(server) == f"<WebServer http://[::1]:{server.port}>"
        connection = http.client.HTTPConnection("::1", server.port, timeout=10)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        connection.close()


def test_a_server_that_stops_ends_its_connections_and_gives_its_port_free(collector: Collector) -> None:
    server = WebServer(collector, "127.0.0.1:0").start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle:
        wait_for(lambda: server._server._open)
        server.stop()
        server.stop()
        assert idle.recv(1) == b""
    with WebServer(collector, f"127.0.0.1:{server.port}"):
        pass


def test_a_forked_child_does_not_keep_the_port(collector: Collector) -> None:
    server = WebServer(collector, "127.0.0.1:0").start()
    waits, ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ends)
        os.read(waits, 1)  # until the parent has looked
        os._exit(0)
    try:
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=10)
    finally:
        os.close(ends)
        os.close(waits)
        os.waitpid(pid, 0)
