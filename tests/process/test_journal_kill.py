"""A collector's journal whose process is killed while it writes: what a commit returned for is there, and no more."""

import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvxfer.errors import JournalHeldError
from kvxfer.journal import Journal

KILLS = 20

# Each commit is numbered; the number is printed when it has returned. Every seventh writes a state and an interval.
WRITER = """
import os, struct, sys
from kvxfer.journal import Journal
from kvxfer.saved import TakenFrames, SavedInterval
journal, number = Journal(sys.argv[1]), int(sys.argv[2])
while True:
    number += 1
    content = struct.pack("<q", number) * (1 + number * 7919 % 3000)
    if number % 7:
        journal.append([TakenFrames(float(number), [content, content])], content)
    else:
        journal.save(content, content, SavedInterval(number - 7.0, float(number), content))
        journal.prune(number - 700.0, 1 << 40)
    os.write(1, struct.pack("<q", number))
"""


def content_of(number: int) -> bytes:
    return struct.pack("<q", number) * (1 + number * 7919 % 3000)


def killed_after(path: Path, first: int, commits: int) -> int:
    """Let a process commit from ``first`` on, kill it during one of the commits after so many; the last it told of."""
    command = [sys.executable, "-c", WRITER, str(path), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        told = [struct.unpack("<q", writer.stdout.read(8))[0] for _ in range(commits)]
        os.kill(writer.pid, signal.SIGKILL)
        told += [number for (number,) in struct.iter_unpack("<q", writer.stdout.read())]
    return max(told)


def last_committed(path: Path) -> int:
    """The number of the commit that the file ends with, after looking whether all of it is there."""
    journal = Journal(path)
    state, counts = journal.saved()
    number = struct.unpack("<q", counts[:8])[0]
    last_state = number - number % 7
    batches = list(journal.log())
    ends = range(max(7, last_state - 700), last_state + 1, 7)
    assert counts == content_of(number)
    assert state == (content_of(last_state) if last_state else b"")
    assert [batch.now for batch in batches] == [float(each) for each in range(last_state + 1, number + 1)]
    assert all(batch.frames == [content_of(int(batch.now))] * 2 for batch in batches)
    assert journal.intervals(last_state - 701.0, 1e12) == [content_of(end) for end in ends]
    journal.close()
    return number


def kills() -> Iterator[int]:
    rng = random.Random(1)
    yield from (rng.randint(1, 120) for _ in range(KILLS))


@pytest.mark.timeout(300)
def test_a_process_killed_twenty_times_while_it_commits_leaves_each_commit_whole(tmp_path: Path) -> None:
    path, number = tmp_path / "journal.db", 0
    for commits in kills():
        told = killed_after(path, number, commits)
        number = last_committed(path)
        # The last one may have been committed and not told of any more.
        assert told <= number <= told + 1
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()


FORKER = """
import os, sys
from kvxfer.journal import Journal
journal = Journal(sys.argv[1])
waits, ends = os.pipe()
pid = os.fork()
if not pid:
    os.close(ends)
    os.write(1, b"forked")
    os.read(waits, 1)  # until the parent is gone
    sys.stdin.read()
    sys.exit(0)
os.read(waits, 1)
"""


def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    command = [sys.executable, "-c", FORKER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.read(6) == b"forked"
        with pytest.raises(JournalHeldError):
            Journal(path)
        os.kill(parent.pid, signal.SIGKILL)
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
        Journal(path).close()  # the child lives until its input ends
        parent.stdin.close()
        assert parent.stdout.read() == b""
