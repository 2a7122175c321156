"""How many sources that report once a second does a collector hold, for a minute?

One process sends a report of 1,000 transfers of each of so many distinct sources every second, a hundredth of them
every 10 ms; a sender that is refused waits and is late, as publishers keep what is refused. The collector closes an
interval every 10 s. Its peer is what was due: of a collector that holds them all, everything has come a second after
the minute. ``late_ms`` is by how much the longest interval was longer, ``grown_mib`` what the process grew by.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from tempfile import TemporaryDirectory

import zmq

from benchmarks.harness import Row
from benchmarks.memory import resident
from benchmarks.wire import stream
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.transport import ack_endpoint

SOURCES = (25_000, 40_000, 100_000)
SECONDS = 60
SLICES = 100
REPETITIONS = 1
UNIT = "reports/s"
BUDGET = 0.999


@contextmanager
def publishers(endpoint: str) -> "Iterator[zmq.Socket[bytes]]":
    """What sends for all of them; it hears acknowledgements as they would."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.SUB) as sub:
        sub.subscribe(b"")
        sub.connect(ack_endpoint(endpoint))
        push.connect(endpoint)
        yield push


def _send(endpoint: str, sources: int, seconds: int, begin: Event) -> None:
    """Send so many reports a second."""
    frames = stream(sources)
    with publishers(endpoint) as push:
        begin.set()
        due = time.perf_counter()
        for number in range(seconds * SLICES):
            for _ in range(sources * (number + 1) // SLICES - sources * number // SLICES):
                push.send(next(frames))
            due += 1 / SLICES
            time.sleep(max(0.0, due - time.perf_counter()))
        time.sleep(3600)  # who closes before all is read loses the last ones: whoever started this ends it


def _run(quick: bool, sources: int) -> dict[str, float]:  # noqa: FBT001 - the harness calls it
    seconds = 2 if quick else SECONDS
    context = get_context("spawn")
    with TemporaryDirectory() as directory:
        endpoint, begin = f"ipc://{directory}/hold.ipc", context.Event()
        collector = Collector(CollectorConfig(endpoint=endpoint, interval_seconds=seconds / 6))
        sender = context.Process(target=_send, args=(endpoint, sources, seconds, begin), daemon=True)
        sender.start()
        begin.wait()
        before, cpu = resident(), time.process_time()
        latest = _collect(collector, time.perf_counter() + seconds + 1)
        figures = {
            "taken": collector.pipeline().reports_received / seconds,
            "due": float(sources),
            "cores": (time.process_time() - cpu) / (seconds + 1),
            "late_ms": latest * 1e3,
            "grown_mib": resident() - before,
        }
        sender.kill()
        sender.join()
        collector.stop()
    return figures


def _collect(collector: Collector, deadline: float) -> float:
    """Collect until the deadline; by how much the latest interval was longer than it should be, in seconds."""
    latest = 0.0
    while time.perf_counter() < deadline:
        for interval in collector.poll(0.1):
            latest = max(latest, interval.seconds - collector.config.interval_seconds)
    return latest


CASES: dict[str, Callable[[bool], dict[str, float]]] = {
    f"sources_{sources}": partial(_run, sources=sources) for sources in SOURCES
}
ROWS = tuple(
    Row(
        f"{sources:,} sources for a minute, beside what was due",
        f"sources_{sources}.taken",
        f"sources_{sources}.due",
        BUDGET,
        more_is_better=True,
    )
    for sources in SOURCES
)
