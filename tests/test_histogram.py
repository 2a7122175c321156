"""The histogram against the values themselves: counts and extremes exactly, quantiles within 1.1 %."""

import math
import random
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvxfer.buckets import LARGEST, SMALLEST, bucket_indexes
from kvxfer.histogram import Histogram, histograms_of_rows

anything = st.floats(min_value=0, max_value=sys.float_info.max)
positive = st.floats(min_value=1e-12, max_value=1e12)


def histogram(values: list[float]) -> Histogram:
    made = Histogram()
    if values:
        made.add(np.array(values))
    return made


def held(of: Histogram) -> dict[int, int]:
    """The occupied buckets; how wide a window they stand in is nobody's affair."""
    return {of.offset + at: count for at, count in enumerate(of.counts.tolist()) if count}


def state(of: Histogram) -> tuple[object, ...]:
    return (of.count, of.zeros, held(of), of.min, of.max)


@given(st.lists(anything, min_size=1, max_size=50))
def test_every_value_is_counted_in_its_bucket(values: list[float]) -> None:
    made = histogram(values)
    wanted: dict[int, int] = {}
    for value in values:
        if value >= SMALLEST:
            index = int(bucket_indexes(np.array([min(value, LARGEST)]))[0])
            wanted[index] = wanted.get(index, 0) + 1
    assert held(made) == wanted
    assert made.zeros == sum(value < SMALLEST for value in values)
    assert (made.count, made.min, made.max) == (len(values), min(values), max(values))


@given(st.lists(st.lists(anything, max_size=12), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_merging_in_any_order_and_grouping_gives_the_histogram_of_the_whole(
    parts: list[list[float]], rng: random.Random
) -> None:
    whole = histogram([value for part in parts for value in part])
    heap = [histogram(part) for part in parts]
    while len(heap) > 1:
        rng.shuffle(heap)
        heap[0].merge(heap.pop())
    assert state(heap[0]) == state(whole)
    wanted = min(sum(Fraction(value) for part in parts for value in part), Fraction(sys.float_info.max))
    for found in (whole.sum, heap[0].sum):
        assert math.isfinite(found)
        assert math.isclose(found, wanted, rel_tol=1e-13)


@given(st.lists(positive, min_size=1, max_size=400), st.floats(0, 1))
def test_a_quantile_is_within_its_error_of_numpys(values: list[float], q: float) -> None:
    assert histogram(values).quantile(q) == pytest.approx(float(np.quantile(values, q)), rel=0.011)


@pytest.mark.parametrize("q", [0.0, 0.001, 0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("shape", ["lognormal", "exponential", "uniform", "equal", "two peaks"])
def test_quantiles_of_a_hundred_thousand_values_are_within_their_error(shape: str, q: float) -> None:
    rng = np.random.default_rng(11)
    values = {
        "lognormal": lambda: rng.lognormal(-4, 2, 100_000),
        "exponential": lambda: rng.exponential(0.01, 100_000),
        "uniform": lambda: rng.uniform(1, 2, 100_000),
        "equal": lambda: np.full(100_000, 0.0123),
        "two peaks": lambda: np.concatenate([rng.normal(1, 0.01, 50_000), rng.normal(1e6, 1, 50_000)]),
    }[shape]()
    made = Histogram()
    for piece in np.array_split(values, 7):
        made.add(piece)
    # Half way between two peaks numpy interpolates over a gap of six orders: either end of it is an answer.
    if shape == "two peaks" and q == 0.5:
        assert 0.98 < made.quantile(q) < 1.02e6
    else:
        assert made.quantile(q) == pytest.approx(float(np.quantile(values, q)), rel=0.011)


@given(st.lists(positive, min_size=2, max_size=60))
def test_quantiles_rise_with_q_and_stay_within_the_extremes(values: list[float]) -> None:
    made = histogram(values)
    quantiles = [made.quantile(q / 20) for q in range(21)]
    assert quantiles == sorted(quantiles)
    assert (quantiles[0], quantiles[-1]) == (min(values), max(values))


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.lists(st.lists(positive, min_size=5, max_size=5), min_size=rows, max_size=rows)
    )
)
def test_folding_rows_together_gives_what_folding_each_gives(rows: list[list[float]]) -> None:
    together = histograms_of_rows(np.array(rows))
    assert together is not None
    for one, row in zip(together, rows, strict=True):
        assert state(one) == state(histogram(row))
        assert one.sum == pytest.approx(sum(row), rel=1e-12)


@pytest.mark.parametrize("odd", [0.0, 5e-324, math.nan, math.inf, -1.0, 1e300])
def test_rows_with_values_that_are_not_plain_are_left_to_who_checks_them(odd: float) -> None:
    assert histograms_of_rows(np.array([[1.0, 2.0], [odd, 1.0]])) is None


def test_a_window_grows_to_both_sides_and_merging_leaves_the_other_as_it_was() -> None:
    low, middle, high = histogram([1e-6] * 3), histogram([1.0]), histogram([1e6] * 2)
    middle.merge(high)
    middle.merge(low)
    assert state(middle) == state(histogram([1.0, 1e6, 1e6, 1e-6, 1e-6, 1e-6]))
    assert state(high) == state(histogram([1e6] * 2))
    middle.add(np.array([1e6]))
    assert state(high) == state(histogram([1e6] * 2))


def test_merging_into_an_empty_one_shares_nothing() -> None:
    one, other = Histogram(), histogram([1.0, 2.0])
    one.merge(other)
    one.add(np.array([1.0]))
    assert state(other) == state(histogram([1.0, 2.0]))


def test_a_histogram_reads_itself() -> None:
    assert repr(histogram([0.0, 1.0, 2.0])) == "<Histogram count=3 zeros=1 offset=-1 buckets=33>"
    assert histogram([1.0]) == histogram([1.0])
    assert histogram([1.0]) != histogram([2.0])
