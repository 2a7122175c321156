"""What the pipeline counts of itself, as series; every cause that is known has one, at zero before its first time."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Final

from kvxfer.exporters.prometheus.families import Counted, Families, Family, Kind, Labels, Value
from kvxfer.exporting import Health
from kvxfer.interval import Interval, Pipeline

REJECTED: Final = (
    "undecodable",
    "version",
    "unknown_connector",
    "implausible",
    "connector_failed",
    "too_many_sources",
    "interval_full",
    "unreadable_file",
)
REFUSED: Final = (
    "unauthorized_key",
    "revoked_key",
    "wrong_server_key",
    "mechanism",
    "no_handshake",
    "subscriptions",
)
STATES: Final = ("live", "silent", "gone")

_COUNTERS: Final = {
    "reports_received": "Reports taken.",
    "reports_duplicate": "Reports that came again, and changed nothing.",
    "reports_lost": "Reports that never came of sources that are gone.",
    "observations_rejected": "Observations refused: not finite, negative or no number.",
    "observations_cut": "Observations that publishers refused by their own bounds.",
    "exports_failed": "Exports that failed since this process started.",
    "commits_failed": "Writes of the journal that failed since this process started.",
}


def add_pipeline(families: Families, interval: Interval) -> None:
    """Add the counts of the pipeline."""
    pipeline = interval.pipeline
    for name, about in _COUNTERS.items():
        _add(families, name, Kind.COUNTER, about, [((), getattr(pipeline, name))])
    _add_by(families, "reports_rejected", "Reports refused, by cause.", "cause", REJECTED, pipeline.reports_rejected)
    refused = pipeline.connections_refused
    _add_by(
        families, "connections_refused", "Connections refused since this process started.", "cause", REFUSED, refused
    )
    states = [((("state", state),), pipeline.sources.get(state, 0)) for state in STATES]
    _add(families, "sources", Kind.GAUGE, "Sources by state.", states)
    _add_levels(families, interval, pipeline)


def _add_levels(families: Families, interval: Interval, pipeline: Pipeline) -> None:
    about = "Reports for the collector above that it has not acknowledged."
    _add(families, "relay_unacknowledged", Kind.GAUGE, about, [((), pipeline.relay_unacknowledged)])
    about = "When the totals began: the start of the collector, or of the first of its journal."
    _add(families, "totals_start_timestamp_seconds", Kind.GAUGE, about, [((), interval.start)], "seconds")
    about = "When what is exposed here was read."
    _add(families, "snapshot_timestamp_seconds", Kind.GAUGE, about, [((), interval.end)], "seconds")
    build = Family("kvxfer_build", Kind.INFO, "Version of kvxfer and of Python.")
    families.add(build, (("python", python_version()), ("version", _version())), 1)


def add_health(families: Families, health: Health) -> None:
    """Add how the process does."""
    exporters = health.exporters
    seconds = [((("exporter", each.name),), Counted(each.exported, each.seconds)) for each in exporters]
    waiting = [((("exporter", each.name),), each.waiting) for each in exporters]
    _add(families, "export_seconds", Kind.SUMMARY, "What exporters take for an interval.", seconds, "seconds")
    _add(families, "exports_waiting", Kind.GAUGE, "Intervals that wait for an exporter.", waiting)
    closing = Counted(health.intervals_closed, health.closing_seconds)
    _add(
        families, "interval_close_seconds", Kind.SUMMARY, "What closing an interval takes.", [((), closing)], "seconds"
    )
    behind = [((), int(health.is_journal_behind))]
    _add(families, "journal_behind", Kind.GAUGE, "1 while the journal cannot be written, and should be.", behind)


_UNREADABLE: Final = Family(
    "kvxfer_collector_unreadable_stats", Kind.GAUGE, "Groups and sources whose class cannot be read."
)
_LEFT_OUT: Final = Family(
    "kvxfer_collector_series_left_out", Kind.GAUGE, "Series left out here: too many, or of names that are others'."
)


def add_scrapes(families: Families, made: Counted) -> None:
    """Add what making this took so far, in seconds of CPU, and room for what could not be shown."""
    about = "CPU that it took to make what scrapes get; one is made at most once a second."
    _add(families, "scrape_cpu_seconds", Kind.SUMMARY, about, [((), made)], "seconds")
    for family in (_UNREADABLE, _LEFT_OUT):
        families.add(family, (), 0)


def settle_scrapes(families: Families, num_unread: int) -> None:
    """Say what could not be shown, after all else: where there was no room left, this has its own."""
    families.correct(_UNREADABLE, (), num_unread)
    families.correct(_LEFT_OUT, (), families.num_refused)


def _add_by(
    families: Families, name: str, about: str, label: str, known: tuple[str, ...], counts: Mapping[str, int]
) -> None:
    """Add a counter for each cause, those that are known first."""
    causes = dict.fromkeys((*known, *counts))
    _add(families, name, Kind.COUNTER, about, [(((label, cause),), counts.get(cause, 0)) for cause in causes])


def _add(
    families: Families,
    name: str,
    kind: Kind,
    about: str,
    series: Iterable[tuple[Labels, Value]],
    unit: str = "",
) -> None:
    family = Family(f"kvxfer_collector_{name}", kind, about, unit)
    for labels, value in series:
        families.add(family, labels, value)


@lru_cache  # it is read from a file
def _version() -> str:
    try:
        return version("kvxfer")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
