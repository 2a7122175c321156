"""The published table is what the harness makes of the published figures; nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)


def test_the_table_in_the_readme_is_made_of_the_figures_beside_it() -> None:
    code = "import json, sys; from benchmarks.harness import table; print(table(json.load(open(sys.argv[1]))))"
    made = subprocess.run(
        [sys.executable, "-c", code, str(RESULTS)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout in (ROOT / "benchmarks" / "README.md").read_text()


def test_the_published_figures_are_of_a_full_run_in_which_nothing_failed() -> None:
    report = json.loads(RESULTS.read_text())
    assert not report["quick"]
    assert report["failed"] == []
    assert {row["benchmark"] for row in report["rows"]} == {"record", "fold", "wire", "pipe"}
    machine = (ROOT / "benchmarks" / "README.md").read_text()
    assert report["versions"]["machine"] in machine


def test_a_benchmark_that_does_not_exist_is_named() -> None:
    done = run("telepathy")
    assert done.returncode == 2
    assert "no benchmark is called 'telepathy': use record, fold, wire, pipe" in done.stderr


def test_a_quick_run_measures_and_compares() -> None:
    done = run("wire", "--quick")
    assert done.returncode == 0, done.stderr
    assert "| wire: 1,000 transfers |" in done.stdout
    assert "failed" not in done.stdout
