"""Totals as series: their names and text as a person writes them, and what nobody may be able to break."""

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from exposing import (
    PoolStats,
    label_pairs,
    measured,
    of_groups,
    of_stats,
    pages,
    samples,
    transfers,
    value,
)
from list_stats import ListStats

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.multi import MultiKVConnectorStats
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.exporters.prometheus import OPENMETRICS, PROTOBUF, TEXT, Exposition, Options, choose
from kvxfer.exporters.prometheus.families import Kind
from kvxfer.exporters.prometheus.text import number
from kvxfer.exporting import ExporterHealth, Health
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Group, Interval, SourceView
from kvxfer.wire import Report, Source, encode, encode_payload


@pytest.fixture(autouse=True)
def _page_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVConnectorFactory, "_loaders", dict(KVConnectorFactory._loaders))
    monkeypatch.setattr(KVConnectorFactory, "_classes", dict(KVConnectorFactory._classes))
    KVConnectorFactory.register_connector("PageStoreConnector", "exposing", "PageStoreConnector")


BUCKETS = {"0.01": 1, "0.05": 1, "0.1": 1, "0.25": 3, "0.5": 3, "0.75": 3, "0.9": 3, "0.95": 3, "1.0": 4}
MIDDLE = "".join(
    f'kvxfer_page_store_hit_part_ratio_bucket{{connector="PageStoreConnector",engine="e",le="{le}"}} {count}\n'
    for le, count in {**BUCKETS, "+Inf": 4}.items()
)
LABELS = 'connector="PageStoreConnector",engine="e"'
TEXT_GOLDEN = rf"""# HELP kvxfer_page_store_ranks Publishers that have reported and are not forgotten.
# TYPE kvxfer_page_store_ranks gauge
kvxfer_page_store_ranks{{{LABELS}}} 1
# HELP kvxfer_page_store_hit_part_ratio Part of a fetch that was\nthere.
# TYPE kvxfer_page_store_hit_part_ratio histogram
{MIDDLE}kvxfer_page_store_hit_part_ratio_sum{{{LABELS}}} 1.45
kvxfer_page_store_hit_part_ratio_count{{{LABELS}}} 4
# HELP kvxfer_page_store_num_misses_total Pages "missed".
# TYPE kvxfer_page_store_num_misses_total counter
kvxfer_page_store_num_misses_total{{{LABELS}}} 2
# HELP kvxfer_page_store_num_errors_total Errors by cause.
# TYPE kvxfer_page_store_num_errors_total counter
kvxfer_page_store_num_errors_total{{connector="PageStoreConnector",cause="a \"b\"\n\\",engine="e"}} 1
# HELP kvxfer_page_store_rejected_observations_total Refused: not finite, negative or no number.
# TYPE kvxfer_page_store_rejected_observations_total counter
kvxfer_page_store_rejected_observations_total{{{LABELS}}} 0
# HELP kvxfer_page_store_pool_usage_ratio Part of the pool in use.
# TYPE kvxfer_page_store_pool_usage_ratio gauge
kvxfer_page_store_pool_usage_ratio{{{LABELS}}} 0.5
"""
OPENMETRICS_GOLDEN = rf"""# HELP kvxfer_page_store_ranks Publishers that have reported and are not forgotten.
# TYPE kvxfer_page_store_ranks gauge
kvxfer_page_store_ranks{{{LABELS}}} 1
# HELP kvxfer_page_store_hit_part_ratio Part of a fetch that was\nthere.
# TYPE kvxfer_page_store_hit_part_ratio histogram
# UNIT kvxfer_page_store_hit_part_ratio ratio
{MIDDLE}kvxfer_page_store_hit_part_ratio_sum{{{LABELS}}} 1.45
kvxfer_page_store_hit_part_ratio_count{{{LABELS}}} 4
# HELP kvxfer_page_store_num_misses Pages \"missed\".
# TYPE kvxfer_page_store_num_misses counter
kvxfer_page_store_num_misses_total{{{LABELS}}} 2
# HELP kvxfer_page_store_num_errors Errors by cause.
# TYPE kvxfer_page_store_num_errors counter
kvxfer_page_store_num_errors_total{{connector="PageStoreConnector",cause="a \"b\"\n\\",engine="e"}} 1
# HELP kvxfer_page_store_rejected_observations Refused: not finite, negative or no number.
# TYPE kvxfer_page_store_rejected_observations counter
kvxfer_page_store_rejected_observations_total{{{LABELS}}} 0
# HELP kvxfer_page_store_pool_usage_ratio Part of the pool in use.
# TYPE kvxfer_page_store_pool_usage_ratio gauge
# UNIT kvxfer_page_store_pool_usage_ratio ratio
kvxfer_page_store_pool_usage_ratio{{{LABELS}}} 0.5
# EOF
"""


def test_the_text_is_as_it_is_written_by_hand() -> None:
    families = measured(of_stats(pages(), "PageStoreConnector", {"engine": "e"}))
    assert TEXT.write(families).decode() == TEXT_GOLDEN
    assert OPENMETRICS.write(families).decode() == OPENMETRICS_GOLDEN
    assert samples(families)["kvxfer_page_store_hit_part_ratio_sum", frozenset(label_pairs(engine="e"))] == 1.45


# --- classes of somebody else


class Failing(KVConnectorStats):
    """Fails whatever one asks."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_class_that_fails_costs_nobody_else_anything_and_is_counted() -> None:
    interval = of_groups(
        Group("Foreign", {}, Failing.__new__(Failing), 1), Group("NixlConnector", {}, transfers(1.0), 1)
    )
    found = samples(Exposition().families(interval, interval))
    assert found["kvxfer_nixl_busy_seconds_total", frozenset(label_pairs("NixlConnector"))] == 1.0
    assert found["kvxfer_collector_unreadable_stats", frozenset()] == 2  # as totals, and as the last interval


def test_stats_that_only_grow_are_gauges_of_the_last_interval() -> None:
    last = of_stats(ListStats(data={"seconds": [1.0, 2.0]}), "ListConnector", {"engine": "e"})
    families = measured(of_groups(), last=last)
    key = next(iter(ListStats(data={"seconds": [1.0, 2.0]}).reduce()))
    (name,) = {family.name for family, _ in families}
    assert name.startswith("kvxfer_list_reduced_")
    assert value(families, name, "ListConnector", engine="e") == ListStats(data={"seconds": [1.0, 2.0]}).reduce()[key]


def test_what_stands_beside_stats_that_only_grow_keeps_its_gauges() -> None:
    stats = MultiKVConnectorStats({"PageStoreConnector": pages(), "ListConnector": ListStats(data={"seconds": [1.0]})})
    families = measured(of_groups(), last=of_stats(stats, "MultiConnector"))
    of = {"parent": "MultiConnector"}
    assert value(families, "kvxfer_page_store_pool_usage_ratio", "PageStoreConnector", **of) == 0.5
    name = "kvxfer_multi_reduced_listconnector_sum_of_seconds"
    assert value(families, name, "MultiConnector") == 1.0


# --- gauges


def closed(intervals: int, made: Aggregator) -> Interval:
    """The last of so many intervals in each of which two ranks report their gauges."""
    for step in range(intervals):
        for rank in ("0", "1"):
            stats = PoolStats()
            stats.usage.set(0.9 if step == 0 else 0.1)
            stats.num_blocks.set(100)
            source, payload = encode(Source(rank, "h", 1, 0.0, {"rank": rank})), encode_payload(stats.to_packed())
            made.feed(encode(Report(1, source, "PoolConnector", step + 1, 0.0, 1.0, payload)), 10.0 * step + 1)
        last = made.close_interval(10.0 * step + 10)
    return last


def test_gauges_are_those_of_the_last_interval_and_never_folded_over_several() -> None:
    KVConnectorFactory.register_connector("PoolConnector", "exposing", "PoolConnector")
    made = Aggregator(CollectorConfig(), 0.0)
    last = closed(30, made)
    families = measured(made.snapshot(300.0), Options(sources=2), last=last)
    assert value(families, "kvxfer_pool_num_blocks", "PoolConnector") == 200
    assert value(families, "kvxfer_pool_usage_ratio", "PoolConnector") == 0.1
    assert not [family.name for family, _ in families if family.name.startswith("kvxfer_source_pool_")]
    idle = measured(made.snapshot(310.0), last=made.close_interval(310.0))
    assert "kvxfer_pool_num_blocks" not in {name for name, _ in samples(idle)}


def test_gauges_before_the_first_interval_has_closed_are_those_that_there_are() -> None:
    families = measured(of_stats(pages(), "PageStoreConnector"))
    assert value(families, "kvxfer_page_store_pool_usage_ratio", "PageStoreConnector") == 0.5


def test_gauges_that_stats_describe_are_those_of_the_last_interval_too() -> None:
    def usage(now: float) -> Interval:
        name = "vllm:kv_offload_cpu_cache_usage_perc"
        stats = OffloadingConnectorStats({"types": {name: "gauge"}, "data": {name: {(): now}}})
        return of_stats(stats, "OffloadingConnector")

    families = measured(usage(0.9), last=usage(0.1))
    assert value(families, "kvxfer_offloading_cpu_cache_usage_ratio", "OffloadingConnector") == 0.1


# --- the pipeline


def test_the_pipeline_tells_of_itself_with_every_cause_at_zero() -> None:
    health = Health(0.1, False, 3, 0.25, (ExporterHealth("LogExporter", 3, 0.5, 1),))
    found = samples(Exposition().families(of_groups(), health=health))
    of = {(name, *sorted(labels)): held for (name, labels), held in found.items()}
    assert of["kvxfer_collector_reports_received_total",] == 7
    assert of["kvxfer_collector_reports_duplicate_total",] == 1
    assert of["kvxfer_collector_reports_lost_total",] == 2
    assert of["kvxfer_collector_reports_rejected_total", ("cause", "version")] == 3
    assert of["kvxfer_collector_reports_rejected_total", ("cause", "undecodable")] == 0
    assert of["kvxfer_collector_connections_refused_total", ("cause", "no_handshake")] == 0
    assert of["kvxfer_collector_sources", ("state", "silent")] == 1
    assert of["kvxfer_collector_export_seconds_sum", ("exporter", "LogExporter")] == 0.5
    assert of["kvxfer_collector_interval_close_seconds_count",] == 3
    assert any(name[0] == "kvxfer_build_info" for name in of)


# --- sources


def views(*states: str) -> Iterator[SourceView]:
    for rank, state in enumerate(states):
        source = Source(f"id-{rank}", "host", rank, 0.0, {"engine": "e", "rank": str(rank)})
        yield SourceView(source, "NixlConnector", transfers(1.0 + rank), 0.0, 5.0, state)


def test_sources_have_series_of_their_own_up_to_a_cap_and_not_in_the_families_of_groups() -> None:
    interval = msgspec.structs.replace(of_groups(), sources=tuple(views("live", "gone", "silent", "live")))
    found = samples(Exposition(Options(sources=2)).families(interval))
    labels = {"source": "id-2", "host": "host", "engine": "e", "rank": "2"}
    assert found["kvxfer_source_live", frozenset(label_pairs("NixlConnector", **labels))] == 0
    key = "kvxfer_source_nixl_transfer_duration_seconds_sum", frozenset(label_pairs("NixlConnector", **labels))
    assert found[key] == 3.0
    of = frozenset(label_pairs("NixlConnector", **labels))
    assert found["kvxfer_source_moved_bytes_total", of] == 1 << 20
    assert found["kvxfer_source_transfers_total", of] == found["kvxfer_source_transfer_seconds_count", of] == 1
    assert found["kvxfer_source_transfer_seconds_sum", of] == 3.0
    assert not any(name.startswith(("kvxfer_moved", "kvxfer_transfer")) for name, _ in found)
    assert {dict(of)["rank"] for name, of in found if name == "kvxfer_source_live"} == {"0", "2"}
    assert found["kvxfer_collector_sources_without_series", frozenset()] == 1  # three live or silent
    assert not any(name.startswith("kvxfer_nixl_") for name, _ in found)


# --- monotonic


class Reports:
    """The frames of one source, of values whose sums depend on their order."""

    SOURCE: ClassVar[bytes] = encode(Source("s", "h", 1, 0.0, {}))

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seq = 0

    def next(self) -> bytes:
        self.seq += 1
        stats = transfers(*np.exp(self.rng.normal(-6, 2, 60)).tolist())
        return encode(Report(1, self.SOURCE, "NixlConnector", self.seq, 0.0, 1.0, encode_payload(stats.to_packed())))


def test_nothing_falls_while_intervals_close_and_over_a_restart() -> None:
    reports, made, exposition = Reports(1), Aggregator(CollectorConfig(), 0.0), Exposition()
    before: dict[Any, float] = {}
    for step in range(200):
        if step % 3 == 0:
            made.feed(reports.next(), float(step))
        elif step % 3 == 1:
            made.close_interval(float(step))
        if step % 20 == 19:
            saved, made, exposition = made.save(), Aggregator(CollectorConfig(), 0.0), Exposition()
            made.restore(saved)
        found = samples(measured_by(exposition, made, float(step)))
        assert [key for key, held in found.items() if held < before.get(key, 0.0)] == []
        before = found


def measured_by(exposition: Exposition, made: Aggregator, now: float) -> list[Any]:
    families = exposition.families(made.snapshot(now, sources=False))
    return [each for each in families if each[0].kind in (Kind.COUNTER, Kind.HISTOGRAM)]


# --- formats


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
NATIVE = f"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,{PROMETHEUS_2}"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        ("text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.1", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (NATIVE, PROTOBUF),
        ("application/vnd.google.protobuf", TEXT),
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=x", TEXT),
        (";;;=,,", TEXT),
    ],
)
def test_the_format_is_the_one_that_is_liked_best(accept: str, chosen: Any) -> None:
    assert choose(accept) is chosen


@pytest.mark.parametrize(
    ("held", "text"),
    [(0.0, "0.0"), (1e-05, "1e-05"), (100000.0, "100000.0"), (1e6, "1e+06"), (1048576.0, "1.048576e+06"),
     (-2.5e7, "-2.5e+07"), (1e16, "1e+16"), (12, "12"), (float("inf"), "+Inf"), (float("nan"), "NaN")],
)  # fmt: skip
def test_numbers_are_written_as_go_writes_them(held: float, text: str) -> None:
    assert number(held) == text
