"""``kvxfer demo``: real transfers between processes of this machine, and what the collector makes of them."""

import argparse
import time
from typing import TYPE_CHECKING

from kvxfer.cli import moving
from kvxfer.cli.commands import positive
from kvxfer.cli.progress import Progress
from kvxfer.workload.synthetic import synthetic_requests
from kvxfer.workload.trace import plan_transfers

if TYPE_CHECKING:
    from kvxfer.cli.commands import SubParsers


def add_parser(commands: "SubParsers") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "demo",
        help="move blocks between processes and show their telemetry",
        description="Prefill and decode processes move KV blocks of made-up requests; a collector prints the lines. "
        "Ends with what was recorded against what was collected; exit code 1 if they differ.",
    )
    parser.add_argument("--seconds", metavar="S", type=positive, default=10.0, help="how long (default: 10)")
    moving.add_arguments(parser, interval=2.0)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Move for the time given."""
    progress = Progress(arguments.seconds, "seconds")
    start = time.monotonic()
    return moving.move(
        arguments,
        plan_transfers(synthetic_requests(seed=0)),
        progress,
        lambda _: progress.update(time.monotonic() - start),
        seconds=arguments.seconds,
    )
