"""Names and labels of series, kvxfer's and vLLM's, whoever chose what they are made of."""

import functools
from typing import Any

import msgspec
import pytest
from captured import NAMES, PAYLOADS, expected
from exposing import (
    PageStats,
    measured,
    of_groups,
    of_stats,
    pages,
    protobuf_families,
    samples,
    transfers,
    value,
)

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.multi import MultiKVConnectorStats
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.exporters.prometheus import PROTOBUF, TEXT, Exposition, Options
from kvxfer.exporters.prometheus.families import MAX_FAMILIES, Families, Family, Kind
from kvxfer.exporters.prometheus.naming import MAX_VALUE, labels_of, snake
from kvxfer.factory import KVConnectorFactory
from kvxfer.fields import Counter, Distribution
from kvxfer.interval import Group
from kvxfer.wire import Report, Source, encode, encode_payload


@pytest.fixture(autouse=True)
def _page_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVConnectorFactory, "_loaders", dict(KVConnectorFactory._loaders))
    monkeypatch.setattr(KVConnectorFactory, "_classes", dict(KVConnectorFactory._classes))
    KVConnectorFactory.register_connector("PageStoreConnector", "exposing", "PageStoreConnector")


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


@pytest.mark.parametrize("names", ["kvxfer", "vllm"])
def test_what_all_connectors_tell_has_fixed_names_whosever_names_are_wanted(names: Any) -> None:
    nixl = transfers(1.0, 3.0)
    nixl.num_kv_expired_reqs.add(2)
    stats = MultiKVConnectorStats({"NixlConnector": nixl, "OffloadingConnector": OffloadingConnectorStats(OFFLOADING)})
    families = measured(of_stats(stats, "MultiConnector"), Options(names=names))
    of = {"parent": "MultiConnector"}
    assert value(families, "kvxfer_moved_bytes_total", **of) == 2 << 20
    assert value(families, "kvxfer_busy_seconds_total", **of) == 4.0
    assert value(families, "kvxfer_transfers_total", **of) == 2
    assert value(families, "kvxfer_transfer_seconds_sum", **of) == 4.0
    assert value(families, "kvxfer_transfer_seconds_bucket", **of, le="2.5") == 1
    assert value(families, "kvxfer_failures_total", **of, kind="num_kv_expired_reqs") == 2
    assert value(families, "kvxfer_failures_total", **of, kind="num_failed_handshakes") == 0
    assert value(families, "kvxfer_moved_bytes_total", "OffloadingConnector", **of) == 7
    series = {family.name: list(held) for family, held in families}
    assert len(series["kvxfer_transfers"]) == 1  # nobody knows the durations of offloading one by one


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


# --- names that workers choose


class NewerStats(NixlConnectorStats):
    """What a worker sends that is newer than the collector, or means harm."""

    moved_bytes = Distribution("By", "Named as what is made of other fields.")
    source_transfer_duration_seconds = Counter("{x}", "Named as a series of sources.")


def fed(*stats: NixlConnectorStats) -> Aggregator:
    """A collector that has the stats of one engine each."""
    made = Aggregator(CollectorConfig(), 0.0)
    for number, each in enumerate(stats):
        source = encode(Source(str(number), "h", number, 0.0, {"engine": f"e{number}"}))
        made.feed(encode(Report(1, source, "NixlConnector", 1, 0.0, 1.0, encode_payload(each.to_packed()))), 1.0)
    return made


def test_a_field_that_only_a_worker_knows_takes_no_series_from_the_pool() -> None:
    newer = NewerStats()
    newer.record_transfer(1.0, 0.5, 1 << 20, 4)
    newer.moved_bytes.observe(1.0)
    newer.source_transfer_duration_seconds.add(1)
    snapshot = fed(newer, transfers(2.0)).snapshot(2.0)
    families = Exposition(Options(sources=9)).families(snapshot)
    assert value(families, "kvxfer_nixl_moved_bytes_total", engine="e0") == 1 << 20
    assert value(families, "kvxfer_nixl_moved_bytes_total", engine="e1") == 1 << 20
    assert value(families, "kvxfer_nixl_carried_moved_bytes_count", engine="e0") == 1
    assert value(families, "kvxfer_nixl_carried_source_transfer_duration_seconds_total", engine="e0") == 1
    assert samples(families)["kvxfer_collector_series_left_out", frozenset()] == 0


def described(kind: str, name: str = "vllm:kv_offload_load_bytes") -> OffloadingConnectorStats:
    return OffloadingConnectorStats({"types": {name: kind}, "data": {name: {(): 7}}})


def test_a_name_that_one_worker_means_otherwise_is_that_of_the_others() -> None:
    kinds = ("gauge", "counter", "counter")
    groups = [Group("OffloadingConnector", {"engine": str(at)}, described(kind), 1) for at, kind in enumerate(kinds)]
    families = Exposition().families(of_groups(*groups))
    for engine in ("1", "2"):
        assert value(families, "kvxfer_offloading_load_bytes_total", "OffloadingConnector", engine=engine) == 7
    assert samples(families)["kvxfer_collector_series_left_out", frozenset()] == 1


def test_a_name_that_a_worker_chose_is_not_that_of_something_known() -> None:
    groups = [
        Group("OffloadingConnector", {"engine": "bad"}, described("gauge", "vllm:kv_offload_moved_bytes"), 1),
        Group("OffloadingConnector", {"engine": "good"}, described("counter"), 1),
    ]
    families = measured(of_groups(*groups))
    assert value(families, "kvxfer_offloading_moved_bytes_total", "OffloadingConnector", engine="good") == 7


@pytest.mark.parametrize("connector", ["SourceConnector", "Collector", "source_nixl"])
def test_no_connector_is_called_as_sources_or_the_pipeline(connector: str) -> None:
    families = measured(of_stats(transfers(1.0), connector))
    assert value(families, f"kvxfer_connector_{snake(connector)}_moved_bytes_total", connector) == 1 << 20
    assert not [family.name for family, _ in families if family.name.startswith(("kvxfer_source", "kvxfer_coll"))]


# --- labels


def test_groups_of_an_empty_label_and_of_none_are_added_up() -> None:
    groups = [Group("NixlConnector", labels, transfers(1.0), 2) for labels in ({}, {"engine": ""})]
    families = Exposition().families(of_groups(*groups))
    assert value(families, "kvxfer_nixl_moved_bytes_total") == 2 << 20
    assert value(families, "kvxfer_nixl_transfer_duration_seconds_count") == 2
    assert value(families, "kvxfer_nixl_ranks") == 4
    assert samples(families)["kvxfer_collector_series_left_out", frozenset()] == 0
    assert [group.stats.reduce()["Num successful transfers"] for group in groups] == [1, 1]


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
