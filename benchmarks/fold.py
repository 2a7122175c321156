"""What does a worker pay per transfer in all: recording it, and its share of folding and encoding a report?

Against vLLM's way, whose lists need no folding: the comparison favours the peer on the worker, and is paid for by the
wire and the collector. As in `record`, vLLM's side converts units and ours is handed base units; the converting case
does it on both sides. A publisher's thread looks every 0.1 s whether much waits: the case in tenths does as it does.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from benchmarks.harness import Row
from benchmarks.peers import Telemetry, VllmStats, telemetry, vllm_class
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.wire import encode_payload

SIZES = (100, 1_000, 10_000, 100_000)
BUDGETS = {1_000: 1.0}
UNIT = "ns"


def _per_transfer(flush: Callable[[], object], size: int, *, quick: bool) -> float:
    times = []
    for _ in range(max(3, (50_000 if quick else 600_000) // size)):
        start = time.perf_counter_ns()
        flush()
        times.append((time.perf_counter_ns() - start) / size)
    return statistics.median(times)


def _record(stats: NixlConnectorStats, rows: Sequence[tuple[float, float, int, int]]) -> None:
    for duration, post, num_bytes, descriptors in rows:
        stats.record_transfer(duration, post, num_bytes, descriptors)


def _record_converting(stats: NixlConnectorStats, results: Sequence[Telemetry]) -> None:
    for r in results:
        stats.record_transfer(r.xferDuration / 1e6, r.postDuration / 1e6, r.totalBytes, r.descCount)


def _encode(stats: NixlConnectorStats) -> None:
    encode_payload(stats.drain(for_report=True).to_packed())


def kvxfer(quick: bool, size: int, folds: int = 0) -> float:  # noqa: FBT001 - the harness calls it
    stats = NixlConnectorStats()
    rows = [(t.xferDuration / 1e6, t.postDuration / 1e6, t.totalBytes, t.descCount) for t in telemetry(size)]
    part = size // max(folds, 1)
    parts = [rows[start : start + part] for start in range(0, size, part)]

    def flush() -> None:
        for part in parts:
            _record(stats, part)
            if folds:
                stats.fold_early()
        _encode(stats)

    return _per_transfer(flush, size, quick=quick)


def kvxfer_converting(quick: bool, size: int) -> float:  # noqa: FBT001 - the harness calls it
    stats, results = NixlConnectorStats(), telemetry(size)

    def flush() -> None:
        _record_converting(stats, results)
        _encode(stats)

    return _per_transfer(flush, size, quick=quick)


def vllm(quick: bool, size: int, make: Callable[[], Any] = VllmStats) -> float:  # noqa: FBT001 - the harness calls it
    stats, results = make(), telemetry(size)

    def flush() -> None:
        for result in results:
            stats.record_transfer(result)
        msgspec.msgpack.encode(stats.data)
        stats.reset()

    return _per_transfer(flush, size, quick=quick)


CASES: dict[str, Callable[[bool], float]] = {
    f"{name}_{size}": partial(run, size=size) for size in SIZES for name, run in (("kvxfer", kvxfer), ("vllm", vllm))
}
CASES["vllm_class_1000"] = partial(vllm, size=1000, make=vllm_class)
CASES["kvxfer_converting_1000"] = partial(kvxfer_converting, size=1000)
CASES["kvxfer_tenths_1000"] = partial(kvxfer, size=1000, folds=10)
ROWS = (
    *(
        Row(f"record, fold, encode at {size:,} a flush", f"kvxfer_{size}", f"vllm_{size}", BUDGETS.get(size))
        for size in SIZES
    ),
    Row("the same at 1,000, beside vLLM's own class", "kvxfer_1000", "vllm_class_1000"),
    Row("the same at 1,000, read from telemetry on both sides", "kvxfer_converting_1000", "vllm_1000"),
    Row("the same at 1,000, looked at every 0.1 s as the thread does", "kvxfer_tenths_1000", "vllm_1000"),
)
