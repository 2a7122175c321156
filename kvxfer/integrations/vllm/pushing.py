"""The publisher within vLLM. What fails in it costs telemetry and one line in the log, and never a request."""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from kvxfer.errors import KVXferError
from kvxfer.factory import KVConnectorFactory
from kvxfer.integrations.vllm import logger
from kvxfer.publisher import StatsPublisher

FLUSH_SECONDS: Final = 0.1
"""vLLM kills its workers as soon as its server is told to end, unless it has a ``--shutdown-timeout``."""


class Pusher:
    """Publishes stats of one connector of this process, from when it starts or first has some; nothing here raises."""

    def __init__(self, connector: str, labels: Mapping[str, str]) -> None:
        """Begin nothing yet."""
        self._connector = connector
        self._labels = labels
        self._publisher: StatsPublisher | None = None
        self._has_ended = False
        self._has_warned = False

    def __repr__(self) -> str:
        """Give its publisher."""
        return f"<Pusher {self._publisher}>"

    def start(self) -> StatsPublisher | None:
        """The publisher, made now if there is none; None where it cannot be made, or has ended."""
        if self._publisher is not None or self._has_ended:
            return self._publisher
        try:
            self._publisher = StatsPublisher(self._connector, labels=self._labels, flush_seconds=FLUSH_SECONDS)
            where = ", ".join(f"{name} {value}" for name, value in self._labels.items())
            logger.info("kvxfer publishes %s of %s to %s", self._connector, where, self._publisher.endpoint)
            if not KVConnectorFactory.is_registered(self._connector):
                logger.warning("kvxfer has no class for %s: collect with --generic %s", *[self._connector] * 2)
        except Exception as error:  # noqa: BLE001 - an endpoint that is none, keys that are not there
            self._has_ended = True
            self._fail(error)
        return self._publisher

    def push(self, stats: Any) -> None:  # noqa: ANN401 - any vLLM-style object or payload
        """Publish a copy of stats, if they hold something; a push that fails counts as cut."""
        try:
            if not _is_empty(stats) and (publisher := self.start()) is not None:
                publisher.push(stats)
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._fail(error)
            if self._publisher is not None:
                self._publisher.count_cut(1)

    def ask_to_close(self) -> None:
        """Begin to send what is left."""
        self._has_ended = True
        if self._publisher is not None:
            with contextlib.suppress(Exception):
                self._publisher.ask_to_close()

    def close(self) -> None:
        """Wait until what is left is sent, for as long as a publisher waits."""
        self._has_ended = True
        if self._publisher is not None:
            with contextlib.suppress(Exception):
                self._publisher.close()

    def _fail(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("kvxfer cannot publish stats of %s: %s; this is said once", self._connector, _said(error))


def _is_empty(stats: Any) -> bool:  # noqa: ANN401 - any vLLM-style object or payload
    """Whether there is nothing to push; what cannot tell is pushed, and counted there if it cannot be read."""
    with contextlib.suppress(Exception):
        return bool(stats.is_empty() if hasattr(stats, "is_empty") else not stats)
    return False


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, KVXferError) else repr(error)
