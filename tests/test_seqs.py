"""The numbers taken of one source: each once, in memory that does not grow with them."""

from hypothesis import given
from hypothesis import strategies as st

from kvxfer.seqs import TakenSeqs
from kvxfer.wire import MAX_OUTSTANDING


def taken(*numbers: int) -> TakenSeqs:
    made = TakenSeqs()
    for number in numbers:
        assert made.take(number, 1)
    return made


def test_the_floor_rises_over_numbers_without_a_gap_and_single_ones_are_kept_above() -> None:
    assert repr(TakenSeqs()) == "<TakenSeqs ..0>"
    assert repr(taken(1, 2, 5)) == "<TakenSeqs ..2 5>"
    assert repr(taken(1, 3, 2)) == "<TakenSeqs ..3>"
    assert repr(taken(2, 4, 3)) == "<TakenSeqs ..0 2 3 4>"


@given(st.permutations(range(1, 30)))
def test_all_numbers_in_any_order_raise_the_floor_to_the_last(numbers: list[int]) -> None:
    made = taken(*numbers)
    assert (made.floor, made.above, made.missing(29), made.missing(31)) == (29, 0, 0, 2)


@given(st.lists(st.integers(1, 40), max_size=80))
def test_a_number_is_taken_exactly_once_whatever_the_order(numbers: list[int]) -> None:
    made, seen = TakenSeqs(), set[int]()
    for number in numbers:
        assert made.holds(number) == (number in seen)
        assert made.take(number, 1) == (number not in seen)
        seen.add(number)
    assert made.missing(40) == 40 - len(seen)
    assert all(number in seen for number in range(1, made.floor + 1))


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 60))
def test_what_its_publisher_does_not_keep_any_more_is_not_waited_for(numbers: list[int], oldest: int) -> None:
    made = TakenSeqs()
    for number in numbers:
        made.take(number, 1)
    made.settle(oldest)
    assert made.floor >= oldest - 1
    assert made.missing(60) == len(set(range(oldest, 61)) - set(numbers))


def test_memory_is_bounded_however_far_apart_the_numbers_are() -> None:
    made = TakenSeqs()
    for number in range(1, 1 << 62, 1 << 55):
        assert made.take(number, 0)
        assert made.above.bit_length() <= MAX_OUTSTANDING
