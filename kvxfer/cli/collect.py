"""``kvxfer collect``: the collector in the foreground."""

import argparse
import contextlib
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING

from kvxfer.cli.settings import DAY_SECONDS, Settings, journal_of, read_settings
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.errors import KVXferError
from kvxfer.exporters.jsonl import JsonlExporter
from kvxfer.exporters.log import LogExporter
from kvxfer.exporters.warning import WarningExporter
from kvxfer.factory import KVConnectorFactory
from kvxfer.pace import SLOW_FACTOR
from kvxfer.web import WebServer, parse_address

if TYPE_CHECKING:
    from kvxfer.cli.commands import SubParsers
    from kvxfer.interval import Exporter

logger = logging.getLogger("kvxfer")


def add_parser(commands: "SubParsers") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "collect",
        help="receive, aggregate, log and export until interrupted",
        description="Receive reports, log a line per group and interval. Each flag is also KVXFER_<NAME> and a key of "
        "the file; a flag wins over the environment, that over the file.",
    )
    parser.add_argument("--endpoint", metavar="URL", help="ipc://PATH or tcp://HOST:PORT (default: a private ipc path)")
    parser.add_argument("--interval", metavar="SECONDS", help="what one line covers (default: 10)")
    parser.add_argument("--jsonl", metavar="FILE", help="append each interval as a line of JSON")
    parser.add_argument("--per-rank", action="store_const", const=True, help="log a line per source too")
    parser.add_argument(
        "--slow-factor",
        metavar="X",
        help=f"warn of a rank so many times slower than its group, 0 for never (default: {SLOW_FACTOR:g})",
    )
    parser.add_argument("--group-by", metavar="LABELS", help="labels that form a group (default: engine,role)")
    parser.add_argument(
        "--generic", metavar="NAMES", help="connectors of which no class is here: their numbers by the payload's form"
    )
    parser.add_argument(
        "--journal",
        metavar="PATH",
        help="file in which totals and intervals outlive this process, or none (default: one per endpoint below "
        "$XDG_STATE_HOME/kvxfer or ~/.local/state/kvxfer)",
    )
    parser.add_argument("--retention", metavar="DAYS", help="how long the journal keeps intervals (default: 7)")
    parser.add_argument(
        "--upstream", metavar="URL", help="tell the collector there each closed interval, merged per group"
    )
    parser.add_argument("--upstream-curve", metavar="DIR", help="a worker's keys for the collector of --upstream")
    parser.add_argument("--curve", metavar="DIR", help="keys of `kvxfer keygen`: who has none of them cannot send")
    parser.add_argument("--insecure", action="store_const", const=True, help="bind beyond loopback without keys")
    parser.add_argument(
        "--http", metavar="HOST:PORT", help="serve /metrics, /healthz, /readyz and /api/v1; a port alone is on loopback"
    )
    parser.add_argument(
        "--otlp", metavar="URL", help="push each interval to the OTLP endpoint there (http://HOST:4318); extra: otlp"
    )
    parser.add_argument(
        "--metric-names", metavar="WHOSE", help="of /metrics: kvxfer (default), or vllm's where it has any"
    )
    parser.add_argument(
        "--metrics-per-source", metavar="N", help="series of up to N sources by themselves (default: 0)"
    )
    parser.add_argument("--config", metavar="FILE", help="a TOML file with these settings")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Collect until SIGINT or SIGTERM."""
    settings = read_settings({name: getattr(arguments, name) for name in Settings.__struct_fields__}, arguments.config)
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    warnings = WarningExporter(slow_factor=settings.slow_factor, group_by=settings.group_by)
    exporters: list[Exporter] = [LogExporter(per_rank=settings.per_rank), warnings]
    if settings.jsonl is not None:
        exporters.append(JsonlExporter(settings.jsonl))
    config = CollectorConfig(
        endpoint=settings.endpoint,
        interval_seconds=settings.interval,
        group_by=settings.group_by,
        journal=journal_of(settings),
        retention_seconds=settings.retention * DAY_SECONDS,
        upstream=settings.upstream or None,
        upstream_curve=settings.upstream_curve or None,
        curve=settings.curve or None,
        insecure=settings.insecure,
    )
    for name in settings.generic:
        KVConnectorFactory.register_generic(name)
    if settings.http is not None:
        parse_address(settings.http)  # what is wrong is said before anything is bound
    collector = Collector(config, exporters)
    _push(settings, collector)
    server = _web(settings, collector)
    logger.info("collecting at %s, a line every %g s", collector.endpoint, settings.interval)
    logger.info("journal: %s", config.journal or "none, what is collected is in memory alone")
    if config.upstream is not None:
        logger.info("each interval is told to %s", config.upstream)
    if server is not None:
        logger.info("serving at %s", server.url)
    with contextlib.nullcontext() if server is None else server:
        collector.run()
    return 0


def _push(settings: Settings, collector: Collector) -> None:
    """Let it push, where that was asked for."""
    if settings.otlp is None:
        return
    from kvxfer.exporters.otlp import OtlpExporter  # noqa: PLC0415 - an extra

    # What it says of each export that fails is counted, and said once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        collector.add_exporter(OtlpExporter(partial(collector.snapshot, sources=False), settings.otlp))
    except KVXferError:
        collector.stop()
        raise
    logger.info("each interval is pushed to %s", settings.otlp)


def _web(settings: Settings, collector: Collector) -> WebServer | None:
    """What serves it, where that was asked for."""
    if settings.http is None:
        return None
    names, sources = settings.metric_names, settings.metrics_per_source
    try:
        return WebServer(collector, settings.http, metric_names=names, sources=sources)
    except KVXferError:
        collector.stop()
        raise
