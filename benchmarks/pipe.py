"""How many reports of 1,000 NIXL transfers does a collector take, from another process, and at what CPU?

Against a PULL loop that receives the same frames and drops them, and a `multiprocessing.Queue`. The sender runs beside,
so a machine of two cores gives each its own. CPU is the receiving process's, ZeroMQ's thread included. A sender that is
ahead waits: nothing is refused or repeated.
"""

import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import zmq

from benchmarks.harness import Row
from benchmarks.wire import check_all_taken, reports
from kvxfer.aggregator import Aggregator
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.transport import CollectorSockets, ack_endpoint

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

SOURCES = 8
UNIT = "reports/s"
MERGED = 20_000  # of each source: some 3 s of the collector
RECEIVED = 20_000  # of each source: half a second of a loop that only receives


class Taken(NamedTuple):
    """What a receiver took, from its second turn on."""

    reports: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.reports / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        return self.cpu_seconds / self.reports * 1e6


def send(endpoint: str, each: int, sources: int = SOURCES) -> None:
    """Send so many reports of each source, in turn, and hear acknowledgements as all publishers would."""
    frames = reports(sources, each)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.SUB) as sub:
        sub.subscribe(b"")
        sub.connect(ack_endpoint(endpoint))
        push.connect(endpoint)
        for frame in frames:
            push.send(frame)
        time.sleep(3600)  # who closes before all is read loses the last ones: whoever started this ends it


def _put(queue: "Queue[bytes]", each: int) -> None:
    for frame in reports(SOURCES, each):
        queue.put(frame)


def _take(receive: Callable[[], int], count: int) -> Taken:
    first = received = receive()
    start, cpu_start = time.perf_counter(), time.process_time()
    while received < count:
        received += receive()
    return Taken(count - first, time.perf_counter() - start, time.process_time() - cpu_start)


def _over_ipc(take: Callable[[str, int], Taken], each: int) -> Taken:
    with TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/pipe.ipc"
        sender = get_context("spawn").Process(target=send, args=(endpoint, each), daemon=True)
        sender.start()
        taken = take(endpoint, SOURCES * each)
        sender.kill()
        sender.join()
    return taken


def _collector(endpoint: str, count: int) -> Taken:
    pull, aggregator = CollectorSockets(endpoint), Aggregator(CollectorConfig(), 0.0)

    def receive() -> int:
        frames = pull.drain(1.0)
        aggregator.feed_all(frames, 1.0)
        return len(frames)

    taken = _take(receive, count)
    pull.close()
    check_all_taken(aggregator, count)
    return taken


def _durable(endpoint: str, count: int) -> Taken:
    """All that a collector does: intervals, a journal written once a second, acknowledgements that somebody hears."""
    with TemporaryDirectory() as directory:
        config = CollectorConfig(endpoint=endpoint, journal=f"{directory}/journal.db", interval_seconds=1.0)
        collector = Collector(config)
        received = 0

        def receive() -> int:
            nonlocal received
            collector.poll(1.0)
            before, received = received, collector.pipeline().reports_received
            return received - before

        taken = _take(receive, count)
        collector.stop()
    return taken


def _bare(endpoint: str, count: int) -> Taken:
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.bind(endpoint)
        return _take(lambda: len((pull.recv(),)), count)


def _queue(each: int) -> Taken:
    context = get_context("spawn")
    pipe: Queue[bytes] = context.Queue()
    sender = context.Process(target=_put, args=(pipe, each), daemon=True)
    sender.start()
    taken = _take(lambda: len((pipe.get(),)), SOURCES * each)
    sender.join()
    return taken


def _run(quick: bool, name: str, *, cpu: bool = False) -> float:  # noqa: FBT001 - the harness calls it
    part = 5 if quick else 1
    if name == "queue":
        taken = _queue(RECEIVED // part)
    elif name == "pyzmq":
        taken = _over_ipc(_bare, RECEIVED // part)
    else:
        taken = _over_ipc(_durable if name == "durable" else _collector, MERGED // part)
    return taken.cpu_microseconds if cpu else taken.rate


CASES: dict[str, Callable[[bool], float]] = {
    "kvxfer": partial(_run, name="kvxfer"),
    "pyzmq": partial(_run, name="pyzmq"),
    "queue": partial(_run, name="queue"),
    "kvxfer_durable": partial(_run, name="durable"),
    "kvxfer_cpu": partial(_run, name="kvxfer", cpu=True),
    "pyzmq_cpu": partial(_run, name="pyzmq", cpu=True),
}
ROWS = (
    Row("reports of 1,000 transfers taken and merged", "kvxfer", "pyzmq", 0.55, more_is_better=True),
    Row("beside a Queue that only receives them", "kvxfer", "queue"),
    Row(
        "with intervals, journal and acknowledgements, beside without",
        "kvxfer_durable",
        "kvxfer",
        0.8,
        more_is_better=True,
    ),
    Row("CPU per report, beside receiving it", "kvxfer_cpu", "pyzmq_cpu", unit="us"),
)
