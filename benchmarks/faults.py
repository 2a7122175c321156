"""Is what workers recorded what was committed, in every bucket, when collectors are killed while they work?

A round is one life of a collector: it starts, is killed (SIGKILL) at a random moment of its first two seconds,
its start included, and the next one goes on with its journal. Workers record all the time, nearly without a pause, the
same thousand rows again and again, so that what they recorded follows from how often. Durations are multiples of
2**-20 s: their sums are exact in any order, and compared to the last bit; those of the rates of single transfers are
not.

``python -m benchmarks faults`` does that as a soak. It measures nothing beside a peer: it exits with 1 if anything
differs.
"""

import argparse
import contextlib
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from kvxfer.cli.progress import Progress
from kvxfer.collector import Collector
from kvxfer.commits import Commits
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.interval import Exporter, Interval
from kvxfer.publisher import StatsPublisher
from kvxfer.stats import TransferStats

if TYPE_CHECKING:
    from ctypes import Array, c_uint64
    from multiprocessing.context import SpawnProcess

    from typing_extensions import Self

    Counts = Array[c_uint64]

CONNECTOR = "NixlConnector"
ROWS = 1_000
FLUSH_SECONDS = 0.05  # twenty reports a second of each worker, so that every kill meets some of them
END_SECONDS = 60.0
NICE = 5  # of workers that fill every core: the collector comes up in half a second all the same

PAUSE_SECONDS = 0.001
"""After a thousand rows, or a worker with a core of its own records faster than any thread of it folds, and cuts."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Enter = Callable[[], object]
"""What a process does first, such as entering a network namespace."""


def _nothing() -> None:
    """What a process does first where there is nothing to do."""


def rows_of(rank: int, seed: int) -> list[tuple[float, float, int, int]]:
    """The rows that a worker records again and again: seconds, seconds, bytes, descriptors."""
    rng = random.Random(f"{seed} {rank}")
    return [
        (rng.randrange(1 << 18) / (1 << 20), rng.randrange(1 << 14) / (1 << 20), rng.randrange(1 << 24), rank + 1)
        for _ in range(ROWS)
    ]


class Recorded(NamedTuple):
    """What one worker did: how often it recorded its rows, and what it sent."""

    rank: int
    times: int
    reports: int
    resent: int
    unacknowledged: int


class Task(NamedTuple):
    """What a worker is to do: ``pause`` is how many seconds it does nothing between two thousand rows."""

    endpoint: str
    rank: int
    seed: int
    pause: float
    enter: Enter


def work(task: Task, stop: Event, times: "Counts", end: Connection) -> None:
    """Record until told to stop, send what is left, and say how much it was."""
    task.enter()
    os.nice(NICE)
    rows = rows_of(task.rank, task.seed)
    labels = {"engine": "e", "rank": str(task.rank)}
    publisher = StatsPublisher(CONNECTOR, task.endpoint, labels, flush_seconds=FLUSH_SECONDS, linger=END_SECONDS)
    record = publisher.stats.record_transfer
    while not stop.is_set():
        for duration, post, num_bytes, descriptors in rows:
            record(duration, post, num_bytes, descriptors)
        times[task.rank] += 1
        if task.pause:
            time.sleep(task.pause)
    publisher.close()
    delivery = publisher.delivery
    end.send(Recorded(task.rank, times[task.rank], delivery.reports, delivery.resent, delivery.unacknowledged))


def collect(config: CollectorConfig, enter: Enter = _nothing, exporters: tuple[Exporter, ...] = ()) -> None:
    """Collect until SIGTERM or SIGKILL."""
    enter()
    Collector(config, exporters).run()


class Service:
    """Workers that record, and a collector that can be killed and started again on the same journal."""

    def __init__(
        self,
        config: CollectorConfig,
        *,
        workers: int = 8,
        seed: int = 1,
        pause: float = PAUSE_SECONDS,
        enter: tuple[Enter, Enter] = (_nothing, _nothing),
        exporters: tuple[Exporter, ...] = (),
    ) -> None:
        """Start all; ``enter``: what workers and collector do first."""
        self._context = get_context("spawn")
        self.config = config
        self._seed = seed
        self._collect = (config, enter[1], exporters)
        self._stop = self._context.Event()
        self.times: Counts = self._context.RawArray("Q", workers)
        """How often each worker has recorded its rows so far."""
        self.collector = self.start_collector()
        self.workers: list[tuple[SpawnProcess, Connection]] = []
        for rank in range(workers):
            here, there = self._context.Pipe(duplex=False)
            task = Task(config.endpoint or "", rank, seed, pause, enter[0])
            worker = self._context.Process(target=work, args=(task, self._stop, self.times, there), daemon=True)
            worker.start()
            there.close()
            self.workers.append((worker, here))

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for process in [self.collector, *(worker for worker, _ in self.workers)]:
            process.kill()
            process.join()

    def start_collector(self) -> "SpawnProcess":
        """Start one, which goes on from the journal."""
        self.collector = self._context.Process(target=collect, args=self._collect, daemon=True)
        self.collector.start()
        return self.collector

    def kill_collector(self) -> None:
        """End it without a chance to do anything."""
        self.collector.kill()
        self.collector.join()

    def stop_workers(self) -> list[Recorded]:
        """Let the workers send what is left, and say what they recorded; RuntimeError for one that does not."""
        self._stop.set()
        recorded = []
        for worker, end in self.workers:
            if not end.poll(2 * END_SECONDS):
                message = f"worker {worker.pid} does not end"
                raise RuntimeError(message)
            recorded.append(end.recv())
            worker.join()
        return recorded

    def stop_collector(self) -> int | None:
        """Ask it to finish; its exit code."""
        self.collector.terminate()
        self.collector.join(END_SECONDS)
        return self.collector.exitcode

    def expected(self, recorded: list[Recorded]) -> NixlConnectorStats:
        """What the workers recorded, added up."""
        total = NixlConnectorStats()
        for worker in recorded:
            total.aggregate(repeated(rows_of(worker.rank, self._seed), worker.times))
        return total

    def committed(self) -> Interval:
        """All that the journal holds, as the next collector would go on from it."""
        now = time.time()
        commits = Commits(self.config, threading.Lock(), now)
        try:
            return commits.aggregator.snapshot(now)
        finally:
            commits.close()


def repeated(rows: list[tuple[float, float, int, int]], times: int) -> NixlConnectorStats:
    """The stats of rows that were recorded so many times, by doubling."""
    total, power = NixlConnectorStats(), NixlConnectorStats()
    for row in rows:
        power.record_transfer(*row)
    while times:
        if times & 1:
            total.aggregate(power)
        power.aggregate(power.copy())
        times >>= 1
    return total


def differences(expected: TransferStats, found: Interval) -> list[str]:
    """Where what was committed is not what was recorded: count, sum, extremes and every bucket of each field."""
    if len(found.groups) != 1:
        return [f"{len(found.groups)} groups"]
    stats = found.groups[0].stats
    differing = [] if set(stats.data) == set(expected.data) else [f"fields: {set(stats.data) ^ set(expected.data)}"]
    for name, state in expected.data.items():
        ours, theirs = state.histogram(), stats.data[name].histogram()
        if name == "transfer_rate" and math.isclose(ours.sum, theirs.sum, rel_tol=1e-9):
            ours.sum = theirs.sum
        if ours != theirs:
            differing.append(f"{name}: recorded {ours} sum {ours.sum}, committed {theirs} sum {theirs.sum}")
    return differing


def memory_mib(process: "SpawnProcess") -> float:
    """The memory that a process holds now, in MiB."""
    return int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES / (1 << 20)


@contextlib.contextmanager
def endpoint_of(transport: str) -> Iterator[tuple[str, str]]:
    """An endpoint that nobody uses, and a path for its journal."""
    with TemporaryDirectory(prefix="kvxfer-") as directory:
        journal = f"{directory}/journal.db"
        if transport == "ipc":
            yield f"ipc://{directory}/c.ipc", journal
            return
        with Collector(CollectorConfig(endpoint="tcp://127.0.0.1:*")) as free:
            endpoint = free.endpoint
        yield endpoint, journal


class Outcome(NamedTuple):
    """What came of a run; ``differences`` is empty where all is well."""

    kills: int
    transfers: int
    resent: int
    found: Interval
    differences: list[str]


def run(
    transport: str, kills: int, *, seed: int = 1, each: Callable[[int, Service], object] = lambda *_: None
) -> Outcome:
    """Kill so many collectors, let the last one live until the workers are done, and compare."""
    rng = random.Random(seed)
    with endpoint_of(transport) as (endpoint, journal):
        config = CollectorConfig(endpoint=endpoint, journal=journal, interval_seconds=0.5)
        with Service(config, seed=seed) as service:
            for kill in range(kills):
                time.sleep(rng.uniform(0.1, 2.0))
                each(kill, service)
                service.kill_collector()
                service.start_collector()
            recorded = service.stop_workers()
            code = service.stop_collector()
            found = service.committed()
            differing = differences(service.expected(recorded), found)
    differing += [f"the collector ended with {code}"] if code else []
    differing += [f"{found.pipeline.reports_lost} lost"] if found.pipeline.reports_lost else []
    differing += [f"{found.pipeline.observations_cut} cut"] if found.pipeline.observations_cut else []
    differing += [f"rejected: {found.pipeline.reports_rejected}"] if found.pipeline.reports_rejected else []
    differing += [f"worker {each.rank} keeps {each.unacknowledged}" for each in recorded if each.unacknowledged]
    transfers = sum(each.times * ROWS for each in recorded)
    return Outcome(kills, transfers, sum(each.resent for each in recorded), found, differing)


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks faults", description="A soak of kills.")
    parser.add_argument("--rounds", type=int, default=200, help="collectors to kill, half over ipc, half over tcp")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failed = False
    for transport, kills in (("ipc", given.rounds - given.rounds // 2), ("tcp", given.rounds // 2)):
        progress = Progress(kills, f"kills over {transport}")
        start = time.monotonic()
        lines = _Lines(progress, start)
        outcome = run(transport, kills, seed=given.seed, each=lines)
        progress.clear()
        pipeline = outcome.found.pipeline
        print(
            f"{transport}: {kills} rounds, {outcome.kills} kills, {time.monotonic() - start:.0f} s,"
            f" {outcome.transfers:,} transfers in {pipeline.reports_received:,} reports, {outcome.resent:,} resent,"
            f" {pipeline.reports_duplicate:,} duplicates refused, lost {pipeline.reports_lost};"
            f" {'DIFFERENT' if outcome.differences else 'recorded equals committed in every bucket'}"
        )
        for difference in outcome.differences:
            print(f"  {difference}")
        failed |= bool(outcome.differences)
    return int(failed)


class _Lines:
    """A line every so many rounds: memory of both sides over time."""

    def __init__(self, progress: Progress, start: float) -> None:
        self._progress = progress
        self._start = start

    def __call__(self, kill: int, service: Service) -> None:
        self._progress.update(kill + 1)
        if (kill + 1) % 10:
            return
        workers = max(memory_mib(worker) for worker, _ in service.workers)
        collector = memory_mib(service.collector)
        journal = sum(path.stat().st_size for path in Path(service.config.journal or "").parent.glob("journal*"))
        self._progress.print(
            f"{time.monotonic() - self._start:6.0f} s, {kill} kills: workers at most {workers:.0f} MiB each,"
            f" collector {collector:.0f} MiB, journal {journal / (1 << 20):.1f} MiB"
        )
