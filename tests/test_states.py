"""Counters and gauges: what they hold, how two become one, and what they refuse."""

import math
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvxfer.errors import StatsError
from kvxfer.states import CounterState, GaugeState

# What nobody counts: none of it may raise where it is recorded.
ODD: list[Any] = [math.nan, math.inf, -math.inf, -1, -1e-9, 2.0**60, 10**400, True, "3", None, [1], Decimal(1), 1j]


def counter(*numbers: float) -> CounterState:
    made = CounterState()
    for number in numbers:
        made.add(number)
    return made


def gauge(*values: float, merge: str = "last") -> GaugeState:
    made = GaugeState(merge)
    for value in values:
        made.set(value)
    return made


# --- counters


@given(st.lists(st.lists(st.integers(0, 2**50), max_size=5), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_merging_counters_in_any_order_gives_the_sum(parts: list[list[int]], rng: random.Random) -> None:
    states = [counter(*part) for part in parts]
    while len(states) > 1:
        rng.shuffle(states)
        states[0].merge(states.pop())
    assert states[0].value == sum(map(sum, parts))
    assert type(states[0].value) is int


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:20])
def test_what_is_no_count_is_refused_and_counted(odd: Any) -> None:
    made = counter(1, odd, 2)
    assert (made.value, made.rejected) == (3, 1)


def test_numbers_of_numpy_count_as_numbers() -> None:
    made = counter(np.int64(3), np.float64(0.5), Fraction(1, 2))  # type: ignore[arg-type]
    assert (made.value, made.rejected) == (4.0, 0)
    assert type(made.value) is float


def test_a_count_that_no_reader_holds_as_an_int_is_a_float() -> None:
    made = counter(*[2**53] * 1024)
    assert made.value == 2.0**63
    assert type(made.value) is float
    assert type(counter(*[2**53] * 1023).value) is int


def test_taking_a_count_starts_again_from_zero_and_who_kept_add_goes_on() -> None:
    made = counter(5)
    add = made.add
    taken = made.drain()
    add(2)
    assert (taken.value, made.value) == (5, 2)
    assert not made.is_empty
    made.drain()
    assert made.is_empty


@pytest.mark.parametrize("payload", [3, [1, 2], (1, 1, 1), [3.0]])
def test_a_payload_of_a_count_is_a_number_or_a_list_of_them(payload: Any) -> None:
    made = CounterState()
    made.load(payload)
    assert made.value == 3


@pytest.mark.parametrize("payload", ["3", None, {"a": 1}, [1, "2"], True, [[1]], b"3"])
def test_a_payload_that_is_no_count_is_an_error(payload: Any) -> None:
    for state in (CounterState(), GaugeState()):
        with pytest.raises(StatsError, match="expected a number or a list of numbers, got "):
            state.load(payload)
        assert state.is_empty


# --- gauges


@pytest.mark.parametrize(("merge", "wanted"), [("last", 0.5), ("max", 0.75), ("min", 0.25), ("sum", 1.5)])
def test_two_readings_become_one_by_the_rule(merge: str, wanted: float) -> None:
    made = GaugeState(merge)
    for value in (0.25, 0.75, 0.5):
        made.merge(gauge(value, merge=merge))
    assert made.value == wanted
    made.merge(GaugeState(merge))
    assert made.value == wanted


def test_a_gauge_shows_the_last_reading_and_may_be_negative() -> None:
    assert gauge(3, -2.5).value == -2.5
    assert gauge().to_value() is None
    assert gauge().is_empty
    assert not gauge(0).is_empty


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd not in (-1, -1e-9, 2.0**60)], ids=lambda odd: repr(odd)[:20])
def test_a_reading_that_is_none_is_refused_and_counted(odd: Any) -> None:
    made = gauge(1.5, odd)
    assert (made.value, made.rejected) == (1.5, 1)


def test_a_taken_gauge_has_no_reading_until_the_next_one() -> None:
    made = gauge(0.5)
    assert made.drain().value == 0.5
    assert made.is_empty


def test_a_payload_of_a_gauge_is_its_reading_or_a_list_whose_last_one_counts() -> None:
    made = GaugeState()
    made.load([0.1, 0.2])
    assert made.value == 0.2
    made.load(0.3)
    assert made.value == 0.3
    made.load([])
    assert made.value == 0.3


def test_an_unknown_rule_is_said() -> None:
    with pytest.raises(StatsError, match=r"expected merge=last\|max\|min\|sum, got 'mean'"):
        GaugeState("mean")
