"""The bucket rule, against exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvxfer.buckets import HIGHEST_INDEX, LARGEST, LOWEST_INDEX, SMALLEST, bucket_indexes, middle


def index_of(value: float) -> int:
    return int(bucket_indexes(np.array([value]))[0])


def holds(index: int, value: float) -> bool:
    """Whether 2**(index/32) < value <= 2**((index+1)/32), without rounding."""
    power = Fraction(value) ** 32
    return Fraction(2) ** index < power <= Fraction(2) ** (index + 1)


@given(st.floats(min_value=SMALLEST, allow_infinity=False, exclude_min=False))
def test_every_value_lies_in_the_bucket_that_it_is_given(value: float) -> None:
    assert holds(index_of(value), value)


@given(st.integers(-1021, 1022), st.integers(0, 31), st.integers(-2, 2))
def test_values_within_two_ulp_of_a_border_lie_in_the_right_bucket(exponent: int, step: int, ulps: int) -> None:
    value = math.ldexp(2.0 ** (step / 32), exponent)
    for _ in range(abs(ulps)):
        value = math.nextafter(value, math.inf if ulps > 0 else 0)
    assert holds(index_of(value), value)


def test_the_smallest_and_largest_values_have_the_outermost_buckets() -> None:
    assert index_of(SMALLEST) == LOWEST_INDEX
    assert index_of(LARGEST) == HIGHEST_INDEX


def test_powers_of_two_are_the_upper_border_of_their_bucket() -> None:
    assert [index_of(value) for value in (0.5, 1.0, 2.0, 4.0)] == [-33, -1, 31, 63]


@given(st.integers(LOWEST_INDEX + 32, HIGHEST_INDEX - 32))
def test_the_middle_of_a_bucket_is_within_its_error_of_both_borders(index: int) -> None:
    low, high = (math.ldexp(2.0 ** (border % 32 / 32), border // 32) for border in (index, index + 1))
    assert middle(index) / low - 1 < 0.01095
    assert 1 - middle(index) / high < 0.01084
