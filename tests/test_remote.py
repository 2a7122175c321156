"""`kvxfer top` at a running collector's server: what it sees, and what it makes of others that answer."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvxfer.cli import main
from kvxfer.cli.top import Following
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.errors import ConfigError, RecordError
from kvxfer.publisher import StatsPublisher
from kvxfer.records import remote
from kvxfer.records.remote import Remote
from kvxfer.web import WebServer, page

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "EVENT_SECONDS", 0.02)
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(remote, "QUIET_SECONDS", 2.0)


@contextlib.contextmanager
def serving(endpoint: str, address: str = "127.0.0.1:0", journal: str | None = None) -> Iterator[str]:
    config = CollectorConfig(endpoint=endpoint, interval_seconds=0.1, journal=journal)
    with Collector(config) as collector, WebServer(collector, address) as server:
        yield server.url


@contextlib.contextmanager
def watching(address: str) -> Iterator[tuple[Remote, Following]]:
    watched = Remote(address)
    try:
        yield watched, Following(watched)
    finally:
        watched.close()


def wait_for(told: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := told()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    return found


def record(endpoint: str, count: int = 3) -> None:
    with StatsPublisher("NixlConnector", endpoint, {"rank": "0"}, linger=PATIENCE) as publisher:
        for _ in range(count):
            publisher.stats.record_transfer(0.5, 0.001, 1024, 2)


def states(following: Following) -> list[tuple[str, str]]:
    now = following.now()
    return [] if now is None else [(row.row.labels["rank"], row.state) for row in now.ranks]


def transfers(following: Following) -> list[tuple[str, int | None]]:
    """Who moved what in the intervals that have come."""
    return [(row.row.labels["rank"], row.row.num_transfers) for now in following.look() for row in now.ranks]


@pytest.mark.parametrize("form", ["url", "host and port", "port"])
def test_it_sees_the_ranks_of_a_collector_that_keeps_no_journal(ipc_endpoint: str, form: str) -> None:
    with serving(ipc_endpoint) as url:
        address = {"url": f"{url}/", "host and port": url[7:], "port": url.rpartition(":")[2]}[form]
        with watching(address) as (_, following):
            record(ipc_endpoint)
            wait_for(lambda: ("0", 3) in transfers(following))


def test_it_knows_who_was_there_before(ipc_endpoint: str) -> None:
    with serving(ipc_endpoint) as url, StatsPublisher("NixlConnector", ipc_endpoint, {"rank": "5"}) as publisher:
        record(ipc_endpoint)
        publisher.stats.record_transfer(0.5, 0.001, 1024, 2)
        assert publisher.flush(PATIENCE)
        with watching(url) as (_, earlier):
            wait_for(lambda: earlier.look() and ("5", "idle") in states(earlier))
        with watching(url) as (_, following):
            wait_for(following.look)
            assert states(following) == [("5", "idle")]


def test_each_interval_is_seen_once_and_in_order(ipc_endpoint: str) -> None:
    with serving(ipc_endpoint) as url, watching(url) as (_, following):
        ends: list[float] = []
        while len(ends) < 6:
            ends += [now.end for now in following.look()]
    assert ends == sorted(set(ends))


def test_one_that_goes_away_is_said_and_seen_again_when_it_is_back(ipc_endpoint: str) -> None:
    with contextlib.ExitStack() as stack:
        with serving(ipc_endpoint) as url:
            watched, following = stack.enter_context(watching(url))
            wait_for(following.look)
            assert watched.trouble == ""
        wait_for(lambda: "Connection refused" in following.trouble)
        with serving(ipc_endpoint, url[7:]):
            wait_for(lambda: not following.trouble)
            record(ipc_endpoint)
            wait_for(lambda: ("0", 3) in transfers(following))


# --- others


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """Something that gives these answers to one connection after the other, and then the last one again and again."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def answer() -> None:
            number = 0
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(answers[min(number, len(answers) - 1)])
                        number += 1

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        ended.set()
        thread.join()


def http_of(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode() + body


NUMBERS = ("reports_received", "reports_duplicate", "reports_lost", "observations_rejected", "observations_cut")


def line(start: float, version: int = 1) -> bytes:
    pipeline = dict.fromkeys(NUMBERS, 0) | {"reports_rejected": {}}
    rest: dict[str, Any] = {"groups": [], "sources": [], "pipeline": pipeline}
    return json.dumps({"version": version, "start": start, "end": start + 1.0} | rest).encode()


TOTALS = http_of(line(0.0))


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "answers, but not as a collector does: SSH-2.0-OpenSSH_9.2"),
        ([b""], "answers, but not as a collector does"),
        ([http_of(b"<html>", "text/html")], "answers, but not as a collector does: JSON is malformed"),
        ([http_of(b"[" * 100_000)], "answers, but not as a collector does"),
        ([http_of(b'{"start": 1}')], "missing required field `version`"),
        ([http_of(line(0.0, version=2))], "version 2, this kvxfer reads 1: upgrade kvxfer"),
        ([http_of(b"nothing", status="404 Not \x1b[2JFound")], r"404 Not \x1b[2JFound: name the address of its --http"),
        (
            [http_of(b'{"error": "16 pages are open"}', status="503 Busy")],
            "no room for one more now: 16 pages are open: try again later",
        ),
        ([TOTALS, http_of(b"{}")], "its events are none"),
    ],
)
def test_an_address_that_answers_something_else_is_an_error(
    answers: list[bytes], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(*answers) as url:
        assert main(["top", url]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "\x1b" not in error


def test_an_address_where_nobody_answers_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    assert main(["top", "--http", port]) == 2
    assert "Connection refused: start `kvxfer collect --http`, or name another" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["http://", "http://h:0", "http://h:x", "http://u@h", "http://h/?a=1", "h:p", "a b"]
)
def test_what_is_no_address_is_an_error(address: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Remote(address)


def test_two_collectors_at_once_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "j.db", "--http", "9464"]) == 2
    assert "expected one collector to watch, got 9464 and j.db: name one" in capsys.readouterr().err


def event(content: bytes, name: bytes = b"interval") -> bytes:
    return http_of(b": \n\nevent: " + name + b"\ndata: " + content + b"\n\n", "text/event-stream")


BROKEN = [(1000.0, 900.0), (900.0, 901.0), (10.0,)]
"""Where the intervals begin that are told until the connection breaks."""


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        (b"{", "Input data was truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, ""),
        (b'{"version": 1}', "missing required field"),
        (b"x" * 9000, "it sends more than 0 MiB at once"),
    ],
)
def test_events_that_are_none_are_said_and_it_goes_on(
    content: bytes, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 8000)
    with answering(TOTALS, event(content)) as url, watching(url) as (watched, following):
        wait_for(lambda: watched.trouble and trouble in watched.trouble)
        assert following.look() == []


def test_a_flood_of_intervals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_WAITING", 10)
    told = b"".join(b"event: interval\ndata: " + line(float(number)) + b"\n\n" for number in range(50))
    with answering(TOTALS, http_of(told, "text/event-stream"), TOTALS) as url:
        watched = Remote(url)
        try:
            wait_for(lambda: watched._last == (49.0, 50.0))
            assert [span.end for span in watched.spans()] == [float(n) for n in range(41, 51)]
        finally:
            watched.close()


def test_a_clock_that_was_set_back_hides_nothing_and_what_was_told_is_told_once() -> None:
    told = [b"".join(b"event: interval\ndata: " + line(start) + b"\n\n" for start in starts) for starts in BROKEN]
    with answering(TOTALS, *(http_of(each, "text/event-stream") for each in told)) as url:
        watched = Remote(url)
        try:
            ends: list[float] = []
            wait_for(lambda: ends.extend(span.end for span in watched.spans()) or len(ends) >= 4)  # type: ignore[func-returns-value]
            assert ends == [1001.0, 901.0, 902.0, 11.0]
        finally:
            watched.close()


def test_what_it_was_made_of_shows_in_its_repr(ipc_endpoint: str) -> None:
    with serving(ipc_endpoint) as url, watching(url) as (watched, _):
        assert repr(watched) == f"<Remote {url} connected>"


def test_an_error_names_whose_it_is() -> None:
    with answering(http_of(b"nothing", status="500 No")) as url, pytest.raises(RecordError, match=url):
        Remote(url)
