"""kvxfer: live telemetry of KV-cache transfers, from worker processes to one collector, without losing a count.

Everything a user needs is here; see ``README.md``. Importing it imports none of the extras.
"""

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
