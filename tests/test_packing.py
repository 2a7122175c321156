"""The packed bytes of a distribution: what is packed is given back, what cannot be true is refused."""

import math
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer.buckets import HIGHEST_INDEX, LARGEST, LOWEST_INDEX, SMALLEST
from kvxfer.errors import ImplausibleError
from kvxfer.histogram import Histogram
from kvxfer.packing import HISTOGRAM, WHOLE, pack_exact, pack_histogram, unpack

HEADER = struct.Struct("<BBQdddi")


def histogram(values: list[float], times: int = 1) -> Histogram:
    made = Histogram()
    made.add(np.repeat(np.array(values), times))
    return made


def occupied(of: Histogram) -> dict[int, int]:
    return {of.offset + at: count for at, count in enumerate(of.counts.tolist()) if count}


def again(of: Histogram, *, whole: bool = False) -> Histogram:
    content, read_whole = unpack(pack_histogram(of, whole=whole))
    assert isinstance(content, Histogram)
    assert read_whole is whole
    return content


@given(
    st.lists(st.floats(min_value=0, max_value=sys.float_info.max), min_size=1, max_size=60),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_histogram_is_given_back(values: list[float], times: int, whole: bool) -> None:  # noqa: FBT001
    made = histogram(values, times)
    read = again(made, whole=whole)
    assert occupied(read) == occupied(made)
    assert (read.count, read.zeros, read.min, read.max, read.sum) == (
        made.count,
        made.zeros,
        made.min,
        made.max,
        made.sum,
    )


@pytest.mark.parametrize("count", [1, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**41])
@pytest.mark.parametrize("values", [[1.0], [1.0, 1.5, 2.0], [1e-9, 1e9], [1e-300, 1.0, 1e300]])
def test_counts_of_every_size_are_given_back_dense_and_sparse(count: int, values: list[float]) -> None:
    made = histogram(values)
    made.counts = made.counts * count
    made.count, made.sum = made.count * count, min(made.sum * count, sys.float_info.max)
    assert occupied(again(made)) == occupied(made)


def test_histograms_of_both_ends_of_what_has_a_bucket_are_given_back() -> None:
    made = histogram([SMALLEST, LARGEST])
    assert occupied(again(made)) == {LOWEST_INDEX: 1, HIGHEST_INDEX: 1}


def test_what_no_float_is_too_small_or_large_for_is_counted_and_takes_no_room() -> None:
    made = again(histogram([5e-324, 2.0**-1022, SMALLEST, LARGEST, sys.float_info.max]))
    assert (made.zeros, occupied(made)) == (2, {LOWEST_INDEX: 1, HIGHEST_INDEX: 2})
    assert (made.count, made.min, made.max) == (5, 5e-324, sys.float_info.max)
    assert made.counts.nbytes <= 37_000


@given(st.lists(st.floats(), max_size=30), st.booleans())
def test_exact_values_are_given_back_bit_by_bit(values: list[float], whole: bool) -> None:  # noqa: FBT001
    packed = pack_exact(np.array(values).tobytes(), whole=whole)
    content, read_whole = unpack(packed)
    assert isinstance(content, np.ndarray)
    assert content.tobytes() == np.array(values).tobytes()
    assert read_whole is whole
    assert len(packed) == 1 + 8 * len(values)


def test_a_thousand_transfers_take_less_than_half_a_byte_each() -> None:
    values = np.random.default_rng(2).lognormal(-4, 0.5, 1000).tolist()
    assert len(pack_histogram(histogram(values), whole=False)) < 500


HONEST: dict[str, Any] = {"form": HISTOGRAM, "sizes": 1, "zeros": 0, "total": 3.0, "smallest": 1.0, "largest": 2.0}


def packed(*, offset: int = -1, body: bytes = b"\x01" + b"\x00" * 31 + b"\x01", **changes: Any) -> bytes:
    """The bytes of a histogram of 1.0 and 2.0, or of what is changed of it."""
    return HEADER.pack(*(HONEST | changes).values(), offset) + body


def test_the_bytes_are_as_the_format_says() -> None:
    assert pack_histogram(histogram([1.0, 2.0] * 40 + [1.01] * 80), whole=True)[:2] == bytes(
        (HISTOGRAM | WHOLE, 1 | 1 << 4)
    )
    content, whole = unpack(packed())
    assert isinstance(content, Histogram)
    assert (occupied(content), content.count, whole) == ({-1: 1, 31: 1}, 2, False)
    sparse, _ = unpack(packed(sizes=1 | 1 << 4, body=b"\x00\x20\x01\x01"))
    assert sparse == content


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (b"", "a distribution of no bytes"),
        (b"\x00" * 8, "form 0 with 8 bytes"),
        (b"\x02" * 9, "form 2 with 9 bytes"),
        (b"\x01" * 9, "form 1 with 9 bytes"),
        (packed(sizes=3), "counts of 3"),
        (packed(sizes=0), "counts of 0"),
        (packed(sizes=1 | 3 << 4), "gaps of 3"),
        (packed(sizes=2), "in 33 bytes"),
        (packed(body=b""), "of 0 values"),
        (packed(body=b"\x00" * 33), "of 0 values"),
        (packed(smallest=-1.0), "min -1.0"),
        (packed(smallest=3.0), "min 3.0"),
        (packed(smallest=math.nan), "min nan"),
        (packed(largest=math.inf), "max inf"),
        (packed(largest=math.nan), "max nan"),
        (packed(total=math.nan), "sum nan"),
        (packed(total=math.inf), "sum inf"),
        (packed(total=4.1), "sum 4.1"),
        (packed(total=1.9), "sum 1.9"),
        (packed(total=-3.0), "sum -3.0"),
        (packed(zeros=1 << 44), "sum 3.0"),
        (packed(offset=LOWEST_INDEX - 1), "of 2 values"),
        (packed(offset=HIGHEST_INDEX - 31), "of 2 values"),
        (packed(offset=2**31 - 1), "of 2 values"),
        (packed(sizes=8, body=b"\xff" * 8), "values with sum"),
        (packed(sizes=8, body=(b"\x00" * 7 + b"\x40") * 2), "values with sum"),
        (packed(sizes=1 | 4 << 4, body=b"\xff" * 4 + b"\x01"), "spans 4294967295 buckets"),
        (packed(sizes=1 | 8 << 4, body=b"\xff" * 8 + b"\x01"), "spans 18446744073709551616 buckets"),
        (packed(sizes=1 | 8 << 4, body=b"\xff" * 16 + b"\x01\x01"), "buckets"),
    ],
)
def test_bytes_that_cannot_be_true_are_refused(lie: bytes, message: str) -> None:
    with pytest.raises(ImplausibleError, match=message):
        unpack(lie)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), st.integers(0, 80))
def test_mutated_bytes_are_refused_or_hold_what_a_histogram_can(changes: list[tuple[int, int]], cut: int) -> None:
    mutant = bytearray(pack_histogram(histogram([0.0, 1.0, 1.5, 2.0, 1e9]), whole=False))
    for position, byte in changes:
        mutant[position % len(mutant)] = byte
    try:
        content, _ = unpack(bytes(mutant[: len(mutant) - cut]))
    except ImplausibleError:
        return
    if isinstance(content, Histogram):
        assert content.count == content.zeros + int(content.counts.sum()) > 0
        assert int(content.counts.min(initial=0)) >= 0
        assert content.min <= content.quantile(0.5) <= content.max
