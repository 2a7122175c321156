"""The journal's file: what is committed comes back, what is no journal is left alone, a full disk breaks nothing."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import fill, read_only, small_disk

from kvxfer.errors import JournalError, JournalHeldError
from kvxfer.journal import APPLICATION_ID, MIGRATIONS, History, Journal
from kvxfer.saved import SavedInterval, TakenFrames

OPEN = "import sys; from kvxfer.journal import Journal; Journal(sys.argv[1]).close()"
BIG = 1 << 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def filled(path: Path) -> Path:
    """A journal with something in each of its parts."""
    journal = Journal(path)
    journal.save(b"state" * 2000, b"counts", SavedInterval(10.0, 20.0, b"interval" * 2000))
    journal.append([TakenFrames(21.0, [b"a", b"b"]), TakenFrames(22.0, [b"c" * 9000])], b"counts 2")
    journal.close()
    return path


def check_integrity(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def ended(path: Path) -> list[bytes]:
    journal = Journal(path)
    try:
        return journal.intervals(0.0, 1e12)
    finally:
        journal.close()


# --- what is committed comes back


def test_a_new_journal_is_empty_and_belongs_to_this_user_alone(path: Path) -> None:
    journal = Journal(path)
    assert journal.saved() == (b"", b"")
    assert list(journal.log()) == []
    assert journal.intervals(0.0, 1e12) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert repr(journal) == f"<Journal {path}>"
    journal.close()


def test_a_directory_that_is_not_there_is_made_for_this_user_alone(tmp_path: Path) -> None:
    Journal(tmp_path / "new" / "journal.db").close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_state_log_counts_and_intervals_come_back(path: Path) -> None:
    journal = Journal(filled(path))
    assert journal.saved() == (b"state" * 2000, b"counts 2")
    assert list(journal.log()) == [TakenFrames(21.0, [b"a", b"b"]), TakenFrames(22.0, [b"c" * 9000])]
    assert journal.intervals(0.0, 20.0) == [b"interval" * 2000]
    journal.close()


def test_a_state_takes_the_place_of_the_one_before_and_of_the_log(path: Path) -> None:
    journal = Journal(filled(path))
    journal.save(b"later", b"counts 3")
    assert journal.saved() == (b"later", b"counts 3")
    assert list(journal.log()) == []
    assert journal.intervals(0.0, 20.0) == [b"interval" * 2000]
    journal.close()


def test_intervals_are_found_by_their_end_oldest_first(path: Path) -> None:
    journal = Journal(path)
    for end in (30.0, 10.0, 20.0):
        journal.save(b"", b"", SavedInterval(end - 10, end, str(end).encode()))
    assert journal.intervals(10.0, 30.0) == [b"20.0", b"30.0"]
    assert journal.intervals(30.0, 1e12) == []
    journal.close()


def test_what_ended_too_long_ago_is_removed(path: Path) -> None:
    journal = Journal(path)
    for end in range(1, 101):
        journal.save(b"", b"", SavedInterval(end - 1.0, float(end), b"%d" % end))
    journal.prune(91.0, BIG)
    assert len(journal.intervals(0.0, 1e12)) == 36  # so many at once, the rest with the next interval
    journal.prune(91.0, BIG)
    assert journal.intervals(0.0, 1e12) == [b"%d" % end for end in range(91, 101)]
    journal.close()


def test_the_oldest_make_room_where_the_file_is_too_large_and_their_room_is_used_again(path: Path) -> None:
    journal = Journal(path)
    for end in range(1, 401):
        journal.save(b"", b"", SavedInterval(end - 1.0, float(end), bytes(10_000)))
        journal.prune(0.0, 1_000_000)
    kept = journal.intervals(0.0, 1e12)
    assert 30 < len(kept) <= 100
    assert len(journal.intervals(399.0, 400.0)) == 1
    journal.close()
    assert path.stat().st_size < 1_300_000


def test_a_transaction_that_fails_changes_nothing_and_the_next_one_succeeds(path: Path) -> None:
    journal = Journal(filled(path))
    with pytest.raises(JournalError, match="cannot be written"):
        journal.save(b"later", b"", SavedInterval(0.0, None, b""))  # type: ignore[arg-type]
    assert journal.saved() == (b"state" * 2000, b"counts 2")
    assert len(list(journal.log())) == 2
    journal.append([], b"counts 3")
    assert journal.saved()[1] == b"counts 3"
    journal.close()


# --- one collector


def test_a_second_collector_is_refused_here_and_from_another_process(path: Path, tmp_path: Path) -> None:
    journal = Journal(path)
    message = f"{path} is another collector's journal: stop it, or name another file"
    with pytest.raises(JournalHeldError) as said:
        Journal(path)
    assert str(said.value) == message
    done = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"kvxfer.errors.JournalHeldError: {message}"
    (tmp_path / "link.db").symlink_to(path)
    with pytest.raises(JournalHeldError):
        Journal(tmp_path / "link.db")
    journal.append([], b"counts")
    journal.close()
    subprocess.run([sys.executable, "-c", OPEN, path], check=True)


def test_a_forked_child_does_not_keep_it_locked_and_ends_without_harm(path: Path) -> None:
    journal = Journal(filled(path))
    waits, ends = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ends)
        os.read(waits, 1)
        journal._connection.close()  # as the end of the interpreter does
        os._exit(0)
    os.close(waits)
    try:
        journal.append([TakenFrames(1.0, [b"d"])], b"")
        journal.close()
        again = Journal(path)
    finally:
        os.close(ends)
        os.waitpid(pid, 0)
    again.append([TakenFrames(2.0, [b"e"])], b"")
    assert [batch.frames for batch in again.log()][-2:] == [[b"d"], [b"e"]]
    again.close()
    check_integrity(path)


# --- what is no journal, or none any more


def made_by_another_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE bookmarks (url); INSERT INTO bookmarks VALUES ('x');")
    connection.close()


def marked_by_another_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA application_id = 1234;")
    connection.close()


def of_the_future(path: Path) -> None:
    filled(path)
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA user_version = 99;")
    connection.close()


def truncated(path: Path) -> None:
    os.truncate(filled(path), 5000)


NO_JOURNALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another program's": (made_by_another_program, "{} is no journal of kvxfer: name another file"),
    "marked as another program's": (marked_by_another_program, "{} is no journal of kvxfer: name another file"),
    "from the future": (of_the_future, f"{{}} has version 99, this kvxfer knows {len(MIGRATIONS)}: upgrade kvxfer"),
    "text": (
        lambda path: path.write_text("interval = 10\n" * 100),
        "{} cannot be used as journal: file is not a database: name another file, or move it away",
    ),
    "directory": (
        Path.mkdir,
        "{} cannot be used as journal: unable to open database file: name another file, or move it away",
    ),
    "truncated": (
        truncated,
        "{} cannot be used as journal: database disk image is malformed: name another file, or move it away",
    ),
}


@pytest.mark.parametrize("name", NO_JOURNALS)
def test_what_is_no_journal_is_said_and_left_as_it_is(name: str, path: Path) -> None:
    make, message = NO_JOURNALS[name]
    make(path)
    before = path.is_dir() or path.read_bytes()
    for _ in range(2):  # and the lock is given free
        with pytest.raises(JournalError) as said:
            Journal(path)
        assert str(said.value) == message.format(path)
        assert not isinstance(said.value, JournalHeldError)
    assert (path.is_dir() or path.read_bytes()) == before


def test_a_file_of_no_bytes_becomes_a_journal(path: Path) -> None:
    path.touch()
    assert ended(filled(path)) == [b"interval" * 2000]


@pytest.mark.parametrize("content", [b"state", b"interval", b"ccccc"])
def test_a_bit_that_has_changed_is_said_and_is_no_count(path: Path, content: bytes) -> None:
    content *= 100
    raw = filled(path).read_bytes()
    position = raw.index(content) + 50
    path.write_bytes(raw[:position] + bytes((raw[position] ^ 4,)) + raw[position + 1 :])
    journal = Journal(path)
    message = f"{path} cannot be read: bytes of it have changed: move it away, or name another file"
    with pytest.raises(JournalError) as said:
        journal.saved(), list(journal.log()), journal.intervals(0.0, 1e12)
    journal.close()
    assert str(said.value) == message


def test_pages_that_have_changed_never_raise_anything_else(path: Path) -> None:
    """Whatever byte of the file is another one, what is read is what was written or refused."""
    raw = filled(path).read_bytes()
    whole = ((b"state" * 2000, b"counts 2"), 2, [b"interval" * 2000])
    for position in range(0, len(raw), 37):
        path.write_bytes(raw[:position] + bytes((raw[position] ^ 0x55,)) + raw[position + 1 :])
        try:
            journal = Journal(path)
        except JournalError:
            continue
        try:
            found = (journal.saved(), len(list(journal.log())), journal.intervals(0.0, 1e12))
        except JournalError:
            continue
        finally:
            journal.close()
        parts = zip((*found[0], *found[1:]), (*whole[0], *whole[1:]), strict=True)
        assert all(part in (expected, b"", 0, []) for part, expected in parts), position


@pytest.mark.parametrize("place", ["file/journal.db", "file/deeper/journal.db", "\0/journal.db"])
def test_a_place_that_cannot_be_is_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        JournalError, match=r"cannot be used as journal: (Not a directory|File exists|embedded null byte): name"
    ):
        Journal(tmp_path / place)


def test_a_read_only_directory_is_said(path: Path) -> None:
    filled(path)
    with read_only(path.parent), pytest.raises(JournalError, match="cannot be used as journal: Read-only file system"):
        Journal(path)
    assert ended(path) == [b"interval" * 2000]


def test_a_read_only_file_is_read_and_not_written(path: Path) -> None:
    filled(path)
    with read_only(path):
        journal = Journal(path)
        assert journal.saved()[1] == b"counts 2"
        with pytest.raises(JournalError, match="cannot be written: attempt to write a readonly database"):
            journal.append([], b"later")
        journal.close()
    assert ended(path) == [b"interval" * 2000]


# --- a full disk


def test_a_full_disk_is_said_and_what_was_committed_and_what_comes_later_is_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        path = disk / "journal.db"
        journal = Journal(path)
        (disk / "filler").write_bytes(bytes(2 << 20))
        committed, said = 0, ""
        while not said:
            try:
                journal.append([TakenFrames(float(committed), [bytes(3000)])], b"%d" % committed)
                committed += 1
            except JournalError as error:
                said = str(error)
        assert said == f"{path} cannot be written: database or disk is full: free the disk, or name another file"
        filler = fill(disk)
        for _ in range(20):
            for write in (
                lambda: journal.append([TakenFrames(0.0, [bytes(30_000)])], b"never"),
                lambda: journal.save(bytes(300_000), b"never", SavedInterval(0.0, 1.0, bytes(300_000))),
            ):
                with pytest.raises(JournalError):
                    write()
        assert journal.saved() == (b"", b"%d" % (committed - 1))
        assert [batch.now for batch in journal.log()] == [float(number) for number in range(committed)]
        filler.unlink()
        journal.save(b"after", b"after", SavedInterval(0.0, 1.0, b"after"))
        journal.append([TakenFrames(1.0, [b"after"])], b"after 2")
        journal.close()
        check_integrity(path)
        journal = Journal(path)
        assert journal.saved() == (b"after", b"after 2")
        assert list(journal.log()) == [TakenFrames(1.0, [b"after"])]
        assert journal.intervals(0.0, 1.0) == [b"after"]
        journal.close()


@pytest.mark.parametrize("pages", range(0, 60, 3))
def test_a_disk_that_is_full_after_any_page_leaves_all_of_a_commit_or_nothing(tmp_path: Path, pages: int) -> None:
    """Room is left for so many pages of write-ahead log, database and shared memory together, and no more."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        path = disk / "journal.db"
        journal = Journal(path)
        journal.save(b"before", b"0", SavedInterval(0.0, 1.0, b"before"))
        filler = fill(disk)
        os.truncate(filler, max(0, filler.stat().st_size - pages * 4096))
        done = 0
        while done < 20:
            try:
                journal.save(bytes(12_000), b"%d" % (done + 1), SavedInterval(1.0, 2.0 + done, bytes(4000)))
            except JournalError:
                break
            done += 1
        journal.close()
        check_integrity(path)
        filler.unlink()
        journal = Journal(path)
        assert journal.saved() == (bytes(12_000) if done else b"before", b"%d" % done)
        assert len(journal.intervals(0.0, 1e12)) == 1 + done
        journal.close()


def test_a_journal_that_is_closed_while_the_disk_is_full_is_whole_when_it_is_opened_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        path = disk / "journal.db"
        journal = Journal(path)
        journal.save(b"before", b"")
        filler = fill(disk)
        journal.close()
        filler.unlink()
        check_integrity(path)
        journal = Journal(path)
        assert journal.saved()[0] == b"before"
        journal.close()


# --- versions

FIRST = "CREATE TABLE note (text); INSERT INTO note VALUES ('kept');"
SECOND = "ALTER TABLE note ADD COLUMN more DEFAULT 'new';"
BROKEN = "CREATE TABLE half (x); INSERT INTO nowhere VALUES (1);"


def notes(path: Path) -> tuple[int, list[str], list[tuple[str, ...]]]:
    connection = sqlite3.connect(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    found = connection.execute("SELECT * FROM note").fetchall() if tables else []
    connection.close()
    return version, tables, found


def test_an_older_schema_is_brought_to_the_newest_with_what_is_in_it(path: Path) -> None:
    Journal(path, [FIRST]).close()
    assert notes(path) == (1, ["note"], [("kept",)])
    Journal(path, [FIRST, SECOND, "CREATE TABLE more (x);"]).close()
    assert notes(path) == (3, ["note", "more"], [("kept", "new")])
    with pytest.raises(JournalError, match="has version 3, this kvxfer knows 1: upgrade kvxfer"):
        Journal(path, [FIRST])


def test_a_journal_of_the_first_version_goes_on_with_what_is_in_it(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(f"{MIGRATIONS[0]} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;")
    connection.close()
    journal = Journal(path)
    assert (journal.saved(), journal.relay()) == ((b"", b""), b"")
    journal.close()


def test_what_is_to_be_relayed_is_kept_until_it_is_saved_anew(path: Path) -> None:
    journal = Journal(path)
    journal.save(b"state", b"counts", relay=b"relayed")
    journal.save(b"state 2", b"counts 2")
    journal.append([], b"counts 3")
    assert journal.relay() == b"relayed"
    journal.save(b"state 3", b"counts 4", relay=b"relayed more")
    assert journal.relay() == b"relayed more"
    journal.close()


def test_a_migration_that_fails_in_between_leaves_the_file_as_it_was(path: Path) -> None:
    Journal(path, [FIRST]).close()
    for _ in range(2):
        with pytest.raises(JournalError, match="no such table: nowhere"):
            Journal(path, [FIRST, SECOND, BROKEN])
        assert notes(path) == (1, ["note"], [("kept",)])
    Journal(path, [FIRST, SECOND]).close()
    assert notes(path) == (2, ["note"], [("kept", "new")])


def test_a_first_version_that_fails_leaves_no_half_of_a_journal(path: Path) -> None:
    with pytest.raises(JournalError, match="no such table: nowhere"):
        Journal(path, [BROKEN])
    assert notes(path) == (0, [], [])
    assert ended(filled(path)) == [b"interval" * 2000]


def test_the_file_says_whose_it_is_and_of_which_version(path: Path) -> None:
    connection = sqlite3.connect(filled(path))
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    connection.close()


# --- history


def test_history_is_read_beside_its_collector_and_without_one(path: Path) -> None:
    journal = Journal(filled(path))
    history = History(path)
    assert history.intervals(0.0, 20.0) == [b"interval" * 2000]
    journal.save(b"", b"", SavedInterval(20.0, 30.0, b"later"))
    assert history.intervals(20.0, 30.0) == [b"later"]
    history.close()
    journal.append([], b"counts")
    journal.close()
    history = History(path)
    assert len(history.intervals(0.0, 30.0)) == 2
    history.close()


@pytest.mark.parametrize("name", [*NO_JOURNALS, "nothing", "no bytes"])
def test_history_of_what_is_no_journal_is_said_and_nothing_is_made(name: str, path: Path) -> None:
    make = {"nothing": lambda _: None, "no bytes": Path.touch}.get(name) or NO_JOURNALS[name][0]
    make(path)
    with pytest.raises(JournalError, match=str(path)):
        History(path).intervals(0.0, 1e12)
    assert path.exists() == (name != "nothing")


def test_history_of_an_older_version_is_left_to_its_collector(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    monkeypatch.setattr("kvxfer.journal.MIGRATIONS", (*MIGRATIONS, SECOND))
    with pytest.raises(JournalError, match="has version 2, this kvxfer reads 3: collect with this kvxfer once"):
        History(path)
