"""What does kvxfer take from the loop of a worker that records and publishes?

A step is about a millisecond of hashing, in many short calls that hold the GIL: there is no pause in which another
thread could fold for nothing. Then it records as many transfers as are due at the rate. The peer is the same loop that
records nothing, in turn every two seconds, since a machine that others share differs by more than that from one half
minute to the next. Collector and journal run in another process, so a machine of two cores gives each its own.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.harness import Row
from benchmarks.peers import telemetry
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.publisher import StatsPublisher

RATES = (10_000, 200_000, 1_000_000)
BUDGETS = {200_000: 0.97}
HASHES = 3_000
MOST_AT_ONCE = 50_000  # where the machine stood still: what was due meanwhile is not made up for
WINDOW_SECONDS = 2.0  # what is folded after the last of it is a twentieth of it
WINDOWS = 6
REPETITIONS = 3
UNIT = "steps/s"


def _collect(directory: str, stop: Event) -> None:
    config = CollectorConfig(endpoint=f"ipc://{directory}/c.ipc", journal=f"{directory}/journal.db")
    with Collector(config):
        stop.wait()


def _steps(seconds: float, rate: int, record: Callable[..., object]) -> list[float]:
    """How long each step took."""
    block, taken, sha = bytes(256), [], hashlib.sha256
    rows = [(t.xferDuration / 1e6, t.postDuration / 1e6, t.totalBytes, t.descCount) for t in telemetry(MOST_AT_ONCE)]
    before = time.perf_counter()
    end = before + seconds
    while before < end:
        for _ in range(HASHES):
            sha(block)
        for duration, post, num_bytes, descriptors in rows[: int(rate * (taken[-1] if taken else 0.0))]:
            record(duration, post, num_bytes, descriptors)
        now = time.perf_counter()
        taken.append(now - before)
        before = now
    return taken


def _run(quick: bool, rate: int) -> dict[str, float]:  # noqa: FBT001 - the harness calls it
    context = get_context("spawn")
    alone: list[float] = []
    recording: list[float] = []
    with TemporaryDirectory() as directory:
        stop = context.Event()
        process = context.Process(target=_collect, args=(directory, stop), daemon=True)
        process.start()
        while not Path(directory, "c.ipc").exists():
            time.sleep(0.01)
        with StatsPublisher("NixlConnector", f"ipc://{directory}/c.ipc") as publisher:
            record = publisher.stats.record_transfer
            record(0.001, 0.0001, 1, 1)
            publisher.flush(5)
            for _ in range(1 if quick else WINDOWS):
                alone += _steps(WINDOW_SECONDS / (4 if quick else 1), 0, record)
                recording += _steps(WINDOW_SECONDS / (4 if quick else 1), rate, record)
        stop.set()
        process.join()
    return {
        "steps": len(recording) / sum(recording),
        "alone": len(alone) / sum(alone),
        "tail_ms": float(np.percentile(recording, 99.9)) * 1e3,
        "alone_tail_ms": float(np.percentile(alone, 99.9)) * 1e3,
    }


CASES: dict[str, Callable[[bool], dict[str, float]]] = {f"at_{rate}": partial(_run, rate=rate) for rate in RATES}
ROWS = (
    *(
        Row(
            f"steps with {rate:,} transfers/s, beside none",
            f"at_{rate}.steps",
            f"at_{rate}.alone",
            BUDGETS.get(rate),
            True,
        )
        for rate in RATES
    ),
    *(
        Row(
            f"99.9th percentile of a step with {rate:,} transfers/s",
            f"at_{rate}.tail_ms",
            f"at_{rate}.alone_tail_ms",
            unit="ms",
        )
        for rate in RATES
    ),
)
