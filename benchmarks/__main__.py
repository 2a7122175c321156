"""The command: which benchmarks, how long, where the numbers go."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.harness import MODULES, measure, run_case, table, versions


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Each beside its peers, a process per case.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(MODULES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, once: to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write every figure")
    parser.add_argument("--versions", action="store_true", help="print versions and machine, measure nothing")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # what the harness starts for each case
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MODULES]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}: use {', '.join(MODULES)}")
    if arguments.case:
        print(json.dumps(run_case(arguments.case, quick=arguments.quick)))
        return 0
    if arguments.versions:
        print(json.dumps(versions(), indent=1))
        return 0
    report = measure(arguments.names or list(MODULES), quick=arguments.quick)
    print(table(report))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
