"""How many reports of 1,000 NIXL transfers does a collector take, from another process, on one core?

Against a PULL loop that receives the same frames and drops them, and a `multiprocessing.Queue`. The sender runs beside,
so a machine of two cores gives each its own.
"""

import time
from collections.abc import Callable
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec
import zmq

from benchmarks.harness import Row
from benchmarks.wire import report
from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.transport import PullSocket
from kvxfer.wire import Report, decode, encode

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

UNIT = "reports/s"


def _count(*, quick: bool) -> int:
    return 4_000 if quick else 40_000


def _frames(count: int) -> list[bytes]:
    """Reports that differ in their numbers and, by turns, in what they hold."""
    makers = [decode(report(1000, seed)) for seed in range(8)]
    numbered = (msgspec.structs.replace(makers[n % 8], seq=n + 1) for n in range(count))
    return [encode(message) for message in numbered if isinstance(message, Report)]


def _send(endpoint: str, count: int) -> None:
    frames = _frames(count)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(endpoint)
        for frame in frames:
            push.send(frame)


def _put(queue: "Queue[bytes]", count: int) -> None:
    for frame in _frames(count):
        queue.put(frame)


def _rate(receive: Callable[[], int], count: int) -> float:
    """Frames a second, from the first one on."""
    received = receive()
    start, first = time.perf_counter(), received
    while received < count:
        received += receive()
    return (count - first) / (time.perf_counter() - start)


def _over_ipc(quick: bool, receiver: Callable[[str], Callable[[], int]]) -> float:  # noqa: FBT001
    count = _count(quick=quick)
    with TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/pipe.ipc"
        receive = receiver(endpoint)
        sender = get_context("spawn").Process(target=_send, args=(endpoint, count), daemon=True)
        sender.start()
        rate = _rate(receive, count)
        sender.join()
    return rate


def _collector(endpoint: str) -> Callable[[], int]:
    pull, aggregator = PullSocket(endpoint), Aggregator(CollectorConfig(), 0.0)

    def receive() -> int:
        frames = pull.drain(1.0)
        for frame in frames:
            aggregator.feed(frame, 1.0)
        return len(frames)

    return receive


def _bare(endpoint: str) -> Callable[[], int]:
    pull = zmq.Context.instance().socket(zmq.PULL)
    pull.bind(endpoint)

    def receive() -> int:
        pull.recv()
        return 1

    return receive


def queue(quick: bool) -> float:  # noqa: FBT001 - the harness calls it
    count, context = _count(quick=quick), get_context("spawn")
    pipe: Queue[bytes] = context.Queue()
    sender = context.Process(target=_put, args=(pipe, count), daemon=True)
    sender.start()
    rate = _rate(lambda: bool(pipe.get()), count)
    sender.join()
    return rate


CASES: dict[str, Callable[[bool], float]] = {
    "kvxfer": lambda quick: _over_ipc(quick, _collector),
    "pyzmq": lambda quick: _over_ipc(quick, _bare),
    "queue": queue,
}
ROWS = (
    Row("reports of 1,000 transfers taken and merged", "kvxfer", "pyzmq", 0.55, more_is_better=True),
    Row("beside a Queue that only receives them", "kvxfer", "queue"),
)
