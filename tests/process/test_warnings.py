"""A worker that is stopped falls silent in the log, and is back when it goes on."""

import os
import signal
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Event

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.exporters.warning import WarningExporter
from kvxfer.publisher import StatsPublisher


def record_on(endpoint: str, end: Event) -> None:
    with StatsPublisher("NixlConnector", endpoint, {"rank": "7"}, flush_seconds=0.1) as publisher:
        while not end.wait(0.02):
            publisher.stats.record_transfer(0.001, 0.0001, 1 << 20, 4)


def test_a_stopped_worker_is_silent_and_back_when_it_goes_on(ipc_endpoint: str) -> None:
    said: list[str] = []
    context = get_context("spawn")
    end = context.Event()
    worker = context.Process(target=record_on, args=(ipc_endpoint, end))
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.2, silent_seconds=2.0)
    with Collector(config, [WarningExporter(said.append)]) as collector:
        worker.start()
        assert worker.pid is not None
        while not collector.snapshot().groups:
            time.sleep(0.05)
        os.kill(worker.pid, signal.SIGSTOP)
        while not said:
            time.sleep(0.05)
        os.kill(worker.pid, signal.SIGCONT)
        while len(said) == 1:
            time.sleep(0.05)
        end.set()
        worker.join()
    assert [sentence.partition(f"pid={worker.pid} ")[2] for sentence in said] == [
        "is silent: no report, and no sign that it lives",
        "is back: it reports again",
    ]
    assert said[0].startswith("Worker rank=7, host=")
