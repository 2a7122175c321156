"""Runs for the tests of records: transfers of known durations, as a journal and as JSON lines of the same intervals."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.exporters.jsonl import JsonlExporter
from kvxfer.interval import Interval
from kvxfer.journal import Journal
from kvxfer.saved import SavedInterval, at_once, encoding_interval
from kvxfer.wire import Report, Source, encode, encode_payload

BEGIN = 1_700_000_000.0
SECONDS = 10.0
MIB = 1 << 20


def source(rank: int, **labels: str) -> Source:
    return Source(f"id-{rank}", f"host-{rank % 2}", 40 + rank, 1.0, {"engine": "e", "rank": str(rank)} | labels)


def run(
    durations: Sequence[Sequence[Sequence[float]]],
    *,
    connector: str = "NixlConnector",
    size: int = MIB,
    failures: int = 0,
    config: CollectorConfig | None = None,
) -> list[Interval]:
    """Intervals of 10 s; ``durations[interval][rank]`` are the seconds of its transfers, none for none."""
    made = Aggregator(config or CollectorConfig(), BEGIN)
    found = []
    for number, ranks in enumerate(durations):
        now = BEGIN + SECONDS * number
        for rank, seconds in enumerate(ranks):
            stats = NixlConnectorStats()
            for each in seconds:
                stats.record_transfer(each, each / 10, size, 4)
            if seconds and failures:
                stats.num_failed_transfers.add(failures)
            payload = encode_payload(stats.to_packed())
            made.feed(encode(Report(1, encode(source(rank)), connector, number + 1, now, now + 1, payload)), now + 1)
        found.append(made.close_interval(now + SECONDS))
    return found


def journal(path: Path, intervals: Iterable[Interval]) -> Path:
    kept = Journal(path)
    for each in intervals:
        kept.save(b"state", b"counts", SavedInterval(each.start, each.end, at_once(encoding_interval(each))))
    kept.close()
    return path


def lines(path: Path, intervals: Iterable[Interval]) -> Path:
    exporter = JsonlExporter(path)
    for each in intervals:
        exporter.export(each)
    exporter.close()
    return path
