"""`kvxfer report` as it prints: what a person reads, what a program reads, and one line where there is nothing."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recorded import journal, lines, run

from kvxfer.cli import main
from kvxfer.cli.shown import _cell
from kvxfer.cli.tables import Painter, marked
from kvxfer.interval import Interval

Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """What the command prints; it must end well and say nothing else."""
    monkeypatch.setenv("TZ", "UTC")

    def saying(*arguments: str | Path) -> str:
        assert main(["report", *map(str, arguments)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return saying


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["report", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


TWO_RANKS = [[[0.001, 0.003], [0.002]]] * 2


def test_a_table_has_the_range_the_rows_and_what_the_pipeline_lost(said: Said, tmp_path: Path) -> None:
    out = said(journal(tmp_path / "j", run(TWO_RANKS, failures=1))).splitlines()
    assert out[0].startswith(f"{tmp_path / 'j'}: 2023-11-14 22:13:20")
    assert out[0].endswith(", 2 intervals, 20.0 s covered")
    header, row = out[2:4]
    assert header.split("  ")[0] == "connector"
    assert row.split() == [
        *("NixlConnector", "e", "-", "6", "6", "0.300", "500", "0.000600", "2", "2", "3", "3", "3", "2"),
        *("failed_transfers", "4"),
    ]
    assert out[5] == ("pipeline: 4 reports received, 0 duplicate, 0 lost, 0 rejected; observations: 0 rejected, 0 cut")


def test_a_table_over_lines_says_that_quantiles_are_bounds(said: Said, tmp_path: Path) -> None:
    out = said(lines(tmp_path / "l", run([[[0.001]], [[0.002]]])))
    assert " 1..2 " in out
    assert "low..high: the lowest and the highest of the intervals" in out


def test_markdown_is_a_table_of_markdown(said: Said, tmp_path: Path) -> None:
    out = said(journal(tmp_path / "j", run(TWO_RANKS)), "--format", "markdown", "--by", "rank").splitlines()
    table = [line for line in out if line.startswith("|")]
    assert len(table) == 4
    assert {line.count("|") for line in table} == {14}
    assert set(table[1]) <= set("|-: ")
    assert all(line.startswith("- ") for line in out[8:])


def test_json_holds_base_units(said: Said, tmp_path: Path) -> None:
    found = json.loads(said(journal(tmp_path / "j", run(TWO_RANKS)), "--format", "json"))
    (row,) = found["rows"]
    assert (found["seconds"], row["num_bytes"], row["durations"]["max"]) == (20.0, 6 << 20, 0.003)
    assert row["durations"]["quantiles"]["p50"] == {"low": 0.002, "high": 0.002}
    assert found["pipeline"]["reports_received"] == 4


def test_csv_has_a_row_of_each(said: Said, tmp_path: Path) -> None:
    out = said(journal(tmp_path / "j", run(TWO_RANKS)), "--format", "csv", "--by", "engine,rank")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["engine"], row["rank"], row["num_transfers"], row["reports_lost"]) for row in rows] == [
        ("e", "0", "4", "0"),
        ("e", "1", "2", "0"),
    ]


@pytest.mark.parametrize("name", ['=HYPERLINK("http://x","y")', "+1", "-1", "@sum", "\tx"])
def test_no_cell_is_a_formula_whatever_a_worker_calls_itself(name: str) -> None:
    assert _cell(name).startswith("'")
    assert _cell("kv_consumer") == "kv_consumer"


def test_names_are_text_in_markdown() -> None:
    assert marked("_a_ ~~b~~ @user &copy; <b>") == "\\_a\\_ \\~\\~b\\~\\~ \\@user \\&copy; \\<b>"


def test_a_range_and_a_warm_up_are_taken_as_written(said: Said, tmp_path: Path) -> None:
    path = journal(tmp_path / "j", run([[[0.001]]] * 6))
    assert "2 intervals, 20.0 s covered" in said(path, "--since", "-20")
    assert "3 intervals, 30.0 s covered" in said(path, "--until", "2023-11-14T22:13:50Z")
    assert "4 intervals, 40.0 s covered" in said(path, "--drop-warm-up", "2i")
    assert "5 intervals, 50.0 s covered" in said(path, "--drop-warm-up", "10s")


def compared(said: Said, first: Path, second: Path, *options: str) -> dict[str, list[str]]:
    out = said("--compare", first, second, *options)
    rows = (line.split("  ") for line in out.splitlines() if "  " in line)
    return {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}


def test_two_runs_stand_side_by_side_with_the_change(said: Said, tmp_path: Path) -> None:
    first = journal(tmp_path / "a", run([[[0.001, 0.003]]]))
    second = journal(tmp_path / "b", run([[[0.001, 0.002, 0.003]]], connector="NixlPullConnector", failures=2))
    found = compared(said, first, second)
    assert found[""] == ["a", "b", "change"]
    assert found["transfers"] == ["2", "3", "+50.0 %"]
    assert found["mean ms"] == ["2", "2", "0.0 %"]
    assert found["failures"] == ["0", "2", "new"]
    assert found["- failed_transfers"] == ["0", "2", "new"]
    assert "- kv_expired_reqs" not in found


def test_a_great_change_is_a_factor(said: Said, tmp_path: Path) -> None:
    first, second = journal(tmp_path / "a", run([[[0.001]]])), journal(tmp_path / "b", run([[[0.25]]]))
    assert compared(said, first, second)["mean ms"] == ["1", "250", "x 250"]


def test_a_group_of_one_run_alone_is_new_or_absent(said: Said, tmp_path: Path) -> None:
    first, second = journal(tmp_path / "a", run([[[0.001], []]])), journal(tmp_path / "b", run([[[], [0.001]]]))
    out = said("--compare", first, second, "--by", "rank")
    assert "rank=0 (in a alone)" in out
    assert "rank=1 (in b alone)" in out
    assert {line.split()[-1] for line in out.splitlines() if line.startswith("transfers ")} == {"new", "absent"}


def test_runs_of_one_name_are_told_apart(said: Said, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (journal(tmp_path / name / "run.db", run([[[0.001]]])) for name in ("a", "b"))
    assert compared(said, first, second)[""] == [str(first), str(second), "change"]
    assert compared(said, first, first)[""] == ["run.db (1)", "run.db (2)", "change"]


@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
def test_a_comparison_has_each_form(said: Said, tmp_path: Path, form: str) -> None:
    first, second = journal(tmp_path / "a", run([[[0.001]]])), lines(tmp_path / "b", run([[[0.002]]]))
    out = said("--compare", first, second, "--format", form)
    if form == "json":
        changes = {change["column"]: change for change in json.loads(out)["rows"][0]["changes"]}
        assert changes["mean_seconds"]["percent"] == pytest.approx(100.0)
    elif form == "csv":
        found = {row["column"]: row for row in csv.DictReader(io.StringIO(out))}
        assert (found["mean_seconds"]["first_low"], found["num_failures"]["change_percent"]) == ("0.001", "0.0")
    else:
        assert "| mean ms | 1 | 2 | +100.0 % |" in " ".join(out.split())


def hostile(intervals: list[Interval]) -> list[Interval]:
    label = "e|\x1b[31m\n`x`"
    return [
        msgspec.structs.replace(
            each,
            groups=tuple(msgspec.structs.replace(group, labels={"engine": label}) for group in each.groups),
        )
        for each in intervals
    ]


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_what_a_peer_named_moves_no_cursor_and_breaks_no_table(said: Said, tmp_path: Path, form: str) -> None:
    path = journal(tmp_path / "j", hostile(run(TWO_RANKS)))
    for out in (said(path, "--format", form), said("--compare", path, path, "--format", form)):
        assert "\x1b" not in out
        assert (r"e\|\\x1b\[31m\\n\`x\`" if form == "markdown" else r"e|\x1b[31m\n`x`") in out


def test_csv_has_a_column_for_a_label_that_only_some_have(said: Said, tmp_path: Path) -> None:
    one, other = run(TWO_RANKS), run(TWO_RANKS)
    bare = [
        msgspec.structs.replace(
            each, groups=(*each.groups, *(msgspec.structs.replace(group, labels={}) for group in each.groups))
        )
        for each in one
    ]
    path = journal(tmp_path / "j", bare)
    for out in (
        said(path, "--format", "csv"),
        said("--compare", journal(tmp_path / "o", other), path, "--format", "csv"),
    ):
        assert {row["engine"] for row in csv.DictReader(io.StringIO(out))} == {"e", ""}


def test_a_torn_last_line_is_said_and_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = lines(tmp_path / "l", run([[[0.001]]] * 3))
    path.write_bytes(path.read_bytes()[:-9])
    assert main(["report", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "2 intervals, 20.0 s covered" in out
    assert err == f"kvxfer report: {path}: the last line is torn, or being written: it is left out\n"


def test_what_cannot_be_reported_is_said_in_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = journal(tmp_path / "j", run(TWO_RANKS))
    empty = tmp_path / "empty"
    empty.touch()
    foreign = tmp_path / "notes"
    foreign.write_text("precious notes\n")
    cases: list[tuple[list[Any], str]] = [
        ([tmp_path / "none"], "No such file or directory: name a journal or a file of --jsonl"),
        ([tmp_path], "Is a directory"),
        ([empty], "holds no interval yet"),
        ([foreign], "notes:1: JSON is malformed"),
        ([journal(tmp_path / "idle", run([[[]]]))], "nothing was reported in that range"),
        ([path, "--since", "2040-01-01"], "no interval ended in that range: it holds 2, from 2023-11-14"),
        ([path, "--drop-warm-up", "1h"], "the warm-up left out"),
        ([path, "--by", "zone"], "nobody has the label 'zone'"),
        ([path, path], "two files are given: add --compare"),
        ([path, "--compare"], "--compare takes two files"),
        ([path, tmp_path / "none", "--compare"], "No such file or directory"),
    ]
    for arguments, message in cases:
        assert message in refused(capsys, *arguments)


@pytest.mark.parametrize("option", ["--since", "--until", "--drop-warm-up"])
def test_a_time_that_is_none_is_a_matter_of_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), option, "soon"])
    assert ended.value.code == 2
    assert f"argument {option}: expected a time as in --help, got 'soon'" in capsys.readouterr().err


def test_colours_are_for_a_terminal_alone(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = journal(tmp_path / "j", run(TWO_RANKS, failures=1))
    assert "\x1b" not in said(path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b[31mfailed_transfers 4" in said(path)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in said(path)


def test_what_is_not_painted_stays_as_it_is() -> None:
    assert (Painter(is_on=True)("x", "bold"), Painter(is_on=False)("x", "bold")) == ("\x1b[1mx\x1b[0m", "x")
