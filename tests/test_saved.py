"""States and intervals as bytes: what is saved comes back equal, for every connector there is."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_stats import ListStats

from kvxfer.connectors.mooncake import MooncakeConnectorStats
from kvxfer.connectors.multi import MultiKVConnectorStats
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.connectors.shared_memory import SharedMemoryConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.errors import JournalError
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Group, Interval, Pipeline, SourceView
from kvxfer.saved import (
    at_once,
    decode_counts,
    decode_interval,
    decode_state,
    encode_payload,
    encoding_interval,
    load_stats,
    save_stats,
)
from kvxfer.wire import Source

PIPELINE = Pipeline(1, 2, 3, {"undecodable": 4}, 5, 6, 7, 8, {"live": 9, "silent": 10, "gone": 11})
SOURCE = Source("a", "host", 1, 2.5, {"engine": "e", "rank": "0"})


def encode_interval(written: Interval) -> bytes:
    return at_once(encoding_interval(written))


def nixl(count: int) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for number in range(count):
        stats.record_transfer(number / 1024, number / 4096, 1024 * number, 2)
    stats.record_failed_transfer()
    return stats


def offloading() -> OffloadingConnectorStats:
    name = OffloadingConnectorStats.prefix
    return OffloadingConnectorStats(
        {
            "types": {f"{name}_load_bytes": "counter", f"{name}_usage": "gauge", f"{name}_size": "histogram"},
            "data": {
                f"{name}_load_bytes": {("gpu", "cpu"): 3 << 40, ("cpu", "disk"): 7},
                f"{name}_usage": {(): 0.25},
                f"{name}_size": {("gpu",): [1.5, 2.5], ("cpu",): [float(number) for number in range(90)]},
            },
            "info": {"block_size": 16, "tiers": ["cpu", "disk"], "spec": {"name": "x"}},
            "rejected": 3,
        }
    )


def shared_memory() -> SharedMemoryConnectorStats:
    stats = SharedMemoryConnectorStats()
    stats.record_transfer(0.5, 4096, 3)
    return stats


def mooncake() -> MooncakeConnectorStats:
    return MooncakeConnectorStats({"transfer_duration": [0.5, 1.5], "bytes_transferred": [3, 4]})


STATS: dict[str, tuple[str, Callable[[], KVConnectorStats]]] = {
    "NIXL, exact": ("NixlConnector", lambda: nixl(50)),
    "NIXL, histograms": ("NixlConnector", lambda: nixl(5000)),
    "offloading with labels and facts": ("OffloadingConnector", offloading),
    "shared memory": ("SharedMemoryConnector", shared_memory),
    "Mooncake": ("MooncakeConnector", mooncake),
    "several": (
        "MultiConnector",
        lambda: MultiKVConnectorStats({"NixlConnector": nixl(5), "OffloadingConnector": offloading()}),
    ),
}


def interval(connector: str, stats: KVConnectorStats) -> Interval:
    groups = (Group(connector, {"engine": "e"}, stats, 2), Group(connector, {}, stats, 1))
    views = (SourceView(SOURCE, connector, stats, 1.25, 99.5, "silent"),)
    return Interval(10.0, 20.5, groups, views, PIPELINE, (SOURCE,))


@pytest.mark.parametrize("name", STATS)
def test_stats_without_loss_come_back_equal(name: str) -> None:
    connector, make = STATS[name]
    saved = save_stats(make())
    assert saved is not None
    loaded = load_stats(connector, saved)
    assert repr(loaded) == repr(make())
    assert loaded is not None
    assert loaded.reduce() == make().reduce()
    assert save_stats(loaded) == saved


values = st.sampled_from([-1.0, 0.0, 0.25, 3.0]) | st.floats(0)
times = st.sampled_from([1, 1, 2, 70, 4096])
rows = st.tuples(st.just(NixlConnectorStats.record_transfer.name), st.tuples(values, values, values, values), times)
lone = st.tuples(
    st.sampled_from([field.name for field in NixlConnectorStats.fields.values() if field.kind == "distribution"]),
    values,
    times,
)


def of_rows_and_lone_values(rows: list[Any], lone: list[Any], each: list[Any]) -> NixlConnectorStats:
    """Stats of rows, of values of one field each, and of as many values of each column."""
    stats = NixlConnectorStats()
    for name, row, times in rows:
        for _ in range(times):
            getattr(stats, name)(*row)
    for name, value, times in lone:
        for _ in range(times):
            stats.state(name).observe(value)
    for value in each:
        for column in stats.rows["record_transfer"].columns:
            stats.state(column.name).observe(value)
    return stats


@settings(deadline=None)
@given(st.lists(rows, max_size=3), st.lists(lone, max_size=3), st.lists(values, max_size=3))
def test_stats_of_rows_and_of_lone_values_come_back_equal(rows: list[Any], lone: list[Any], each: list[Any]) -> None:
    stats = of_rows_and_lone_values(rows, lone, each)
    for part in (stats.copy(), stats.drain()):
        saved = save_stats(part)
        assert saved is not None
        assert load_stats("NixlConnector", saved) == part


def test_columns_without_rates_are_saved_with_an_empty_list_of_them_and_all_else_as_it_is() -> None:
    assert len(nixl(2).to_dict()["transfer_rate"]) == 1
    lone = of_rows_and_lone_values([], [], [1.0])
    assert lone.to_dict()["transfer_rate"] == []
    assert "transfer_rate" not in lone.to_packed()
    assert NixlConnectorStats(lone.to_packed()) == lone
    uneven = of_rows_and_lone_values([], [("post_duration", 1.0, 1)], [1.0])
    assert "transfer_rate" not in uneven.to_dict()


def test_lists_without_rates_are_rows_that_have_some() -> None:
    payload = {name: values for name, values in nixl(3).to_dict().items() if name != "transfer_rate"}
    assert NixlConnectorStats(payload) == nixl(3)
    assert NixlConnectorStats(payload).data["transfer_rate"].count == 2


@pytest.mark.parametrize("name", [name for name in STATS if "histograms" not in name])
def test_an_interval_comes_back_equal(name: str) -> None:
    connector, make = STATS[name]
    written = interval(connector, make())
    found = decode_interval(encode_interval(written))
    assert msgspec.structs.replace(found, groups=(), sources=()) == msgspec.structs.replace(
        written, groups=(), sources=()
    )
    assert [(group.labels, group.num_ranks) for group in found.groups] == [({"engine": "e"}, 2), ({}, 1)]
    (view,) = found.sources
    assert msgspec.structs.replace(view, stats=None) == msgspec.structs.replace(written.sources[0], stats=None)
    for stats in (*(group.stats for group in found.groups), view.stats):
        assert type(stats) is type(make())
        assert stats.to_dict() == make().to_dict()


def test_of_many_values_an_interval_keeps_count_sum_and_extremes_and_quantiles_within_a_bucket() -> None:
    found = decode_interval(encode_interval(interval("NixlConnector", nixl(3000)))).groups[0].stats
    assert found.summary().keys() == nixl(3000).summary().keys()
    for field, expected in nixl(3000).summary().items():
        if isinstance(expected, dict):
            exact = {key: expected[key] for key in ("count", "sum", "min", "max")}
            assert {key: found.summary()[field][key] for key in exact} == exact
            assert found.summary()[field] == pytest.approx(expected, rel=0.011)
        else:
            assert found.summary()[field] == expected


def test_of_a_connector_that_is_not_registered_here_an_interval_keeps_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = interval("NixlConnector", nixl(3))
    encoded = encode_interval(written)
    monkeypatch.setattr(KVConnectorFactory, "_loaders", {})
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})
    assert decode_interval(encoded) == msgspec.structs.replace(written, groups=(), sources=())


def test_the_bytes_that_a_large_pool_moved_in_a_month_come_back() -> None:
    name = f"{OffloadingConnectorStats.prefix}_load_bytes"
    moved = 100 * 10**9 * 86_400 * 30
    total = OffloadingConnectorStats()
    for _ in range(30):
        day = {"types": {name: "counter"}, "data": {name: {(): moved // 30}}, "rejected": (1 << 53) - 1}
        total.aggregate(OffloadingConnectorStats(day))
    saved = save_stats(total)
    assert saved is not None
    loaded = load_stats("OffloadingConnector", saved)
    assert loaded is not None
    assert loaded.reduce() == {name: moved}


class Unwilling(ListStats):
    """Stats of somebody else that cannot be written."""

    def to_dict(self) -> dict[str, Any]:
        raise ZeroDivisionError


@pytest.mark.parametrize("stats", [Unwilling({"a": [1]}), ListStats({"a": [object()]}), ListStats({"a": [1 << 70]})])
def test_stats_that_cannot_be_written_cost_the_others_nothing(stats: KVConnectorStats) -> None:
    assert save_stats(stats) is None
    good = interval("NixlConnector", nixl(3))
    mixed = msgspec.structs.replace(good, groups=(Group("Other", {}, stats, 1), *good.groups))
    assert len(decode_interval(encode_interval(mixed)).groups) == 2


def test_stats_of_a_connector_that_is_not_there_or_reads_something_else_are_none() -> None:
    assert load_stats("TelepathyConnector", encode_payload({})) is None
    assert load_stats("NixlConnector", encode_payload({"transfer_duration": "long"})) is None
    assert load_stats("NixlConnector", msgspec.Raw(b"\xc1")) is None


@pytest.mark.parametrize("decode", [decode_state, decode_counts, decode_interval])
@pytest.mark.parametrize("saved", [b"", b"\xc1", b"\x90", b"\x93\x01\x02\x03", b"\xff" * 100, b"\x91" * 100_000])
def test_bytes_that_are_nothing_saved_are_a_journal_error(decode: Callable[[bytes], object], saved: bytes) -> None:
    with pytest.raises(JournalError, match="cannot be read"):
        decode(saved)


def test_what_a_newer_version_appended_is_passed_over() -> None:
    encoded = encode_interval(interval("NixlConnector", nixl(3)))
    fields = msgspec.msgpack.decode(encoded, type=list[msgspec.Raw])
    newer = msgspec.msgpack.encode([*fields, "more"])
    assert decode_interval(newer).pipeline == PIPELINE
