"""`kvxfer top` in a real terminal: what is on the screen, what keys do, and that the terminal is given back."""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from recorded import journal, lines, run

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.publisher import StatsPublisher
from kvxfer.web import WebServer

pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="no terminal to drive: tmux is missing"),
]


class Terminal:
    """A terminal of 80x24 in a tmux of its own."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=20)
        return done.stdout

    def start(self, command: str) -> None:
        self.tmux("new-session", "-d", "-x", "80", "-y", "24", command)

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self.tmux("resize-window", "-x", str(width), "-y", str(height))

    def lines(self) -> list[str]:
        return self.tmux("capture-pane", "-p").splitlines()

    def wait(self, is_there: Callable[[list[str]], bool]) -> list[str]:
        """The screen, once it is as it should be."""
        end = time.monotonic() + 20
        while not is_there(shown := self.lines()):
            assert time.monotonic() < end, "\n".join(shown)
            time.sleep(0.05)
        return shown


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    pytest.importorskip("rich", reason="rich is not installed")
    with tempfile.TemporaryDirectory(prefix="kvxfer-") as directory:
        made = Terminal(Path(directory) / "tmux")
        yield made
        subprocess.run([*made._tmux, "kill-server"], check=False, capture_output=True)


@contextmanager
def watching(terminal: Terminal, path: Path | str) -> Iterator[Terminal]:
    """The command in the terminal; at the end the shell must have got the terminal back as it was."""
    command = f"{sys.executable} -m kvxfer top {path}; echo ended with $?; stty -a | grep -o '.icanon'; sleep 60"
    terminal.start(command)
    terminal.wait(lambda shown: shown[-1].startswith("q quit"))
    yield terminal
    terminal.wait(lambda shown: shown[:2] == ["ended with 0", " icanon"])


RANKS = [[[0.001 * (1 + rank % 7)] * 3 for rank in range(30)]] * 2


def test_the_screen_fits_80_by_24_and_says_what_it_does_not_show(terminal: Terminal, tmp_path: Path) -> None:
    with watching(terminal, journal(tmp_path / "j.db", run(RANKS, failures=1))):
        shown = terminal.lines()
        assert len(shown) == 24
        assert shown[0].startswith("j.db  10 s to ")
        assert shown[0].endswith("live 30  silent 0  gone 0")
        assert shown[1].startswith("wall 9 MiB/s  busy ")
        assert shown[2] == "failures: failed_transfers 30"
        assert shown[3] == "no new interval: the collector has stopped, or hangs"
        assert shown[4].split() == ["GROUP", "(MiB/s,", "ms)", "ranks", "xfers", "wall", "busy", "P50", "P99", "fail"]
        assert shown[5].split()[:5] == ["Nixl", "e", "30", "90", "9"]
        assert shown[6] == "by rank ^"
        assert shown[7].startswith("RANK  ")
        assert shown[21] == "17 more: sort (s) or filter (f)"
        assert shown[22] == "pipeline: 60 received, 0 duplicate, 0 lost, 0 rejected, 0 cut"
        terminal.press("q")


def test_keys_sort_reverse_filter_and_explain(terminal: Terminal, tmp_path: Path) -> None:
    with watching(terminal, lines(tmp_path / "l", run(RANKS))):
        terminal.press(*"ssssss")
        shown = terminal.wait(lambda shown: shown[5] == "by P99 ms v")
        assert shown[7].split()[0] == "6"
        terminal.press("r")
        shown = terminal.wait(lambda shown: shown[5] == "by P99 ms ^")
        assert shown[7].split()[0] == "0"
        terminal.press("f", "r", "a", "n", "k", "=", "2", "2")
        shown = terminal.wait(lambda shown: shown[-1].startswith("filter: rank=22_"))
        assert (shown[7].split()[0], shown[8]) == ("22", "")
        terminal.press("Enter")
        terminal.wait(lambda shown: shown[5] == "by P99 ms ^, filter: rank=22")
        terminal.press("?")
        terminal.wait(lambda shown: "any key leaves this help" in "\n".join(shown))
        terminal.press("x", "f", "Escape")
        terminal.wait(lambda shown: "more: sort (s) or filter (f)" in shown[21])
        terminal.press("q")


def test_a_new_interval_is_shown_unless_it_is_paused(terminal: Terminal, tmp_path: Path) -> None:
    first, second, third = run([[[0.001]], [[0.001]] * 2, [[0.001]] * 3])
    path = journal(tmp_path / "j.db", [first])
    with watching(terminal, path):
        terminal.wait(lambda shown: shown[1].endswith("  1 transfers"))
        journal(path, [second])
        terminal.wait(lambda shown: shown[1].endswith("  2 transfers"))
        terminal.press("p")
        terminal.wait(lambda shown: "PAUSED" in shown[5])
        journal(path, [third])
        time.sleep(1)
        assert terminal.lines()[1].endswith("  2 transfers")
        terminal.press("p")
        terminal.wait(lambda shown: shown[1].endswith("  3 transfers"))
        terminal.press("C-c")


def test_it_fills_a_terminal_that_is_resized(terminal: Terminal, tmp_path: Path) -> None:
    with watching(terminal, journal(tmp_path / "j.db", run(RANKS))):
        terminal.resize(140, 45)
        shown = terminal.wait(lambda shown: len(shown) == 45 and shown[-1].startswith("q quit"))
        assert "P90" in shown[3]
        assert len([line for line in shown if " live " in line and "Nixl" in line]) == 30
        terminal.resize(60, 12)
        shown = terminal.wait(lambda shown: len(shown) == 12 and shown[-1].startswith("q quit"))
        assert shown[-2].startswith("pipeline: ")
        terminal.resize(20, 3)
        time.sleep(0.5)
        terminal.resize(80, 24)
        terminal.wait(lambda shown: len(shown) == 24 and shown[-1].startswith("q quit"))
        terminal.press("q")


def test_the_terminal_is_given_back_on_sigterm(terminal: Terminal, tmp_path: Path) -> None:
    with watching(terminal, journal(tmp_path / "j.db", run(RANKS))):
        shell = terminal.tmux("display-message", "-p", "#{pane_pid}").strip()
        command = subprocess.run(["ps", "--ppid", shell, "-o", "pid="], check=True, capture_output=True, text=True)
        subprocess.run(["kill", command.stdout.strip()], check=True)


def test_a_collector_without_a_journal_is_watched_and_said_to_be_away(terminal: Terminal, ipc_endpoint: str) -> None:
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.5)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(collecting(config, "127.0.0.1:0"))
        publisher = stack.enter_context(StatsPublisher("NixlConnector", ipc_endpoint, {"rank": "7"}))
        publisher.stats.record_transfer(0.001, 0.0001, 1024, 1)
        assert publisher.flush(10.0)
        with watching(terminal, f"--http {server.port}"):
            terminal.wait(lambda shown: any(line.startswith("7 ") for line in shown))
            assert terminal.lines()[0].startswith(f"127.0.0.1:{server.port}")
            stack.pop_all().close()
            terminal.wait(lambda shown: "no connection to the collector, trying again: Connection refused" in shown[2])
            with collecting(config, f"127.0.0.1:{server.port}"):
                terminal.wait(lambda shown: "no connection" not in shown[2])
            terminal.press("q")


def test_without_a_terminal_it_says_so_beside_the_tables(ipc_endpoint: str) -> None:
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.2)
    with collecting(config, "127.0.0.1:0") as server:
        command = [sys.executable, "-m", "kvxfer", "top", server.url]
        top = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert top.stdout is not None
        assert top.stderr is not None
        assert "0 transfers" in top.stdout.readline()
    assert "no connection to the collector, trying again: " in top.stderr.readline()
    assert top.poll() is None
    top.send_signal(signal.SIGTERM)
    assert top.wait(10) == 0
    top.stdout.close()
    top.stderr.close()


@contextmanager
def collecting(config: CollectorConfig, address: str) -> Iterator[WebServer]:
    with Collector(config) as collector, WebServer(collector, address) as server:
        yield server
