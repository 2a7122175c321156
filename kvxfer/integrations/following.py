"""Following a collector that is known by a name: when nothing is acknowledged any more, it is asked where it is now.

Knows no directory of names: who looks up, and what it is that moves, is given. `Asking` decides, `Following` does it on
a thread of its own, as a look-up may take long and what publishes never waits.
"""

import atexit
import logging
import random
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
"""After a look-up that found nothing, doubled with each to `AGAIN_MAX_SECONDS`."""

AGAIN_MAX_SECONDS: Final = 4.0
"""Who looks so often is with a collector that comes back within 5 s; and a thousand workers ask 250 times a second."""

GIVING_UP_SECONDS: Final = 180.0
"""What was not found for so long is not about to be there: then `MAX_SECONDS` is often enough."""

MAX_SECONDS: Final = 30.0
"""How long it becomes with answers that are the same too, doubled with each: it is there and slow, and asking burdens
it."""

_JITTER: Final = 0.25
# What all workers of a cluster miss at once they ask for at different times: up to a quarter sooner.

_LEAVE_SECONDS: Final = 2.0
# The end of a process waits no longer for a look-up that is under way.


class Asking:
    """Decides when to ask. No clock: ``now`` is seconds of one that nobody turns back.

    ``spread`` gives, each time, the part of a wait after which to ask already.
    """

    def __init__(self, spread: Callable[[], float] = lambda: 1.0) -> None:
        """Know nothing, so ask at once."""
        self._spread = spread
        self.endpoint: str | None = None
        self._progress: int | None = None
        self._due = 0.0
        self._patience = STUCK_SECONDS
        self._missed_since: float | None = None
        self._again = AGAIN_SECONDS

    def is_due(self, progress: int | None, now: float) -> bool:
        """Whether to ask; ``progress`` is None where nothing waits, else a number that changes with each answer."""
        if self.endpoint is not None and (progress is None or progress != self._progress):
            self._progress, self._patience = progress, STUCK_SECONDS
            self._due = now + self._patience * self._spread()
        return now >= self._due

    def answered(self, endpoint: str | None, now: float) -> None:
        """Take an answer, None for none."""
        if endpoint is None:
            self._due = now + self._pause(now) * self._spread()
            return
        self._missed_since, self._again = None, AGAIN_SECONDS
        self._patience = STUCK_SECONDS if endpoint != self.endpoint else min(2 * self._patience, MAX_SECONDS)
        self.endpoint, self._due = endpoint, now + self._patience * self._spread()

    def _pause(self, now: float) -> float:
        """How long not to ask after a look-up that found nothing."""
        if self._missed_since is None:
            self._missed_since = now
        if now - self._missed_since >= GIVING_UP_SECONDS:
            return MAX_SECONDS
        pause, self._again = self._again, min(2 * self._again, AGAIN_MAX_SECONDS)
        return pause


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
        self._asking = Asking(lambda: 1 - _JITTER * random.random())  # noqa: S311 - nothing secret
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
            self._look()
            self._leaving.wait(LOOK_SECONDS)

    def _look(self) -> None:
        try:
            if self._asking.is_due(self._progress(), time.monotonic()):
                endpoint = self._find()
                if endpoint not in (None, self._asking.endpoint):
                    self._move_to(endpoint)
                self._asking.answered(endpoint, time.monotonic())
        except Exception as error:  # noqa: BLE001 - telemetry harms nobody, and the next look-up may do
            self._asking.answered(None, time.monotonic())
            logger.debug("no collector was found (%r); it is asked again", error)
