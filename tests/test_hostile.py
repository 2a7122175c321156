"""What a peer that can send valid messages grows in a collector: a little, and never what is run."""

import pickle
import sys
from typing import Any

import msgspec
import pytest

from kvxfer import CollectorConfig, KVConnectorStats
from kvxfer.aggregator import MAX_GROWING_BYTES, Aggregator
from kvxfer.buckets import LARGEST, SMALLEST
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.distribution import DistributionState
from kvxfer.factory import KVConnectorFactory
from kvxfer.sources import SOURCE_BYTES
from kvxfer.stats import MAX_CARRIED
from kvxfer.wire import Goodbye, Report, Source, encode, encode_payload

LABELS = {f"{n:200}": "y" * 200 for n in range(16)}


def source(name: str = "a", labels: dict[str, str] | None = None) -> bytes:
    return encode(Source(name, "host", 1, 0.0, labels or {}))


def report(seq: int, payload: Any = None, *, by: bytes | None = None, **changes: Any) -> bytes:
    stats = NixlConnectorStats()
    stats.record_transfer(0.5, 0.001, 1024, 2)
    packed = encode_payload(stats.to_packed() if payload is None else payload)
    made = Report(1, by or source(), "NixlConnector", seq, 100.0, 101.0, packed)
    return encode(msgspec.structs.replace(made, **changes))


def aggregator(**config: Any) -> Aggregator:
    return Aggregator(CollectorConfig(interval_seconds=10.0, **config), 100.0)


def num_transfers(made: Aggregator) -> int:
    groups = made.snapshot(106.0).groups
    return sum(group.stats.reduce()["Num successful transfers"] for group in groups if "Nixl" in group.connector)


def test_sources_with_long_labels_take_the_room_of_many() -> None:
    made = aggregator(max_sources=64)
    for number in range(64):
        made.feed(report(1, by=source(f"s{number}", LABELS)), 101.0)
    known = sum(map(len, made.sources.by_bytes))
    assert known <= 64 * SOURCE_BYTES < known + len(source("s0", LABELS))
    assert made.pipeline(102.0).reports_rejected == {"too_many_sources": 64 - len(made.sources)}
    for encoded in list(made.sources.by_bytes):
        made.feed(encode(Goodbye(1, encoded, 1)), 103.0)
    assert made.feed(report(1, by=source("later", LABELS)), 104.0)


def test_goodbyes_of_thousands_of_sources_leave_nothing_behind_but_the_last() -> None:
    made = aggregator(max_sources=4)
    for number in range(1000):
        made.feed(encode(Goodbye(1, source(f"s{number}"), 0)), 101.0)
    assert len(made.sources) == 4
    assert made.sources.evicted == []


def test_a_source_that_takes_the_id_of_another_is_refused_and_changes_nothing_of_it() -> None:
    made = aggregator()
    made.feed(report(1), 101.0)
    thief = source("a", {"engine": "stolen"})
    for frame in (report(2, by=thief), encode(Goodbye(1, thief, 7)), report(3, by=thief)):
        assert not made.feed(frame, 102.0)
    assert made.pipeline(103.0).reports_rejected == {"implausible": 3}
    assert made.sources.drain_acks() == [("a", 1)]
    assert made.feed(report(2), 104.0)
    assert (num_transfers(made), made.pipeline(105.0).reports_lost) == (2, 0)


def test_two_values_far_apart_take_no_more_room_than_values_that_were_kept() -> None:
    wide = DistributionState()
    wide.load([5e-324, SMALLEST, LARGEST, sys.float_info.max] * 1000)
    wide.load([1.0] * 100)
    names = ("transfer_duration", *(f"field-{number}" for number in range(100)))
    made = aggregator()
    made.feed(report(1, dict.fromkeys(names, wide.to_packed())), 101.0)
    (group,) = made.snapshot(102.0).groups
    fields = [state for state in group.stats.data.values() if isinstance(state, DistributionState)]
    assert len(fields) <= MAX_CARRIED + 1
    assert all(state._histogram.counts.nbytes <= 37_000 for state in fields)


class ListConnector:
    """A connector of somebody else, whose stats are lists."""

    @classmethod
    def build_kv_connector_stats(cls, data: Any = None) -> KVConnectorStats:
        return ListStats(data or {"values": []})


class ListStats(KVConnectorStats):
    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        self.data["values"] += other.data["values"]
        return self

    def is_empty(self) -> bool:
        return not self.data["values"]


def test_stats_that_only_grow_are_refused_when_an_interval_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KVConnectorFactory._loaders, "ListConnector", lambda: ListConnector)
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})
    payload = {"values": ["x" * 1_000_000]}
    made = aggregator()
    room = MAX_GROWING_BYTES // 1_000_000
    for seq in range(1, room + 4):
        made.feed(report(seq, payload, connector="ListConnector"), 101.0)
    assert made.pipeline(102.0).reports_rejected == {"interval_full": 3}
    assert made.sources.drain_acks() == [("a", room + 3)]  # or it would be sent again for ever
    assert made.feed(report(room + 4), 103.0)
    made.close_interval(110.0)
    assert made.feed(report(room + 5, payload, connector="ListConnector"), 111.0)


@pytest.mark.parametrize(
    "name", ["os:system", "os.system", "colorsys", "this", "../colorsys", "colorsys:rgb_to_hsv", "__main__", "kvxfer"]
)
def test_a_name_that_a_peer_sends_imports_nothing(name: str) -> None:
    made = aggregator()
    made.feed(report(1, connector="Nobody"), 101.0)  # installed packages are asked for their connectors, once
    before = set(sys.modules)
    made.feed(report(1, connector=name), 101.0)
    made.feed(report(1, {name: {"values": [1.0]}}, connector="MultiConnector"), 101.0)
    assert set(sys.modules) - before <= {"kvxfer.connectors.multi"}
    assert made.pipeline(102.0).reports_rejected == {"unknown_connector": 3}
    assert len(made.sources) == 0


class Bomb:
    """Unpickled, it would say so."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import sys; sys.kvxfer_unpickled = True",))


def test_a_pickle_in_any_place_of_a_message_stays_bytes() -> None:
    pickled = pickle.dumps(Bomb())
    made = aggregator()
    for frame in (
        pickled,
        report(1, by=pickled),
        report(1, {"transfer_duration": pickled}),
        report(1, {"info": {"x": pickled}, "types": {}}, connector="OffloadingConnector", source=source("b")),
        report(1, {"data": {"x": {(): pickled}}, "types": {"x": "histogram"}}, connector="OffloadingConnector"),
    ):
        made.feed(frame, 101.0)
    made.close_interval(110.0)
    made.snapshot(111.0)
    assert not hasattr(sys, "kvxfer_unpickled")
