"""Where ranks cannot be tapped: a stat logger of vLLM's front end, which sees the stats of all ranks merged.

It is offered to vLLM through ``vllm.stat_logger_plugins`` only then, by a distribution that exists in this process. An
entry point of the installed package would be found always, and any stat logger makes vLLM collect the stats that
``--disable-log-stats`` has switched off.
"""

import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from os import PathLike
from pathlib import Path
from typing import Any, Final

from kvxfer.integrations.vllm.pushing import Pusher

_NAME: Final = "kvxfer-stat-logger"
_FILES: Final = {
    "METADATA": f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 0\n",
    "entry_points.txt": f"[vllm.stat_logger_plugins]\nkvxfer = {__name__}:StatLogger\n",
}


def offer_stat_logger() -> None:
    """Let vLLM find the stat logger in this process; calls after the first change nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


class _Offer(Distribution):
    """A distribution of one entry point."""

    def read_text(self, filename: str) -> str | None:
        return _FILES.get(filename)

    def locate_file(self, path: str | PathLike[str]) -> Path:
        return Path(path)


class _Finder(DistributionFinder):
    """Finds that distribution, and no module."""

    def find_spec(self, *_: object) -> ModuleSpec | None:
        return None

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        if context is None or context.name in (None, _NAME):
            yield _Offer()


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the class of the entry point
    """Make the class when vLLM asks for it: its base is vLLM's."""
    if name == "StatLogger":
        return _stat_logger_class()
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


@lru_cache(maxsize=1)
def _stat_logger_class() -> type:
    from vllm.v1.metrics.loggers import StatLoggerBase  # noqa: PLC0415 - 6 s, and only there is no other way

    class StatLogger(StatLoggerBase):  # type: ignore[misc]
        """Pushes the connector's part of what each engine step tells."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:  # noqa: ANN401 - vLLM's own
            """Begin with no publisher; one engine has one of these."""
            transfer = vllm_config.kv_transfer_config
            self._pusher: Pusher | None = None
            if transfer is not None and transfer.kv_connector:
                who = {"engine": transfer.engine_id, "role": transfer.kv_role, "dp_rank": engine_index}
                labels = {name: str(value) for name, value in who.items()}
                self._pusher = Pusher(transfer.kv_connector, labels)

        def record(self, scheduler_stats: Any = None, *_: object, **__: object) -> None:  # noqa: ANN401 - vLLM's own
            """Push what connectors measured in a step, if they did."""
            stats = getattr(scheduler_stats, "kv_connector_stats", None)
            if stats and self._pusher is not None:
                self._pusher.push(stats)

        def log_engine_initialized(self) -> None:
            """Nothing is logged."""

    return StatLogger
