"""The commands as a person runs them: real processes, real transfers, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from captured import TRACE, counted_by_hand

from kvxfer.exporters.jsonl import read_records
from kvxfer.journal import History
from kvxfer.publisher import StatsPublisher
from kvxfer.saved import decode_interval

KVXFER = [sys.executable, "-m", "kvxfer"]
BLOCK_BYTES = 32 * 1024


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KVXFER, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, **environment},
    )


def check_summary(file: Path, connector: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(file.read_text())
    assert summary["connector"] == connector
    assert summary["recorded"] == summary["collected"]
    assert summary["reports"]["received"] > 0
    assert (summary["reports"]["rejected"], summary["reports"]["lost"]) == (0, 0)
    return summary


def test_demo_moves_bytes_prints_the_line_and_collects_all_that_was_recorded(tmp_path: Path) -> None:
    done = run("demo", "--seconds", "3", "--interval", "1", "--summary-json", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    assert "KV Transfer metrics: Num successful transfers=" in done.stdout
    assert "DIFFERENT" not in done.stdout
    summary = check_summary(tmp_path / "s.json", "SharedMemoryConnector")
    assert summary["recorded"]["transfer_duration"]["count"] == summary["reduced"]["Num successful transfers"] > 0
    assert summary["workers"] == 2


@pytest.mark.parametrize(
    ("name", "connector"),
    [
        ("shared_memory", "SharedMemoryConnector"),
        pytest.param("NixlConnector", "NixlConnector", marks=pytest.mark.extra),
    ],
)
def test_replay_moves_what_the_trace_implies(tmp_path: Path, name: str, connector: str) -> None:
    requests, transfers, blocks = counted_by_hand()
    options = ("--speed", "600", "--workers", "4", "--connector", name, "--summary-json", tmp_path / "s.json")
    done = run("replay", TRACE, *options)
    assert done.returncode == 0, done.stderr
    summary = check_summary(tmp_path / "s.json", connector)
    assert summary["requests"] == requests
    assert summary["collected"]["bytes_transferred"] == {"count": transfers, "sum": blocks * BLOCK_BYTES}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--workers", "0"), "expected a whole number above 0, got 0"),
        (("demo", "--seconds", "x"), "argument --seconds: invalid positive value: 'x'"),
        (
            ("demo", "--connector", "telepathy"),
            "no workload moves blocks for 'telepathy': use one of",
        ),
        (("demo", "--block-bytes", "12"), "set block_bytes to a multiple of 8"),
        (("demo", "--endpoint", "udp://1"), "expected ipc://PATH or tcp://HOST:PORT, got 'udp://1'"),
        (("replay", "/nowhere.jsonl"), "/nowhere.jsonl: No such file or directory"),
        (("collect", "--upstream", "udp://1"), "expected ipc://PATH or tcp://HOST:PORT, got 'udp://1'"),
        (
            ("collect", "--endpoint", "tcp://127.0.0.1:5555", "--upstream", "tcp://127.0.0.1:5555"),
            "tcp://127.0.0.1:5555 is this collector's own endpoint: name that of the one above",
        ),
        (("collect", "--interval", "x"), "--interval: Expected `float`, got `str` - at `$.interval`, got 'x'"),
        (("collect", "--interval", "0"), "interval_seconds must lie between 0.01 and 86400, got 0.0"),
        (("collect", "--endpoint", "ipc://" + "x" * 108), "has 108 bytes, it may have 1 to 103"),
        (("collect", "--config", "/nowhere.toml"), "/nowhere.toml: "),
        (("collect", "--retention", "long"), "--retention: Expected `float`, got `str` - at `$.retention`, got 'long'"),
        (("collect", "--retention", "-1"), "retention_seconds >= 0 and max_journal_bytes >= 0, got -86400.0, "),
        (("collect", "--jsonl", "/nowhere/x.jsonl"), "/nowhere/x.jsonl: No such file or directory"),
        (("collect", "--slow-factor", "1"), "slow_factor must be above 1, or 0 for no such warning, got 1.0"),
        (("collect", "--curve", "/nowhere"), "/nowhere: No such file or directory: make keys with `kvxfer keygen`"),
        (("collect", "--endpoint", "tcp://*:5999"), "can be reached from beyond this host"),
        (("collect", "--endpoint", "tcp://eth0:5999"), "use --curve DIR, or --insecure"),
        (("collect", "--http", "here"), "expected HOST:PORT, got 'here': 127.0.0.1:9464 is this host alone"),
        (("collect", "--http", "203.0.113.7:9464", "--journal", "none"), "cannot serve at http://203.0.113.7:9464: "),
        (("collect", "--generic", "NixlConnector"), "Connector 'NixlConnector' is already registered."),
        (("collect", "--metric-names", "ours"), "--metric-names: expected kvxfer or vllm, got 'ours'"),
        (("collect", "--metrics-per-source", "-1"), "--metrics-per-source: Expected `int` >= 0"),
        (("keygen", "/proc/nowhere"), "No such file or directory: name a directory that can be written"),
        (("keygen", "/nowhere/keys", "--client", "../up"), "--client '../up': expected letters, digits"),
        (("keygen",), "the following arguments are required: DIR"),
        (("report", "/nowhere.db"), "kvxfer report: /nowhere.db: No such file or directory: name a journal or a file"),
        (("fly",), "invalid choice: 'fly'"),
    ],
)
def test_what_is_given_wrong_is_said_in_a_line_and_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_trace_line_is_named_before_anything_moves(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1]}\nnonsense\n')
    done = run("replay", trace)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{trace}:2: " in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_collect_finishes_its_interval_on_a_signal_and_exits_with_0(
    ipc_endpoint: str, tmp_path: Path, number: signal.Signals
) -> None:
    records = tmp_path / "intervals.jsonl"
    options = ["--endpoint", ipc_endpoint, "--interval", "60", "--jsonl", str(records), "--per-rank"]
    with subprocess.Popen([*KVXFER, "collect", *options], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        assert f"collecting at {ipc_endpoint}, a line every 60 s" in collector.stdout.readline()
        with StatsPublisher("NixlConnector", ipc_endpoint, {"engine": "e0", "rank": "1"}) as publisher:
            publisher.stats.record_transfer(0.001, 0.0001, 1 << 20, 4)
        collector.send_signal(number)
        out, _ = collector.communicate(timeout=30)
    assert collector.returncode == 0
    assert "KV Transfer metrics: Num successful transfers=1, Avg xfer time (ms)=1.0" in out
    assert "KV Transfer metrics of one rank: Num successful transfers=1" in out
    (record,) = read_records(records)
    assert record["groups"][0]["fields"]["bytes_transferred"]["sum"] == 1 << 20


def test_a_second_collector_on_a_live_path_is_refused_and_the_first_goes_on(ipc_endpoint: str) -> None:
    command = [*KVXFER, "collect", "--endpoint", ipc_endpoint, "--interval", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        collector.stdout.readline()
        second = run("collect", "--endpoint", ipc_endpoint)
        assert second.returncode == 2
        assert "cannot bind" in second.stderr
        with StatsPublisher("NixlConnector", ipc_endpoint) as publisher:
            publisher.stats.record_failed_transfer()
        collector.terminate()
        out, _ = collector.communicate(timeout=30)
    assert "Num failed transfers=1" in out


def test_collect_reads_a_connector_that_it_is_told_to_and_report_reads_its_journal(
    ipc_endpoint: str, tmp_path: Path
) -> None:
    options = ["--endpoint", ipc_endpoint, "--journal", str(tmp_path / "j.db"), "--generic", "PrivateConnector,Another"]
    with subprocess.Popen([*KVXFER, "collect", *options], stdout=subprocess.PIPE, text=True) as collector:
        with StatsPublisher("PrivateConnector", ipc_endpoint) as publisher:
            publisher.push({"num_hits": 3, "fetch": {"seconds": [0.5, 0.25]}})
            assert publisher.flush(timeout=20)
        collector.terminate()
        out, _ = collector.communicate(timeout=30)
    assert "KV Transfer metrics: Generic stats=1, num_hits=3, fetch.seconds_count=2" in out
    done = run("report", tmp_path / "j.db", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["connectors"] == ["PrivateConnector"]


def test_a_flag_wins_over_the_environment_and_that_over_the_file(ipc_endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "kvxfer.toml"
    file.write_text(f'endpoint = "{ipc_endpoint}"\ninterval = 1\ngroup_by = ["rank"]\n')
    environment = {**os.environ, "KVXFER_INTERVAL": "2", "KVXFER_GROUP_BY": "host"}
    command = [*KVXFER, "collect", "--config", str(file), "--interval", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as collector:
        assert collector.stdout is not None
        assert f"collecting at {ipc_endpoint}, a line every 3 s" in collector.stdout.readline()
        collector.terminate()
        collector.communicate(timeout=30)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("interval = 'x'", "interval: Expected `float`"),
        ("speed = 1", "no setting is called 'speed'"),
        ("=", "TOML file"),
    ],
)
def test_a_file_with_a_setting_that_does_not_fit_is_named(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "kvxfer.toml"
    file.write_text(content)
    done = run("collect", "--config", file)
    assert done.returncode == 2
    assert said in done.stderr
    assert str(file) in done.stderr


@pytest.mark.parametrize("name", ["KVXFER_CURVE", "KVXFER_INSECURE"])
def test_security_can_be_set_by_the_environment(name: str, tmp_path: Path) -> None:
    done = run("collect", **{name: str(tmp_path / "none")})
    assert done.returncode == 2
    assert (str(tmp_path / "none") if name == "KVXFER_CURVE" else "KVXFER_INSECURE: Expected `bool`") in done.stderr


def test_an_environment_variable_that_does_not_fit_is_named() -> None:
    done = run("collect", KVXFER_INTERVAL="soon")
    assert done.returncode == 2
    assert "KVXFER_INTERVAL: Expected `float`" in done.stderr


def test_collect_serves_where_it_is_told_to_and_says_so(ipc_endpoint: str) -> None:
    environment = {**os.environ, "KVXFER_HTTP": "127.0.0.1:0"}
    command = [*KVXFER, "collect", "--endpoint", ipc_endpoint, "--journal", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as collector:
        assert collector.stdout is not None
        said = "".join(collector.stdout.readline() for _ in range(3))
        url = re.search(r"serving at (http://127\.0\.0\.1:\d+)\n", said)
        assert url is not None
        with urlopen(f"{url[1]}/metrics") as response:  # noqa: S310 - our own
            assert b"kvxfer_collector_reports_received_total 0" in response.read()
        collector.terminate()
        assert collector.wait(30) == 0


# --- the journal


@contextmanager
def collecting(endpoint: str, *options: str | Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """``kvxfer collect`` from its first line to the end of the block; a line per group is long in coming."""
    command = [*KVXFER, "collect", "--endpoint", endpoint, "--interval", "60", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as collector:
        assert collector.stdout is not None
        assert "collecting at" in collector.stdout.readline() or environment
        yield collector
        collector.terminate()
        collector.wait(30)


def record_failures(endpoint: str, count: int) -> None:
    with StatsPublisher("NixlConnector", endpoint) as publisher:
        publisher.stats.num_failed_transfers.add(count)


def test_totals_of_a_collector_that_was_killed_go_on_in_the_journal_of_its_endpoint(
    ipc_endpoint: str, tmp_path: Path
) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path)}
    with collecting(ipc_endpoint, **state) as collector:
        record_failures(ipc_endpoint, 3)
        collector.kill()
    (journal,) = (tmp_path / "kvxfer").glob("*.db")
    assert re.fullmatch(r"c-[0-9a-f]{8}\.db", journal.name)
    with collecting(ipc_endpoint, **state) as collector:
        record_failures(ipc_endpoint, 4)
        collector.terminate()
        assert collector.stdout is not None
        out = collector.stdout.read()
    assert f"journal: {journal}" in out
    assert "Num failed transfers=7" in out
    assert collector.returncode == 0
    history = History(journal)
    (interval,) = [decode_interval(saved) for saved in history.intervals(0.0, 1e12)]
    history.close()
    assert interval.groups[0].stats.reduce()["Num failed transfers"] == 7


def test_a_collector_told_to_keep_none_makes_no_file(ipc_endpoint: str, tmp_path: Path) -> None:
    with collecting(ipc_endpoint, "--journal", "none", XDG_STATE_HOME=str(tmp_path)) as collector:
        record_failures(ipc_endpoint, 3)
    assert collector.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_place_for_journals_that_cannot_be_made_is_said_and_collecting_goes_on(
    ipc_endpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with collecting(ipc_endpoint, XDG_STATE_HOME=str(tmp_path / "file")) as collector:
        record_failures(ipc_endpoint, 3)
        collector.terminate()
        out = collector.communicate()[0]
    assert collector.returncode == 0
    assert "Num failed transfers=3" in out


def test_a_journal_that_is_in_use_or_grouped_by_other_labels_is_refused(ipc_endpoint: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    with collecting(ipc_endpoint, "--journal", journal):
        record_failures(ipc_endpoint, 3)
        second = run("collect", "--endpoint", f"{ipc_endpoint}2", "--journal", journal)
        assert second.returncode == 2
        assert (
            f"kvxfer collect: {journal} is another collector's journal: stop it, or name another file" in second.stderr
        )
    other = run("collect", "--endpoint", ipc_endpoint, "--journal", journal, "--group-by", "rank")
    assert other.returncode == 2
    assert f"kvxfer collect: {journal}: the journal groups by engine,role, this collector by rank: " in other.stderr


def test_demo_leaves_no_journal(tmp_path: Path) -> None:
    done = run("demo", "--seconds", "0.5", XDG_STATE_HOME=str(tmp_path), HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


# --- what a run has left


def test_a_report_reads_a_journal_beside_the_collector_that_writes_it(ipc_endpoint: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    with collecting(ipc_endpoint, "--journal", journal, "--interval", "0.2"):
        for count in (3, 4):
            begin = time.time()
            record_failures(ipc_endpoint, count)
            wait_for_interval(journal, begin)
        done = run("report", journal, "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["failures"]["num_failed_transfers"], row["num_ranks"]) == (7, 2)


def wait_for_interval(journal: Path, begin: float) -> None:
    """Wait until an interval that ended later, and in which something was reported, is in the journal."""
    while not any(decode_interval(saved).groups for saved in intervals_since(journal, begin)):
        time.sleep(0.05)


def intervals_since(journal: Path, begin: float) -> list[bytes]:
    history = History(journal)
    try:
        return history.intervals(begin, 1e12)
    finally:
        history.close()


def test_two_replays_leave_what_can_be_compared(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    request = {"timestamp": 0, "input_length": 1, "output_length": 1}
    trace.write_text("".join(json.dumps(request | {"hash_ids": [number]}) + "\n" for number in range(20)))
    for name, keep in (("a", "--journal"), ("b", "--jsonl")):
        done = run("replay", trace, keep, tmp_path / name)
        assert done.returncode == 0, done.stderr
    done = run("report", "--compare", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    (transfers,) = (line.split() for line in done.stdout.splitlines() if line.startswith("transfers "))
    assert transfers == ["transfers", "20", "20", "0.0", "%"]


def test_a_report_whose_reader_has_ended_says_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1]}\n')
    assert run("replay", trace, "--jsonl", tmp_path / "a").returncode == 0
    command = [*KVXFER, "report", str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as report:
        assert report.stdout is not None
        report.stdout.close()
        assert report.stderr is not None
        assert report.stderr.read() == ""
    assert report.returncode == 1


def test_top_without_a_terminal_prints_the_intervals_of_the_endpoints_collector(
    ipc_endpoint: str, tmp_path: Path
) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path)}
    with collecting(ipc_endpoint, "--interval", "1", **state):
        begin = time.time()
        record_failures(ipc_endpoint, 3)
        (journal,) = (tmp_path / "kvxfer").glob("*.db")
        wait_for_interval(journal, begin)
        command = [*KVXFER, "top", "--endpoint", ipc_endpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **state}) as top:
            assert top.stdout is not None
            lines = [line for line, _ in zip(top.stdout, range(12), strict=False)]
            top.terminate()
    assert top.returncode == 0
    assert any(line.startswith("rank  ") for line in lines)
    assert any(line.startswith("pipeline: ") for line in lines)
