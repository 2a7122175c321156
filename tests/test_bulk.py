"""Parts added up all at once equal parts merged one by one; what is no part is told of each."""

import math
import struct
import sys
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer.bulk import ROWS, WINDOW, Column
from kvxfer.distribution import DistributionState
from kvxfer.errors import KVXferError
from kvxfer.packing import HISTOGRAM

magnitudes = st.sampled_from([0.0, 1e-30, 1e-6, 0.5, 1.0, 3.0, 1e3, 1e9, 1e30, 1e300, sys.float_info.max])
values = st.lists(magnitudes | st.floats(0, sys.float_info.max), max_size=8)


def packed(observed: list[float], times: int, *, whole: bool) -> bytes:
    state = DistributionState(whole=whole)
    state.add(np.repeat(np.array(observed, np.float64), times))
    return state.to_packed() if observed else b""


def parts(most: int) -> Any:
    one = st.builds(
        lambda observed, times, whole: packed(observed, times, whole=whole),
        values,
        st.sampled_from([1, 20, 120, 700]),
        st.booleans(),
    )
    return st.lists(one, min_size=1, max_size=most)


def one_by_one(of: list[bytes]) -> DistributionState:
    state = DistributionState()
    for part in of:
        if part:
            state.load(part)
    return state


def assert_same(found: DistributionState | None, expected: DistributionState) -> None:
    if found is None:
        assert expected.is_empty
        return
    assert (found.count, found.is_exact, found.whole) == (expected.count, expected.is_exact, expected.whole)
    assert math.isclose(found.sum, expected.sum, rel_tol=1e-12)
    mine, theirs = found.histogram(), expected.histogram()
    theirs.sum = mine.sum
    assert mine == theirs


@given(parts(12), st.data())
def test_the_sum_of_any_runs_of_parts_is_that_of_merging_them_one_by_one(of: list[bytes], data: Any) -> None:
    order = data.draw(st.permutations(range(len(of))))
    starts = [0, *sorted(data.draw(st.sets(st.integers(1, len(of) - 1))) if len(of) > 1 else ())]
    column = Column(of)
    assert column.plausible.all()
    ends = [*starts[1:], len(of)]
    found = column.sums(np.array(order), starts)
    for state, start, end in zip(found, starts, ends, strict=True):
        assert_same(state, one_by_one([of[row] for row in order[start:end]]))


def is_taken(part: bytes) -> bool:
    """Whether the part by itself is one, with no value that would have to be refused."""
    state = DistributionState()
    try:
        state.load(part)
    except KVXferError:
        return False
    return state.rejected == 0


@settings(max_examples=300)
@given(parts(12), st.data())
def test_what_is_no_part_is_told_and_spoils_none_of_the_others(of: list[bytes], data: Any) -> None:
    spoiled = []
    for part in of:
        at = data.draw(st.integers(0, max(0, len(part) - 1)))
        byte = data.draw(st.binary(max_size=2))
        spoiled.append(part[:at] + byte + part[at + 1 :] if data.draw(st.booleans()) else part)
    column = Column(spoiled)
    assert column.plausible.tolist() == [not part or is_taken(part) for part in spoiled]
    good = np.flatnonzero(column.plausible)
    if good.size:
        (state,) = column.sums(good, [0])
        assert_same(state, one_by_one([spoiled[row] for row in good]))


def test_a_full_table_of_the_largest_counts_overflows_no_lane() -> None:
    window = b"\xff" * WINDOW
    count = 255 * WINDOW
    part = struct.pack("<BBQdddi", HISTOGRAM, 1, 0, 1.0 * count, 1.0, 1.0, -WINDOW // 2) + window
    (state,) = Column([part] * ROWS).sums(np.arange(ROWS), [0])
    assert state is not None
    assert state.count == ROWS * count
    assert set(state.histogram().counts.tolist()) == {ROWS * 255}


def test_a_part_far_from_the_others_is_added_up_all_the_same() -> None:
    near, far = packed([1.0, 2.0], 200, whole=False), packed([1e-18], 200, whole=False)
    of = [near, far, near, packed([1e24], 200, whole=False)]
    (state,) = Column(of).sums(np.arange(4), [0])
    assert_same(state, one_by_one(of))
