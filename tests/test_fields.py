"""How a connector declares what it measures, and what is said of a declaration that cannot work."""

from typing import Any

import pytest

from kvxfer.distribution import DistributionState
from kvxfer.errors import StatsError
from kvxfer.fields import Counter, Distribution, Gauge
from kvxfer.labelled import LabelledState
from kvxfer.rows import Row
from kvxfer.states import CounterState, GaugeState
from kvxfer.stats import TransferStats


@pytest.mark.parametrize(
    ("name", "unit", "full_name"),
    [
        ("fetch_duration", "s", "fetch_duration_seconds"),
        ("fetch_size", "By", "fetch_size_bytes"),
        ("bytes", "By", "bytes"),
        ("pool_usage", "1", "pool_usage_ratio"),
        ("fetch_rate", "By/s", "fetch_rate_bytes_per_second"),
        ("num_misses", "{page}", "num_misses"),
    ],
)
def test_a_field_is_exported_under_its_name_and_unit(name: str, unit: str, full_name: str) -> None:
    stats = type("Stats", (TransferStats,), {name: Distribution(unit, "Something.")})
    assert stats.fields[name].full_name == full_name
    assert repr(stats.fields[name]) == f"<Distribution {name} {unit}>"


@pytest.mark.parametrize(
    ("field", "state"), [(Distribution, DistributionState), (Counter, CounterState), (Gauge, GaugeState)]
)
def test_each_kind_of_field_has_its_state_and_with_labels_one_per_label_set(field: Any, state: Any) -> None:
    assert type(field("s", "Something.").new_state()) is state
    labelled = field("s", "Something.", labels=("operation",)).new_state()
    assert type(labelled) is LabelledState
    assert type(labelled.labels("load")) is state


@pytest.mark.parametrize(
    ("unit", "whole"), [("By", True), ("{page}", True), ("s", False), ("1", False), ("By/s", False)]
)
def test_bytes_and_counts_are_whole_numbers(unit: str, whole: bool) -> None:  # noqa: FBT001
    state = Distribution(unit, "Something.").new_state()
    assert isinstance(state, DistributionState)
    state.observe(2.0)
    assert type(state.sum) is (int if whole else float)


def test_a_unit_or_labels_that_are_none_are_said() -> None:
    with pytest.raises(StatsError, match="expected a unit and label names, got ''"):
        Counter("", "Something.")
    with pytest.raises(StatsError, match=r"expected a unit and label names, got '\{x\}' and \(3,\)"):
        Counter("{x}", "Something.", labels=(3,))  # type: ignore[arg-type]


def test_a_row_takes_its_own_unlabelled_distributions() -> None:
    duration, size = Distribution("s", "Time."), Distribution("By", "Size.")
    labelled = Distribution("s", "Time.", labels=("operation",))
    for wrong in (Row, lambda: Row(labelled), lambda: Row(duration, size=size)):
        with pytest.raises(StatsError, match="a row takes unlabelled distributions, its duration and size among them"):
            wrong()


def test_fields_and_rows_of_a_base_come_first_and_are_shared_with_no_sibling() -> None:
    class Base(TransferStats):
        duration = Distribution("s", "Time.")
        size = Distribution("By", "Size.")
        record_fetch = Row(duration, size, duration=duration, size=size)

    class One(Base):
        num_misses = Counter("{page}", "Misses.")

    class Other(Base):
        num_hits = Counter("{page}", "Hits.")

    assert list(One.fields) == ["duration", "size", "fetch_rate", "num_misses"]
    assert list(Other.fields) == ["duration", "size", "fetch_rate", "num_hits"]
    stats = One()
    stats.record_fetch(0.5, 10)
    assert stats.moved() == (10, 0.5)
    assert stats.data["fetch_rate"].sum == 20.0
    assert One().is_empty()
    assert isinstance(One.duration, Distribution)


def test_two_rows_of_one_declaration_are_apart_and_their_bytes_add_up() -> None:
    class Tiers(TransferStats):
        load_time = Distribution("s", "Time.")
        load_size = Distribution("By", "Size.")
        store_time = Distribution("s", "Time.")
        store_size = Distribution("By", "Size.")
        record_load = Row(load_time, load_size, duration=load_time, size=load_size)
        record_store = Row(store_time, store_size, duration=store_time, size=store_size)

    stats = Tiers()
    stats.record_load(0.5, 100)
    stats.record_store(0.25, 10)
    assert stats.moved() == (110, 0.75)
    assert (stats.data["load_rate"].sum, stats.data["store_rate"].sum) == (200.0, 40.0)
    assert Tiers(stats.to_dict()) == stats
