"""``kvxfer keygen``: keys of CURVE for a collector and the workers that may send to it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kvxfer.transport import make_keys

if TYPE_CHECKING:
    from kvxfer.cli.commands import SubParsers


def add_parser(commands: "SubParsers") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "keygen",
        help="make keys, so that only who has one can send",
        description="Make a collector's key pair, where DIR has none, and clients that are authorized. Overwrites "
        "nothing. To revoke a client, remove its file from DIR/authorized: within a second it is cut off.",
    )
    parser.add_argument("directory", metavar="DIR", help="the collector's keys")
    parser.add_argument("--client", metavar="NAME", action="append", default=[], help="make a client (may be repeated)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the keys, say what to do with them."""
    made = make_keys(arguments.directory, arguments.client)
    print(f"collector: kvxfer collect --curve {arguments.directory}")
    for directory in made:
        print(f"client {directory.name}: move {directory} to its worker, set KVXFER_CURVE to where it is there")
    example = made[0].name if made else "NAME"
    print(f"to revoke: rm {Path(arguments.directory) / 'authorized' / example}.key")
    return 0
