"""The command: which benchmarks, how long, where the numbers go."""

import argparse
import importlib
import importlib.util
import json
import sys
from pathlib import Path

from benchmarks.harness import MODULES, measure, run_case, table, versions
from benchmarks.plot import draw

COMMANDS = ("faults", "fuzz", "vllm")
"""What has no line in the table, and takes arguments of its own."""


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return int(importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:]))
    arguments = _parser().parse_args()
    problem = _problem(arguments)
    if problem:
        print(f"python -m benchmarks: {problem}", file=sys.stderr)
        return 2
    if arguments.case:
        print(json.dumps(run_case(arguments.case, quick=arguments.quick)))
    elif arguments.versions:
        print(json.dumps(versions(), indent=1))
    else:
        return _measure(arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Each beside its peers, a process per case.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(MODULES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, once: to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write every figure")
    parser.add_argument("--plot", metavar="FILE", help="draw what grows with the sources, as .svg or .png")
    parser.add_argument("--versions", action="store_true", help="print versions and machine, measure nothing")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # what the harness starts for each case
    return parser


def _problem(arguments: argparse.Namespace) -> str:
    unknown = [name for name in arguments.names if name not in MODULES]
    if unknown:
        return f"no benchmark is called {unknown[0]!r}: use {', '.join(MODULES)}"
    # Said before ten minutes of measuring, not after.
    for option in ("json", "plot"):
        path = getattr(arguments, option)
        if path and not Path(path).parent.is_dir():
            return f"--{option} {path}: there is no directory {Path(path).parent}"
    return _problem_of_plot(arguments) if arguments.plot else ""


def _problem_of_plot(arguments: argparse.Namespace) -> str:
    if Path(arguments.plot).suffix not in {".svg", ".png"}:
        return f"--plot {arguments.plot}: name a file that ends in .svg or .png"
    if arguments.names and "growth" not in arguments.names:
        return "--plot draws the figures of growth: name it too"
    if importlib.util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib: pip install 'kvxfer[bench]'"
    return ""


def _measure(arguments: argparse.Namespace) -> int:
    names = dict.fromkeys(arguments.names or MODULES)
    report = measure(list(names), quick=arguments.quick)
    print(table(report))
    for case in report["failed"]:
        print(f"{case} failed: {report['cases'][case]['error']}", file=sys.stderr)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    if arguments.plot and not report["failed"]:
        draw(report, Path(arguments.plot))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
