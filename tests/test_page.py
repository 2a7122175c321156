"""The page's files and the events that it listens to; how it looks and feels is tested in a real browser."""

import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from typing import Any

import pytest
from recorded import run

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.publisher import StatsPublisher
from kvxfer.web import WebServer, api, page


@pytest.fixture
def server(ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(page, "EVENT_SECONDS", 0.01)
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.1)
    with Collector(config) as collector, WebServer(collector, "127.0.0.1:0") as running:
        with StatsPublisher("NixlConnector", ipc_endpoint, {"engine": "a"}, linger=10.0) as publisher:
            publisher.stats.record_transfer(0.5, 0.001, 1024, 2)
        yield running


@contextmanager
def got(server: WebServer, path: str) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request("GET", path)
        with connection.getresponse() as response:
            yield response


def events(server: WebServer) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a page is told, until the stream ends."""
    with got(server, "/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        name = ""
        for line in response:
            if line.startswith(b"event: "):
                name = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                yield name, json.loads(line[6:])


def test_the_page_and_all_that_it_names_are_served_and_nothing_is_asked_of_elsewhere(server: WebServer) -> None:
    with got(server, "/") as response:
        assert response.status == 200
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        content = response.read().decode()
    named = re.findall(r'(?:src|href)="((?!data:|#|api)[^"]+)"', content)
    assert len(named) >= 4
    for path in named:
        with got(server, f"/{path}") as response:
            assert (response.status, response.headers["X-Content-Type-Options"]) == (200, "nosniff"), path
    for file in files("kvxfer.web").joinpath("static").iterdir():
        if file.name.endswith((".html", ".css", ".js")) and not file.name.startswith("uplot"):
            text = file.read_text("utf-8")
            assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write|eval", text), file.name


def test_a_page_is_told_each_interval_with_its_sources_and_the_totals_without(server: WebServer) -> None:
    told: dict[str, dict[str, Any]] = {}
    for name, record in events(server):
        if name == "totals" or record["sources"]:
            told[name] = record
        if len(told) == 2 and told["totals"]["groups"]:
            break
    assert told["totals"]["sources"] == []
    assert [source["labels"] for source in told["interval"]["sources"]] == [{"engine": "a"}]
    assert told["totals"]["groups"][0]["durations"]["count"] == 1
    (source,) = told["interval"]["sources"]
    assert (source["durations"]["count"], source["num_bytes"], source["busy_seconds"]) == (1, 1024, 0.5)


def test_a_page_is_told_who_is_slow(ipc_endpoint: str) -> None:
    (interval,) = run([[[0.001] * 20, [0.001] * 20, [0.001] * 20, [0.01] * 20]])
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as collector, WebServer(collector, "127.0.0.1:0") as server:
        server._api._recent.export(interval)
        sources = next(record["sources"] for name, record in events(server) if name == "interval")
    assert [source["labels"]["rank"] for source in sources if source.get("is_slow")] == ["3"]


def test_a_page_that_has_left_is_kept_nothing_for(server: WebServer) -> None:
    told = server._api._events
    listening = events(server)
    while next(listening)[0] != "interval":
        pass
    assert told._told[0] is not None
    listening.close()  # type: ignore[attr-defined]
    while told._told[0] is not None:  # the test's own time limit ends it
        time.sleep(0.01)


def test_totals_that_were_not_made_anew_are_not_told_again(server: WebServer) -> None:
    ends = [record["end"] for (name, record), _ in zip(events(server), range(8), strict=False) if name == "totals"]
    assert len(set(ends)) == len(ends)


def test_histories_that_wait_leave_room_for_others(server: WebServer) -> None:
    for _ in range(api.MAX_HISTORIES):
        server._api._history_seats.acquire()
    with got(server, "/api/v1/history") as response:
        assert response.status == 503
    with got(server, "/healthz") as response:
        assert response.status == 200


def test_no_more_pages_listen_than_may_and_one_that_leaves_makes_room(server: WebServer) -> None:
    listening = [events(server) for _ in range(page.MAX_LISTENERS)]
    for each in listening:
        next(each)
    with got(server, "/events") as refused:
        assert (refused.status, json.loads(refused.read())["error"]) == (503, "16 pages are open already: close one")
    for each in listening:
        each.close()  # type: ignore[attr-defined]
    while True:
        with got(server, "/events") as response:
            if response.status == 200:
                break


def test_a_server_that_stops_ends_the_streams(server: WebServer) -> None:
    listening = events(server)
    next(listening)
    server.stop()
    assert all(name in ("interval", "totals") for name, _ in listening)


def test_a_server_that_stops_leaves_nothing_at_its_collector(ipc_endpoint: str) -> None:
    with Collector(CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.05)) as collector:
        for _ in range(3):
            with WebServer(collector, "127.0.0.1:0") as server:
                assert len(collector._exporters) == 1
                next(events(server))
        assert collector._exporters == []
