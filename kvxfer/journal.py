"""The journal: what a collector has committed, in one SQLite file. The only file that imports sqlite3.

It holds the last saved state, the frames that came after it, in the order and with the times in which they were taken,
the counts of what is in no frame, and the closed intervals. A commit is one transaction that appends the frames of a
second: what they say is not encoded again, and a restarted collector takes them by the way they came the first time.
When an interval closes, state and interval are written and the frames go, in one transaction too. Bytes in, bytes out:
nothing here knows what is in them.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from kvxfer.errors import JournalError
from kvxfer.saved import Batch, SavedInterval
from kvxfer.transport import lock_file, release_file

APPLICATION_ID: Final = 0x6B767866  # "kvxf", so that no other program's file is written over

_MIGRATIONS: Final = (
    """
    CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), saved BLOB NOT NULL);
    CREATE TABLE counts (id INTEGER PRIMARY KEY CHECK (id = 1), saved BLOB NOT NULL);
    CREATE TABLE log (id INTEGER PRIMARY KEY, now REAL NOT NULL, frames BLOB NOT NULL);
    CREATE TABLE interval (id INTEGER PRIMARY KEY, start REAL NOT NULL, end REAL NOT NULL, saved BLOB NOT NULL);
    CREATE INDEX interval_end ON interval (end);
    """,
)
"""The script that leads to each version of the schema from the one before; version 1 is the first."""

_PRUNED_AT_ONCE: Final = 64  # intervals: a smaller bound or retention takes effect over some minutes
_frames: Final = msgspec.msgpack.Decoder(list[bytes])


class Journal:
    """One file, one collector: raises `JournalError` where another one holds it, or it is not to be used.

    Every call is one transaction: after a SIGKILL at any point the file holds all of it or nothing. SQLite writes
    ahead and does not wait for the disk (WAL, synchronous NORMAL): what the machine itself loses when its power fails
    is the last commits, never the file. Mode 0600.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the journal, or make one."""
        self.path = Path(path)
        self._lock = self._locked()
        try:
            self._connection = self._open()
        except sqlite3.Error as error:
            self._release()
            message = f"{self.path} cannot be used as journal: {error}: name another file, or move this one away"
            raise JournalError(message) from error
        except JournalError:
            self._release()
            raise

    def __repr__(self) -> str:
        """Give the path."""
        return f"<Journal {self.path}>"

    def _locked(self) -> int:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return lock_file(Path(f"{self.path}.lock"))
        except BlockingIOError as error:
            message = f"{self.path} is another collector's journal: stop it, or name another file"
            raise JournalHeldError(message) from error
        except OSError as error:
            message = f"{self.path} cannot be used as journal: {error.strerror}: name another file"
            raise JournalError(message) from error

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # The loop's thread is not the one that makes it; only one thread uses it at a time.
        connection = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            self._check(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            _migrate(connection)
        except (sqlite3.Error, JournalError):
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if tables and application != APPLICATION_ID:
            message = f"{self.path} is no journal of kvxfer: name another file"
            raise JournalError(message)
        if version > len(_MIGRATIONS):
            message = f"{self.path} has version {version}, this kvxfer knows {len(_MIGRATIONS)}: upgrade kvxfer"
            raise JournalError(message)

    def close(self) -> None:
        """Close the file and give it free."""
        try:
            self._connection.close()
        except sqlite3.Error as error:  # what was committed is there all the same
            raise self._failure(error) from error
        finally:
            self._release()

    def _release(self) -> None:
        release_file(self._lock)

    # --- writing

    def append(self, batches: Sequence[Batch], counts: bytes) -> None:
        """Commit batches of frames, and counts; raises `JournalError` with nothing changed."""
        rows = [(batch.now, msgspec.msgpack.encode(batch.frames)) for batch in batches]
        with self._transaction() as connection:
            connection.executemany("INSERT INTO log (now, frames) VALUES (?, ?)", rows)
            connection.execute("INSERT OR REPLACE INTO counts (id, saved) VALUES (1, ?)", (counts,))

    def save(self, state: bytes, counts: bytes, interval: SavedInterval | None = None) -> None:
        """Commit a state, in which all frames so far are, counts, and the interval that was closed, if one was.

        Raises `JournalError` with nothing changed.
        """
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO state (id, saved) VALUES (1, ?)", (state,))
            connection.execute("INSERT OR REPLACE INTO counts (id, saved) VALUES (1, ?)", (counts,))
            connection.execute("DELETE FROM log")
            if interval is not None:
                connection.execute("INSERT INTO interval (start, end, saved) VALUES (?, ?, ?)", interval)

    def prune(self, before: float, max_bytes: int) -> None:
        """Remove intervals that ended before, and the oldest while the file is larger; raises `JournalError`."""
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM interval WHERE id IN (SELECT id FROM interval WHERE end < ? ORDER BY end LIMIT ?)",
                (before, _PRUNED_AT_ONCE),
            )
            if _used_bytes(connection) > max_bytes:
                connection.execute(
                    "DELETE FROM interval WHERE id IN (SELECT id FROM interval ORDER BY end LIMIT ?)",
                    (_PRUNED_AT_ONCE,),
                )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                # SQLite has rolled back by itself where the disk is full.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error) -> JournalError:
        return JournalError(f"{self.path} cannot be written: {error}: free the disk, or name another file")

    # --- reading

    def saved(self) -> tuple[bytes, bytes]:
        """The last saved state and the last counts, each empty where there is none; raises `JournalError`."""
        state, counts = self._read("SELECT saved FROM state"), self._read("SELECT saved FROM counts")
        return state[0][0] if state else b"", counts[0][0] if counts else b""

    def log(self) -> Iterator[Batch]:
        """The frames that came after it, in their order; raises `JournalError`."""
        for now, frames in self._read("SELECT now, frames FROM log ORDER BY id"):
            try:
                yield Batch(now, _frames.decode(frames))
            except msgspec.MsgspecError as error:
                message = f"{self.path} has frames that cannot be read: {error}: move it away, or name another file"
                raise JournalError(message) from error

    def intervals(self, start: float, end: float) -> list[bytes]:
        """The intervals that ended after ``start`` and until ``end``, oldest first; raises `JournalError`."""
        query = "SELECT saved FROM interval WHERE end > ? AND end <= ? ORDER BY end"
        return [saved for (saved,) in self._read(query, (start, end))]

    def _read(self, query: str, arguments: tuple[float, ...] = ()) -> list[Any]:
        try:
            return self._connection.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            message = f"{self.path} cannot be read: {error}: move it away, or name another file"
            raise JournalError(message) from error


class JournalHeldError(JournalError):
    """A journal that another collector writes."""


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring an older schema, or none, to the newest version, all in one transaction."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == len(_MIGRATIONS):
        return
    script = "".join(_MIGRATIONS[version:])
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {len(_MIGRATIONS)};"
    connection.executescript(f"BEGIN IMMEDIATE; {script} {marks} COMMIT;")


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,), (free,), (size,) = (
        connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
