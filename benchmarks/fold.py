"""What does a worker pay per transfer in all: recording it, and its share of folding and encoding a report?

Against vLLM's way, whose lists need no folding: the comparison favours the peer on the worker, and is paid for by the
wire and the collector.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

from benchmarks.harness import Row
from benchmarks.peers import VllmStats, telemetry
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.wire import encode_payload

SIZES = (100, 1_000, 10_000, 100_000)
BUDGETS = {1_000: 1.0}
UNIT = "ns"


def _per_transfer(record: Callable[[], object], close: Callable[[], object], size: int, *, quick: bool) -> float:
    times = []
    for _ in range(max(3, (50_000 if quick else 600_000) // size)):
        start = time.perf_counter_ns()
        record()
        close()
        times.append((time.perf_counter_ns() - start) / size)
    return statistics.median(times)


def kvxfer(quick: bool, size: int) -> float:  # noqa: FBT001 - the harness calls it
    stats = NixlConnectorStats()
    rows = [(t.xferDuration / 1e6, t.postDuration / 1e6, t.totalBytes, t.descCount) for t in telemetry(size)]

    def record() -> None:
        for duration, post, num_bytes, descriptors in rows:
            stats.record_transfer(duration, post, num_bytes, descriptors)

    return _per_transfer(record, lambda: encode_payload(stats.drain(for_report=True).to_packed()), size, quick=quick)


def vllm(quick: bool, size: int) -> float:  # noqa: FBT001 - the harness calls it
    stats, results = VllmStats(), telemetry(size)

    def record() -> None:
        for result in results:
            stats.record_transfer(result)

    return _per_transfer(record, stats.encode, size, quick=quick)


CASES: dict[str, Callable[[bool], float]] = {
    f"{name}_{size}": partial(run, size=size) for size in SIZES for name, run in (("kvxfer", kvxfer), ("vllm", vllm))
}
ROWS = tuple(
    Row(f"record, fold, encode at {size:,} a flush", f"kvxfer_{size}", f"vllm_{size}", BUDGETS.get(size))
    for size in SIZES
)
