"""When what was taken counts as committed: at once without a journal, once a second with one.

Owns the journal and keeps it at one with the aggregator; socket, clock and thread are the collector's.
"""

import contextlib
import logging
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.errors import ConfigError, JournalError, JournalHeldError
from kvxfer.interval import Interval
from kvxfer.relay import Relay
from kvxfer.saved import SavedInterval, Steps, TakenFrames, encoding_interval
from kvxfer.views import ClosedViews
from kvxfer.wire import MAX_NAME, Source

if TYPE_CHECKING:
    from kvxfer.journal import Journal

logger = logging.getLogger("kvxfer")

COMMIT_SECONDS: Final = 1.0
"""How often a journal is written; publishers keep what was not committed and wait."""

HURRY_SECONDS: Final = 0.05
"""How soon it is written where a publisher waits to end."""

RETRY_SECONDS: Final = 5.0
"""How soon a journal that could not be written is tried again."""

MAX_LOG_BYTES: Final = 64 << 20
"""Frames after which a state is saved before its interval ends: a restart takes them again in some seconds."""

MAX_PENDING_BYTES: Final = 16 << 20
"""Frames that wait for a commit: so many are written before their second is over."""

STATE_COST: Final = 4
"""How many bytes of frames cost what a byte of the state does, that has to be encoded first."""

MIN_STATE_BYTES: Final = 256 << 10
"""Nothing is cheaper than a state of this size, whose cost is that of the transaction."""


_ENDED: Final = object()


def _new_relay(now: float) -> Relay:
    return Relay(Source(uuid.uuid4().hex, platform.node()[:MAX_NAME], os.getpid(), now))


class _Pending:
    """Frames that wait for a commit; where they are more than it takes to write the state, that they are is enough."""

    def __init__(self) -> None:
        self.batches: list[TakenFrames] = []
        self.num_bytes = 0
        self.is_dropped = False

    def add(self, batch: TakenFrames, most_bytes: int) -> None:
        self.num_bytes += sum(map(len, batch.frames))
        # Once dropped they stay so: the state may have become larger since.
        self.is_dropped |= self.num_bytes > most_bytes
        if self.is_dropped:
            self.batches = []
        else:
            self.batches.append(batch)


class Commits:
    """Keeps a journal at one with an aggregator; while it cannot be written, collecting goes on in memory.

    Raises `JournalError` for a journal that another collector holds, and `ConfigError` for one grouped by other labels.
    Any other that cannot be used is said in the log, and each write that failed is counted in ``failed``; the totals
    that are in memory then are written as soon as they can be, intervals that closed meanwhile are not.
    """

    def __init__(self, config: CollectorConfig, lock: threading.Lock, now: float) -> None:
        """Open the journal, where there is one; ``lock`` is held where the aggregator is read."""
        self._config = config
        self._lock = lock
        self.failed = 0
        self._journal: Journal | None = None
        self._pending = _Pending()
        self._log_bytes = 0
        self._state_bytes = MIN_STATE_BYTES
        self._counts = b""
        self._last = now
        self._writing: Iterator[None] | None = None
        self._is_behind = False  # the aggregator holds what the journal does not, and no frame waits for it
        self.aggregator = Aggregator(config, now)
        """Goes on where the journal ends; is empty where there is none."""
        self.relay = _new_relay(now) if config.upstream is not None else None
        """What is to be told to the collector above, where there is one; goes on in the same way."""
        if config.journal is not None:
            self._open(config.journal, now)

    def _open(self, path: str, now: float) -> None:
        from kvxfer.journal import Journal  # noqa: PLC0415 - sqlite3, only where it is used

        try:
            self._journal = Journal(path)
            self._restore(self._journal, now)
        except (JournalHeldError, ConfigError):
            self.close()
            raise
        except JournalError as error:
            self._fail(error, now)
            self.close()  # it stays as it is, for who wants to know what is in it
            self.aggregator = Aggregator(self._config, now)
            self.relay = _new_relay(now) if self.relay is not None else None
        self.aggregator.resume(now)

    def _restore(self, journal: "Journal", now: float) -> None:
        (state, self._counts), log = journal.saved(), list(journal.log())
        self._log_bytes = sum(len(frame) for batch in log for frame in batch.frames)
        try:
            if state:
                self.aggregator.restore(state)
            for batch in log:
                self.aggregator.replay(batch.frames, batch.now)
            if self._counts:
                self.aggregator.restore_counts(self._counts)
            if self.relay is not None and (relayed := journal.relay()):
                self.relay.restore(relayed, now)
        except ConfigError as error:
            message = f"{journal.path}: {error}"
            raise ConfigError(message) from error
        except JournalError as error:
            message = f"{journal.path}: {error}: move it away, or name another file"
            raise JournalError(message) from error

    @property
    def is_durable(self) -> bool:
        """Whether a commit outlives this process."""
        return self._journal is not None and not self._is_behind

    @property
    def may_relay(self) -> bool:
        """Whether what is to be relayed would have the same numbers after a kill: nothing is ahead of the journal."""
        return self._journal is None or not (self._is_behind or self.is_writing)

    # --- while it runs

    def note(self, frames: list[bytes], now: float) -> None:
        """Take frames that the aggregator has taken; with the next commit they are written, or what they led to."""
        if frames and (self.is_durable or self.is_writing):
            self._pending.add(TakenFrames(now, frames), STATE_COST * self._state_bytes)

    def seconds_left(self, now: float) -> float:
        """How long until a commit is due, 0 if it is."""
        if not self.is_durable or (self._pending.num_bytes > MAX_PENDING_BYTES and self._pending.batches):
            return 0.0
        hurry = self.aggregator.sources.wants_commit
        return max(0.0, self._last + (HURRY_SECONDS if hurry else COMMIT_SECONDS) - now)

    def commit(self, now: float) -> None:
        """Write what was noted since the last commit, or the state: where that is less, after a failure, a long log."""
        if self._journal is None or self.is_writing:
            return
        if self.is_durable and self._log_bytes <= MAX_LOG_BYTES and not self._pending.is_dropped:
            self._append(self._journal, now)
        elif self.is_durable or now - self._last >= RETRY_SECONDS:
            self._save(self._journal, now)

    def _append(self, journal: "Journal", now: float) -> None:
        counts = self.aggregator.save_counts()
        self._last = now
        if self._pending.batches or counts != self._counts:
            self._log_bytes += self._pending.num_bytes
            self._counts = counts
            self._write(partial(journal.append, self._pending.batches, counts), now)
            self._pending = _Pending()

    def close_interval(self, interval: Interval, now: float) -> None:
        """Begin to write a closed interval, the state after it and what is to be relayed: see `step`.

        The one before must be written to its `finish` before this one is closed.
        """
        if self.relay is not None:
            self.relay.take(interval.groups, now)
        if self._journal is None:
            self.failed += self._config.journal is not None
            return
        self._writing = self._write_closed(self._journal, interval, now)
        self.step(0.0)

    def _write_closed(self, journal: "Journal", interval: Interval, now: float) -> Iterator[None]:
        state, counts, relay = self.aggregator.saving(after_close=True), self.aggregator.save_counts(), self._relayed()
        with self._lock:
            next(state)  # what comes from here on is not in it, but in the frames that are noted
        self._pending = _Pending()
        yield
        if isinstance(interval.sources, ClosedViews):
            yield from interval.sources.reading()
        closed = SavedInterval(interval.start, interval.end, (yield from encoding_interval(interval)))
        self._write_state(journal, (yield from self._locked(state)), counts, closed, relay, now)
        yield
        if self.is_durable:
            before = now - self._config.retention_seconds
            self._write(partial(journal.prune, before, self._config.max_journal_bytes), now)

    def _locked(self, steps: Steps) -> Steps:
        while True:
            with self._lock:
                try:
                    next(steps)
                except StopIteration as end:
                    found: bytes = end.value
                    return found
            yield

    @property
    def is_writing(self) -> bool:
        """Whether a closed interval is being written: what was taken since is not committed before it is."""
        return self._writing is not None

    def step(self, seconds: float) -> None:
        """Go on writing for about so long."""
        end = time.monotonic() + seconds
        while self._writing is not None:
            if next(self._writing, _ENDED) is _ENDED:
                self._writing = None
            elif time.monotonic() >= end:
                break

    def finish(self) -> None:
        """Write to the end."""
        self.step(math.inf)

    def _save(self, journal: "Journal", now: float) -> None:
        with self._lock:
            state, counts = self.aggregator.save(), self.aggregator.save_counts()
        self._pending = _Pending()
        self._write_state(journal, state, counts, None, self._relayed(), now)

    def _relayed(self) -> bytes:
        return b"" if self.relay is None else self.relay.save()

    def _write_state(
        self,
        journal: "Journal",
        state: bytes,
        counts: bytes,
        interval: SavedInterval | None,
        relay: bytes,
        now: float,
    ) -> None:
        self._state_bytes, self._counts = max(MIN_STATE_BYTES, len(state)), counts
        self._write(partial(journal.save, state, counts, interval, relay), now)
        if self.is_durable:
            self._log_bytes = 0

    def _write(self, write: Callable[[], None], now: float) -> None:
        self._last = now
        try:
            write()
        except JournalError as error:
            self._fail(error, now)
        else:
            if self._is_behind:
                logger.warning("%s is written again, nothing is missing in its totals", self._journal)
            self._is_behind = False

    def _fail(self, error: JournalError, now: float) -> None:
        self.failed += 1
        self._last = now
        if not self._is_behind:
            logger.error("%s; collecting goes on in memory, what it holds is lost if this process is killed", error)
        self._is_behind = True
        self._pending = _Pending()

    def close(self) -> None:
        """Close the journal and give it free."""
        journal, self._journal = self._journal, None
        if journal is not None:
            with contextlib.suppress(JournalError):  # what was committed is there all the same
                journal.close()
