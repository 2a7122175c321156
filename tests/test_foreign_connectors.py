"""Connector classes of somebody else, written as vLLM's are: they work, and where they fail it costs nobody else."""

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import pytest
from list_stats import ListStats

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.mooncake import MooncakeConnectorStats
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.exporters.jsonl import JsonlExporter, read_records
from kvxfer.exporters.log import LogExporter
from kvxfer.factory import KVConnectorFactory
from kvxfer.wire import Report, Source, encode, encode_payload


class ListConnector:
    stats_class: ClassVar[type[KVConnectorStats]] = ListStats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        return cls.stats_class(data or {})


class BareConnector(ListConnector):
    """Its stats implement nothing of the contract."""

    stats_class = KVConnectorStats


@dataclass
class FailingRejectedStats(ListStats):
    def num_rejected(self) -> int:
        raise KeyError("rejected")


class FailingRejectedConnector(ListConnector):
    stats_class = FailingRejectedStats


@dataclass
class FailingCopyStats(ListStats):
    def copy(self) -> KVConnectorStats:
        raise TypeError("cannot pickle '_thread.lock' object")


class FailingCopyConnector(ListConnector):
    stats_class = FailingCopyStats


class TwoKindsConnector:
    """Its worker and its scheduler side give stats of different classes."""

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        return MooncakeConnectorStats(data) if data and "num_failed_recvs" in data else NixlConnectorStats(data)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    loaders: dict[str, Any] = dict(KVConnectorFactory._loaders)
    for connector in (ListConnector, BareConnector, FailingRejectedConnector, FailingCopyConnector, TwoKindsConnector):
        loaders[connector.__name__] = lambda connector=connector: connector
    monkeypatch.setattr(KVConnectorFactory, "_loaders", loaders)
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})


def report(seq: int, payload: dict[str, Any] | msgspec.Raw, connector: str, by: str) -> bytes:
    raw = payload if isinstance(payload, msgspec.Raw) else encode_payload(payload)
    return encode(Report(1, encode(Source(by, "host", 1, 0.0, {})), connector, seq, 0.0, 1.0, raw))


def good(seq: int) -> bytes:
    stats = NixlConnectorStats()
    stats.record_transfer(0.5, 0.001, 1024, 2)
    return report(seq, stats.to_packed(), "NixlConnector", "good")


def nested(depth: int) -> msgspec.Raw:
    """A payload of one field that holds a list in a list in a list."""
    return msgspec.Raw(b"\x81\xa1a\x91" + b"\x91" * depth + b"\xc0")


def num_good(interval: Any) -> int:
    found = [group for group in interval.groups if group.connector == "NixlConnector"]
    return sum(group.stats.reduce()["Num successful transfers"] for group in found)


def test_a_class_written_for_vllm_is_merged_over_sources_and_read() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    for by in ("a", "b"):
        for seq in (1, 2):
            made.feed(report(seq, {"durations": [1.5, 2.0]}, "ListConnector", by), 1.0)
    interval = made.close_interval(2.0)
    assert interval.groups[0].stats.reduce() == {"Sum of durations": 14.0}
    assert [view.stats.reduce() for view in interval.sources] == [{"Sum of durations": 7.0}] * 2


@pytest.mark.parametrize(
    ("connector", "payload"),
    [
        ("BareConnector", {"a": [1]}),
        ("FailingRejectedConnector", {"a": [1]}),
        ("FailingCopyConnector", {"a": [1]}),
        ("ListConnector", {"a": {"b": 1}}),
        ("ListConnector", nested(600)),
    ],
    ids=["implements nothing", "counting fails", "copying fails", "merging fails", "nested deep"],
)
@pytest.mark.parametrize("views", [1024, 0], ids=["viewed", "crowd"])
def test_a_class_that_fails_is_counted_and_the_other_connectors_go_on(
    connector: str, payload: dict[str, Any] | msgspec.Raw, views: int
) -> None:
    made = Aggregator(CollectorConfig(max_source_views=views), 0.0)
    made.feed(good(1), 1.0)
    for seq, by in ((1, "x"), (2, "x"), (1, "y")):
        made.feed(report(seq, payload, connector, by), 1.0)
    made.feed(good(2), 1.0)
    assert num_good(made.snapshot(1.5)) == 2
    assert num_good(made.close_interval(2.0)) == 2
    made.feed(good(3), 2.5)
    assert num_good(made.snapshot(3.0)) == 3
    rejected = made.pipeline(1.0).reports_rejected
    assert set(rejected) <= {"connector_failed", "undecodable"}
    assert sum(rejected.values()) >= 1


@pytest.mark.parametrize("views", [1024, 0], ids=["viewed", "crowd"])
def test_two_kinds_of_stats_under_one_name_are_not_mixed_and_cost_nobody_else_anything(views: int) -> None:
    made = Aggregator(CollectorConfig(max_source_views=views), 0.0)
    for frame in (
        report(1, {"num_failed_transfers": 1}, "TwoKindsConnector", "x"),
        good(1),
        report(2, {"num_failed_recvs": 1}, "TwoKindsConnector", "x"),
        report(1, {"num_failed_recvs": 1}, "TwoKindsConnector", "y"),
        report(3, {"num_failed_transfers": 1}, "TwoKindsConnector", "x"),
        good(2),
    ):
        made.feed(frame, 1.0)
    interval = made.close_interval(2.0)
    assert num_good(interval) == num_good(made.snapshot(3.0)) == 2
    mixed = [group.stats.reduce() for group in interval.groups if group.connector == "TwoKindsConnector"]
    assert [reduced["Num failed transfers"] for reduced in mixed] == [2]
    assert sum(made.pipeline(1.0).reports_rejected.values()) == 2


def test_a_group_that_cannot_be_reduced_costs_no_other_its_line_or_record(tmp_path: Any) -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    made.feed(report(1, {"a": ["three"]}, "ListConnector", "x"), 1.0)
    made.feed(good(1), 1.0)
    interval = made.close_interval(2.0)
    lines: list[str] = []
    jsonl = JsonlExporter(tmp_path / "intervals.jsonl")
    for exporter in (LogExporter(lines.append, per_rank=True), jsonl):
        with contextlib.suppress(TypeError):  # it may say so afterwards: the collector counts that
            exporter.export(interval)
    jsonl.close()
    assert sum("Num successful transfers=1" in line for line in lines) == 2
    (record,) = read_records(tmp_path / "intervals.jsonl")
    assert [group["reduced"]["Num successful transfers"] for group in record["groups"] if group["reduced"]] == [1]
