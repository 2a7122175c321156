"""What do ten scrapes a second of 1,000 sources take from the collector, and how long does each of them wait?

One process sends reports of 1,000 transfers of 1,000 sources: one of each a second (`live`), or as many as are taken
(`full`, where the collector's core has nothing left). Another scrapes ``/metrics`` ten times a second, in every second
window of time. ``taken`` are the reports a second in windows with scrapes, ``alone`` in those without, each the median;
``share`` is by how much more of one core the other threads took in windows with scrapes. Percentiles are of the
milliseconds from a request until all of its response was there.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.harness import Row
from benchmarks.hold import publishers
from benchmarks.wire import stream
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.web import WebServer

SOURCES = 1000
LOADS = {"live": 1000, "full": 0}
"""Reports a second; 0 for as many as are taken."""

START_SECONDS = 60.0
WINDOW_SECONDS = 2.0
WINDOWS = 20
SCRAPES_A_SECOND = 10
LIMIT_MS = 50.0
REPETITIONS = 1
UNIT = "reports/s"


def _send(endpoint: str, rate: int, begin: Event) -> None:
    frames = stream(SOURCES)
    with publishers(endpoint) as push:
        begin.set()
        due = time.perf_counter()
        while True:
            push.send(next(frames))
            if rate:
                due += 1 / rate
                time.sleep(max(0.0, due - time.perf_counter()))


def _scrape(port: int, is_on: Event, pipe: Connection) -> None:
    """Scrape while it is on, until there is something in the pipe; then the milliseconds that each took."""
    connection, taken = HTTPConnection("127.0.0.1", port), list[float]()
    while not pipe.poll():
        if not is_on.wait(0.1):
            continue
        began = time.perf_counter()
        connection.request("GET", "/metrics")
        connection.getresponse().read()
        took = time.perf_counter() - began
        taken.append(took * 1e3)
        time.sleep(max(0.0, 1 / SCRAPES_A_SECOND - took))
    pipe.send(taken)


def _run(quick: bool, rate: int) -> dict[str, float]:  # noqa: FBT001 - the harness calls it
    context = get_context("spawn")
    begin, is_on, (ours, theirs) = context.Event(), context.Event(), context.Pipe()
    with TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/scrape.ipc"
        collector = Collector(CollectorConfig(endpoint=endpoint))
        with WebServer(collector, "127.0.0.1:0") as server:
            sender = context.Process(target=_send, args=(endpoint, rate, begin), daemon=True)
            scraper = context.Process(target=_scrape, args=(server.port, is_on, theirs), daemon=True)
            sender.start()
            scraper.start()
            theirs.close()  # the scraper's own is the last one: what is awaited of one that fails ends
            if not begin.wait(START_SECONDS):
                message = f"the sender did not begin within {START_SECONDS:.0f} s"
                raise RuntimeError(message)
            _collect(collector, WINDOW_SECONDS)
            figures = _windows(collector, is_on, 4 if quick else WINDOWS)
            ours.send(None)
            _collect(collector, 0.5)
            taken = ours.recv()
        scraper.join()
        sender.kill()
        sender.join()
        collector.stop()
    return figures | {f"p{each}": float(np.percentile(taken, each)) for each in (50, 95, 99)} | {"limit": LIMIT_MS}


def _windows(collector: Collector, is_on: Event, number: int) -> dict[str, float]:
    rates: dict[bool, list[float]] = {False: [], True: []}
    others: dict[bool, list[float]] = {False: [], True: []}
    for window in range(number):
        scrapes = window % 2 == 1
        (is_on.set if scrapes else is_on.clear)()
        mine, all_threads = time.thread_time(), time.process_time()
        rates[scrapes].append(_collect(collector, WINDOW_SECONDS))
        others[scrapes].append(time.process_time() - all_threads - time.thread_time() + mine)
    return {
        "taken": statistics.median(rates[True]),
        "alone": statistics.median(rates[False]),
        "share": (statistics.median(others[True]) - statistics.median(others[False])) / WINDOW_SECONDS,
        "closing_ms": 1e3 * collector.health().closing_seconds / max(1, collector.health().intervals_closed),
    }


def _collect(collector: Collector, seconds: float) -> float:
    """Collect for so long; the reports a second."""
    before, began = collector.pipeline().reports_received, time.perf_counter()
    while time.perf_counter() < began + seconds:
        collector.poll(0.1)
    return (collector.pipeline().reports_received - before) / (time.perf_counter() - began)


CASES: dict[str, Callable[[bool], dict[str, float]]] = {name: partial(_run, rate=rate) for name, rate in LOADS.items()}
ROWS = (
    *(
        Row(f"{name}, with ten scrapes a second, beside without", f"{name}.taken", f"{name}.alone", 0.98, True)
        for name in LOADS
    ),
    *(
        Row(
            f"{name}, percentile {each} of a scrape, beside its limit",
            f"{name}.p{each}",
            f"{name}.limit",
            1.0,
            unit="ms",
        )
        for name in LOADS
        for each in (50, 95, 99)
    ),
)
