"""`KVConnectorLogging`, and the line that operators know. No socket, clock or thread."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvxfer.contract import KVConnectorStats
from kvxfer.errors import RoleError
from kvxfer.factory import ConnectorClass, KVConnectorFactory, TransferConfig
from kvxfer.interval import Group, SourceView, rates
from kvxfer.units import mib

logger = logging.getLogger("kvxfer")

LINE: Final = "KV Transfer metrics: "
RANK_LINE: Final = "KV Transfer metrics of one rank: "

# The pids that publish, and their sources: a forked child inherits its parent's, which are not its own.
_publishing: Final[set[tuple[int, str]]] = set()


def has_kv_transfer_group() -> bool:
    """Whether this process publishes stats: it is a worker, not the front end."""
    return any(pid == os.getpid() for pid, _ in list(_publishing))


def publishes(source_id: str, *, is_so: bool) -> None:
    """Note that this process publishes as a source, or does no longer."""
    (_publishing.add if is_so else _publishing.discard)((os.getpid(), source_id))


def format_line(reduced: Mapping[str, Any], prefix: str = LINE) -> str:
    """vLLM's line: ``KV Transfer metrics: k=v, k=v``; what is not printable is escaped, since peers name keys too."""
    line = prefix + ", ".join(f"{key}={value}" for key, value in reduced.items())
    return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def group_line(group: Group, seconds: float) -> str:
    """The line of a group over an interval: vLLM's keys, then wall throughput, in flight, ranks and labels.

    A label of the name of another key is left out.
    """
    measured = group.stats.reduce() | _wall(group.stats, seconds) | {"Num ranks": group.num_ranks}
    return format_line(_with_labels(measured, group.labels))


def rank_line(view: SourceView, seconds: float) -> str:
    """The line of one source over an interval, with its labels, host and pid; labels as in `group_line`."""
    measured = view.stats.reduce() | _wall(view.stats, seconds)
    who = {"host": view.source.host, "pid": view.source.pid}
    return format_line(_with_labels(measured, view.source.labels) | who, RANK_LINE)


def _with_labels(measured: dict[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    return measured | {name: value for name, value in labels.items() if name not in measured}


def _wall(stats: KVConnectorStats, seconds: float) -> dict[str, float]:
    moved = stats.moved()
    if moved is None:
        return {}
    found = rates(moved, seconds)
    return {
        "Wall throughput (MB/s)": round(mib(found.bytes_per_second), 3),
        "Avg in flight": round(found.mean_in_flight, 3),
    }


class KVConnectorLogging:
    """Merges the stats that reach a front end and logs one line per interval, as vLLM's class of this name.

    Raises `RoleError` in a process that publishes. Without a connector configured it observes nothing.
    """

    def __init__(self, kv_transfer_config: TransferConfig | None) -> None:
        """Look the connector up; `UnknownConnectorError` (a ValueError) where it is not registered."""
        if has_kv_transfer_group():
            message = "KVConnectorLogging belongs to the front end, this process publishes: construct it there"
            raise RoleError(message)
        self.connector_cls: ConnectorClass | None = None
        if kv_transfer_config is not None and kv_transfer_config.kv_connector:
            self.connector_cls = KVConnectorFactory.get_connector_class(kv_transfer_config)
        self._warned = False
        self.transfer_stats_accumulator: KVConnectorStats | None = None

    def reset(self) -> None:
        """Forget what was observed since the last line."""
        self.transfer_stats_accumulator = None

    def observe(self, transfer_stats_data: dict[str, Any]) -> None:
        """Merge a payload of the connector; one that cannot be read is left out, with one warning: serving goes on."""
        if self.connector_cls is None:
            return
        try:
            stats = self.connector_cls.build_kv_connector_stats(transfer_stats_data)
            if stats is None:
                self._warn_once("it builds none")
            elif self.transfer_stats_accumulator is None:
                self.transfer_stats_accumulator = stats
            elif not stats.is_empty():
                self.transfer_stats_accumulator = self.transfer_stats_accumulator.aggregate(stats)
        except Exception as error:  # noqa: BLE001 - the front end of an engine must not end by its telemetry
            self._warn_once(repr(error))

    def _warn_once(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("KV transfer stats of %s are not logged: %s", self.connector_cls, reason)

    def log(self, log_fn: Callable[[str], object] = logger.info) -> None:
        """Log one line of what was observed and begin anew; nothing for nothing."""
        stats = self.transfer_stats_accumulator
        try:
            line = format_line(stats.reduce()) if stats is not None and not stats.is_empty() else None
        except Exception as error:  # noqa: BLE001 - as in observe
            self._warn_once(repr(error))
            self.reset()
            return
        if line is not None:
            self.reset()
            log_fn(line)
