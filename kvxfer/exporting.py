"""An exporter on a thread of its own: one that fails, is slow or hangs costs the others, and collecting, nothing."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from kvxfer.interval import Exporter, Interval

logger = logging.getLogger("kvxfer")

MAX_WAITING: Final = 8
"""Intervals that wait for an exporter: more than a minute of them. One more is not exported there, and counted."""


class ExporterHealth(msgspec.Struct, frozen=True):
    """How an exporter does: intervals that it took or failed at, seconds of them all, how many wait for it."""

    name: str
    exported: int
    seconds: float
    waiting: int


class Health(msgspec.Struct, frozen=True):
    """How the process of a collector does; of this process alone, so that its counts begin anew with it."""

    loop_age_seconds: float
    """Since its loop last ran."""

    is_journal_behind: bool
    """There is to be a journal, and what was taken is not in it, since it cannot be written."""

    intervals_closed: int
    closing_seconds: float
    """What closing those took, with the lock of the aggregator held."""

    exporters: tuple[ExporterHealth, ...]


class Exporting:
    """Hands intervals to one exporter, in their order; what it fails to take is logged once and counted each time."""

    def __init__(self, exporter: Exporter) -> None:
        """Start no thread before there is an interval: who forks before that has none to miss."""
        self._exporter = exporter
        self._waiting: queue.Queue[Interval | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="kvxfer-exporter", daemon=True)
        self._ending = False
        self._warned = False
        self._num_raised = self._num_refused = 0  # each written by one thread alone
        self._num_exported = 0
        self._seconds = 0.0

    def __repr__(self) -> str:
        """Give exporter and counts."""
        return f"<Exporting {type(self._exporter).__name__} waiting={self._waiting.qsize()} failed={self.failed}>"

    @property
    def failed(self) -> int:
        """Calls of the exporter that raised, and intervals that it was too slow for."""
        return self._num_raised + self._num_refused

    def health(self) -> ExporterHealth:
        """How it does."""
        name = type(self._exporter).__name__
        return ExporterHealth(name, self._num_exported, self._seconds, self._waiting.qsize())

    def is_of(self, exporter: Exporter) -> bool:
        """Whether it hands intervals to this one."""
        return self._exporter is exporter

    def export(self, interval: Interval) -> None:
        """Give it an interval, without waiting."""
        try:
            self._start()
            self._waiting.put_nowait(interval)
        except queue.Full:
            self._refuse("takes longer for an interval than that lasts")
        except RuntimeError:
            self._refuse("has no thread: no more can be started")

    def end(self) -> None:
        """Let it finish what waits, and close it, without waiting for that: see `join`."""
        self._ending = True
        with contextlib.suppress(queue.Full, RuntimeError):  # where it is full, it looks whether to end by itself
            self._start()
            self._waiting.put_nowait(None)

    def join(self, deadline: float) -> None:
        """Wait until it has ended; at the deadline (monotonic) it is left alone."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                self._refuse("did not finish in time")

    def _start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def _refuse(self, reason: str) -> None:
        self._num_refused += 1
        self._warn(f"{reason}; what it misses is only counted from here on")

    def _run(self) -> None:
        while (interval := self._waiting.get()) is not None:
            began = time.monotonic()
            self._guarded(partial(self._exporter.export, interval))
            self._seconds += time.monotonic() - began
            self._num_exported += 1
            if self._ending and self._waiting.empty():
                break
        self._guarded(self._exporter.close)

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises
            self._num_raised += 1
            self._warn("failed; later failures are only counted", error)

    def _warn(self, what: str, error: Exception | None = None) -> None:
        if not self._warned:
            self._warned = True
            logger.error("%s %s", type(self._exporter).__name__, what, exc_info=error)
