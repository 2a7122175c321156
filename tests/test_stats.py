"""What follows from a declaration: recording, draining, merging, payload, reading."""

import math
import pickle
import threading

import pytest

from kvxfer import Counter, Distribution, Gauge, Row, TransferStats
from kvxfer.area import SharedPending
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.errors import StatsError
from kvxfer.labelled import MAX_LABEL_SETS
from kvxfer.states import MAX_LABEL, CounterState
from kvxfer.stats import MAX_CARRIED


class PageStats(TransferStats):
    """Fetches of pages."""

    fetch_duration = Distribution("s", "From request to last byte.")
    fetch_size = Distribution("By", "Bytes of one fetch.")
    num_misses = Counter("{page}", "Pages that were not there.")
    num_operations = Counter("{operation}", "Operations.", labels=("operation", "status"))
    pool_usage = Gauge("1", "Part of the pool in use.", merge="max")
    record_fetch = Row(fetch_duration, fetch_size, duration=fetch_duration, size=fetch_size)


def filled() -> PageStats:
    stats = PageStats()
    stats.record_fetch(0.5, 100)
    stats.record_fetch(fetch_size=300, fetch_duration=1.5)
    stats.num_misses.add(2)
    stats.num_operations.labels("load", "ok").add(1)
    stats.pool_usage.set(0.25)
    return stats


def test_everything_recorded_is_read_back() -> None:
    assert filled().reduce() == {
        "fetch_duration_seconds_count": 2,
        "fetch_duration_seconds_mean": 1.0,
        "fetch_duration_seconds_p50": 1.0,
        "fetch_duration_seconds_p90": 1.4,
        "fetch_duration_seconds_p99": 1.49,
        "fetch_size_bytes_count": 2,
        "fetch_size_bytes_mean": 200.0,
        "fetch_size_bytes_p50": 200.0,
        "fetch_size_bytes_p90": 280.0,
        "fetch_size_bytes_p99": 298.0,
        "num_misses": 2,
        "num_operations:('load', 'ok')": 1,
        "pool_usage_ratio": 0.25,
        "fetch_rate_bytes_per_second_count": 2,
        "fetch_rate_bytes_per_second_mean": 200.0,
        "fetch_rate_bytes_per_second_p50": 200.0,
        "fetch_rate_bytes_per_second_p90": 200.0,
        "fetch_rate_bytes_per_second_p99": 200.0,
    }
    assert filled().moved() == (400, 2.0)


def test_a_fresh_object_is_empty_and_one_with_only_a_count_is_not() -> None:
    stats = PageStats()
    assert stats.is_empty()
    stats.num_misses.add(1)
    assert not stats.is_empty()


def test_the_payload_builds_an_equal_object_and_survives_pickle() -> None:
    stats = filled()
    assert PageStats(stats.to_dict()) == stats
    assert PageStats(stats.to_packed()) == stats
    assert pickle.loads(pickle.dumps(stats)) == stats  # noqa: S301 - our own bytes
    assert stats.copy() == stats
    assert PageStats() != stats


def test_draining_hands_off_what_was_recorded_and_later_records_do_not_touch_it() -> None:
    stats = filled()
    taken = stats.drain()
    assert taken == filled()
    assert stats.is_empty()
    stats.record_fetch(9.0, 9)
    stats.num_operations.labels("load", "ok").add(5)
    assert taken == filled()
    assert stats.clone_and_reset().fetch_duration.count == 1


def test_a_field_that_another_thread_uses_first_during_a_drain_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = NixlConnectorStats()
    stats.num_failed_transfers.add(3)
    drain = CounterState.drain

    def while_draining(state: CounterState) -> CounterState:
        stats.num_failed_handshakes.add(1)
        return drain(state)

    monkeypatch.setattr(CounterState, "drain", while_draining)
    drained = [stats.drain().to_dict(), stats.drain().to_dict()]
    assert sum(part.get("num_failed_transfers", 0) for part in drained) == 3
    assert sum(part.get("num_failed_handshakes", 0) for part in drained) >= 1


def test_aggregating_adds_returns_self_and_leaves_the_other_as_it_was() -> None:
    stats, other = filled(), filled()
    other.pool_usage.set(0.75)
    merged = stats.aggregate(other)
    assert merged is stats
    assert merged.fetch_duration.count == 4
    assert merged.num_misses.value == 4
    assert merged.num_operations.labels("load", "ok").value == 2
    assert merged.pool_usage.value == 0.75
    assert other.fetch_duration.count == 2
    assert stats.copy().aggregate(PageStats()) == stats


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.001, "0.1", None])
def test_a_row_with_an_implausible_value_is_refused_whole_and_counted(bad: float) -> None:
    stats = filled()
    stats.record_fetch(bad, 100)
    stats.record_fetch(0.5, bad)
    assert stats.num_rejected() == 2
    assert (stats.fetch_duration.count, stats.fetch_size.count, stats.fetch_duration.sum) == (2, 2, 2.0)


def test_refused_counts_and_levels_are_counted_and_travel() -> None:
    stats = PageStats()
    for bad in (-1, math.nan, math.inf, "2", True):
        stats.num_misses.add(bad)
    stats.pool_usage.set(math.nan)
    assert stats.num_rejected() == 6
    assert PageStats(stats.to_packed()).num_rejected() == 6
    assert stats.num_misses.value == 0


def test_a_wrong_number_of_values_is_the_callers_error_and_shifts_no_column() -> None:
    stats = PageStats()
    with pytest.raises(TypeError):
        stats.record_fetch(0.5)
    assert stats.is_empty()


def test_a_transfer_of_no_duration_has_no_rate_and_counts_otherwise() -> None:
    stats = PageStats()
    stats.record_fetch(0.0, 100)
    stats.record_fetch(0.1, 100)
    assert (stats.fetch_duration.count, stats.data["fetch_rate"].count) == (2, 1)


def test_columns_stay_of_equal_length_while_four_threads_record_and_one_drains() -> None:
    stats, per_thread = PageStats(), 20_000
    recording = [
        threading.Thread(target=lambda n=n: [stats.record_fetch(n, 2 * n) for _ in range(per_thread)])
        for n in (1, 2, 3, 4)
    ]
    for thread in recording:
        thread.start()
    total = PageStats()
    while any(thread.is_alive() for thread in recording):
        part = stats.drain()
        assert part.fetch_duration.count == part.fetch_size.count
        assert part.fetch_size.sum == 2 * part.fetch_duration.sum
        total.aggregate(part)
    total.aggregate(stats.drain())
    assert total.fetch_duration.count == 4 * per_thread
    assert total.fetch_duration.sum == 10 * per_thread


def test_a_label_cannot_fill_the_memory() -> None:
    stats = PageStats()
    for n in range(MAX_LABEL_SETS + 50):
        stats.num_operations.labels(f"operation-{n}", "ok").add(1)
    children = stats.num_operations.children
    assert len(children) == MAX_LABEL_SETS + 1
    assert children["other", "other"].to_value() == 50


def test_what_is_observed_under_labels_that_are_none_travels_as_other_and_the_mistake_is_counted() -> None:
    stats = PageStats()
    stats.num_operations.labels("load").add(3)
    part = PageStats(stats.drain().to_packed())
    assert part.to_dict() == {"num_operations": {("other", "other"): 3}, "rejected_observations": 1}
    assert stats.is_empty()
    stats.num_operations.labels("load")
    assert not stats.is_empty()
    assert stats.copy().aggregate(part).num_rejected() == 2
    with pytest.raises(StatsError, match=r"expected 2 label values .*, got .* - at `PageStats.num_operations`"):
        PageStats({"num_operations": {("load",): 3}})


def test_a_forked_child_reports_no_mistake_of_its_parent() -> None:
    stats = PageStats()
    stats.num_operations.labels("load")
    stats.renew()
    assert stats.is_empty()


def test_a_field_that_only_a_newer_worker_knows_is_carried_on() -> None:
    stats = PageStats({"num_new": 3, "new_duration": [0.5, 1.5]})
    total = PageStats().aggregate(stats).aggregate(stats)
    assert total.to_dict() == {"num_new": 6, "new_duration": [0.5, 1.5, 0.5, 1.5]}


def test_undeclared_fields_cannot_fill_the_memory() -> None:
    stats = PageStats({f"field-{n}": n + 1 for n in range(1000)})
    assert len(stats.to_dict()) <= MAX_CARRIED + 2
    assert stats.num_rejected() >= 1000 - MAX_CARRIED - 1
    assert PageStats({"x" * (MAX_LABEL + 1): 3}).to_dict() == {"rejected_observations": 1}


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"fetch_duration": {"a": 1}}, "PageStats.fetch_duration"),
        ({"num_misses": "three"}, "PageStats.num_misses"),
        ({"num_operations": 3}, "PageStats.num_operations"),
        ({"pool_usage": ["x"]}, "PageStats.pool_usage"),
    ],
)
def test_a_payload_of_another_form_is_named_with_its_place(payload: dict[str, object], where: str) -> None:
    with pytest.raises(StatsError, match=where):
        PageStats(payload)


def test_stats_of_another_kind_are_not_merged() -> None:
    class OtherStats(TransferStats):
        pass

    with pytest.raises(StatsError, match="cannot merge OtherStats into PageStats"):
        PageStats().aggregate(OtherStats())


def test_a_declaration_that_cannot_work_is_said_where_it_is_made() -> None:
    with pytest.raises(StatsError, match="drain names a part of TransferStats"):
        type("Bad", (TransferStats,), {"drain": Counter("{x}", "Taken.")})
    with pytest.raises(StatsError, match=r"expected merge=last\|max\|min\|sum, got 'avg'"):
        Gauge("1", "A level.", merge="avg")
    with pytest.raises(StatsError, match="a row takes unlabelled distributions"):
        Row(duration=Distribution("s", "Not a column."))


def test_a_forked_child_begins_with_nothing() -> None:
    stats = filled()
    stats._lock.acquire()
    stats.renew()
    assert stats.is_empty()
    stats.record_fetch(1.0, 1)
    assert stats.fetch_duration.count == 1


def test_rows_that_come_faster_than_any_fold_are_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvxfer.rows.MAX_WAITING_ROWS", 10)
    stats = PageStats()
    for _ in range(13):
        stats.record_fetch(1.0, 2)
    assert stats.fetch_duration.count == stats.fetch_size.count == 10
    assert stats.drain_cut() == 3
    assert stats.drain_cut() == 0


def test_two_threads_that_count_first_at_once_count_both_where_additions_wait_elsewhere() -> None:
    class CountedStats(TransferStats):
        num_misses = Counter("{page}", "Pages that were not there.")

    stats = CountedStats()
    is_making, go_on = threading.Event(), threading.Event()

    def make(name: str, width: int) -> SharedPending:
        is_making.set()
        go_on.wait(10)  # as long as it takes to reserve the memory
        return SharedPending(name, width, lambda: None)

    stats.wait_in(make)
    other = threading.Thread(target=lambda: stats.num_misses.add(1))
    other.start()
    is_making.wait(10)
    go_on.set()
    stats.num_misses.add(1)
    other.join()
    assert stats.num_misses.value == 2


class TwoWaysStats(TransferStats):
    """Loads and stores, and what failed of each."""

    load_duration = Distribution("s", "Of a load.")
    load_size = Distribution("By", "Of a load.")
    store_duration = Distribution("s", "Of a store.")
    store_size = Distribution("By", "Of a store.")
    num_failed = Counter("{transfer}", "That failed.", labels=("way",), failure=True)
    num_skipped = Counter("{transfer}", "That were not needed.")
    record_load = Row(load_duration, load_size, duration=load_duration, size=load_size)
    record_store = Row(store_duration, store_size, duration=store_duration, size=store_size)


def test_durations_are_those_of_all_rows_and_failures_those_of_all_label_sets() -> None:
    stats = TwoWaysStats()
    stats.record_load(0.5, 1)
    stats.record_store(1.0, 2)
    stats.record_store(2.0, 2)
    stats.num_failed.labels("in").add(1)
    stats.num_failed.labels("out").add(2)
    stats.num_skipped.add(5)
    durations = stats.durations()
    assert durations is not None
    assert (durations.count, durations.sum) == (3, 3.5)
    assert stats.failures() == {"num_failed": 3}
    assert (stats.load_duration.count, stats.store_duration.count) == (1, 2)
