"""How long is a report under way until a busy collector has counted it, and a snapshot shows it?

From handing it to the socket until its acknowledgement is back, which leaves when the report is counted: an upper
bound. Meanwhile another process sends reports of 1,000 transfers at a part of the rate that this collector takes at
most, which is measured before. There is no journal: with one, acknowledgements wait for a commit, once a second, and
snapshots do not.
"""

import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory

import numpy as np
import zmq

from benchmarks.harness import Row
from benchmarks.wire import report, stream
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.transport import PublisherSockets
from kvxfer.wire import Source, decode, decode_ack, encode, topic

LOADS = (10, 50, 90)
PERCENTILES = (50, 99, 99.9)
SOURCES = 8
FLOOD = 60_000
SLICE_SECONDS = 0.005
PAUSE_SECONDS = 0.003
REPETITIONS = 3
UNIT = "ms"


def _load(endpoint: str, pipe: Connection) -> None:
    """Send a flood, be told a rate, and send at that until there is more in the pipe."""
    frames = stream(SOURCES)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(endpoint)
        for _ in range(FLOOD):
            push.send(next(frames))
        rate = pipe.recv()
        due = time.perf_counter()
        while not pipe.poll():
            for _ in range(int(rate * SLICE_SECONDS)):
                push.send(next(frames))
            due += SLICE_SECONDS
            time.sleep(max(0.0, due - time.perf_counter()))


def _sample(endpoint: str, samples: int, pipe: Connection) -> None:
    """Send reports one by one, each when the one before is acknowledged; the milliseconds that each took."""
    source = encode(Source("sampled", "host", 1, 0.0, {}))
    message = decode(report(1000))
    sockets = PublisherSockets(endpoint)
    sockets.listen(topic("sampled"))
    taken = []
    for seq in range(1, samples + 1):
        frame = encode(type(message)(message.version, source, message.connector, seq, 0.0, 1.0, message.payload))
        while not sockets.send(frame):
            time.sleep(0.001)
        start = time.perf_counter()
        while not any(decode_ack(ack).seq >= seq for ack in sockets.acks()):
            time.sleep(0.00005)
        taken.append((time.perf_counter() - start) * 1e3)
        time.sleep(PAUSE_SECONDS)
    sockets.close(0)
    pipe.send(taken)


def _capacity(collector: Collector) -> float:
    """Reports a second of a flood, from its first thousand on."""
    _wait_for(collector, 1000)
    first, start = collector.pipeline().reports_received, time.perf_counter()
    _wait_for(collector, FLOOD)
    return (FLOOD - first) / (time.perf_counter() - start)


def _wait_for(collector: Collector, count: int) -> None:
    while collector.pipeline().reports_received < count:
        time.sleep(0.005)


def _run(quick: bool, load: int) -> dict[str, float]:  # noqa: FBT001 - the harness calls it
    context = get_context("spawn")
    with TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/latency.ipc"
        with Collector(CollectorConfig(endpoint=endpoint, max_source_views=SOURCES)) as collector:
            ours, theirs = context.Pipe()
            loader = context.Process(target=_load, args=(endpoint, theirs), daemon=True)
            loader.start()
            ours.send(_capacity(collector) * load / 100)
            results, sender = context.Pipe(duplex=False)
            sampler = context.Process(target=_sample, args=(endpoint, 200 if quick else 2000, sender), daemon=True)
            sampler.start()
            taken = results.recv()
            ours.send(None)
            sampler.join()
            loader.join()
    return {f"p{percentile}": float(np.percentile(taken, percentile)) for percentile in PERCENTILES}


CASES: dict[str, Callable[[bool], dict[str, float]]] = {f"at_{load}": partial(_run, load=load) for load in LOADS}
ROWS = tuple(
    Row(
        f"percentile {percentile} at {load} % of capacity, beside 10 %",
        f"at_{load}.p{percentile}",
        f"at_10.p{percentile}",
    )
    for percentile in PERCENTILES
    for load in LOADS[1:]
)
