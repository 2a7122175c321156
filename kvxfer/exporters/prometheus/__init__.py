"""Prometheus: the totals of a collector as series, in text, OpenMetrics and protobuf. Pure: intervals in, bytes out.

Names are ``kvxfer_<connector>_<field>_<unit>`` in base units, ``_total`` on counters alone: the transfer duration of a
NixlConnector is ``kvxfer_nixl_transfer_duration_seconds``, a histogram. Each series has the labels that the collector
groups by, ``connector`` (the registered name; NixlPullConnector shares the names of NixlConnector, as it shares its
class) and, below a MultiConnector, ``parent``. Counters and histograms of a connector in use are there, at zero, before
the first observation.

What all connectors have in common has names of its own beside theirs, told apart by ``connector`` (see `common`):
dashboards and alerts ask for these. Series of sources begin with ``kvxfer_source_``. Gauges are those of the last
closed interval: they are not folded over time, and a group that told none in it has none. Fields that only a worker
knows are ``kvxfer_<connector>_carried_<field>``.

===============================================  =====================================================================
what                                             how
===============================================  =====================================================================
throughput over the wall clock, bytes/s          ``rate(kvxfer_moved_bytes_total[1m])``
throughput over busy time (vLLM's), bytes/s      the same over ``rate(kvxfer_busy_seconds_total[1m])``
transfers in flight, on average                  ``rate(kvxfer_busy_seconds_total[1m])``
transfers in flight now, and the oldest of them  ``kvxfer_in_flight``, ``kvxfer_oldest_in_flight_seconds``
transfers a second                               ``rate(kvxfer_transfers_total[1m])``
failures, expiry, late notifications a second    ``rate(kvxfer_failures_total{kind="num_failed_transfers"}[1m])``
P99 of a duration, classic buckets               ``histogram_quantile(0.99, sum by (le)
                                                 (rate(kvxfer_transfer_seconds_bucket[1m])))``
the same, native histograms, within 1.1 %        ``histogram_quantile(0.99, sum(rate(kvxfer_transfer_seconds[1m])))``
publishers                                       ``kvxfer_nixl_ranks``, ``kvxfer_collector_sources{state="silent"}``
one source                                       ``kvxfer_source_moved_bytes_total``, ``kvxfer_source_transfers_total``,
                                                 ``kvxfer_source_transfer_seconds_sum``, ``_count``
the pipeline itself                              ``kvxfer_collector_*``
===============================================  =====================================================================

Classic buckets are made of the exponential ones: see `classic`. Native ones are those, without loss. Sums of floats are
exposed to 12 digits.
"""

from kvxfer.exporters.prometheus.exposition import Exposition, Options
from kvxfer.exporters.prometheus.families import Counted
from kvxfer.exporters.prometheus.formats import OPENMETRICS, PROTOBUF, TEXT, Format, choose
from kvxfer.exporters.prometheus.measuring import Names

__all__ = ["OPENMETRICS", "PROTOBUF", "TEXT", "Counted", "Exposition", "Format", "Names", "Options", "choose"]
