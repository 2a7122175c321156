"""What ``demo`` and ``replay`` share: a collector, a workload, the lines, the comparison at the end."""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvxfer.cli.commands import positive, positive_int
from kvxfer.cli.progress import Progress
from kvxfer.cli.summary import Summary, summarize, table, write
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.exporters.jsonl import JsonlExporter
from kvxfer.exporters.log import LogExporter
from kvxfer.units import mib
from kvxfer.web import WebServer, parse_address
from kvxfer.workload.mover import MOVERS, SHORT_NAMES, mover_class
from kvxfer.workload.run import DEFAULT_BLOCK_BYTES, Outcome, Workload
from kvxfer.workload.trace import Transfer

if TYPE_CHECKING:
    from kvxfer.interval import Exporter

# Reports that workers handed over before they ended are here within milliseconds; a busy machine may need more.
_ARRIVAL_SECONDS: Final = 10.0


def add_arguments(parser: argparse.ArgumentParser, interval: float) -> None:
    """Declare what both commands take."""
    names = ", ".join((*SHORT_NAMES, *MOVERS))
    parser.add_argument("--connector", metavar="NAME", default="shared_memory", help=f"what moves the blocks: {names}")
    parser.add_argument("--workers", metavar="N", type=positive_int, default=2, help="pairs of processes (default: 2)")
    parser.add_argument(
        "--block-bytes",
        metavar="N",
        type=positive_int,
        default=DEFAULT_BLOCK_BYTES,
        help=f"bytes of a KV block (default: {DEFAULT_BLOCK_BYTES})",
    )
    parser.add_argument(
        "--interval", metavar="SECONDS", type=positive, default=interval, help=f"of the lines (default: {interval:g})"
    )
    parser.add_argument("--per-rank", action="store_true", help="print a line per worker too")
    parser.add_argument("--endpoint", metavar="URL", help="where the collector binds (default: a private ipc path)")
    parser.add_argument("--journal", metavar="PATH", help="keep the intervals in this journal (default: none)")
    parser.add_argument("--jsonl", metavar="FILE", help="append each interval as a line of JSON")
    parser.add_argument("--http", metavar="ADDRESS", help="serve the page and /metrics there: HOST:PORT, or a port")
    parser.add_argument("--summary-json", metavar="FILE", help="write the comparison as JSON")


def move(
    arguments: argparse.Namespace,
    transfers: Iterable[Transfer],
    progress: Progress,
    on_progress: Callable[[int], object],
    *,
    speed: float = 1.0,
    seconds: float | None = None,
) -> int:
    """Run the workload beside a collector, print lines and comparison; 0 where recorded equals collected, else 1."""
    connector = SHORT_NAMES.get(arguments.connector, arguments.connector)
    mover_class(connector)  # what is wrong is said before anything is started
    if arguments.http:
        parse_address(arguments.http)
    with tempfile.TemporaryDirectory(prefix="kvxfer-") as directory:
        endpoint = arguments.endpoint or f"ipc://{Path(directory) / 'collector.ipc'}"
        config = CollectorConfig(
            endpoint=endpoint, interval_seconds=arguments.interval, journal=arguments.journal or None
        )
        exporters: list[Exporter] = [LogExporter(progress.print, per_rank=arguments.per_rank)]
        if arguments.jsonl:
            exporters.append(JsonlExporter(arguments.jsonl))
        with Collector(config, exporters) as collector, _serving(arguments.http, collector, progress.print):
            workload = Workload(
                connector, collector.endpoint, workers=arguments.workers, block_bytes=arguments.block_bytes
            )
            with workload:
                outcome = workload.run(transfers, speed=speed, seconds=seconds, on_progress=on_progress)
            summary = _when_arrived(connector, arguments.workers, outcome, collector)
    progress.clear()
    return _conclude(summary, arguments)


def _serving(address: str | None, collector: Collector, say: Callable[[str], object]) -> AbstractContextManager[object]:
    if not address:
        return nullcontext()
    server = WebServer(collector, address)
    say(f"serving at {server.url}")
    return server


def _when_arrived(connector: str, workers: int, outcome: Outcome, collector: Collector) -> Summary:
    deadline = time.monotonic() + _ARRIVAL_SECONDS
    while True:
        summary = summarize(connector, workers, outcome, collector.snapshot())
        if summary.is_equal or time.monotonic() > deadline:
            return summary
        time.sleep(0.05)


def _conclude(summary: Summary, arguments: argparse.Namespace) -> int:
    write(summary, arguments.summary_json)
    first = next(iter(summary.recorded))
    transfers = summary.recorded[first]["count"]
    moved = mib(summary.recorded["bytes_transferred"]["sum"])
    print(
        f"\n{summary.requests:,} requests, {transfers:,} transfers, {moved:,.1f} MiB in {summary.seconds:.1f} s;"
        f" {summary.workers} workers, {summary.connector}, blocks of {arguments.block_bytes:,} bytes"
    )
    reports = summary.reports
    print(
        f"reports: {reports.received} received, {reports.duplicate} duplicate,"
        f" {reports.rejected} rejected, {reports.lost} lost\n"
    )
    print(table(summary))
    return 0 if summary.is_equal else 1
