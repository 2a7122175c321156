"""Warnings in the log: workers that fell silent and those that are slower than the others of their group.

An exporter of its own, so that who logs lines elsewhere gets no sentences among them that nobody asked for.
"""

import logging
from collections.abc import Callable, Sequence

from kvxfer.config import CollectorConfig
from kvxfer.errors import ConfigError
from kvxfer.interval import Interval
from kvxfer.pace import SLOW_FACTOR
from kvxfer.watching import Ration, SilentWatch, SlowWatch

logger = logging.getLogger("kvxfer")


class WarningExporter:
    """Calls ``log_fn`` with a sentence for each worker that fell silent, is back, or is slow; see `kvxfer.watching`.

    ``slow_factor``: how many times slower than the others, 0 for never; ``group_by``: what makes a group, as the
    collector's. Raises `ConfigError` for a factor of 1 or less, which every second worker would have.
    """

    def __init__(
        self,
        log_fn: Callable[[str], object] = logger.warning,
        *,
        slow_factor: float = SLOW_FACTOR,
        group_by: Sequence[str] = CollectorConfig().group_by,
    ) -> None:
        """Warn through ``log_fn``."""
        if not (slow_factor == 0 or 1 < slow_factor < float("inf")):
            message = f"slow_factor must be above 1, or 0 for no such warning, got {slow_factor}"
            raise ConfigError(message)
        self._log_fn = log_fn
        self._ration = Ration()
        self._silent = SilentWatch()
        self._slow = SlowWatch(slow_factor, group_by) if slow_factor else None

    def export(self, interval: Interval) -> None:
        """Say what is new in the interval."""
        sentences = self._silent.take(interval)
        if self._slow is not None:
            sentences += self._slow.take(interval)
        for sentence in self._ration.take(sentences, interval.end):
            self._log_fn(sentence)

    def close(self) -> None:
        """Do nothing: the log is the host's."""
