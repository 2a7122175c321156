"""Laws of the stats of every connector: the order of reports, the way through one, what hostile ones do."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.distribution import DistributionState
from kvxfer.errors import KVXferError
from kvxfer.exporters.jsonl import as_record
from kvxfer.exporters.prometheus import TEXT, Exposition
from kvxfer.factory import KVConnectorFactory
from kvxfer.packed import open_all
from kvxfer.states import GaugeState
from kvxfer.wire import Report, Source, decode_payload, encode, encode_payload

# Sums of these are exact, in any order.
seconds = st.lists(st.sampled_from([2.0**-20, 0.001953125, 0.25, 4.0]), max_size=5)
counts = st.integers(0, 1 << 40)
numbers = st.lists(counts, max_size=4)
ones = st.lists(st.just(1), max_size=3)
names = st.sampled_from(["load", "store", "lookup"])
labels = st.tuples(st.sampled_from(["a", "b"]))

rows = st.fixed_dictionaries(
    {
        "duration_seconds": st.sampled_from([2.0**-20, 0.25, 4.0]),
        "num_keys": counts,
        "num_bytes": counts,
        "status": st.sampled_from(["ok", "error", "partial_failure"]),
        "num_failed_keys": st.integers(0, 3),
    }
)


def described(*kinds: str) -> st.SearchStrategy[dict[str, Any]]:
    # A report does not carry what stands at nothing.
    values = {"counter": st.integers(1, 1 << 40), "gauge": st.just(3), "histogram": st.lists(counts, min_size=1)}
    metrics = {kind: st.dictionaries(labels, values[kind], max_size=2) for kind in kinds}
    return st.fixed_dictionaries({}, optional=metrics).map(
        lambda data: {"types": {name: name for name in data}, "data": data}
    )


leaves = {
    "seconds": seconds,
    "numbers": numbers,
    "count": counts,
    "labelled": st.dictionaries(labels, counts, max_size=2),
    "rows": st.lists(rows, max_size=3),
    "words": st.lists(names, max_size=3),
}
objects = st.recursive(
    st.fixed_dictionaries({}, optional=leaves),
    lambda inner: st.dictionaries(st.sampled_from(["tier", "pool"]), inner, max_size=2),
    max_leaves=4,
)
PAYLOADS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "MooncakeStoreConnector": st.dictionaries(names, st.lists(rows, max_size=4), max_size=3),
    "HiSparseConnector": st.fixed_dictionaries(
        {"cache_hits": numbers, "cache_misses": numbers, "host_to_device_bytes": numbers},
        optional={"host_cache_usage_perc": st.just([0.5]), "host_block_reuse_gap_seconds": seconds},
    ),
    "HF3FSKVConnector": st.fixed_dictionaries(
        {"save_duration": seconds, "load_duration": seconds, "num_failed_save": counts, "num_transfer_task": counts}
    ),
    "UMBPStoreConnector": st.dictionaries(
        names,
        st.fixed_dictionaries({"submitted": counts, "completed": counts, "failed": counts, "num_bytes": counts}),
        max_size=3,
    ),
    "OffloadingConnector": described("counter", "gauge", "histogram"),
    "SimpleCPUOffloadConnector": described("counter", "gauge"),
    "FlexKVConnectorV1": objects,
}
PAYLOADS["MultiConnector"] = st.fixed_dictionaries(
    {},
    optional={
        "HF3FSKVConnector": PAYLOADS["HF3FSKVConnector"],
        "HF3FSKVConnector#2": PAYLOADS["HF3FSKVConnector"],
        "UMBPStoreConnector": PAYLOADS["UMBPStoreConnector"],
    },
)
ANY = st.sampled_from(list(PAYLOADS)).flatmap(
    lambda name: st.tuples(st.just(name), st.lists(PAYLOADS[name], min_size=1, max_size=5))
)


def build(name: str, payload: Any = None) -> Any:
    return KVConnectorFactory.get_connector_class_by_name(name).build_kv_connector_stats(payload)


def merged(name: str, parts: list[Any]) -> Any:
    total = build(name)
    for part in parts:
        total = total.aggregate(part.copy())
    return total


def held(stats: Any) -> Any:
    """The reduced numbers, whatever came first."""
    return {key: held_of(value) for key, value in sorted(stats.reduce().items())}


def held_of(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, dict) else value


@settings(max_examples=150, deadline=None)
@given(ANY, st.randoms(use_true_random=False))
def test_parts_merge_in_any_order_and_grouping_to_the_same(
    payloads: tuple[str, list[dict[str, Any]]], rng: random.Random
) -> None:
    name, given_payloads = payloads
    parts = [build(name, payload) for payload in given_payloads]
    in_order = merged(name, parts)
    rng.shuffle(parts)
    cut = rng.randrange(len(parts) + 1)
    grouped = merged(name, parts[:cut]).aggregate(merged(name, parts[cut:]))
    assert held(grouped) == held(in_order)
    assert grouped.is_empty() == in_order.is_empty()


@settings(max_examples=150, deadline=None)
@given(ANY)
def test_what_a_report_carries_is_what_was_built(payloads: tuple[str, list[dict[str, Any]]]) -> None:
    name, given_payloads = payloads
    stats = merged(name, [build(name, payload) for payload in given_payloads])
    for form in (stats.to_packed(), stats.to_dict()):
        again = build(name, decode_payload(encode_payload(form)))
        assert again.is_empty() == stats.is_empty()
        if not stats.is_empty():
            assert held(again) == held(stats)
    halves = stats.copy().split()
    assert not halves or held(merged(name, list(halves))) == held(stats)


@settings(max_examples=60, deadline=None)
@given(ANY)
def test_reports_at_once_are_what_the_class_makes_of_each(payloads: tuple[str, list[dict[str, Any]]]) -> None:
    name, given_payloads = payloads
    frames = [
        frame_of(name, seq, encode_payload(build(name, payload).to_packed()))
        for seq, payload in enumerate(given_payloads, 1)
    ]
    at_once, one_by_one = Aggregator(CollectorConfig(), 0.0), Aggregator(CollectorConfig(), 0.0)
    at_once.feed_all(frames, 1.0)
    for frame in frames:
        one_by_one.feed(frame, 1.0)
    mine, theirs = at_once.close_interval(2.0), one_by_one.close_interval(2.0)
    assert mine.pipeline == theirs.pipeline
    assert mine.pipeline.reports_rejected == {}
    assert [held(group.stats) for group in mine.groups] == [held(group.stats) for group in theirs.groups]


def frame_of(name: str, seq: int, payload: msgspec.Raw) -> bytes:
    return encode(Report(1, encode(Source("s", "host", 1, 0.0, {})), name, seq, 0.0, 1.0, payload))


@pytest.mark.parametrize("name", ["HF3FSKVConnector", "NixlConnector"])
def test_reports_of_plain_fields_are_opened_many_at_once(name: str) -> None:
    report = Report(1, b"", name, 1, 0.0, 1.0, encode_payload(build(name, {"new": []}).to_packed()))
    assert open_all([report]) != [None]


# --- hostile ones

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 2) | st.tuples(st.text(max_size=1)), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ("submitted", "save_duration", "cache_hits", "operation_duration", "num_keys", "pending_spills", "types", "data")
hostile = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), anything, max_size=4)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(PAYLOADS)), hostile)
def test_a_hostile_payload_is_refused_or_can_be_merged_read_saved_and_sent(name: str, payload: Any) -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    made.feed(frame_of(name, 1, encode_payload(payload)), 1.0)
    assert set(made.pipeline(1.0).reports_rejected) <= {"implausible", "unknown_connector", "undecodable"}
    interval = made.close_interval(2.0)
    for group in interval.groups:
        group.stats.reduce()
        assert build(name, decode_payload(encode_payload(group.stats.to_packed()))).num_rejected() >= 0
        assert group.stats.copy().aggregate(group.stats) is not None
    record = msgspec.json.encode(as_record(interval))
    assert b'"error"' not in record
    TEXT.write(Exposition().families(interval))
    Aggregator(CollectorConfig(), 0.0).restore(made.save())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(PAYLOADS)), hostile, st.data())
def test_a_hostile_payload_spoils_nothing_of_the_others(name: str, payload: Any, data: Any) -> None:
    good = build(name, data.draw(PAYLOADS[name]))
    before = good.copy()
    try:
        bad = build(name, payload)
        good.aggregate(bad)
    except KVXferError:
        assert held(good) == held(before)
    else:
        assert good.num_rejected() >= before.num_rejected()
    assert all(isinstance(key, str) for key in good.reduce())


def test_gauges_keep_the_last_and_distributions_extend() -> None:
    one = build("HiSparseConnector", {"pending_page_transfers": [1, 9], "host_block_lifetime_seconds": [0.5]})
    one.aggregate(build("HiSparseConnector", {"pending_page_transfers": [4], "host_block_lifetime_seconds": [0.25]}))
    assert isinstance(one.pending_page_transfers, GaugeState)
    assert one.pending_page_transfers.value == 4
    assert isinstance(one.host_block_lifetime_seconds, DistributionState)
    assert one.to_dict()["host_block_lifetime_seconds"] == [0.5, 0.25]
