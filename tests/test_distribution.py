"""A distribution: exact while small, a histogram beyond, the same whatever the order."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer.distribution import EXACT_LIMIT, PACK_ABOVE, DistributionState
from kvxfer.errors import ImplausibleError, KVXferError, StatsError
from kvxfer.packing import pack_histogram, unpack

values = st.floats(min_value=0, max_value=1e300)
parts = st.lists(st.lists(values, max_size=20), min_size=1, max_size=8)


def state(observed: list[float], *, folded: bool = False) -> DistributionState:
    made = DistributionState()
    made.extend(observed)
    if folded:
        made._as_histogram()
    return made


def merged(states: list[DistributionState]) -> DistributionState:
    whole = DistributionState()
    for part in states:
        whole.merge(part)
    return whole


def buckets(of: DistributionState) -> tuple[object, ...]:
    """Everything but the sum, whose last bits depend on the order of addition."""
    histogram = of.histogram()
    return (of.is_exact, of.count, histogram.zeros, histogram.offset, histogram.counts.tolist(), of.min, of.max)


@given(parts, st.lists(st.booleans(), min_size=8, max_size=8), st.randoms(use_true_random=False))
def test_merging_in_any_order_and_grouping_gives_the_same_state(
    observed: list[list[float]], folded: list[bool], rng: random.Random
) -> None:
    def fresh() -> list[DistributionState]:
        return [state(part, folded=fold and bool(part)) for part, fold in zip(observed, folded, strict=False)]

    one_by_one = merged(fresh())
    shuffled = fresh()
    rng.shuffle(shuffled)
    cut = rng.randint(0, len(shuffled))
    in_groups = merged([merged(shuffled[cut:]), merged(shuffled[:cut])])
    assert buckets(one_by_one) == buckets(in_groups)
    assert math.isclose(one_by_one.sum, in_groups.sum, rel_tol=1e-12)


@given(parts)
def test_merging_gives_the_histogram_of_the_whole(observed: list[list[float]]) -> None:
    whole = [value for part in observed for value in part]
    assert buckets(merged([state(part) for part in observed])) == buckets(state(whole))


def test_it_stays_exact_up_to_the_limit_and_folds_beyond() -> None:
    one, two = state([1.0] * (EXACT_LIMIT - 1)), state([2.0])
    one.merge(two)
    assert one.is_exact
    one.merge(two)
    assert not one.is_exact
    assert (one.count, one.sum, one.min, one.max) == (EXACT_LIMIT + 1, EXACT_LIMIT + 3, 1.0, 2.0)


@given(st.lists(st.floats(min_value=1e-9, max_value=1e9), min_size=1, max_size=300), st.floats(0, 1))
def test_a_quantile_is_numpys_while_exact_and_within_its_error_when_folded(observed: list[float], q: float) -> None:
    wanted = float(np.percentile(observed, q * 100))
    assert state(observed).quantile(q) == wanted
    assert state(observed, folded=True).quantile(q) == pytest.approx(wanted, rel=0.011)


def test_a_hundred_thousand_values_keep_their_quantiles_count_and_sum() -> None:
    observed = np.random.default_rng(7).lognormal(-4, 1.5, 100_000)
    one = DistributionState()
    for value in observed.tolist():
        one.observe(value)
    assert one.count == 100_000
    assert one.sum == pytest.approx(math.fsum(observed), rel=1e-12)
    for q in (0.01, 0.5, 0.9, 0.99, 0.999):
        assert one.quantile(q) == pytest.approx(float(np.quantile(observed, q)), rel=0.011)


def test_what_is_no_plausible_number_is_counted_and_mixed_into_nothing() -> None:
    one = DistributionState()
    for value in (1.0, math.nan, math.inf, -math.inf, -1.0, "3", None, 2.0):
        one.observe(value)  # type: ignore[arg-type]
    assert (one.count, one.sum, one.rejected) == (2, 3.0, 6)


def test_zero_and_subnormal_values_are_counted_apart() -> None:
    one = state([0.0, 5e-324, 1.0], folded=True)
    assert (one.histogram().zeros, one.count, one.min, one.max) == (2, 3, 0.0, 1.0)
    assert one.quantile(0.5) == 0.0


def test_nothing_observed_reads_as_zero() -> None:
    one = DistributionState()
    assert (one.count, one.sum, one.mean, one.min, one.max, one.quantile(0.9)) == (0, 0, 0, 0, 0, 0)
    assert one.is_empty


def test_a_quantile_outside_of_0_to_1_is_refused() -> None:
    with pytest.raises(StatsError, match="between 0 and 1, got 90"):
        state([1.0]).quantile(90)


@pytest.mark.parametrize("count", [0, 1, PACK_ABOVE, PACK_ABOVE + 1, EXACT_LIMIT + 1])
def test_a_payload_gives_back_what_was_packed(count: int) -> None:
    one = state(np.random.default_rng(count).lognormal(0, 3, count).tolist())
    again, exact = DistributionState(), DistributionState()
    again.load(one.to_packed())
    exact.load(one.to_value())
    assert again.is_exact == (count <= PACK_ABOVE)
    assert buckets(again)[1:] == buckets(one)[1:]
    assert exact == one


def test_whole_numbers_stay_whole_through_a_payload() -> None:
    one = DistributionState(whole=True)
    one.extend([3, 4])
    again = DistributionState()
    again.load(one.to_packed())
    assert repr(again.sum) == "7"
    assert again.to_value() == [3, 4]


def test_buckets_far_apart_are_packed_sparsely() -> None:
    one = state([1e-300, 1.0, 1e300] * 40)
    packed = one.to_packed()
    assert len(packed) < 60
    again = DistributionState()
    again.load(packed)
    assert buckets(again)[1:] == buckets(one)[1:]


@settings(max_examples=300)
@given(st.binary(max_size=80), st.sampled_from([b"", b"\x00", b"\x01", b"\x81"]))
def test_hostile_bytes_are_refused_or_plausible(noise: bytes, form: bytes) -> None:
    try:
        one = DistributionState()
        one.load(form + noise)
    except KVXferError:
        return
    assert one.count >= 0
    assert 0 <= one.min <= one.max < math.inf


@pytest.mark.parametrize("change", [("max", 0.5), ("sum", 1e9), ("min", -1.0), ("max", math.inf), ("offset", 32760)])
def test_a_histogram_that_cannot_be_true_is_refused(change: tuple[str, float]) -> None:
    histogram = state([1.0, 2.0, 3.0], folded=True).histogram()
    setattr(histogram, *change)
    with pytest.raises(ImplausibleError, match="a histogram of 3 values"):
        unpack(pack_histogram(histogram, whole=False))
