"""How does the cost of a report grow with the number of sources, of transfers in it, of labels?

One process replays frames of so many distinct sources through a socket, 1,000 transfers in each, every source in turn.
A collector takes and merges them, and closes an interval when each source has reported ten times, as at one report a
second and the default interval. CPU is the receiving process's, ZeroMQ's thread, the closing and the meeting of each
source for the first time included. The peer is the same collector with 10 sources. With transfers and
labels the reports of 8 sources are fed without a socket, and the peer is a report of 1,000 transfers. With two levels
100 collectors of 1,000 sources, each of which has reported once, tell the one above what they have, without sockets.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Row
from benchmarks.memory import resident
from benchmarks.pipe import send
from benchmarks.wire import check_all_taken, report, stream
from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.relay import Relay
from kvxfer.transport import CollectorSockets
from kvxfer.wire import VERSION, Ack, Report, Source, encode, encode_ack, encode_payload

SOURCES = (1, 10, 100, 1_000, 10_000, 100_000)
TRANSFERS = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
SOURCES_FED = 8
SOURCES_BELOW = 1_000
NODES = 100
ROWS_AT_ONCE = 256  # as many as a collector receives at once
REPORTS = 100_000
REPORTS_EACH = 10  # of a source in an interval
BUDGET = 1.5
REPETITIONS = 3
UNIT = "us"


def _run(quick: bool, sources: int) -> dict[str, float]:  # noqa: FBT001 - the harness calls it
    reports = max(sources, REPORTS // (20 if quick else 1))
    with TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/growth.ipc"
        pull, aggregator = CollectorSockets(endpoint), Aggregator(CollectorConfig(), 0.0)
        sender = get_context("spawn").Process(target=send, args=(endpoint, reports // sources, sources), daemon=True)
        sender.start()
        figures = _take(pull, aggregator, reports // sources * sources, REPORTS_EACH * sources)
        sender.kill()
        sender.join()
        pull.close()
    figures["source_kib"] /= sources
    return figures


def _take(pull: CollectorSockets, aggregator: Aggregator, count: int, each: int) -> dict[str, float]:
    """Take so many reports, and close an interval after ``each``."""
    before, closes = resident(), []
    aggregator.feed_all(frames := pull.drain(30.0), 1.0)
    first = received = len(frames)
    next_close = each
    start = taken = time.process_time()
    while received < count:
        aggregator.feed_all(frames := pull.drain(1.0), 1.0)
        received += len(frames)
        taken = time.process_time()
        if received >= min(next_close, count):
            aggregator.close_interval(2.0)
            closes.append(time.process_time() - taken)
            next_close += each
    closed = time.process_time()
    acks = [encode_ack(who, Ack(VERSION, "collector", seq)) for who, seq in aggregator.sources.drain_acks()]
    acknowledged = time.process_time()
    check_all_taken(aggregator, count)
    return {
        "cpu": (closed - start) / max(1, count - first) * 1e6,
        "close_ms": statistics.median(closes) * 1e3,
        "ack_us": (acknowledged - closed) / len(acks) * 1e6,
        "source_kib": (resident() - before) * 1024,
    }


def _feeding(quick: bool, message: Callable[[], bytes]) -> float:  # noqa: FBT001 - the harness calls it
    """CPU of a report with this content."""
    frames = list(itertools.islice(stream(SOURCES_FED, [message()]), 512 if quick else 4096))
    aggregator = Aggregator(CollectorConfig(), 0.0)
    start = time.process_time()
    for first in range(0, len(frames), ROWS_AT_ONCE):
        aggregator.feed_all(frames[first : first + ROWS_AT_ONCE], 1.0)
    taken = time.process_time() - start
    check_all_taken(aggregator, len(frames))
    return taken / len(frames) * 1e6


def _labelled() -> bytes:
    """A report of the offloading connector: three fields with 25 label sets each, which its own class adds up."""
    labels = [(f"tier{n % 5}", f"tier{n // 5}") for n in range(25)]
    types = {"bytes": "counter", "operations": "counter", "time": "histogram"}
    values = {name: dict.fromkeys(labels, [0.25] * 10 if kind == "histogram" else 7) for name, kind in types.items()}
    payload = encode_payload({"types": types, "data": values})
    return encode(Report(VERSION, b"", "OffloadingConnector", 1, 0.0, 1.0, payload))


def _levels(quick: bool) -> dict[str, float]:  # noqa: FBT001 - the harness calls it
    """CPU of a report below: of telling it on, and in the collector above."""
    below, above = Aggregator(CollectorConfig(), 0.0), Aggregator(CollectorConfig(), 0.0)
    below.feed_all(list(itertools.islice(stream(SOURCES_BELOW), SOURCES_BELOW)), 1.0)
    groups = below.close_interval(2.0).groups
    relays = [Relay(Source(f"node{node}", "host", 1, 0.0)) for node in range(NODES // (10 if quick else 1))]
    start = time.process_time()
    for relay in relays:
        relay.take(groups, 2.0)
    frames = [outbox.next_frame or b"" for relay in relays for outbox in relay.outboxes.values()]
    told = time.process_time()
    above.feed_all(frames, 3.0)
    interval = above.close_interval(4.0)
    closed = time.process_time()
    count = len(relays) * SOURCES_BELOW
    if [group.num_ranks for group in interval.groups] != [count]:
        message = f"{count} ranks were told on: {interval.groups}"
        raise RuntimeError(message)
    return {"told": (told - start) / count * 1e6, "above": (closed - told) / count * 1e6}


CASES: dict[str, Callable[[bool], Any]] = {
    **{f"sources_{sources}": partial(_run, sources=sources) for sources in SOURCES},
    **{f"transfers_{size}": partial(_feeding, message=partial(report, size)) for size in TRANSFERS},
    "labelled": partial(_feeding, message=_labelled),
    "levels": _levels,
}
ROWS = (
    *(
        Row(f"CPU per report of {sources:,} sources, beside 10", f"sources_{sources}.cpu", "sources_10.cpu", BUDGET)
        for sources in SOURCES
        if sources != 10
    ),
    Row("an acknowledgement of 100,000 sources, beside 10", "sources_100000.ack_us", "sources_10.ack_us", BUDGET),
    Row("close of an interval of 100,000, beside 10", "sources_100000.close_ms", "sources_10.close_ms", unit="ms"),
    Row("a source of 100,000, beside one of 1,000", "sources_100000.source_kib", "sources_1000.source_kib", unit="KiB"),
    *(
        Row(f"a report of {size:,} transfers, beside 1,000", f"transfers_{size}", "transfers_1000")
        for size in TRANSFERS
        if size != 1_000
    ),
    Row("a report of 75 label sets, beside one without", "labelled", "transfers_1000"),
    Row("a report told on by one of 100 collectors, beside taking it", "levels.told", "transfers_1000"),
    Row("the same in the collector above", "levels.above", "transfers_1000"),
)
