"""The connectors' stats as vLLM's: keys, units, rounding, merging, and what the engine does with them."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvxfer.connectors.described import MAX_FACT_BYTES, MAX_HISTOGRAM_SETS, MAX_HISTOGRAMS, MAX_METRICS
from kvxfer.connectors.mooncake import MooncakeConnectorStats
from kvxfer.connectors.multi import (
    MAX_CHILDREN,
    MultiConnector,
    MultiKVConnectorStats,
    connector_of_child,
    names_of_children,
)
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.connectors.offloading import OffloadingConnector, OffloadingConnectorStats
from kvxfer.connectors.shared_memory import SharedMemoryConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.errors import StatsError, UnknownConnectorError
from kvxfer.factory import KVConnectorFactory
from kvxfer.labelled import MAX_LABEL_SETS
from kvxfer.states import MAX_LABEL

MIB = 2**20
OFFLOADED: dict[str, Any] = {
    "types": {"vllm:kv_offload_load_bytes": "counter", "usage": "gauge", "vllm:kv_offload_load_size": "histogram"},
    "data": {
        "vllm:kv_offload_load_bytes": {(): 100},
        "usage": {(): 0.5},
        "vllm:kv_offload_load_size": {("cpu",): [3, 4], ("disk",): [5]},
    },
}

ROW = {"duration_seconds": 0.5, "num_keys": 3, "num_bytes": MIB, "status": "ok", "num_failed_keys": 0}
PAYLOADS: dict[str, dict[str, Any]] = {
    "OffloadingConnector": OFFLOADED,
    "SimpleCPUOffloadConnector": OFFLOADED,
    "MooncakeStoreConnector": {"save_put": [ROW, ROW | {"status": "error", "num_failed_keys": 1}], "load_get": [ROW]},
    "HiSparseConnector": {
        "cache_hits": [3, 4],
        "cache_misses": [1, 1],
        "host_to_device_bytes": [MIB, MIB],
        "host_cache_usage_perc": [0.5, 0.25],
        "pending_page_transfers": [7],
        "host_block_lifetime_seconds": [0.5],
    },
    "HF3FSKVConnector": {
        "save_duration": [0.5],
        "load_duration": [0.25, 0.75],
        "num_failed_save": 1,
        "num_failed_load": 0,
        "num_transfer_task": 4,
    },
    "UMBPStoreConnector": {"load": {"submitted": 3, "completed": 2, "failed": 1, "num_bytes": MIB}},
    "FlexKVConnectorV1": {"durations": [0.5, 0.25], "num_hits": 3, "tier": {"cpu": {"bytes": [MIB]}}, "name": "flex"},
}
"""As vLLM hands them over."""


def build(name: str, payload: Any = None) -> Any:
    return KVConnectorFactory.get_connector_class_by_name(name).build_kv_connector_stats(payload)


def nixl(*rows: tuple[float, float, int, int]) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for row in rows:
        stats.record_transfer(*row)
    return stats


def filled(name: str) -> Any:
    """Stats of a registered connector that hold something of everything."""
    stats = build(name)
    if isinstance(stats, MultiKVConnectorStats):
        return build(name, {"NixlPullConnector": filled("NixlConnector"), "OffloadingConnector": OFFLOADED})
    if name in PAYLOADS:
        return build(name, PAYLOADS[name])
    row = (0.5, 0.001, 3 * MIB, 4) if isinstance(stats, NixlConnectorStats) else (0.5, 3 * MIB, 4)
    stats.record_transfer(*row)
    stats.record_failed_transfer()
    return stats


NAMES = [
    "NixlConnector",
    "NixlPullConnector",
    "NixlPushConnector",
    "MooncakeConnector",
    "OffloadingConnector",
    "MultiConnector",
    "SharedMemoryConnector",
    *(name for name in PAYLOADS if name != "OffloadingConnector"),
]
SPOILT: dict[str, Callable[[float], Any]] = {
    **dict.fromkeys(
        ("OffloadingConnector", "SimpleCPUOffloadConnector"),
        lambda bad: {"types": {"usage": "gauge", "hits": "counter"}, "data": {"hits": {(): bad}, "usage": {}}},
    ),
    "MultiConnector": lambda bad: {"NixlPullConnector": {"num_failed_transfers": [bad]}},
    "MooncakeStoreConnector": lambda bad: {"save_put": [ROW | {"duration_seconds": bad}]},
    "HiSparseConnector": lambda bad: {"cache_hits": [bad]},
    "HF3FSKVConnector": lambda bad: {"save_duration": [bad]},
    "UMBPStoreConnector": lambda bad: {"load": {"failed": bad}},
    "FlexKVConnectorV1": lambda bad: {"durations": [bad]},
}
"""Payloads with one value that is none."""


# --- every connector


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nothing", [None, {}])
def test_stats_of_nothing_are_empty(name: str, nothing: Any) -> None:
    assert build(name, nothing).is_empty()


@pytest.mark.parametrize("name", NAMES)
def test_the_payload_builds_an_equal_object(name: str) -> None:
    stats = filled(name)
    assert not stats.is_empty()
    assert build(name, stats.to_dict()) == stats
    assert build(name, stats.to_packed()) == stats
    assert build(name, stats.to_dict()).reduce() == stats.reduce()


@pytest.mark.parametrize("name", NAMES)
def test_stats_survive_pickle_and_can_still_be_added_to(name: str) -> None:
    stats = filled(name)
    again = pickle.loads(pickle.dumps(stats))  # noqa: S301 - our own bytes
    assert again == stats
    assert again.aggregate(stats).reduce() == filled(name).aggregate(filled(name)).reduce()


@pytest.mark.parametrize("name", NAMES)
def test_merging_nothing_changes_nothing_and_merging_into_nothing_gives_all(name: str) -> None:
    assert filled(name).aggregate(build(name)) == filled(name)
    assert build(name).aggregate(filled(name)) == filled(name)


@pytest.mark.parametrize("name", NAMES)
def test_merging_returns_self_and_leaves_the_other_to_its_owner(name: str) -> None:
    stats, other = build(name), filled(name)
    assert stats.aggregate(other) is stats
    stats.aggregate(filled(name))
    assert other == filled(name)
    other.aggregate(filled(name))
    assert stats == filled(name).aggregate(filled(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_shares_nothing(name: str) -> None:
    stats = filled(name)
    copied = stats.copy()
    copied.aggregate(filled(name))
    stats.reset()
    assert stats.is_empty()
    assert copied == filled(name).aggregate(filled(name))


@pytest.mark.parametrize("name", NAMES)
def test_stats_of_another_connector_are_refused(name: str) -> None:
    class Other(KVConnectorStats):
        pass

    stats = filled(name)
    with pytest.raises(StatsError, match="cannot merge Other into"):
        stats.aggregate(Other())
    assert stats == filled(name)


@pytest.mark.parametrize("name", NAMES)
def test_reduced_values_are_plain_numbers_of_python(name: str) -> None:
    def leaves(value: Any) -> list[Any]:
        return [leaf for part in value.values() for leaf in leaves(part)] if isinstance(value, dict) else [value]

    assert {type(leaf) for leaf in leaves(filled(name).reduce())} <= {int, float}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_an_implausible_value_is_counted_and_mixed_into_nothing(name: str, bad: float) -> None:
    if name in SPOILT:
        spoilt = build(name, SPOILT[name](bad))
    else:
        spoilt = build(name)
        spoilt.record_transfer(*[bad] * len(spoilt.rows["record_transfer"].columns))
    merged = filled(name).aggregate(spoilt)
    assert merged.num_rejected() == 1
    wanted = filled(name).reduce() | ({"hits": 0} if "Offload" in name else {})
    assert merged.reduce() == wanted


# --- NIXL


def test_two_nixl_transfers_reduce_as_vllms() -> None:
    assert nixl((0.001, 0.0005, MIB, 4), (0.002, 0.0015, 2 * MIB, 6)).reduce() == {
        "Num successful transfers": 2,
        "Avg xfer time (ms)": 1.5,
        "P90 xfer time (ms)": 1.9,
        "Avg post time (ms)": 1.0,
        "P90 post time (ms)": 1.4,
        "Avg MB per transfer": 1.5,
        "Throughput (MB/s)": 1000.0,
        "Avg number of descriptors": 5.0,
        "Num failed transfers": 0,
        "Num KV expired reqs": 0,
        "Num notifs after expiry": 0,
    }


def test_three_ranks_merge_as_vllms() -> None:
    one = (1.0, 1.0, MIB, 1)
    ranks = [nixl(one, one), nixl(one), nixl(*[(2.0, 2.0, MIB, 2)] * 3)]
    reduced = ranks[0].aggregate(ranks[1]).aggregate(ranks[2]).reduce()
    assert reduced["Num successful transfers"] == 6
    assert (reduced["Avg xfer time (ms)"], reduced["Avg post time (ms)"]) == (1500.0, 1500.0)
    assert reduced["Avg number of descriptors"] == 1.5


def test_only_failures_are_not_empty_and_every_timing_is_zero() -> None:
    stats = NixlConnectorStats()
    stats.record_failed_transfer()
    stats.record_failed_transfer()
    stats.record_failed_notification()
    stats.record_failed_handshake()
    stats.record_kv_expired_req()
    stats.record_kv_expired_req()
    stats.record_notification_after_expiry()
    assert not stats.is_empty()
    reduced = stats.reduce()
    assert reduced.pop("Num failed transfers") == 4
    assert reduced.pop("Num KV expired reqs") == 2
    assert reduced.pop("Num notifs after expiry") == 1
    assert set(map(repr, reduced.values())) == {"0"}
    assert len(reduced) == 8


@pytest.mark.parametrize("name", ["NixlPullConnector", "NixlPushConnector"])
def test_both_directions_of_nixl_have_its_stats(name: str) -> None:
    assert type(build(name)) is NixlConnectorStats


def test_worker_and_scheduler_stats_of_one_step_merge() -> None:
    worker, scheduler = nixl((0.001, 0.0005, MIB, 4)), nixl((0.003, 0.0005, MIB, 4))
    scheduler.record_kv_expired_req()
    reduced = worker.aggregate(NixlConnectorStats(scheduler.to_dict())).reduce()
    assert (reduced["Num successful transfers"], reduced["Num KV expired reqs"]) == (2, 1)


def test_a_key_that_only_the_other_knows_is_carried_on() -> None:
    payload = nixl((0.001, 0.0005, MIB, 4)).to_dict() | {"num_new_failures": [1, 1], "new_duration": [0.5]}
    merged = nixl((0.001, 0.0005, MIB, 4)).aggregate(NixlConnectorStats(payload))
    assert merged.to_dict()["num_new_failures"] == [1, 1]
    assert merged.to_dict()["new_duration"] == [0.5]
    assert merged.reduce()["Num successful transfers"] == 2


def test_what_was_taken_keeps_its_data_and_the_original_goes_on_empty() -> None:
    stats = nixl((0.001, 0.0005, MIB, 4))
    taken = stats.clone_and_reset()
    assert stats.is_empty()
    stats.record_transfer(9.0, 9.0, 9, 9)
    assert taken == nixl((0.001, 0.0005, MIB, 4))
    assert stats.clone_and_reset() == nixl((9.0, 9.0, 9, 9))
    assert stats.clone_and_reset().is_empty()


def test_four_recording_threads_and_one_taking_snapshots_lose_no_row() -> None:
    stats, per_thread = NixlConnectorStats(), 5_000
    threads = [
        threading.Thread(target=lambda n=n: [stats.record_transfer(n, 2 * n, 3 * n, 4 * n) for _ in range(per_thread)])
        for n in (1, 2, 3, 4)
    ]
    for thread in threads:
        thread.start()
    taken = []
    while any(thread.is_alive() for thread in threads):
        taken.append(stats.clone_and_reset())
    taken.append(stats.clone_and_reset())
    columns = ("transfer_duration", "post_duration", "bytes_transferred", "num_descriptors")
    for part in taken:
        assert len({getattr(part, column).count for column in columns}) == 1
        assert len({getattr(part, column).sum / n for n, column in enumerate(columns, 1)}) == 1
    assert sum(part.transfer_duration.count for part in taken) == 4 * per_thread
    assert sum(part.transfer_duration.sum for part in taken) == 10 * per_thread


# --- Mooncake and shared memory


def test_mooncake_reduces_as_vllms() -> None:
    stats = MooncakeConnectorStats()
    stats.record_transfer(0.001, MIB, 4)
    stats.record_transfer(0.002, 2 * MIB, 6)
    stats.record_failed_transfer()
    for _ in range(2):
        stats.record_failed_recv()
    for _ in range(3):
        stats.record_kv_expired_req()
    assert stats.reduce() == {
        "Num successful transfers": 2,
        "Avg xfer time (ms)": 1.5,
        "P90 xfer time (ms)": 1.9,
        "Avg MB per transfer": 1.5,
        "Throughput (MB/s)": 1000.0,
        "Avg number of descriptors": 5.0,
        "Num failed transfers": 1,
        "Num failed recvs": 2,
        "Num KV expired reqs": 3,
    }


def test_shared_memory_counts_blocks_where_the_others_count_descriptors() -> None:
    stats = SharedMemoryConnectorStats()
    stats.record_transfer(0.001, MIB, 4)
    stats.record_transfer(0.002, 2 * MIB, 7)
    stats.record_failed_transfer()
    reduced = stats.reduce()
    assert list(reduced.items())[-2:] == [("Avg number of blocks", 5.5), ("Num failed transfers", 1)]
    assert stats.moved() == (3 * MIB, 0.003)


# --- Offloading


def test_counters_add_gauges_keep_the_last_and_histograms_extend_per_label_set() -> None:
    later = {
        "types": OFFLOADED["types"] | {"new": "counter"},
        "data": {
            "vllm:kv_offload_load_bytes": {(): 11},
            "usage": {(): 0.25},
            "vllm:kv_offload_load_size": {("disk",): [7]},
            "new": {("a", "b"): 2},
        },
    }
    merged = build("OffloadingConnector", OFFLOADED).aggregate(build("OffloadingConnector", later))
    assert merged.reduce() == {
        "vllm:kv_offload_load_bytes": 111,
        "usage": 0.25,
        "vllm:kv_offload_load_size:('cpu',)_count": 2,
        "vllm:kv_offload_load_size:('cpu',)_sum": 7,
        "vllm:kv_offload_load_size:('disk',)_count": 2,
        "vllm:kv_offload_load_size:('disk',)_sum": 12,
        "new:('a', 'b')": 2,
    }
    assert merged.to_dict()["data"]["vllm:kv_offload_load_size"] == {("cpu",): [3, 4], ("disk",): [5, 7]}
    assert merged.to_dict()["types"] == later["types"]


def test_facts_are_carried_never_reduced_and_not_cleared_by_a_payload_without_them() -> None:
    stats = build("OffloadingConnector", {"types": {}, "data": {}, "info": {"config": {"tier": "cpu"}}})
    assert not stats.is_empty()
    assert stats.reduce() == {}
    stats.aggregate(build("OffloadingConnector", OFFLOADED))
    assert stats.to_dict()["info"] == {"config": {"tier": "cpu"}}
    assert build("OffloadingConnector", OFFLOADED).aggregate(stats).to_dict()["info"] == {"config": {"tier": "cpu"}}


def test_newer_facts_replace_older_ones_even_when_there_is_room_for_no_more() -> None:
    facts = {f"fact-{number}": 1 for number in range(MAX_METRICS)}
    stats = build("OffloadingConnector", {"info": facts})
    stats.aggregate(build("OffloadingConnector", {"info": {"fact-3": 2}}))
    assert stats.to_dict()["info"] == facts | {"fact-3": 2}


def test_a_metric_that_is_of_another_kind_there_is_refused_and_counted() -> None:
    other = build("OffloadingConnector", {"types": {"usage": "counter"}, "data": {"usage": {(): 7}}})
    merged = build("OffloadingConnector", OFFLOADED).aggregate(other)
    assert merged.reduce()["usage"] == 0.5
    assert merged.num_rejected() == 1
    assert build("OffloadingConnector", merged.to_packed()).num_rejected() == 1


def test_metrics_and_label_sets_cannot_fill_the_memory() -> None:
    many = {f"metric-{number}": {(): 1} for number in range(1000)}
    stats = build("OffloadingConnector", {"types": dict.fromkeys(many, "counter"), "data": many})
    assert len(stats.reduce()) == MAX_METRICS
    assert stats.num_rejected() == 1000 - MAX_METRICS
    labelled = {(f"label-{number}",): 1 for number in range(1000)}
    reduced = build("OffloadingConnector", {"types": {"x": "counter"}, "data": {"x": labelled}}).reduce()
    assert len(reduced) == MAX_LABEL_SETS + 1
    assert reduced["x:('other',)"] == 1000 - MAX_LABEL_SETS


def test_histograms_names_and_facts_cannot_fill_the_memory() -> None:
    children = {(f"label-{number}",): [1.0] for number in range(MAX_LABEL_SETS)}
    many = {f"metric-{number}": children for number in range(MAX_METRICS)}
    stats = build("OffloadingConnector", {"types": dict.fromkeys(many, "histogram"), "data": many})
    assert len(stats.reduce()) == 2 * MAX_HISTOGRAMS * (MAX_HISTOGRAM_SETS + 1)  # count and sum of each
    named = {"x" * (MAX_LABEL + 1): {(): 1}, "y": {("z" * (MAX_LABEL + 1),): 1}}
    stats = build("OffloadingConnector", {"types": dict.fromkeys(named, "counter"), "data": named})
    assert stats.reduce() == {"y:('other',)": 1}
    assert stats.num_rejected() == 1
    stats = build("OffloadingConnector", {"info": {"small": "x", "large": "x" * MAX_FACT_BYTES}})
    assert stats.to_dict() == {"types": {}, "data": {}, "info": {"small": "x"}, "rejected": 1}


def test_a_count_of_refused_values_that_a_peer_claims_never_outgrows_what_can_be_saved() -> None:
    stats = build("OffloadingConnector", {"rejected": 2**53 - 1})
    for _ in range(3):
        stats.aggregate(build("OffloadingConnector", {"rejected": 2**53 - 1}))
    assert build("OffloadingConnector", stats.to_packed()).num_rejected() <= 2**53


def test_loads_and_stores_are_what_was_moved() -> None:
    names = {
        f"vllm:kv_offload_{way}_{what}": value
        for way, what, value in (
            ("load", "bytes", 100),
            ("load", "time", 0.5),
            ("store", "bytes", 20),
            ("store", "time", 0.25),
        )
    }
    payload = {"types": dict.fromkeys(names, "counter"), "data": {name: {(): value} for name, value in names.items()}}
    assert build("OffloadingConnector", payload).moved() == (120, 0.75)
    assert build("OffloadingConnector").moved() is None


@pytest.mark.parametrize(
    "payload",
    [
        {"types": {"x": "summary"}, "data": {"x": {(): 1}}},
        {"types": {"x": ["counter"]}, "data": {"x": {(): 1}}},
        {"types": {}, "data": {"x": {(): 1}}},
        {"types": {"x": "counter"}, "data": {"x": 1}},
        {"types": {"x": "counter"}, "data": {"x": {(): "one"}}},
        {"types": {"x": "histogram"}, "data": {"x": {(): 1}}},
        {"types": 3},
        {"data": [1]},
        {"info": "x"},
    ],
)
def test_an_offloading_payload_of_another_form_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(StatsError, match="expected"):
        OffloadingConnector.build_kv_connector_stats(payload)


# --- Multi


def test_children_already_built_are_kept_by_identity_and_dicts_are_built() -> None:
    child = nixl((0.001, 0.0005, MIB, 4))
    stats = MultiConnector.build_kv_connector_stats({"NixlConnector": child, "OffloadingConnector": OFFLOADED})
    assert stats["NixlConnector"] is child
    assert isinstance(stats["OffloadingConnector"], OffloadingConnectorStats)
    assert stats.to_dict() == {"NixlConnector": child.to_dict(), "OffloadingConnector": OFFLOADED}


def test_children_are_wrapped_as_before_0_33_or_bare() -> None:
    bare = {"NixlConnector": nixl((0.001, 0.0005, MIB, 4)).to_dict(), "OffloadingConnector": OFFLOADED}
    wrapped = {child: {"data": payload} for child, payload in bare.items()}
    assert build("MultiConnector", wrapped) == build("MultiConnector", bare)
    assert build("MultiConnector", bare | {"OffloadingConnector": {"data": OFFLOADED}}).to_dict() == bare


def test_an_unknown_child_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"^Connector 'UnknownConnector' is not registered\.$") as raised:
        build("MultiConnector", {"UnknownConnector": {}})
    assert isinstance(raised.value, UnknownConnectorError)


def test_a_child_without_stats_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        @classmethod
        def build_kv_connector_stats(cls, data: Any = None) -> None:  # noqa: ARG003 - as the factory calls it
            return None

    monkeypatch.setitem(KVConnectorFactory._loaders, "SilentConnector", lambda: Silent)
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})
    stats = build("MultiConnector", {"SilentConnector": {"a": [1]}, "NixlConnector": {}})
    assert list(stats.data) == ["NixlConnector"]


def test_the_same_child_merges_and_a_new_one_is_taken() -> None:
    stats = build("MultiConnector", {"NixlConnector": nixl((1.0, 1.0, MIB, 1))})
    new = nixl((2.0, 1.0, MIB, 1))
    merged = stats.aggregate(
        build("MultiConnector", {"NixlConnector": nixl((3.0, 1.0, MIB, 1)), "NixlPullConnector": new})
    )
    assert merged is stats
    assert {child: part["Num successful transfers"] for child, part in merged.reduce().items()} == {
        "NixlConnector": 2,
        "NixlPullConnector": 1,
    }
    merged.aggregate(build("MultiConnector", {"NixlPullConnector": nixl((5.0, 1.0, MIB, 1))}))
    assert new == nixl((2.0, 1.0, MIB, 1))


def test_children_of_one_class_have_names_of_their_own_and_are_kept_apart() -> None:
    names = names_of_children(["NixlConnector", "OffloadingConnector", "NixlConnector", "NixlConnector"])
    assert names == ["NixlConnector", "OffloadingConnector", "NixlConnector#2", "NixlConnector#3"]
    payload = {
        "NixlConnector": nixl((1.0, 1.0, MIB, 1)).to_dict(),
        "NixlConnector#2": nixl((2.0, 1.0, MIB, 1)).to_dict(),
    }
    stats = build("MultiConnector", payload).aggregate(build("MultiConnector", payload))
    assert {child: part["Avg xfer time (ms)"] for child, part in stats.reduce().items()} == {
        "NixlConnector": 1000.0,
        "NixlConnector#2": 2000.0,
    }
    assert build("MultiConnector", stats.to_packed()) == stats


@pytest.mark.parametrize("child", ["NixlConnector#1", "NixlConnector#10", "NixlConnector#", "#2", "Nixl#2#2"])
def test_a_name_that_no_child_has_is_not_registered(child: str) -> None:
    with pytest.raises(UnknownConnectorError):
        build("MultiConnector", {child: {}})
    assert connector_of_child(child) != "NixlConnector"


def test_children_cannot_fill_the_memory() -> None:
    names = [*(f"NixlConnector#{number}" for number in range(2, MAX_CHILDREN + 2)), "NixlConnector"]
    with pytest.raises(StatsError, match="a MultiConnector holds at most 6 connectors, got 7"):
        build("MultiConnector", {name: {} for name in names})
    stats = build("MultiConnector", {name: {} for name in names[:MAX_CHILDREN]})
    with pytest.raises(StatsError, match="at most 6"):
        stats.aggregate(build("MultiConnector", {"NixlConnector": {}}))
    assert len(stats.data) == MAX_CHILDREN


def test_children_of_one_name_and_two_kinds_are_refused_with_nothing_merged() -> None:
    stats = MultiKVConnectorStats({"A": nixl((1.0, 1.0, MIB, 1)), "B": nixl((1.0, 1.0, MIB, 1))})
    other = MultiKVConnectorStats({"A": nixl((1.0, 1.0, MIB, 1)), "B": MooncakeConnectorStats()})
    with pytest.raises(StatsError, match="cannot merge MooncakeConnectorStats into NixlConnectorStats - at `B`"):
        stats.aggregate(other)
    assert stats["A"] == nixl((1.0, 1.0, MIB, 1))


def test_a_multi_is_empty_when_all_its_children_are_and_reset_empties_each() -> None:
    stats = build("MultiConnector", {"NixlConnector": None or {}, "OffloadingConnector": {}})
    assert stats.is_empty()
    stats["NixlConnector"].record_failed_transfer()
    assert not stats.is_empty()
    stats.reset()
    assert stats.is_empty()
    assert list(stats.data) == ["NixlConnector", "OffloadingConnector"]


@pytest.mark.parametrize("payload", [{"NixlConnector": 3}, {"MultiConnector": {}}, {"NixlConnector": [1]}, {7: {}}])
def test_a_child_of_another_form_is_refused_with_its_place(payload: dict[Any, Any]) -> None:
    with pytest.raises(StatsError, match=f"at `{next(iter(payload))}`"):
        build("MultiConnector", payload)


def test_rates_of_a_multi_are_over_all_children_that_know_theirs() -> None:
    stats = build("MultiConnector", {"NixlConnector": nixl((1.0, 1.0, MIB, 1)), "OffloadingConnector": OFFLOADED})
    assert stats.moved() == (MIB + 100, 1.0)
    assert build("MultiConnector").moved() is None


def test_what_went_wrong_is_told_by_its_counter() -> None:
    stats = NixlConnectorStats()
    stats.record_failed_transfer()
    stats.record_kv_expired_req()
    stats.record_kv_expired_req()
    assert {name: count for name, count in stats.failures().items() if count} == {
        "num_failed_transfers": 1,
        "num_kv_expired_reqs": 2,
    }
    assert set(MooncakeConnectorStats().failures()) == {
        "num_failed_transfers",
        "num_failed_recvs",
        "num_kv_expired_reqs",
    }
    assert OffloadingConnectorStats(OFFLOADED).failures() == {}


def test_durations_are_those_of_the_transfers_and_of_all_children() -> None:
    nixl, mooncake = NixlConnectorStats(), MooncakeConnectorStats()
    nixl.record_transfer(0.5, 0.1, 10, 1)
    mooncake.record_transfer(1.5, 10, 1)
    nixl.record_failed_transfer()
    mooncake.record_failed_transfer()
    multi = MultiKVConnectorStats({"NixlConnector": nixl, "MooncakeConnector": mooncake})
    for stats, count, total in ((nixl, 1, 0.5), (multi, 2, 2.0)):
        durations = stats.durations()
        assert durations is not None
        assert (durations.count, durations.sum) == (count, total)
    assert multi.failures()["num_failed_transfers"] == 2
    assert (nixl.transfer_duration.count, mooncake.transfer_duration.count) == (1, 1)
    assert OffloadingConnectorStats(OFFLOADED).durations() is None
    assert MultiKVConnectorStats().durations() is None
