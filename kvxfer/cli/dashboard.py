"""``kvxfer dashboard``: prints what is shipped for Grafana and Prometheus."""

import argparse
import sys
from typing import TYPE_CHECKING

from kvxfer.shipped import SHIPPED, shipped

if TYPE_CHECKING:
    from kvxfer.cli.commands import SubParsers


def add_parser(commands: "SubParsers") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "dashboard",
        help="print the Grafana dashboard or the Prometheus alert rules",
        description="Print the Grafana dashboard (to be imported) or the alert rules (a file for rule_files).",
    )
    parser.add_argument("what", choices=sorted(SHIPPED))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the file."""
    sys.stdout.write(shipped(arguments.what))
    return 0
