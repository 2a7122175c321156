"""kvxfer: live telemetry of KV-cache transfers, from worker processes to one collector, without losing a count.

Everything a user needs is here; see ``README.md``. Importing it imports nothing else: a name is looked
up in its module when it is first asked for, so that who only has kvxfer installed, as a plugin, pays nothing.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # no type checker follows the look-up below
    from kvxfer.collector import Collector
    from kvxfer.config import CollectorConfig, KVTransferConfig, default_endpoint
    from kvxfer.connectors.base import Connector
    from kvxfer.contract import KVConnectorStats
    from kvxfer.errors import KVXferError
    from kvxfer.exporters.log import LogExporter
    from kvxfer.exporters.warning import WarningExporter
    from kvxfer.factory import KVConnectorFactory
    from kvxfer.fields import Counter, Distribution, Gauge
    from kvxfer.interval import Group, Interval, Pipeline, Rates, SourceView
    from kvxfer.publisher import StatsPublisher
    from kvxfer.reporting import KVConnectorLogging, has_kv_transfer_group
    from kvxfer.rows import Row
    from kvxfer.stats import TransferStats

__all__ = [
    "Collector",
    "CollectorConfig",
    "Connector",
    "Counter",
    "Distribution",
    "Gauge",
    "Group",
    "Interval",
    "KVConnectorFactory",
    "KVConnectorLogging",
    "KVConnectorStats",
    "KVTransferConfig",
    "KVXferError",
    "LogExporter",
    "Pipeline",
    "Rates",
    "Row",
    "SourceView",
    "StatsPublisher",
    "TransferStats",
    "WarningExporter",
    "default_endpoint",
    "has_kv_transfer_group",
]
__version__ = "0.1.0"

_NAMES = {
    "kvxfer.collector": ("Collector",),
    "kvxfer.config": ("CollectorConfig", "KVTransferConfig", "default_endpoint"),
    "kvxfer.connectors.base": ("Connector",),
    "kvxfer.contract": ("KVConnectorStats",),
    "kvxfer.errors": ("KVXferError",),
    "kvxfer.exporters.log": ("LogExporter",),
    "kvxfer.exporters.warning": ("WarningExporter",),
    "kvxfer.factory": ("KVConnectorFactory",),
    "kvxfer.fields": ("Counter", "Distribution", "Gauge"),
    "kvxfer.interval": ("Group", "Interval", "Pipeline", "Rates", "SourceView"),
    "kvxfer.publisher": ("StatsPublisher",),
    "kvxfer.reporting": ("KVConnectorLogging", "has_kv_transfer_group"),
    "kvxfer.rows": ("Row",),
    "kvxfer.stats": ("TransferStats",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # or a misspelt name would be any name's type

    def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of the names above
        """Look a public name up in its module, once; or import a module of the package."""
        if name in _HOMES:
            found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
            return found
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
