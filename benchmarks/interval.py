"""How long is a collector deaf while it closes an interval, and writes it?

1,000 sources send a report of 1,000 transfers each, once a second, and intervals last two. A turn of the collector's
loop takes what has come, and closes, commits, acknowledges and exports when that is due: the longest turn is the
longest gap between two receives. With a journal every source's own numbers are added up and written each time.
"""

import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from tempfile import TemporaryDirectory

import numpy as np
import zmq

from benchmarks.harness import Row
from benchmarks.wire import stream
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig

SOURCES = 1_000
SLICE_SECONDS = 0.01
REPETITIONS = 3
UNIT = "ms"


def _send(endpoint: str) -> None:
    """Send a hundredth of a second's reports every hundredth of a second."""
    frames = stream(SOURCES)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(endpoint)
        due = time.perf_counter()
        while True:
            for _ in range(int(SOURCES * SLICE_SECONDS)):
                push.send(next(frames))
            due += SLICE_SECONDS
            time.sleep(max(0.0, due - time.perf_counter()))


def _run(quick: bool, *, durable: bool) -> dict[str, float]:  # noqa: FBT001 - the harness calls it
    with TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/interval.ipc"
        journal = f"{directory}/journal.db" if durable else None
        collector = Collector(CollectorConfig(endpoint=endpoint, journal=journal, interval_seconds=2.0))
        sender = get_context("spawn").Process(target=_send, args=(endpoint,), daemon=True)
        sender.start()
        turns = _turns(collector, 5.0 if quick else 15.0)
        sender.kill()
        sender.join()
        collector.stop()
    return {"longest": max(turns), "usual": float(np.median(turns))}


def _turns(collector: Collector, seconds: float) -> list[float]:
    """How long each turn took that had something to take, in ms."""
    turns = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        before = collector.pipeline().reports_received
        collector.poll(0.0)
        if collector.pipeline().reports_received > before:
            turns.append((time.perf_counter() - start) * 1e3)
        else:
            time.sleep(0.001)
    return turns


CASES: dict[str, Callable[[bool], dict[str, float]]] = {
    "durable": partial(_run, durable=True),
    "memory": partial(_run, durable=False),
}
ROWS = (
    Row("longest turn in memory alone, beside the usual one", "memory.longest", "memory.usual"),
    Row("longest turn with a journal, beside in memory alone", "durable.longest", "memory.longest"),
)
