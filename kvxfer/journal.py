"""The journal: what a collector has committed, in one SQLite file. The only file that imports sqlite3.

It holds the last saved state, the frames that came after it, in the order and with the times in which they were taken,
the counts of what is in no frame, and the closed intervals. A commit is one transaction that appends the frames of a
second: what they say is not encoded again, and a restarted collector takes them by the way they came the first time.
When an interval closes, state and interval are written and the frames go, in one transaction too; so does the state
alone where it is less than the frames of a second. Bytes in, bytes out: nothing here knows what is in them; each begins
with its checksum, since SQLite has none and a flipped bit is no count.
"""

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from kvxfer.errors import JournalError, JournalHeldError
from kvxfer.saved import SavedInterval, TakenFrames
from kvxfer.transport import lock_file, release_file

APPLICATION_ID: Final = 0x6B767866  # "kvxf", so that no other program's file is written over

MIGRATIONS: Final = (
    """
    CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), saved BLOB NOT NULL);
    CREATE TABLE counts (id INTEGER PRIMARY KEY CHECK (id = 1), saved BLOB NOT NULL);
    CREATE TABLE log (id INTEGER PRIMARY KEY, batch BLOB NOT NULL);
    CREATE TABLE interval (id INTEGER PRIMARY KEY, start REAL NOT NULL, end REAL NOT NULL, saved BLOB NOT NULL);
    CREATE INDEX interval_end ON interval (end);
    """,
    "CREATE TABLE relay (id INTEGER PRIMARY KEY CHECK (id = 1), saved BLOB NOT NULL);",
)
"""The script that leads to each version of the schema from the one before; version 1 is the first."""

_PRUNED_AT_ONCE: Final = 64  # intervals: a smaller bound or retention takes effect over some minutes
_MAX_IDLE_WAL_BYTES: Final = 16 << 20  # one large state does not leave its size behind for good
_batches: Final = msgspec.msgpack.Decoder(TakenFrames)


class Journal:
    """One file, one collector: `JournalHeldError` where another one holds it, `JournalError` if it is not to be used.

    Every call is one transaction: after a SIGKILL at any point the file holds all of it or nothing. SQLite writes
    ahead and does not wait for the disk (WAL, synchronous NORMAL): what the machine itself loses when its power fails
    is the last commits, never the file. Mode 0600. A `History` may be read beside it.
    """

    def __init__(self, path: str | Path, migrations: Sequence[str] = MIGRATIONS) -> None:
        """Open the journal, or make one."""
        self.path = Path(path)
        self._lock = self._locked()
        try:
            self._connection = self._open(migrations)
        except BaseException:
            release_file(self._lock)
            raise

    def __repr__(self) -> str:
        """Give the path."""
        return f"<Journal {self.path}>"

    def _locked(self) -> int:
        try:
            # The file itself, whichever name leads to it; its own descriptors are SQLite's alone.
            path = Path(f"{os.path.realpath(self.path)}.lock")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return lock_file(path)
        except BlockingIOError as error:
            message = f"{self.path} is another collector's journal: stop it, or name another file"
            raise JournalHeldError(message) from error
        except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
            raise self._unusable(error) from error

    def _open(self, migrations: Sequence[str]) -> sqlite3.Connection:
        try:
            if not self.path.exists():
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # The loop's thread is not the one that makes it; only one thread uses it at a time.
            connection = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            _check(connection, self.path, len(migrations))
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_MAX_IDLE_WAL_BYTES}")
            _migrate(connection, migrations)
        except sqlite3.Error as error:
            connection.close()
            raise self._unusable(error) from error
        except JournalError:
            connection.close()
            raise
        return connection

    def _unusable(self, error: Exception) -> JournalError:
        reason = getattr(error, "strerror", None) or error
        return JournalError(f"{self.path} cannot be used as journal: {reason}: name another file, or move it away")

    def close(self) -> None:
        """Close the file and give it free."""
        try:
            self._connection.close()
        except sqlite3.Error as error:  # what was committed is there all the same
            raise self._failure(error) from error
        finally:
            release_file(self._lock)

    # --- writing

    def append(self, batches: Sequence[TakenFrames], counts: bytes) -> None:
        """Commit batches of frames, and counts; raises `JournalError` with nothing changed."""
        rows = [(_sealed(msgspec.msgpack.encode(batch)),) for batch in batches]
        with self._transaction() as connection:
            connection.executemany("INSERT INTO log (batch) VALUES (?)", rows)
            connection.execute("INSERT OR REPLACE INTO counts (id, saved) VALUES (1, ?)", (_sealed(counts),))

    def save(self, state: bytes, counts: bytes, interval: SavedInterval | None = None, relay: bytes = b"") -> None:
        """Commit a state, in which all frames so far are, counts, the interval that was closed, what is to be relayed.

        Without the latter two they stay as they are. Raises `JournalError` with nothing changed.
        """
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO state (id, saved) VALUES (1, ?)", (_sealed(state),))
            connection.execute("INSERT OR REPLACE INTO counts (id, saved) VALUES (1, ?)", (_sealed(counts),))
            connection.execute("DELETE FROM log")
            if interval is not None:
                row = (interval.start, interval.end, _sealed(interval.saved))
                connection.execute("INSERT INTO interval (start, end, saved) VALUES (?, ?, ?)", row)
            if relay:
                connection.execute("INSERT OR REPLACE INTO relay (id, saved) VALUES (1, ?)", (_sealed(relay),))

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
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            # SQLite has rolled back by itself where the disk is full.
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._failure(error) from error
            raise

    def _failure(self, error: sqlite3.Error) -> JournalError:
        return JournalError(f"{self.path} cannot be written: {error}: free the disk, or name another file")

    # --- reading

    def saved(self) -> tuple[bytes, bytes]:
        """The last saved state and the last counts, each empty where there is none; raises `JournalError`."""
        state, counts = self._read("SELECT saved FROM state"), self._read("SELECT saved FROM counts")
        return state[0] if state else b"", counts[0] if counts else b""

    def relay(self) -> bytes:
        """What was last to be relayed, empty where there is nothing; raises `JournalError`."""
        return b"".join(self._read("SELECT saved FROM relay"))

    def log(self) -> Iterator[TakenFrames]:
        """The frames that came after it, in their order; raises `JournalError`."""
        for batch in self._read("SELECT batch FROM log ORDER BY id"):
            try:
                yield _batches.decode(batch)
            except msgspec.MsgspecError as error:
                raise _unreadable(self.path, error) from error

    def intervals(self, start: float, end: float) -> list[bytes]:
        """The intervals that ended after ``start`` and until ``end``, oldest first; raises `JournalError`."""
        return _intervals(self._connection, self.path, start, end)

    def _read(self, query: str) -> list[bytes]:
        return _rows(self._connection, self.path, query)


class History:
    """The intervals of a journal, to be read, also beside the collector that writes it.

    Raises `JournalError` for a file that is none, or of another version: its collector brings it up to this one.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, which must be there."""
        self.path = Path(path)
        try:
            self._connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0, isolation_level=None
            )
        except (ValueError, sqlite3.Error) as error:
            raise _unreadable(self.path, error) from error
        try:
            _check(self._connection, self.path, len(MIGRATIONS), is_history=True)
        except sqlite3.Error as error:
            self.close()
            raise _unreadable(self.path, error) from error
        except JournalError:
            self.close()
            raise

    def intervals(self, start: float, end: float) -> list[bytes]:
        """The intervals that ended after ``start`` and until ``end``, oldest first; raises `JournalError`."""
        return _intervals(self._connection, self.path, start, end)

    def newest(self, start: float, end: float) -> Iterator[bytes]:
        """The same, newest first and one at a time: each of many sources takes some MB; raises `JournalError`."""
        try:
            query = "SELECT saved FROM interval WHERE end > ? AND end <= ? ORDER BY end DESC"
            for (blob,) in self._connection.execute(query, (start, end)):
                yield _unsealed(blob)
        except (sqlite3.Error, ValueError) as error:
            raise _unreadable(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _check(connection: sqlite3.Connection, path: Path, newest: int, *, is_history: bool = False) -> None:
    """Raise `JournalError` for a file that is no journal, or one that this version does not know."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    is_new = not (tables or application or version)
    if application != APPLICATION_ID and (is_history or not is_new):
        message = f"{path} is no journal of kvxfer: name another file"
        raise JournalError(message)
    if not 0 <= version <= newest:
        message = f"{path} has version {version}, this kvxfer knows {newest}: upgrade kvxfer"
        raise JournalError(message)
    if is_history and version < newest:
        message = f"{path} has version {version}, this kvxfer reads {newest}: collect with this kvxfer once"
        raise JournalError(message)


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Bring an older schema, or none, to the newest version, all in one transaction."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == len(migrations):
        return
    script = "".join(migrations[version:])
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {len(migrations)};"
    connection.executescript(f"BEGIN IMMEDIATE; {script} {marks} COMMIT;")


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,), (free,), (size,) = (
        connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _intervals(connection: sqlite3.Connection, path: Path, start: float, end: float) -> list[bytes]:
    query = "SELECT saved FROM interval WHERE end > ? AND end <= ? ORDER BY end"
    return _rows(connection, path, query, (start, end))


def _rows(connection: sqlite3.Connection, path: Path, query: str, arguments: tuple[Any, ...] = ()) -> list[bytes]:
    """The blobs that a query finds, without their checksums."""
    try:
        return [_unsealed(blob) for (blob,) in connection.execute(query, arguments)]
    except (sqlite3.Error, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> JournalError:
    return JournalError(f"{path} cannot be read: {error}: move it away, or name another file")


def _sealed(blob: bytes) -> bytes:
    return zlib.crc32(blob).to_bytes(4, "little") + blob


def _unsealed(blob: bytes) -> bytes:
    """The blob behind its checksum; ValueError where that does not fit."""
    bare = blob[4:]
    if blob[:4] != zlib.crc32(bare).to_bytes(4, "little"):
        message = "bytes of it have changed"
        raise ValueError(message)
    return bare
