"""The log: one line per group and interval, vLLM's first; nothing when idle."""

import logging
from collections.abc import Callable
from functools import partial

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
        """Log the groups, then the ranks on request; what a connector's class raises is raised when all others are."""
        lines = [partial(group_line, group, interval.seconds) for group in interval.groups]
        if self._per_rank:
            lines += [partial(rank_line, view, interval.seconds) for view in interval.sources]
        failures = [failure for failure in map(self._log, lines) if failure is not None]
        if failures:
            raise failures[0]

    def _log(self, line: Callable[[], str]) -> Exception | None:
        try:
            self._log_fn(line())
        except Exception as failure:  # noqa: BLE001 - a class of somebody else, or their log
            return failure
        return None

    def close(self) -> None:
        """Do nothing: the log is the host's."""
