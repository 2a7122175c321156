"""Series that all connectors have in common: fixed names, told apart by the label ``connector`` alone.

Dashboards and alerts ask for these, so that they hold for connectors that nobody has written yet. What is here is what
any stats tell of themselves (`kvxfer.contract`); fields are in `measured`.
"""

from typing import Final

from kvxfer.contract import KVConnectorStats
from kvxfer.exporters.prometheus.classic import BOUNDARIES
from kvxfer.exporters.prometheus.families import Counted, Families, Family, Kind, Measured
from kvxfer.exporters.prometheus.measuring import Measuring

_MOVED: Final = "Bytes moved. Its rate is the throughput over the wall clock."
_TRANSFERS: Final = "Transfers, of connectors that know the duration of each."
_SECONDS: Final = "Durations of transfers."

MOVED_BYTES: Final = Family("kvxfer_moved_bytes", Kind.COUNTER, _MOVED, "bytes")
BUSY_SECONDS: Final = Family("kvxfer_busy_seconds", Kind.COUNTER, "Durations of transfers, summed.", "seconds")
TRANSFERS: Final = Family("kvxfer_transfers", Kind.COUNTER, _TRANSFERS)
TRANSFER_SECONDS: Final = Family("kvxfer_transfer_seconds", Kind.HISTOGRAM, _SECONDS, "seconds", BOUNDARIES["seconds"])
IN_FLIGHT: Final = Family("kvxfer_in_flight", Kind.GAUGE, "Transfers begun and not ended, of workers that tell.")
OLDEST_IN_FLIGHT: Final = Family(
    "kvxfer_oldest_in_flight_seconds", Kind.GAUGE, "How long the oldest of them has been under way.", "seconds"
)
FAILURES: Final = Family("kvxfer_failures", Kind.COUNTER, "What went wrong, by the name of its counter.")
SOURCE_MOVED_BYTES: Final = Family("kvxfer_source_moved_bytes", Kind.COUNTER, _MOVED, "bytes")
SOURCE_TRANSFERS: Final = Family("kvxfer_source_transfers", Kind.COUNTER, _TRANSFERS)
SOURCE_TRANSFER_SECONDS: Final = Family("kvxfer_source_transfer_seconds", Kind.SUMMARY, _SECONDS, "seconds")


def add_common(families: Families, measuring: Measuring, stats: KVConnectorStats) -> None:
    """Add those of a group."""
    labels, moved, durations = measuring.own_labels, stats.moved(), stats.durations()
    if moved is not None:
        families.add(MOVED_BYTES, labels, moved.num_bytes)
        families.add(BUSY_SECONDS, labels, moved.busy_seconds)
    if durations is not None:
        families.add(TRANSFERS, labels, durations.count)
        families.add(TRANSFER_SECONDS, labels, Measured(durations.histogram(), durations.sum))
    for name, count in stats.failures().items():
        families.add(FAILURES, measuring.labels({"kind": name}), count)


def add_common_levels(families: Families, measuring: Measuring, stats: KVConnectorStats) -> None:
    """Add those that hold for the last interval alone."""
    in_flight = stats.in_flight()
    if in_flight is not None:
        families.add(IN_FLIGHT, measuring.own_labels, in_flight.num_transfers)
        families.add(OLDEST_IN_FLIGHT, measuring.own_labels, in_flight.oldest_seconds)


def add_common_of_source(families: Families, measuring: Measuring, stats: KVConnectorStats) -> None:
    """Add those of a source; it has no histogram, which would be 25 lines a source."""
    labels, moved, durations = measuring.own_labels, stats.moved(), stats.durations()
    if moved is not None:
        families.add(SOURCE_MOVED_BYTES, labels, moved.num_bytes)
    if durations is not None:
        families.add(SOURCE_TRANSFERS, labels, durations.count)
        families.add(SOURCE_TRANSFER_SECONDS, labels, Counted(durations.count, durations.sum))
