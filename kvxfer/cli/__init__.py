"""The command line, one command a file. Here, and only here, an error becomes an exit code.

0: done. 1: the command ran and its result is bad (recorded and collected differ). 2: something given is wrong.
130: interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from kvxfer.cli import collect, dashboard, demo, keygen, replay, report, top
from kvxfer.errors import KVXferError

_COMMANDS = (collect, top, report, dashboard, demo, replay, keygen)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser("kvxfer", description="Live telemetry of KV-cache transfers in LLM serving.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    arguments = parser.parse_args(argv)
    run = arguments.run
    try:
        code: int = run(arguments)
    except KVXferError as error:
        print(f"kvxfer {arguments.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code
