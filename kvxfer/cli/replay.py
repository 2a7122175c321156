"""``kvxfer replay``: a Mooncake trace through real transfers."""

import argparse
from typing import TYPE_CHECKING

from kvxfer.cli import moving
from kvxfer.cli.commands import positive
from kvxfer.cli.progress import Progress
from kvxfer.workload.trace import plan_transfers, read_trace

if TYPE_CHECKING:
    from kvxfer.cli.commands import SubParsers


def add_parser(commands: "SubParsers") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "replay",
        help="move the blocks of a request trace",
        description="Each request of a trace (Mooncake's JSON lines) moves the blocks that no request before it had. "
        "Ends with what was recorded against what was collected; exit code 1 if they differ.",
    )
    parser.add_argument("trace", metavar="TRACE", help="the trace file")
    parser.add_argument(
        "--speed", metavar="X", type=positive, default=1.0, help="how many times faster than recorded (default: 1)"
    )
    moving.add_arguments(parser, interval=5.0)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Move what the trace implies."""
    # Read whole first: a broken line ends the command before anything is moved.
    transfers = list(plan_transfers(read_trace(arguments.trace)))
    progress = Progress(len(transfers), "requests")
    lasts = transfers[-1].at_seconds if transfers else 0.0
    progress.print(f"{arguments.trace}: {len(transfers):,} requests of {lasts:,.0f} s at {arguments.speed:g} x speed")
    return moving.move(arguments, transfers, progress, progress.update, speed=arguments.speed)
