"""``kvxfer report``: what a journal or a file of JSON lines holds of a range of time, or two of them compared."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvxfer.cli.progress import Progress
from kvxfer.cli.shown import FORMATS, comparison_text, report_text
from kvxfer.cli.tables import Painter
from kvxfer.errors import ConfigError
from kvxfer.records.change import compare
from kvxfer.records.files import RecordFile, Span, open_records
from kvxfer.records.observed import Observed
from kvxfer.records.report import CONNECTOR, DEFAULT_BY, Report, make_report
from kvxfer.records.times import Chosen, Range, WarmUp, choose, read_moment, read_warm_up

if TYPE_CHECKING:
    from kvxfer.cli.commands import SubParsers

_PATIENCE_SECONDS: Final = 1.0
"""Work that takes less shows no progress."""


def add_parser(commands: "SubParsers") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "report",
        help="a table over a journal or a file of --jsonl, or two of them compared",
        description="Add up the intervals of a collector's journal, also while it runs, or of a file of --jsonl. From "
        "a journal everything adds up exactly, and quantiles are within 1.1 %% of an observed value. From JSON lines "
        "counts, sums and extremes do; a quantile of several intervals is given as low..high, the lowest and the "
        "highest of the intervals, since there they do not merge. Without --since and --until idle intervals at the "
        "ends are left out.",
    )
    # Or argparse takes -10m, a time, for a flag.
    parser._negative_number_matcher = re.compile(r"^-\d")
    parser.add_argument("file", metavar="FILE", help="a journal or a file of --jsonl")
    parser.add_argument("second", metavar="FILE2", nargs="?", help="another one, with --compare")
    parser.add_argument("--compare", action="store_true", help="both side by side, with the change in per cent")
    when = "Unix seconds, ISO 8601 (local without an offset), or -10m before the end of the file"
    parser.add_argument("--since", metavar="TIME", type=_typed(read_moment), help=f"intervals that ended later: {when}")
    parser.add_argument("--until", metavar="TIME", type=_typed(read_moment), help="intervals that ended by then")
    parser.add_argument(
        "--by",
        metavar="LABELS",
        type=_labels,
        help="a row for each: connector, any label, source, host, pid (default: connector,engine,role; with --compare "
        "engine,role)",
    )
    parser.add_argument(
        "--drop-warm-up",
        metavar="TIME",
        type=_typed(read_warm_up),
        default=WarmUp(),
        help="leave out the start of the run, or of --since: seconds, 5m, or 3i (intervals)",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    parser.set_defaults(run=run)


def _typed(read: Callable[[str], object]) -> Callable[[str], object]:
    def reading(text: str) -> object:
        try:
            return read(text)
        except (ValueError, OverflowError, OSError) as error:
            message = f"expected a time as in --help, got {text!r}"
            raise argparse.ArgumentTypeError(message) from error

    return reading


def _labels(text: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in text.split(",") if label.strip())


def run(arguments: argparse.Namespace) -> int:
    """Print the report, or the comparison; nothing is printed before all of it is there."""
    if arguments.compare != (arguments.second is not None):
        message = "--compare takes two files" if arguments.compare else "two files are given: add --compare"
        raise ConfigError(message)
    wanted = Range(arguments.since, arguments.until, arguments.drop_warm_up)
    default = tuple(name for name in DEFAULT_BY if name != CONNECTOR or not arguments.compare)
    by = default if arguments.by is None else arguments.by
    reports = [_report(path, wanted, by) for path in (arguments.file, arguments.second) if path is not None]
    paint = Painter(is_on=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    if arguments.compare:
        print(comparison_text(compare(*reports), arguments.format, paint), flush=True)
    else:
        print(report_text(reports[0], arguments.format, paint), flush=True)
    return 0


def _report(path: str, wanted: Range, by: Sequence[str]) -> Report:
    records = open_records(path)
    try:
        chosen = choose(path, records.spans(), wanted)
        if records.is_torn:
            print(f"kvxfer report: {path}: the last line is torn, or being written: it is left out", file=sys.stderr)
        return _made(records, chosen, by, wanted)
    finally:
        records.close()


def _made(records: RecordFile, chosen: Chosen, by: Sequence[str], wanted: Range) -> Report:
    before = None if chosen.before is None else records.read(chosen.before)
    progress = Progress(len(chosen.spans), f"intervals of {Path(records.path).name}")
    start = time.monotonic()

    def tell(done: int) -> None:
        if time.monotonic() - start > _PATIENCE_SECONDS:
            progress.update(done)

    try:
        pipeline = None if before is None else before.pipeline
        return make_report(records.path, _read(records, chosen.spans), by, wanted, pipeline, tell)
    finally:
        progress.clear()


def _read(records: RecordFile, spans: Sequence[Span]) -> Iterator[Observed]:
    for span in spans:
        observed = records.read(span)
        if observed is not None:
            yield observed
