"""The log: one line per group and interval, vLLM's first; nothing when idle."""

import logging
from collections.abc import Callable

from kvxfer.interval import Interval
from kvxfer.reporting import group_line, rank_line

logger = logging.getLogger("kvxfer")


class LogExporter:
    """Calls ``log_fn`` with each line; ``per_rank`` adds one line per source."""

    def __init__(self, log_fn: Callable[[str], object] = logger.info, *, per_rank: bool = False) -> None:
        """Log through ``log_fn``."""
        self._log_fn = log_fn
        self._per_rank = per_rank

    def export(self, interval: Interval) -> None:
        """Log the groups, then the ranks on request."""
        for group in interval.groups:
            self._log_fn(group_line(group, interval.seconds))
        if self._per_rank:
            for view in interval.sources:
                self._log_fn(rank_line(view, interval.seconds))

    def close(self) -> None:
        """Do nothing: the log is the host's."""
