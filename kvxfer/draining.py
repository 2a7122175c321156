"""`Draining`: the way of what was recorded, from the stats into an outbox and on to a collector.

Owns outbox, sockets, shared memory and clock. One thread does all of it, the publisher's: on the main thread a signal
handler that raises would break off a step, and lose the rows in hand.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kvxfer.clock import SteadyClock
from kvxfer.contract import KVConnectorStats
from kvxfer.delivering import Delivering
from kvxfer.outbox import Outbox
from kvxfer.pushed import Pushed, num_lost
from kvxfer.shared import SLOT_BYTES, SharedBuffer
from kvxfer.stats import TransferStats
from kvxfer.takeover import SavedWorker, encode_worker
from kvxfer.wire import Source

logger = logging.getLogger("kvxfer")

RETRY_SECONDS: Final = 0.005
"""How often who waits looks for an acknowledgement, which takes a millisecond without a journal."""


NOTE_SECONDS: Final = 1.0
"""How often what changes while nothing is recorded is read: a report a second while transfers are under way."""


class Harmless:
    """Telemetry that fails is logged once; the host goes on."""

    def __init__(self, connector: str) -> None:
        """Have said nothing yet."""
        self._connector = connector
        self._has_warned = False

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Catch what is raised within."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.warn(error)

    def warn(self, error: Exception) -> None:
        """Say what failed, if nothing was said before."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning("kvxfer cannot publish stats of %s: %r; this is said once", self._connector, error)


class Draining:
    """Takes in what was recorded and pushed, sends, hears, and at the end gives everything free; nothing here raises.

    ``stats`` holds, under the connector's name, the object that is recorded into, once there is one; ``pushed``
    what others collected.
    """

    def __init__(
        self,
        source: Source,
        connector: str,
        stats: Mapping[str, KVConnectorStats],
        delivering: Delivering,
        harmless: Harmless,
    ) -> None:
        """Begin with an open interval that starts when the source does."""
        self.outbox = Outbox(source, connector, source.start_time)
        self.pushed = Pushed()
        self.shared: SharedBuffer | None = None
        self.flush_seconds = math.inf
        self.has_ended = False
        self._source = source
        self._connector = connector
        self._all_stats = stats
        self._delivering = delivering
        self._harmless = harmless
        self._clock = SteadyClock()
        self._flushed_at = self._noted_at = time.monotonic()
        self._is_unsaved = True

    @property
    def _stats(self) -> KVConnectorStats | None:
        return self._all_stats.get(self._connector)

    @property
    def num_refused(self) -> int:
        """How often ZeroMQ would not take a frame."""
        return self._delivering.num_refused

    def move_to(self, endpoint: str) -> None:
        """Deliver to the collector there from now on; from any thread."""
        self._delivering.move_to(endpoint)

    def share(self, endpoint: str) -> None:
        """Hold everything in shared memory too; raises OSError where there is no place for it.

        Fewer bytes of reports are kept then, so that what is kept and what is open fit into a slot.
        """
        self.shared = SharedBuffer(endpoint, self._source.id, encode_worker(SavedWorker(self.outbox.save(), {})))
        self.outbox.max_kept_bytes = SLOT_BYTES // 2

    def step(self, *, close: bool, note: bool = True) -> bool:
        """Take in what was recorded, hear what is acknowledged, send what the socket takes; whether nothing is left.

        ``close``: also close an open interval that is not due yet. ``note``: also read levels, where that is due; not
        for who waits until nothing is left, since there would always be a next one.
        """
        is_taken = False
        with self._harmless.guard():
            if note and time.monotonic() - self._noted_at >= NOTE_SECONDS:
                self._note()
            due = close or time.monotonic() - self._flushed_at >= self.flush_seconds
            if due or self.shared is not None or self.pushed:
                self.take_in(close=due)
            elif isinstance(self._stats, KVConnectorStats):
                self._stats.fold_early()
            is_taken = True
        if is_taken or self.shared is None:  # what is not saved in shared memory yet must not be sent
            with self._harmless.guard():
                self._delivering.exchange({self._source.id: self.outbox}, self._clock.now())
        return is_taken and self.outbox.is_idle

    def end(self, end_by: float) -> None:
        """Send what is left, until it is acknowledged or it is ``end_by`` (monotonic), and give everything free."""
        self.stop_recording()
        with self._harmless.guard():
            self._note()  # of who ends nothing is under way
        self.step(close=True, note=False)
        self.outbox.part()
        while not (self.step(close=True, note=False) and self.outbox.has_parted) and time.monotonic() < end_by:
            time.sleep(RETRY_SECONDS)  # what there was no room for before is taken in the next step
        with self._harmless.guard():
            self._delivering.close(end_by - time.monotonic())
            shared, self.shared = self.shared, None
            if shared is not None:
                shared.close(keep=not self.outbox.is_idle)
        self.has_ended = True

    def fold(self) -> None:
        """Fold what waits, for who reads the stats."""
        with self._harmless.guard():
            if isinstance(self._stats, TransferStats):
                self._stats.fold_here()

    def stop_recording(self) -> None:
        """Let the stats drop what is recorded from now on: nobody would drain it."""
        if isinstance(self._stats, KVConnectorStats):
            self._stats.stop()

    def abandon(self) -> None:
        """In a forked child: leave the parent's sockets alone."""
        self._delivering.abandon()

    # --- in

    def take_in(self, *, close: bool) -> None:
        """Move what was recorded into the outbox; ``close`` the open interval, if there is room."""
        if self.shared is None:
            self._put(self._drain(), close=close)
            return
        self.shared.stop_crowded()
        # What is saved says how much of the areas is in it: nobody else folds in between.
        with self._stats.exclusively() if isinstance(self._stats, KVConnectorStats) else contextlib.nullcontext():
            drained = self._drain()
            floors = self.shared.floors
        self._put(drained, close=close)
        self._save(self.shared, floors)

    def _note(self) -> None:
        self._noted_at = time.monotonic()
        if isinstance(self._stats, KVConnectorStats):
            self._stats.note_levels()

    def _drain(self) -> Any:  # noqa: ANN401 - stats, also of a class that only looks like vLLM's
        try:
            if self._stats is None or isinstance(self._stats, KVConnectorStats):
                return self._stats and self._stats.drain(for_report=True)
            return KVConnectorStats.drain(self._stats)
        except Exception as error:  # noqa: BLE001 - a class of somebody else
            self._harmless.warn(error)
            self.outbox.count_cut(1)
            return None

    def _put(self, drained: KVConnectorStats | None, *, close: bool) -> None:
        now = self._clock.now()
        if drained is not None:
            self._observe(drained, now)
        for _ in range(len(self.pushed)):
            part = self.pushed.take()
            if part is not None:
                self._observe(part, now)
        self.outbox.count_cut(self.pushed.take_cut())
        if isinstance(self._stats, KVConnectorStats):
            self.outbox.count_cut(self._stats.drain_cut())
        if close:
            self._is_unsaved |= self.outbox.flush(now)
            self._flushed_at = time.monotonic()

    def _observe(self, stats: KVConnectorStats, now: float) -> None:
        try:
            if not stats.is_empty():
                self._is_unsaved = True
                self.outbox.observe(stats, now)
        except Exception as error:  # noqa: BLE001 - a class of somebody else that cannot merge
            self._harmless.warn(error)
            self.outbox.count_cut(num_lost(stats))

    def _save(self, shared: SharedBuffer, floors: dict[str, int]) -> None:
        """Save what is held, before anything of it is sent; what does not fit is in process memory alone."""
        if self._is_unsaved:
            whole = encode_worker(SavedWorker(self.outbox.save(), floors))
            if shared.save(whole) or shared.save(encode_worker(SavedWorker(self.outbox.save(brief=True), floors))):
                shared.resume()
                self._is_unsaved = False
