"""A connector of one's own: declare the fields, and recording, merging, wire and the line follow.

Command: ``python examples/custom_connector.py``. Expected:

    KV Transfer metrics: fetch_duration_seconds_count=2, fetch_duration_seconds_mean=0.004, ..., num_misses=3,
    pool_usage_ratio=0.5, fetch_rate_bytes_per_second_count=2, ..., Num ranks=1   (one line; numbers that vary left out)
"""

import sys
import tempfile

from kvxfer import (
    Collector,
    CollectorConfig,
    Connector,
    Counter,
    Distribution,
    Gauge,
    KVConnectorFactory,
    LogExporter,
    Row,
    StatsPublisher,
    TransferStats,
)


class PageConnectorStats(TransferStats):
    """Fetches of KV pages from the page store."""

    fetch_duration = Distribution("s", "From request to last byte.")
    fetch_size = Distribution("By", "Bytes of one fetch.")
    num_misses = Counter("{page}", "Pages that were not there.")
    pool_usage = Gauge("1", "Part of the pool in use.", merge="max")
    record_fetch = Row(fetch_duration, fetch_size, duration=fetch_duration, size=fetch_size)


class PageConnector(Connector):
    """Registered in every process that publishes or collects; a package does it by the group ``kvxfer.connectors``."""

    stats_class = PageConnectorStats


KVConnectorFactory.register_connector("PageConnector", __name__, "PageConnector")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        config = CollectorConfig(endpoint=f"ipc://{directory}/pages.ipc")
        with (
            Collector(config, [LogExporter(print)]) as collector,
            StatsPublisher("PageConnector", collector.endpoint) as publisher,
        ):
            stats = publisher.stats
            stats.record_fetch(0.003, 65536)
            stats.record_fetch(0.005, 65536)
            stats.num_misses.add(3)
            stats.pool_usage.set(0.5)


if __name__ == "__main__":
    sys.exit(main())
