"""A collector's end and its view of others' ends: it stops without a loss, and knows who is gone, and who silent."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers import CONNECTOR, FLUSHED, flush_and_stay, publish, publish_until, record_into, wait_until

from benchmarks.faults import Service, differences
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.exporters.jsonl import read_records
from kvxfer.interval import Interval
from kvxfer.publisher import StatsPublisher
from kvxfer.transport import PublisherSockets
from kvxfer.wire import topic

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def start(target: Any, *arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


@contextlib.contextmanager
def collecting(endpoint: str, records: Path, number: signal.Signals) -> Iterator[None]:
    """Run the command with an interval that its end alone closes, and end it by a signal."""
    command = [sys.executable, "-m", "kvxfer", "collect", "--endpoint", endpoint, "--interval", "600"]
    with subprocess.Popen([*command, "--jsonl", records], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        assert "collecting at" in collector.stdout.readline()
        yield
        collector.send_signal(number)
        out, _ = collector.communicate(timeout=30)
    assert collector.returncode == 0
    assert "KV Transfer metrics: Num successful transfers=" in out


def transfers_in(records: Path) -> int:
    (record,) = read_records(records)
    assert record["pipeline"]["reports_rejected"] == {}
    return int(record["groups"][0]["fields"]["transfer_duration"]["count"])


def test_a_collector_that_is_told_to_end_has_counted_what_it_acknowledged_and_the_next_one_gets_the_rest(
    ipc_endpoint: str, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    heard, stop, recorded = context.Semaphore(0), context.Event(), context.Queue()
    workers = [start(publish_until, ipc_endpoint, heard, stop, recorded) for _ in range(2)]
    with collecting(ipc_endpoint, tmp_path / "first.jsonl", signal.SIGTERM):
        assert all(heard.acquire(timeout=30) for _ in workers)
    with collecting(ipc_endpoint, tmp_path / "second.jsonl", signal.SIGINT):
        stop.set()
        counts = [recorded.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert [unacknowledged for _, unacknowledged in counts] == [0, 0]
    collected = transfers_in(tmp_path / "first.jsonl"), transfers_in(tmp_path / "second.jsonl")
    assert min(collected) > 0
    assert sum(collected) == sum(count for count, _ in counts)


def wait_until_it_answers(endpoint: str) -> None:
    sockets = PublisherSockets(endpoint)
    sockets.listen(topic("somebody"))
    wait_until(lambda: bool(sockets.acks()))
    sockets.close(0)


def test_collectors_that_are_told_to_end_hand_their_totals_on_in_the_journal(ipc_endpoint: str, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal.db")
    config = CollectorConfig(endpoint=ipc_endpoint, journal=journal, interval_seconds=0.2)
    with Service(config, workers=2, pause=0.02) as service:
        wait_until(lambda: min(service.times) > 10)
        for number in SIGNALS:
            wait_until_it_answers(ipc_endpoint)
            os.kill(service.collector.pid or 0, number)
            service.collector.join(30)
            assert service.collector.exitcode == 0
            service.start_collector()
        recorded = service.stop_workers()
        assert service.stop_collector() == 0
        found = service.committed()
    assert differences(service.expected(recorded), found) == []
    assert found.pipeline.reports_lost == 0
    assert [worker.unacknowledged for worker in recorded] == [0, 0]
    assert found.pipeline.sources == {"live": 0, "silent": 0, "gone": 2}


class Keeping:
    """An exporter that keeps what it gets."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []

    def export(self, interval: Interval) -> None:
        self.intervals.append(interval)

    def close(self) -> None:
        """Be done."""


def start_and_flush(endpoint: str) -> Any:
    """A worker that has flushed, and stays."""
    context = multiprocessing.get_context("spawn")
    flushed, leave = context.Event(), context.Event()
    worker = start(flush_and_stay, endpoint, flushed, leave)
    assert flushed.wait(30)
    return worker


def test_who_says_goodbye_is_gone_at_once_and_who_is_killed_is_silent_first(ipc_endpoint: str) -> None:
    kept = Keeping()
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.1, silent_seconds=0.5, gone_seconds=1.5)
    with Collector(config, [kept]) as collector:

        def states() -> dict[str, int]:
            return collector.snapshot().pipeline.sources

        start(publish, ipc_endpoint, 1).join(30)
        wait_until(lambda: states()["gone"] == 1)
        killed = start_and_flush(ipc_endpoint)
        assert states() == {"live": 1, "silent": 0, "gone": 1}
        killed.kill()
        wait_until(lambda: states() == {"live": 0, "silent": 1, "gone": 1})
        wait_until(lambda: states() == {"live": 0, "silent": 0, "gone": 2})
        killed.join()
    silent = [[source.pid for source in interval.silent] for interval in kept.intervals]
    assert [killed.pid] in silent
    assert all(pids in ([], [killed.pid]) for pids in silent)
    assert silent[-1] == []


def test_workers_that_are_killed_and_started_again_never_lower_their_groups_totals(ipc_endpoint: str) -> None:
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.05, silent_seconds=0.1, gone_seconds=0.1)
    with Collector(config) as collector:
        for life in range(1, 4):
            worker = start_and_flush(ipc_endpoint)
            worker.kill()
            worker.join()
            (group,) = collector.snapshot().groups
            assert group.stats.transfer_duration.count == life * FLUSHED
        wait_until(lambda: collector.snapshot().pipeline.sources["gone"] == 3)
        with StatsPublisher(CONNECTOR, ipc_endpoint) as publisher:
            record_into(publisher.stats, 1)
    (group,) = collector.snapshot().groups
    assert group.stats.transfer_duration.count == 3 * FLUSHED + 1
