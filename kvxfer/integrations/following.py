"""Following a collector that is known by a name: when nothing is acknowledged any more, it is asked where it is now.

Knows no directory of names: who looks up, and what it is that moves, is given. `Asking` decides, `Following` does it on
a thread of its own, as a look-up may take long and what publishes never waits.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger("kvxfer")

NOWHERE: Final = "ipc:///nonexistent/kvxfer"
"""An endpoint at which nobody listens, for a collector that is not found yet."""

LOOK_SECONDS: Final = 0.25
"""How often it is looked whether acknowledgements come."""

STUCK_SECONDS: Final = 2.0
"""Without one for so long it is asked: a report waits up to a second for the commit, and an actor of Ray is back after
1.4 s, so a worker is with a collector that moved well within 5 s."""

AGAIN_SECONDS: Final = 1.0
"""After a look-up that found nothing."""

MAX_SECONDS: Final = 30.0
"""How long that becomes, doubled with each answer that was the same: it is there and slow, and asking burdens it."""

_LEAVE_SECONDS: Final = 2.0
# The end of a process waits no longer for a look-up that is under way.


class Asking:
    """Decides when to ask. No clock: ``now`` is seconds of one that nobody turns back."""

    def __init__(self) -> None:
        """Know nothing, so ask at once."""
        self.endpoint: str | None = None
        self._progress: int | None = None
        self._due = 0.0
        self._patience = STUCK_SECONDS

    def is_due(self, progress: int | None, now: float) -> bool:
        """Whether to ask; ``progress`` is None where nothing waits, else a number that changes with each answer."""
        if self.endpoint is not None and (progress is None or progress != self._progress):
            self._progress, self._patience = progress, STUCK_SECONDS
            self._due = now + self._patience
        return now >= self._due

    def answered(self, endpoint: str | None, now: float) -> bool:
        """Take an answer, None for none; whether the collector is somewhere else than before."""
        if endpoint is None:
            self._due = now + AGAIN_SECONDS
            return False
        has_moved = endpoint != self.endpoint
        self._patience = STUCK_SECONDS if has_moved else min(2 * self._patience, MAX_SECONDS)
        self.endpoint, self._due = endpoint, now + self._patience
        return has_moved


class Following:
    """Asks ``find`` for the endpoint at once, and again when it is stuck; ``move_to`` is called with each new one.

    ``find`` gives None for what is not there, and may raise; ``progress`` is as `Asking.is_due` takes it. Neither a
    process nor its exit waits for it longer than 2 s.
    """

    def __init__(
        self, find: Callable[[], str | None], move_to: Callable[[str], object], progress: Callable[[], int | None]
    ) -> None:
        """Ask nothing yet."""
        self._find = find
        self._move_to = move_to
        self._progress = progress
        self._asking = Asking()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvxfer-following", daemon=True)

    def start(self) -> None:
        """Follow until the process exits."""
        # Exit handlers of what `find` uses, which was imported before, run after this one.
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._leaving.set()
        self._thread.join(_LEAVE_SECONDS)

    def _run(self) -> None:
        while not self._leaving.is_set():
            if self._asking.is_due(self._progress(), time.monotonic()):
                self._ask()
            self._leaving.wait(LOOK_SECONDS)

    def _ask(self) -> None:
        endpoint = None
        try:
            endpoint = self._find()
            if self._asking.answered(endpoint, time.monotonic()) and endpoint is not None:
                self._move_to(endpoint)
        except Exception as error:  # noqa: BLE001 - telemetry harms nobody, and the next look-up may do
            self._asking.answered(None, time.monotonic())
            logger.debug("no collector was found (%r); it is asked again", error)
