"""``kvxfer top``: a collector's newest interval, live: from its server, its journal or the lines of ``--jsonl``."""

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from kvxfer.cli.keys import View
from kvxfer.cli.screen import Screen, lost, plain
from kvxfer.cli.settings import journal_of, read_settings
from kvxfer.errors import ConfigError
from kvxfer.records.files import RecordFile, open_records
from kvxfer.records.live import Live, Now
from kvxfer.records.remote import Remote

if TYPE_CHECKING:
    from kvxfer.cli.commands import SubParsers

_LOOK_SECONDS: Final = 0.2
"""Between two looks at the file: soon enough for who watches, one query of an index."""

_BEFORE: Final = 6
"""Intervals read at the start, so that a rank that has just stopped is known."""


def add_parser(commands: "SubParsers") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "top",
        help="watch a collector's groups and ranks",
        description="Show the newest interval of a collector: groups and ranks, wall-clock and busy throughput, "
        "failures, who is silent. Reads its journal beside it, a file of --jsonl, or asks its server. Keys: "
        "q s r f p ?. Where the output is no terminal, two tables per interval.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a journal, a file of --jsonl or http://HOST:PORT (default: the journal of the endpoint)",
    )
    parser.add_argument("--http", metavar="HOST:PORT", help="ask the collector that serves there (its --http)")
    parser.add_argument("--endpoint", metavar="URL", help="of the collector (default: as `kvxfer collect`)")
    parser.set_defaults(run=run)


class Following:
    """Intervals that become more, and what is to be seen of them."""

    def __init__(self, records: RecordFile | Remote) -> None:
        """Read the last intervals that are there."""
        self._records = records
        self._live = Live()
        if isinstance(records, Remote):
            self._live.know(records.known)
        self._take(_BEFORE)

    def look(self) -> list[Now]:
        """What is new, an entry for each interval."""
        return self._take(None)

    def now(self) -> Now | None:
        """The newest interval."""
        return self._live.now()

    @property
    def name(self) -> str:
        """What is watched."""
        records = self._records
        return records.url.partition("://")[2] if isinstance(records, Remote) else records.path.name

    @property
    def trouble(self) -> str:
        """Why nothing comes from a collector that is asked; empty while it does, and of files."""
        return self._records.trouble if isinstance(self._records, Remote) else ""

    def _take(self, most: int | None) -> list[Now]:
        found = []
        spans = self._records.spans()
        for span in spans if most is None else spans[-most:]:
            observed = self._records.read(span)
            if observed is not None:
                self._live.take(observed)
                seen = self._live.now()
                found += [] if seen is None else [seen]
        return found


def run(arguments: argparse.Namespace) -> int:
    """Watch until ``q``, or until interrupted."""
    address = _address(arguments)
    path = None if address else _path(arguments)
    on_terminal = sys.stdout.isatty() and sys.stdin.isatty()
    if on_terminal:
        _check_rich()
    records = Remote(address) if path is None else open_records(path)
    try:
        following = Following(records)
        with _ended_by_signals():
            if on_terminal:
                _watch(following)
            else:
                _print(following)
    except KeyboardInterrupt:  # the usual way to end it
        pass
    finally:
        records.close()
    return 0


def _address(arguments: argparse.Namespace) -> str:
    """Where to ask a collector; empty where a file is to be read."""
    is_url = arguments.file is not None and arguments.file.startswith(("http://", "https://"))
    given = [each for each in (arguments.http, arguments.file, arguments.endpoint) if each is not None]
    if (is_url or arguments.http is not None) and len(given) > 1:
        message = f"expected one collector to watch, got {' and '.join(given)}: name one of them"
        raise ConfigError(message)
    return str(arguments.file if is_url else arguments.http or "")


def _path(arguments: argparse.Namespace) -> str:
    settings = read_settings({"endpoint": arguments.endpoint, "journal": arguments.file}, None)
    path = journal_of(settings)
    if path is None:
        message = "the collector there keeps no journal: name a file of --jsonl, or the address of its --http"
        raise ConfigError(message)
    if arguments.file is None and not Path(path).exists():
        message = (
            f"{path}: no collector has written this journal: start `kvxfer collect`, or name a file, or --http and the"
            " address of one"
        )
        raise ConfigError(message)
    return path


def _check_rich() -> None:
    try:
        import rich  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        message = "the live view needs rich, which is not installed: pip install 'kvxfer[top]' (or pipe the output)"
        raise ConfigError(message) from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does, so that the terminal is given back as it was."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(following: Following) -> None:
    view, now, said = View(), following.now(), ""
    if now is not None:
        print(plain(now, view), flush=True)
    while True:
        time.sleep(_LOOK_SECONDS)
        trouble = following.trouble
        if trouble != said:
            print(f"kvxfer top: {lost(trouble) if trouble else 'connected again'}", file=sys.stderr, flush=True)
            said = trouble
        for now in following.look():
            print(plain(now, view), flush=True)


def _watch(following: Following) -> None:
    from rich.console import Console  # noqa: PLC0415 - an extra
    from rich.live import Live as Drawing  # noqa: PLC0415

    console, view, screen = Console(), View(), Screen(following.name)
    now, drawn = following.now(), None
    with _keys(), Drawing(console=console, screen=True, auto_refresh=False) as drawing:
        while not view.has_ended:
            # Of the terminal itself: rich would believe COLUMNS and LINES, which stay as they are when it is resized.
            console.size = size = os.get_terminal_size(sys.stdout.fileno())
            following.look()
            now = now if view.is_paused else following.now()
            age = 0.0 if now is None else max(0.0, time.time() - now.end)
            # What is drawn depends on these alone: nothing is written to a terminal that shows it already.
            trouble = following.trouble
            state = (repr(view), view.shows_help, now and now.end, int(age), size, trouble)
            if state != drawn:
                drawing.update(screen.draw(now, view, age, *size, trouble=trouble), refresh=True)
                drawn = state
            for key in _pressed():
                view.press(key)


@contextmanager
def _keys() -> Iterator[None]:
    """Get each key at once, and do not show it."""
    import termios  # noqa: PLC0415 - not on every platform
    import tty  # noqa: PLC0415

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    tty.setcbreak(stdin)
    try:
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _pressed() -> list[str]:
    """The keys that come within a look's time; arrows and their like, which send several characters, are left out."""
    ready: list[Any] = select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]
    if not ready:
        return []
    typed = os.read(sys.stdin.fileno(), 1024).decode(errors="ignore")
    if not typed:  # the terminal is gone
        raise KeyboardInterrupt
    return [] if typed.startswith("\x1b") and len(typed) > 1 else list(typed)
