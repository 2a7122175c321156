"""Buckets, native and classic, are those of the histogram: nothing is lost, nothing counted twice."""

import numpy as np
import pytest
from exposing import Native, measured, of_stats, protobuf_families, samples
from hypothesis import given
from hypothesis import strategies as st

from kvxfer.buckets import LOWEST_INDEX, PER_OCTAVE, SMALLEST
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.exporters.prometheus import PROTOBUF
from kvxfer.exporters.prometheus.classic import BOUNDARIES, COUNTS, UNKNOWN, cumulative
from kvxfer.histogram import Histogram

VALUES = st.lists(st.floats(0.0, 1e30, allow_subnormal=True) | st.floats(1e-6, 1e3) | st.just(0.0), max_size=60)


def histogram_of(values: list[float]) -> Histogram:
    histogram = Histogram()
    if values:
        histogram.add(np.array(values))
    return histogram


def exposed(values: list[float]) -> Native:
    stats = NixlConnectorStats()
    for held in values:
        stats.transfer_duration.observe(held)
    families = measured(of_stats(stats, "NixlConnector"))
    kind, ((_, native),) = protobuf_families(PROTOBUF.write(families))["kvxfer_nixl_transfer_duration_seconds"]
    assert kind == 4
    assert isinstance(native, Native)
    return native


@given(VALUES)
def test_a_native_histogram_is_the_histogram_each_index_one_higher(values: list[float]) -> None:
    native, histogram = exposed(values), histogram_of(values)
    assert (native.count, native.zero_count, native.schema) == (len(values), histogram.zeros, 5)
    assert native.zero_count + sum(native.buckets.values()) == native.count
    held = {histogram.offset + at + 1: count for at, count in enumerate(histogram.counts.tolist()) if count}
    assert {index: count for index, count in native.buckets.items() if count} == held
    assert native.sum == pytest.approx(histogram.sum, rel=1e-11)


@given(VALUES)
def test_each_value_lies_in_its_native_bucket(values: list[float]) -> None:
    native = exposed(values)
    for index, count in native.buckets.items():
        low, high = (2.0 ** (border / PER_OCTAVE) for border in (index - 1, index))
        inside = sum(low * (1 - 1e-15) < held <= high * (1 + 1e-15) for held in values if SMALLEST <= held < 1e24)
        assert inside >= count or high > 1e24


def test_the_zero_bucket_ends_below_the_lowest_other() -> None:
    native = exposed([])
    assert 0 < native.zero_threshold <= 2.0 ** (LOWEST_INDEX / PER_OCTAVE)
    assert native.buckets == {}


@pytest.mark.parametrize("boundaries", [*BOUNDARIES.values(), COUNTS, UNKNOWN])
@given(values=VALUES)
def test_a_classic_bucket_counts_all_up_to_its_boundary_and_at_most_those_2_percent_above(
    boundaries: tuple[float, ...], values: list[float]
) -> None:
    counts = cumulative(histogram_of(values), boundaries)
    assert counts == sorted(counts)
    for boundary, count in zip(boundaries, counts, strict=True):
        assert sum(held <= boundary for held in values) <= count <= sum(held <= boundary * 1.022 for held in values)


@given(st.lists(st.floats(1.0, 1e13), max_size=60))
def test_a_boundary_that_is_a_power_of_two_is_exact(values: list[float]) -> None:
    counts = cumulative(histogram_of(values), BOUNDARIES["bytes"])
    assert counts == [sum(held <= boundary for held in values) for boundary in BOUNDARIES["bytes"]]


@given(VALUES, VALUES)
def test_no_bucket_falls_when_more_is_observed(first: list[float], more: list[float]) -> None:
    before, after = (cumulative(histogram_of(each), BOUNDARIES["seconds"]) for each in (first, first + more))
    assert all(one <= other for one, other in zip(before, after, strict=True))


@given(VALUES)
def test_the_last_bucket_of_text_is_the_count(values: list[float]) -> None:
    stats = NixlConnectorStats()
    for held in values:
        stats.post_duration.observe(held)
    found = samples(measured(of_stats(stats, "NixlConnector")))
    name, connector = "kvxfer_nixl_post_duration_seconds", ("connector", "NixlConnector")
    assert found[f"{name}_bucket", frozenset({connector, ("le", "+Inf")})] == len(values)
    assert found[f"{name}_count", frozenset({connector})] == len(values)
