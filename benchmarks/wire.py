"""How many bytes is a report, and what do a thousand of them cost the collector?

Bytes are of our frame with its envelope against the payload of vLLM's lists without one. The collector side begins
with encoded reports of 1,000 sources, 1,000 transfers each, and ends with the reduced numbers; ours also tells
duplicates and keeps each source's own numbers, which vLLM's classes do not. Reports that tell of a transfer under way
stand beside those that do not.
"""

import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from benchmarks.harness import SEED, Row
from benchmarks.peers import VllmStats, telemetry
from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.outbox import Outbox
from kvxfer.wire import Source, decode, encode

SIZES = (10, 100, 1_000, 10_000, 100_000)
BUDGETS = {1_000: 1 / 12, 10_000: 1 / 60}
UNIT = "B"
SOURCES = 1_000
TRANSFERS = 1_000
CONTENTS = 8  # that many different reports: as many branches as bucket widths make, in a second of preparation


def _source(rank: int) -> Source:
    return Source(f"{rank:032x}", "host", 1, 0.0, {"engine": "decode-0", "role": "kv_consumer", "rank": str(rank)})


def report(transfers: int, seed: int = SEED, *, tells_under_way: bool = False) -> bytes:
    """The frame of one report of so many transfers; with one that is under way."""
    stats = NixlConnectorStats()
    for result in telemetry(transfers, seed):
        stats.record_transfer(result.xferDuration / 1e6, result.postDuration / 1e6, result.totalBytes, result.descCount)
    if tells_under_way:
        stats.under_way.begin()
        stats.note_levels()
    outbox = Outbox(_source(0), "NixlConnector", 0.0)
    outbox.observe(stats.drain(for_report=True), 1.0)
    outbox.flush(1.0)
    return outbox.next_frame or b""


def reports(sources: int, reports_each: int, frames: Sequence[bytes] = ()) -> list[bytes]:
    """Frames of which none is a duplicate: each source in turn, its numbers from 1 on."""
    return list(itertools.islice(stream(sources, frames), sources * reports_each))


def stream(sources: int, frames: Sequence[bytes] = ()) -> Iterator[bytes]:
    """The same, without end; of these contents in turn, instead of `CONTENTS` different ones."""
    contents = [decode(frame) for frame in frames or [report(TRANSFERS, SEED + n) for n in range(CONTENTS)]]
    ranks = [encode(_source(rank)) for rank in range(sources)]
    for seq in itertools.count(1):
        for rank, source in enumerate(ranks):
            message = contents[(seq + rank) % len(contents)]
            yield encode(msgspec.structs.replace(message, source=source, seq=seq, oldest=seq))


def payload(transfers: int, seed: int = SEED) -> bytes:
    """vLLM's lists of the same transfers."""
    stats = VllmStats()
    for result in telemetry(transfers, seed):
        stats.record_transfer(result)
    return stats.encode()


def check_all_taken(aggregator: Aggregator, count: int) -> None:
    """Raise RuntimeError if what was timed refused a report instead of merging it."""
    if aggregator.pipeline(1.0).reports_received != count:
        message = f"{count} reports were fed: {aggregator}"
        raise RuntimeError(message)


def _collector(*, tells_under_way: bool = False) -> Callable[[], object]:
    contents = [report(TRANSFERS, SEED + n, tells_under_way=tells_under_way) for n in range(CONTENTS)]
    frames = reports(SOURCES, 1, contents)

    def collect() -> object:
        aggregator = Aggregator(CollectorConfig(), 0.0)
        aggregator.feed_all(frames, 1.0)
        check_all_taken(aggregator, SOURCES)
        interval = aggregator.close_interval(2.0)
        return interval, [group.stats.reduce() for group in interval.groups]

    return collect


def _vllm() -> Callable[[], object]:
    contents = [payload(TRANSFERS, SEED + n) for n in range(CONTENTS)]

    def collect() -> object:
        stats = VllmStats()
        for rank in range(SOURCES):
            stats.aggregate(msgspec.msgpack.decode(contents[rank % CONTENTS]))
        return stats, stats.reduce()

    return collect


def _milliseconds(quick: bool, make: Callable[[], Callable[[], object]]) -> float:  # noqa: FBT001 - the harness calls it
    collect, times = make(), []
    for _ in range(1 if quick else 3):
        start = time.perf_counter()
        collect()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _mebibytes(quick: bool, make: Callable[[], Callable[[], object]]) -> float:  # noqa: ARG001, FBT001 - as above
    """By how much the peak of the process grows."""
    collect = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    collect()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


CASES: dict[str, Callable[[bool], float]] = {}
for _size in SIZES:
    CASES[f"kvxfer_{_size}"] = partial(lambda _quick, size: len(report(size)), size=_size)
    CASES[f"vllm_{_size}"] = partial(lambda _quick, size: len(payload(size)), size=_size)
CASES |= {
    "kvxfer_collector": partial(_milliseconds, make=_collector),
    "kvxfer_under_way": partial(_milliseconds, make=partial(_collector, tells_under_way=True)),
    "vllm_collector": partial(_milliseconds, make=_vllm),
    "kvxfer_collector_memory": partial(_mebibytes, make=_collector),
    "vllm_collector_memory": partial(_mebibytes, make=_vllm),
}
ROWS = (
    *(Row(f"{size:,} transfers", f"kvxfer_{size}", f"vllm_{size}", BUDGETS.get(size)) for size in SIZES),
    Row("collector side, decode, aggregate, reduce", "kvxfer_collector", "vllm_collector", 1 / 25, unit="ms"),
    Row("collector side, telling what is under way", "kvxfer_under_way", "kvxfer_collector", unit="ms"),
    Row("collector side, memory", "kvxfer_collector_memory", "vllm_collector_memory", 1 / 30, unit="MiB"),
)
