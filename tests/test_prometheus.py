"""Totals as series: their names and text as a person writes them, and what nobody may be able to break."""

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from captured import NAMES, PAYLOADS, expected
from exposing import measured, of_groups, of_stats, protobuf_families, samples
from list_stats import ListStats

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.base import Connector
from kvxfer.connectors.hisparse import HiSparseConnectorStats
from kvxfer.connectors.multi import MultiKVConnectorStats
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.exporters.prometheus import OPENMETRICS, PROTOBUF, TEXT, Exposition, Options, choose
from kvxfer.exporters.prometheus.families import MAX_FAMILIES, Families, Family, Kind
from kvxfer.exporters.prometheus.naming import MAX_VALUE, labels_of, snake
from kvxfer.exporters.prometheus.text import number
from kvxfer.exporting import ExporterHealth, Health
from kvxfer.factory import KVConnectorFactory
from kvxfer.fields import Counter, Distribution, Gauge
from kvxfer.interval import Group, SourceView
from kvxfer.stats import TransferStats
from kvxfer.wire import Report, Source, encode, encode_payload


class PageStats(TransferStats):
    """Fetches of pages."""

    hit_part = Distribution("1", "Part of a fetch that was\nthere.")
    num_misses = Counter("{page}", 'Pages "missed".')
    num_errors = Counter("{error}", "Errors by cause.", labels=("cause",))
    pool_usage = Gauge("1", "Part of the pool in use.", merge="max")


class PageStoreConnector(Connector):
    """Their connector."""

    stats_class = PageStats


@pytest.fixture(autouse=True)
def _page_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVConnectorFactory, "_loaders", dict(KVConnectorFactory._loaders))
    monkeypatch.setattr(KVConnectorFactory, "_classes", dict(KVConnectorFactory._classes))
    KVConnectorFactory.register_connector("PageStoreConnector", __name__, "PageStoreConnector")


def pages() -> PageStats:
    stats = PageStats()
    for part in (0.0, 0.25, 0.2, 1.0):
        stats.hit_part.observe(part)
    stats.num_misses.add(2)
    stats.num_errors.labels('a "b"\n\\').add(1)
    stats.pool_usage.set(0.5)
    return stats


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
# HELP kvxfer_page_store_pool_usage_ratio Part of the pool in use.
# TYPE kvxfer_page_store_pool_usage_ratio gauge
kvxfer_page_store_pool_usage_ratio{{{LABELS}}} 0.5
# HELP kvxfer_page_store_rejected_observations_total Refused: not finite, negative or no number.
# TYPE kvxfer_page_store_rejected_observations_total counter
kvxfer_page_store_rejected_observations_total{{{LABELS}}} 0
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
# HELP kvxfer_page_store_pool_usage_ratio Part of the pool in use.
# TYPE kvxfer_page_store_pool_usage_ratio gauge
# UNIT kvxfer_page_store_pool_usage_ratio ratio
kvxfer_page_store_pool_usage_ratio{{{LABELS}}} 0.5
# HELP kvxfer_page_store_rejected_observations Refused: not finite, negative or no number.
# TYPE kvxfer_page_store_rejected_observations counter
kvxfer_page_store_rejected_observations_total{{{LABELS}}} 0
# EOF
"""


def test_the_text_is_as_it_is_written_by_hand() -> None:
    families = measured(of_stats(pages(), "PageStoreConnector", {"engine": "e"}))
    assert TEXT.write(families).decode() == TEXT_GOLDEN
    assert OPENMETRICS.write(families).decode() == OPENMETRICS_GOLDEN
    assert samples(families)["kvxfer_page_store_hit_part_ratio_sum", frozenset(label_pairs(engine="e"))] == 1.45


def label_pairs(connector: str = "PageStoreConnector", **more: str) -> Any:
    return {"connector": connector, **more}.items()


def value(families: list[Any], name: str, connector: str = "NixlConnector", **labels: str) -> float:
    return samples(families)[name, frozenset(label_pairs(connector, **labels))]


def transfers(*durations: float) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for duration in durations:
        stats.record_transfer(duration, duration / 2, 1 << 20, 4)
    return stats


# --- names


@pytest.mark.parametrize(
    ("connector", "name"),
    [
        ("NixlConnector", "nixl"),
        ("SharedMemoryConnector", "shared_memory"),
        ("SimpleCPUOffloadConnector", "simple_cpu_offload"),
        ("HF3FSKVConnector", "hf3fskv"),
        ("LMCacheConnectorV1", "lm_cache_connector_v1"),
        ("Connector", "connector"),
        ("a b-c", "a_b_c"),
        ("\n", "_"),
    ],
)
def test_a_connector_is_named_in_snake_case(connector: str, name: str) -> None:
    assert snake(connector) == name


def test_connectors_of_one_class_share_its_names_and_are_told_apart_by_a_label() -> None:
    groups = [Group(name, {}, transfers(1.0), 1) for name in ("NixlConnector", "NixlPullConnector")]
    found = samples(measured(of_groups(*groups)))
    by_connector = {dict(labels)["connector"]: count for (name, labels), count in found.items() if "busy" in name}
    assert by_connector == {"NixlConnector": 1.0, "NixlPullConnector": 1.0}


def test_children_of_a_multi_connector_have_their_own_names_and_their_parent_as_a_label() -> None:
    stats = MultiKVConnectorStats({"NixlPullConnector": transfers(1.0, 2.0), "PageStoreConnector": pages()})
    families = measured(of_stats(stats, "MultiConnector", {"engine": "e"}))
    labels = {"parent": "MultiConnector", "engine": "e"}
    assert value(families, "kvxfer_nixl_transfer_duration_seconds_count", "NixlPullConnector", **labels) == 2
    assert value(families, "kvxfer_page_store_num_misses_total", "PageStoreConnector", **labels) == 2


def test_children_of_one_class_share_their_names_and_are_told_apart_by_a_label() -> None:
    stats = MultiKVConnectorStats({"NixlConnector": transfers(1.0), "NixlConnector#2": transfers(2.0)})
    families = measured(of_stats(stats, "MultiConnector"))
    for child, busy in (("NixlConnector", 1.0), ("NixlConnector#2", 2.0)):
        assert value(families, "kvxfer_nixl_busy_seconds_total", child, parent="MultiConnector") == busy


def test_everything_declared_is_there_at_zero_before_it_is_observed() -> None:
    families = measured(of_stats(NixlConnectorStats(), "NixlConnector"))
    names = {name for name, _ in samples(families)}
    counters = {
        f"kvxfer_nixl_{name}_total" for name, field in NixlConnectorStats.fields.items() if field.kind == "counter"
    }
    assert len(counters) == 5
    assert counters | {"kvxfer_nixl_transfer_duration_seconds_bucket", "kvxfer_nixl_moved_bytes_total"} <= names
    assert {count for (name, _), count in samples(families).items() if name != "kvxfer_nixl_ranks"} == {0.0}
    assert "kvxfer_page_store_pool_usage_ratio" not in TEXT.write(measured(of_stats(PageStats(), "x"))).decode().split()


def test_a_connector_whose_workers_have_observed_nothing_yet_is_there_too() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    source = encode(Source("s", "h", 1, 0.0, {"engine": "e"}))
    made.feed(encode(Report(1, source, "NixlConnector", 1, 0.0, 0.0, encode_payload({}))), 1.0)
    families = measured(made.snapshot(2.0, sources=False))
    assert value(families, "kvxfer_nixl_num_failed_transfers_total", engine="e") == 0


def test_wall_and_busy_throughput_are_quotients_of_two_counters() -> None:
    families = measured(of_stats(transfers(1.0, 3.0), "NixlConnector"))
    assert value(families, "kvxfer_nixl_moved_bytes_total") == 2 << 20
    assert value(families, "kvxfer_nixl_busy_seconds_total") == 4.0


# --- vLLM's names


def test_vllms_names_and_buckets_stand_where_it_has_some() -> None:
    families = measured(of_stats(transfers(0.02), "NixlConnector"), Options(names="vllm"))
    found = samples(families)
    names = {name for name, _ in found}
    assert {f"vllm:nixl_{name}" for name in VLLM_NIXL} <= names
    assert {"kvxfer_nixl_num_failed_handshakes_total", "kvxfer_nixl_moved_bytes_total"} <= names
    assert "kvxfer_nixl_transfer_duration_seconds_count" not in names
    buckets = {dict(labels)["le"] for name, labels in found if name == "vllm:nixl_xfer_time_seconds_bucket"}
    assert buckets == {
        "0.005",
        "0.01",
        "0.025",
        "0.05",
        "0.075",
        "0.1",
        "0.2",
        "0.3",
        "0.5",
        "0.75",
        "1.0",
        "5.0",
        "+Inf",
    }
    ((_, native),) = protobuf_families(PROTOBUF.write(families))["vllm:nixl_post_time_seconds"][1]
    assert native.buckets == {}
    assert native.classic[0.025] == 1


@pytest.mark.parametrize(
    ("connector", "payload", "expected_names"),
    [
        (
            "MooncakeStoreConnector",
            {
                "save_put": [
                    {"duration_seconds": 0.5, "num_keys": 3, "num_bytes": 9, "status": "ok", "num_failed_keys": 1}
                ]
            },
            {
                'vllm:mooncake_store_operation_time_seconds_count{operation="save_put",status="ok"}': 1,
                'vllm:mooncake_store_operation_total{operation="save_put",status="ok"}': 1,
                'vllm:mooncake_store_operation_keys_total{operation="save_put",status="ok"}': 3,
                'vllm:mooncake_store_operation_bytes_total{operation="save_put",status="ok"}': 9,
                'vllm:mooncake_store_operation_failed_keys_total{operation="save_put",status="ok"}': 1,
            },
        ),
        (
            "HiSparseConnector",
            {"cache_hits": [3, 4], "host_cache_usage_perc": [0.5], "host_block_reuse_gap_seconds": [0.25]},
            {
                "vllm:hisparse_cache_hits_total": 7,
                "vllm:hisparse_host_cache_usage_perc": 0.5,
                "vllm:hisparse_host_block_reuse_gap_seconds_count": 1,
            },
        ),
        (
            "HF3FSKVConnector",
            {"save_duration": [0.5], "num_failed_load": 2, "num_transfer_task": 3},
            {"vllm:hf3fs_save_duration_seconds_count": 1, "vllm:hf3fs_num_failed_load_total": 2},
        ),
        (
            "UMBPStoreConnector",
            {"load": {"submitted": 3, "completed": 2, "failed": 1, "num_bytes": 64}},
            {
                'vllm:umbp_transfer_submitted_total{operation="load"}': 3,
                'vllm:umbp_transfer_bytes_total{operation="load"}': 64,
            },
        ),
        (
            "SimpleCPUOffloadConnector",
            {
                "types": {"vllm:simple_kv_offload_save_outcomes_total": "counter"},
                "data": {"vllm:simple_kv_offload_save_outcomes_total": {("stored",): 5}},
            },
            {'vllm:simple_kv_offload_save_outcomes_total{outcome="stored"}': 5},
        ),
    ],
)
def test_vllms_names_of_stores_and_host_memory(
    connector: str, payload: dict[str, Any], expected_names: dict[str, float]
) -> None:
    stats = KVConnectorFactory.get_connector_class_by_name(connector).build_kv_connector_stats(payload)
    assert stats is not None
    found = samples(measured(of_stats(stats, connector), Options(names="vllm")))
    by_text = {
        name + ("{" + ",".join(f'{key}="{text}"' for key, text in more) + "}" if more else ""): held
        for (name, labels), held in found.items()
        for more in [sorted(each for each in labels if each[0] != "connector")]
    }
    assert {name: by_text.get(name) for name in expected_names} == expected_names


def test_names_of_ours_for_part_of_one_say_ratio() -> None:
    stats = HiSparseConnectorStats({"host_cache_usage_perc": [0.5]})
    assert (
        value(
            measured(of_stats(stats, "HiSparseConnector")),
            "kvxfer_hi_sparse_host_cache_usage_ratio",
            "HiSparseConnector",
        )
        == 0.5
    )


VLLM_NIXL = (
    "xfer_time_seconds_count",
    "post_time_seconds_sum",
    "bytes_transferred_bucket",
    "num_descriptors_bucket",
    "num_failed_transfers_total",
    "num_failed_notifications_total",
    "num_kv_expired_reqs_total",
    "num_notifications_after_expiry_total",
)

OFFLOADING = {
    "types": {
        "vllm:kv_offload_store_bytes": "counter",
        "vllm:kv_offload_store_time": "counter",
        "vllm:kv_offload_store_size": "histogram",
        "vllm:kv_offload_cpu_cache_usage_perc": "gauge",
        "vllm:kv_offload_tier_hits": "counter",
        "kvxfer_nixl_ranks": "gauge",
    },
    "data": {
        "vllm:kv_offload_store_bytes": {(): 7},
        "vllm:kv_offload_store_time": {(): 0.5},
        "vllm:kv_offload_store_size": {(): [5_000_000, 3]},
        "vllm:kv_offload_cpu_cache_usage_perc": {(): 0.25},
        "vllm:kv_offload_tier_hits": {("disk",): 2},
        "kvxfer_nixl_ranks": {(): 99},
    },
    "info": {"vllm:kv_offload_config_info": {"tier": "cpu", "blocks": 4}},
}


def test_stats_that_describe_themselves_get_valid_names_in_base_units() -> None:
    families = measured(of_stats(OffloadingConnectorStats(OFFLOADING), "OffloadingConnector"))
    expected = {
        "store_bytes_total": 7,
        "store_time_seconds_total": 0.5,
        "store_size_bytes_count": 2,
        "cpu_cache_usage_ratio": 0.25,
        "kvxfer_nixl_ranks": 99,
        "moved_bytes_total": 7,
        "busy_seconds_total": 0.5,
    }
    for name, held in expected.items():
        assert value(families, f"kvxfer_offloading_{name}", "OffloadingConnector") == held
    assert value(families, "kvxfer_offloading_tier_hits_total", "OffloadingConnector", label_0="disk") == 2
    assert value(families, "kvxfer_offloading_config_info", "OffloadingConnector", tier="cpu", blocks="4") == 1


def test_in_vllms_names_nothing_that_a_worker_calls_ours_is_taken_for_ours() -> None:
    families = measured(of_stats(OffloadingConnectorStats(OFFLOADING), "OffloadingConnector"), Options(names="vllm"))
    names = {name for name, _ in samples(families)}
    assert {"vllm:kv_offload_store_bytes_total", "vllm:kv_offload_cpu_cache_usage_perc"} <= names
    assert "vllm:kv_offload_config_info" in names
    assert "kvxfer_nixl_ranks" not in names
    at_5e6 = {"le": "5e+06"}
    assert value(families, "vllm:kv_offload_store_size_bucket", "OffloadingConnector", **at_5e6) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("names", ["kvxfer", "vllm"])
def test_real_payloads_are_exposed_whole(name: str, names: Any) -> None:
    connector = expected(name)["connector"]
    build = KVConnectorFactory.get_connector_class_by_name(connector).build_kv_connector_stats
    parts = [build(each) for each in msgspec.msgpack.decode((PAYLOADS / f"{name}.msgpack").read_bytes())]
    total = functools.reduce(lambda one, other: one.aggregate(other), parts)
    exposition = Exposition(Options(names=names))
    families = exposition.families(of_stats(total, connector))
    assert samples([each for each in families if each[0].name.startswith(("kvxfer_", "vllm:"))])
    left_out = {family.name: series for family, series in families}["kvxfer_collector_series_left_out"]
    assert left_out == {(): 0}


# --- labels


def test_labels_of_any_name_and_value_arrive_and_stay_apart() -> None:
    hostile = {
        "le": "1",
        "__name__": "x",
        "0": "digit",
        "a-b": "one",
        "a_b": "two",
        "connector": "mine",
        "": "empty name",
        "text": 'quote " backslash \\ newline \n tab \t and é',
        "none": "",
    }
    labels = dict(labels_of({"connector": "NixlConnector"}, hostile))
    assert len(labels) == len(hostile)  # the empty value is none, the connector's name is ours
    families = measured(of_stats(transfers(1.0), "NixlConnector", hostile))
    assert (
        value(families, "kvxfer_nixl_ranks", **{key: held for key, held in labels.items() if key != "connector"}) == 1
    )
    assert labels["label_connector"] == "mine"
    ((arrived, _),) = protobuf_families(PROTOBUF.write(families))["kvxfer_nixl_ranks"][1]
    assert arrived == labels


def test_long_values_end_with_a_hash_so_that_no_two_become_one() -> None:
    one, other = (dict(labels_of({}, {"engine": "e" * 5000 + end}))["engine"] for end in "ab")
    assert one != other
    assert len(one) == len(other) == MAX_VALUE


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert samples(measured(of_stats(transfers(1.0), "NixlConnector", {"engine": "\ud800"})))


def test_no_two_families_share_the_name_of_a_sample() -> None:
    families = Families()
    families.add(Family("a", Kind.HISTOGRAM, "", boundaries=(1.0,)), (), 0)
    for name, kind in (("a_count", Kind.GAUGE), ("a", Kind.COUNTER), ("a_bucket", Kind.SUMMARY)):
        families.add(Family(name, kind, ""), (), 1)
    families.add(Family("a", Kind.HISTOGRAM, "", boundaries=(1.0,)), (), 2)
    assert repr(families) == "<Families 1 lines=4 refused=4>"


def test_names_that_workers_make_up_are_bounded() -> None:
    families = Families()
    for index in range(MAX_FAMILIES + 5):
        families.add(Family(f"n{index}", Kind.GAUGE, ""), (), 1)
    assert families.num_refused == 5


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


# --- the pipeline


def test_the_pipeline_tells_of_itself_with_every_cause_at_zero() -> None:
    health = Health(0.1, True, False, 3, 0.25, (ExporterHealth("LogExporter", 3, 0.5, 1),))
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
    key = "kvxfer_nixl_source_transfer_duration_seconds_sum", frozenset(label_pairs("NixlConnector", **labels))
    assert found[key] == 3.0
    assert {dict(of)["rank"] for name, of in found if name == "kvxfer_source_live"} == {"0", "2"}
    assert found["kvxfer_collector_sources_without_series", frozenset()] == 1  # three live or silent
    assert not any(name.startswith("kvxfer_nixl_transfer_duration") for name, _ in found)


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
