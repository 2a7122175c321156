"""Connectors whose classes are not here: read by the form of their payloads, marked, bounded, and only if named."""

import tracemalloc
from typing import Any

import pytest
from exposing import measured, of_stats, samples

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig, KVTransferConfig
from kvxfer.connectors.described import MAX_METRICS
from kvxfer.connectors.generic import MARK, MAX_DEPTH
from kvxfer.contract import KVConnectorStats
from kvxfer.copying import copy_of
from kvxfer.errors import ConfigError, UnknownConnectorError
from kvxfer.exporters.jsonl import as_record
from kvxfer.factory import KVConnectorFactory
from kvxfer.reporting import KVConnectorLogging, group_line
from kvxfer.saved import at_once, decode_interval_and_rest, encoding_interval
from kvxfer.wire import Report, Source, encode, encode_payload

PRIVATE: dict[str, Any] = {
    "fetch_seconds": [0.5, 0.25],
    "num_hits": 3,
    "tiers": {"cpu": {"bytes": [100, 300]}, "disk": {"num_reads": 2}},
    "calls": [{"took": 0.125, "status": "ok"}, {"took": 0.375, "status": "error"}],
    "by_rank": {("0",): 4, ("1",): 5},
    "engine": "flex 1.2",
    "is_remote": True,
    "nothing": None,
    "num_misses": 0,
    "no_seconds": [],
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVConnectorFactory, "_loaders", dict(KVConnectorFactory._loaders))
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})


def build(payload: Any, name: str = "FlexKVConnectorV1") -> Any:
    return KVConnectorFactory.get_connector_class_by_name(name).build_kv_connector_stats(payload)


def report(seq: int, payload: Any, connector: str = "PrivateConnector") -> bytes:
    source = encode(Source("s", "host", 1, 0.0, {}))
    return encode(Report(1, source, connector, seq, 0.0, 1.0, encode_payload(payload)))


# --- what is read


def test_lists_are_distributions_numbers_counters_and_objects_part_of_the_name() -> None:
    stats = build(PRIVATE).aggregate(build(PRIVATE))
    reduced = stats.reduce()
    expected = {
        "num_hits": 6,
        "fetch_seconds_count": 4,
        "fetch_seconds_mean": 0.375,
        "tiers.cpu.bytes_count": 4,
        "tiers.cpu.bytes_p50": 200.0,
        "tiers.disk.num_reads": 4,
        "calls.took_mean": 0.25,
        "calls.status:('ok',)": 2,
        "by_rank:('1',)": 10,
    }
    assert {key: reduced[key] for key in expected} == expected
    assert not {key for key in reduced if "nothing" in key or "num_misses" in key or "no_seconds" in key}
    assert stats.to_dict()["info"] == {"engine": "flex 1.2", "is_remote": True}
    assert stats.num_rejected() == 0


def test_nothing_is_empty() -> None:
    for payload in (None, {}, {"durations": [], "num_failed": 0, "tier": {"bytes": []}}):
        assert build(payload).is_empty()
        assert build(payload).reduce() == {}


def test_a_payload_that_describes_itself_is_taken_at_its_word() -> None:
    described = {"types": {"usage": "gauge", "hits": "counter"}, "data": {"usage": {(): 0.5}, "hits": {("cpu",): 2}}}
    stats = build(described).aggregate(build(described))
    assert stats.reduce() == {MARK: 1, "usage": 0.5, "hits:('cpu',)": 4}


def test_a_name_that_means_two_things_is_refused_where_it_means_the_second() -> None:
    stats = build({"loads": 3}).aggregate(build({"loads": [1.0]}))
    assert stats.reduce()["loads"] == 3
    assert stats.num_rejected() == 1


# --- the mark


def test_the_line_the_record_and_the_series_say_that_a_connector_is_generic() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    made.feed(report(1, PRIVATE, "LMCacheMPConnector"), 1.0)
    interval = made.close_interval(2.0)
    assert group_line(interval.groups[0], 1.0).startswith("KV Transfer metrics: Generic stats=1, fetch_seconds_count=2")
    (group,) = as_record(interval)["groups"]
    assert group["reduced"][MARK] == 1
    assert group["fields"]["num_hits"] == 3
    read = samples(measured(of_stats(interval.groups[0].stats, "LMCacheMPConnector")))
    labels = frozenset({("connector", "LMCacheMPConnector")})
    assert read["kvxfer_lm_cache_mp_num_hits_total", labels] == 3
    assert read["kvxfer_lm_cache_mp_fetch_seconds_count", labels] == 2


def test_a_time_whose_unit_nobody_told_is_not_called_seconds() -> None:
    read = samples(measured(of_stats(build({"load_time": 250}), "FlexKVConnectorV1")))
    assert {name for name, _ in read if "load_time" in name} == {"kvxfer_flex_kv_connector_v1_load_time_total"}


def test_a_child_of_a_multi_connector_is_marked_and_the_others_are_not() -> None:
    multi = build({"FlexKVConnectorV1": PRIVATE, "NixlConnector": {"num_failed_transfers": [1]}}, "MultiConnector")
    reduced = multi.reduce()
    assert MARK in reduced["FlexKVConnectorV1"]
    assert MARK not in reduced["NixlConnector"]


def test_a_front_end_logs_it() -> None:
    lines: list[str] = []
    front_end = KVConnectorLogging(KVTransferConfig(kv_connector="FlexKVConnectorV1", kv_role="kv_both"))
    front_end.observe({"num_hits": 3})
    front_end.observe({"num_hits": 4})
    front_end.log(lines.append)
    assert lines == ["KV Transfer metrics: Generic stats=1, num_hits=7"]


# --- only where it is named


def test_an_unknown_connector_is_kept_by_its_publisher_until_it_is_registered_as_generic() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    assert not made.feed(report(1, PRIVATE), 1.0)
    assert made.pipeline(1.0).reports_rejected == {"unknown_connector": 1}
    assert made.sources.drain_acks() == []
    KVConnectorFactory.register_generic("PrivateConnector")
    assert made.feed(report(1, PRIVATE), 2.0)
    assert made.sources.drain_acks() == [("s", 1)]
    assert made.close_interval(3.0).groups[0].stats.reduce()["num_hits"] == 3


def test_a_name_in_use_cannot_be_made_generic() -> None:
    for name in ("NixlConnector", "FlexKVConnectorV1"):
        with pytest.raises(ConfigError, match=f"Connector '{name}' is already registered"):
            KVConnectorFactory.register_generic(name)


def test_generic_connectors_are_classes_of_their_own_name() -> None:
    KVConnectorFactory.register_generic("PrivateConnector")
    found: Any = KVConnectorFactory.get_connector_class_by_name("PrivateConnector")
    assert found.__name__ == "PrivateConnector"
    assert found is KVConnectorFactory.get_connector_class_by_name("PrivateConnector")


# --- kept


def test_a_journal_of_a_connector_that_is_not_registered_here_is_read_and_a_report_is_not() -> None:
    writer = Aggregator(CollectorConfig(), 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVConnectorFactory, "_loaders", dict(KVConnectorFactory._loaders))
        patch.setattr(KVConnectorFactory, "_classes", {})
        KVConnectorFactory.register_generic("PrivateConnector")
        writer.feed(report(1, PRIVATE), 1.0)
        saved, closed = writer.save(), at_once(encoding_interval(writer.close_interval(2.0)))
    assert not KVConnectorFactory.is_registered("PrivateConnector")
    interval, unread = decode_interval_and_rest(closed)
    assert unread == set()
    assert interval.groups[0].stats.reduce()["num_hits"] == 3
    reader = Aggregator(CollectorConfig(), 0.0)
    reader.restore(saved)
    assert reader.snapshot(3.0).groups[0].stats.reduce()["num_hits"] == 3
    with pytest.raises(UnknownConnectorError):
        build(PRIVATE, "PrivateConnector")
    marked = {"types": {}, "data": {}, "generic": True}
    assert not reader.feed(report(2, marked), 3.0)
    assert reader.pipeline(3.0).reports_rejected == {"unknown_connector": 1}


# --- hostile


@pytest.mark.parametrize(
    ("payload", "rejected"),
    [
        ({"x": b"\x80"}, 1),
        ({"x": [1.0, None, [2.0], b"x", True]}, 4),
        ({"x": [float("nan"), -1.0, 2.0]}, 2),
        ({"x": -3}, 1),
        ({"x": {("a",): 1, ("a", "b"): 1}}, 1),
        ({"x" * 201: 1}, 1),
        ({"x": "y" * 5000}, 1),
    ],
)
def test_what_fits_nothing_is_counted(payload: dict[str, Any], rejected: int) -> None:
    assert build(payload).num_rejected() == rejected


def test_objects_within_objects_end_somewhere() -> None:
    payload: Any = 1
    for _ in range(500):
        payload = {"a": payload}
    assert build(payload).num_rejected() == 1
    payload = 1
    for _ in range(MAX_DEPTH):
        payload = {"a": payload}
    assert build(payload).reduce() == {MARK: 1, ".".join("a" * MAX_DEPTH): 1}


def test_names_cannot_fill_the_memory() -> None:
    stats = build({f"n{number}": 1 for number in range(1000)})
    assert len(stats.data["data"]) == MAX_METRICS
    assert stats.num_rejected() == 1000 - MAX_METRICS
    for number in range(1000):
        stats.aggregate(build({f"m{number}": 1, "words": [f"word-{number}"]}))
    assert len(stats.data["data"]) == MAX_METRICS
    assert isinstance(stats, KVConnectorStats)


def test_values_cannot_fill_the_memory() -> None:
    tracemalloc.start()
    stats = build({})
    for _ in range(50):
        stats.aggregate(build({f"n{number}": [float(each) for each in range(200)] for number in range(100)}))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4 << 20
    assert stats.is_bounded()


# --- in a worker


class Foreign:
    """Stats of a private connector, of a class that kvxfer knows nothing of."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data


@pytest.mark.parametrize("given", [PRIVATE, Foreign(PRIVATE)], ids=["payload", "object"])
def test_a_worker_reads_what_it_has_no_class_for_by_its_form(given: Any) -> None:
    copied = copy_of(given, "PrivateConnector")
    assert copied is not None
    assert copied.reduce() == build(PRIVATE).reduce()
    KVConnectorFactory.register_generic("PrivateConnector")
    made = Aggregator(CollectorConfig(), 0.0)
    made.feed(report(1, copied.to_packed()), 1.0)
    assert made.close_interval(2.0).groups[0].stats.reduce() == copied.reduce()


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_private_child_costs_the_others_of_a_worker_nothing(*, wrapped: bool) -> None:
    children = {"NixlConnector": {"num_failed_transfers": [1]}, "PrivateConnector": PRIVATE, "PrivateConnector#2": {}}
    payload = {child: {"data": each} for child, each in children.items()} if wrapped else children
    copied = copy_of(payload, "MultiConnector")
    assert copied is not None
    assert copied.reduce()["NixlConnector"]["Num failed transfers"] == 1
    assert copied.reduce()["PrivateConnector"] == build(PRIVATE).reduce()
    made = Aggregator(CollectorConfig(), 0.0)
    assert not made.feed(report(1, copied.to_packed(), "MultiConnector"), 1.0)
    KVConnectorFactory.register_generic("PrivateConnector")
    assert made.feed(report(1, copied.to_packed(), "MultiConnector"), 1.0)
