"""What does it cost a worker to record one transfer of four values?

In batches of 1,000, the buffers emptied between them and outside of the time. vLLM's recorder takes NIXL's telemetry
and converts microseconds within; ours takes base units, so that a caller who has telemetry converts it: one row leaves
that out, as the interfaces do, and favours us; one counts it. Prometheus, OpenTelemetry and DogStatsD record three of
the values, which favours them.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from benchmarks.harness import Row
from benchmarks.peers import Record, VllmStats, dogstatsd, opentelemetry, prometheus, telemetry, vllm_class
from kvxfer.area import SharedPending
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.shared import SharedBuffer

BATCH = 1000
UNIT = "ns"


def _per_call(run: Callable[[], object], empty: Callable[[], object], batches: int) -> float:
    times = []
    for _ in range(batches):
        start = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - start) / BATCH)
        empty()
    return statistics.median(times)


def _batches(*, quick: bool) -> int:
    return 30 if quick else 300


def _rows() -> list[tuple[float, float, int, int]]:
    return [(t.xferDuration / 1e6, t.postDuration / 1e6, t.totalBytes, t.descCount) for t in telemetry(BATCH)]


def kvxfer(quick: bool) -> float:  # noqa: FBT001 - the harness calls it
    stats, rows = NixlConnectorStats(), _rows()

    def run() -> None:
        for duration, post, size, descriptors in rows:
            stats.record_transfer(duration, post, size, descriptors)

    return _per_call(run, stats.drain, _batches(quick=quick))


def kvxfer_converting(quick: bool) -> float:  # noqa: FBT001 - the harness calls it
    stats, results = NixlConnectorStats(), telemetry(BATCH)

    def run() -> None:
        for r in results:
            stats.record_transfer(r.xferDuration / 1e6, r.postDuration / 1e6, r.totalBytes, r.descCount)

    return _per_call(run, stats.drain, _batches(quick=quick))


def kvxfer_shared(quick: bool) -> float:  # noqa: FBT001 - the harness calls it
    buffer = SharedBuffer(f"ipc:///benchmark-{os.getpid()}", "record", state=b"")
    stats, rows = NixlConnectorStats(), _rows()
    stats.wait_in(lambda name, width: buffer.pending(SharedPending(name, width, lambda: None)))

    def run() -> None:
        for duration, post, size, descriptors in rows:
            stats.record_transfer(duration, post, size, descriptors)

    def empty() -> None:
        buffer.stop_crowded()
        stats.drain()
        buffer.resume()

    figure = _per_call(run, empty, _batches(quick=quick))
    buffer.close(keep=False)
    return figure


def kvxfer_under_way(quick: bool) -> float:  # noqa: FBT001 - the harness calls it
    stats = NixlConnectorStats()
    begin, end = stats.under_way.begin, stats.under_way.end

    def run() -> None:
        for _ in range(BATCH):
            end(begin())

    return _per_call(run, stats.note_levels, _batches(quick=quick))


def vllm(quick: bool, make: Callable[[], Any] = VllmStats) -> float:  # noqa: FBT001 - the harness calls it
    stats, results = make(), telemetry(BATCH)

    def run() -> None:
        for result in results:
            stats.record_transfer(result)

    return _per_call(run, stats.reset, _batches(quick=quick))


def _peer(record: Record, rows: Iterable[tuple[float, float, int, int]], batches: int) -> float:
    def run() -> None:
        for row in rows:
            record(*row)

    return _per_call(run, lambda: None, batches)


CASES: dict[str, Callable[[bool], float]] = {
    "kvxfer": kvxfer,
    "kvxfer_converting": kvxfer_converting,
    "kvxfer_shared": kvxfer_shared,
    "kvxfer_under_way": kvxfer_under_way,
    "vllm": vllm,
    "vllm_class": partial(vllm, make=vllm_class),
    "prometheus": lambda quick: _peer(prometheus(multiprocess=False), _rows(), _batches(quick=quick) // 5),
    "prometheus_files": lambda quick: _peer(prometheus(multiprocess=True), _rows(), _batches(quick=quick) // 5),
    "opentelemetry": lambda quick: _peer(opentelemetry(), _rows(), _batches(quick=quick) // 5),
    "dogstatsd": lambda quick: _peer(dogstatsd(), _rows(), _batches(quick=quick) // 5),
}
ROWS = (
    Row("one transfer, 4 values", "kvxfer", "vllm", 0.5),
    Row("beside vLLM's own class", "kvxfer", "vllm_class"),
    Row("into shared memory, beside process memory", "kvxfer_shared", "kvxfer"),
    Row("begin and end of one that is told of while under way", "kvxfer_under_way", "kvxfer"),
    Row("one transfer, read from NIXL's telemetry on both sides", "kvxfer_converting", "vllm"),
    Row("beside three observe of prometheus_client", "kvxfer", "prometheus", 1 / 15),
    Row("beside the same in multiprocess files", "kvxfer", "prometheus_files"),
    Row("beside three record of OpenTelemetry", "kvxfer", "opentelemetry", 1 / 60),
    Row("beside three histogram of DogStatsD", "kvxfer", "dogstatsd"),
)
