"""What does it cost to read the numbers of a pool, after its workers have recorded for a while?

Eight workers of 100,000 transfers each. Ours have reported to a collector, 1,000 transfers a report, and it is asked
for a snapshot, with the merged percentiles; vLLM's lists are in the front end, which reduces them;
prometheus_client's are in the files that its processes leave in multiprocess mode, and it is scraped: three histograms
of 15 buckets against our five distributions of some hundred, and no percentile.
"""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from tempfile import mkdtemp
from typing import Any

from benchmarks.harness import Row
from benchmarks.peers import VllmStats, prometheus, telemetry
from benchmarks.wire import stream
from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig

WORKERS = 8
TRANSFERS = 100_000
REPORT = 1_000
TIMES = 20
UNIT = "ms"


def _median_ms(read: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        read()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _transfers(*, quick: bool) -> int:
    return TRANSFERS // (20 if quick else 1)


def kvxfer(quick: bool) -> float:  # noqa: FBT001 - the harness calls it
    aggregator, frames = Aggregator(CollectorConfig(), 0.0), stream(WORKERS)
    count = WORKERS * _transfers(quick=quick) // REPORT
    aggregator.feed_all([next(frames) for _ in range(count)], 1.0)
    return _median_ms(lambda: [group.stats.reduce() for group in aggregator.snapshot(2.0).groups])


def vllm(quick: bool) -> float:  # noqa: FBT001 - the harness calls it
    stats = VllmStats()
    for result in telemetry(WORKERS * _transfers(quick=quick)):
        stats.record_transfer(result)
    return _median_ms(stats.reduce)


def _observe(directory: str, count: int) -> None:
    record = prometheus(multiprocess=True, directory=directory)
    for result in telemetry(count):
        record(result.xferDuration / 1e6, result.postDuration / 1e6, result.totalBytes, result.descCount)


def prometheus_files(quick: bool) -> float:  # noqa: FBT001 - the harness calls it
    directory = mkdtemp()
    try:
        workers: list[Any] = [
            get_context("spawn").Process(target=_observe, args=(directory, _transfers(quick=quick)))
            for _ in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - an extra
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 - an extra

        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        total = f"duration_count {WORKERS * _transfers(quick=quick)}.0"
        if total not in generate_latest(registry).decode():
            sys.exit("the scrape does not hold what was observed")
        return _median_ms(lambda: generate_latest(registry))
    finally:
        shutil.rmtree(directory)


CASES: dict[str, Callable[[bool], float]] = {
    "kvxfer": kvxfer,
    "vllm": vllm,
    "prometheus_files": prometheus_files,
}
ROWS = (
    Row("the numbers of 8 workers read, beside vLLM's lists reduced", "kvxfer", "vllm"),
    Row("beside a scrape of prometheus_client's files", "kvxfer", "prometheus_files"),
)
