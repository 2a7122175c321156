"""The clock of publishers and collectors, which own it; everything below takes ``now``."""

import time


class SteadyClock:
    """Unix seconds that a change of the system's clock does not move."""

    def __init__(self) -> None:
        """Take the system's time as it is now."""
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """The Unix time in seconds."""
        return time.monotonic() + self._offset
