"""The numbers taken of one source, in memory that does not grow with them."""

from hypothesis import given
from hypothesis import strategies as st

from kvxfer.seqs import MAX_GAPS, SeenSeqs


def taken(*numbers: int) -> SeenSeqs:
    made = SeenSeqs()
    for number in numbers:
        assert made.take(number)
    return made


def test_no_number_taken_yet() -> None:
    assert repr(SeenSeqs()) == "<SeenSeqs none>"
    assert SeenSeqs().missing(0) == 0
    assert SeenSeqs().missing(7) == 7


def test_ranges_grow_at_both_ends_and_close_up() -> None:
    assert repr(taken(5)) == "<SeenSeqs 5..5>"
    assert repr(taken(5, 6, 4)) == "<SeenSeqs 4..6>"
    assert repr(taken(1, 2, 58, 60, 59)) == "<SeenSeqs 1..2 58..60>"
    assert repr(taken(1, 3, 2)) == "<SeenSeqs 1..3>"


@given(st.permutations(range(1, 30)))
def test_all_numbers_in_any_order_are_one_range_and_none_is_missing(numbers: list[int]) -> None:
    made = taken(*numbers)
    assert repr(made) == "<SeenSeqs 1..29>"
    assert made.missing(29) == 0
    assert not any(made.take(number) for number in numbers)


def test_missing_are_the_gaps_and_what_comes_up_to_the_last() -> None:
    made = taken(2, 3, 6)
    assert made.missing(6) == 2
    assert made.missing(9) == 5
    assert made.missing(4) == 1


def test_what_came_before_the_first_number_was_another_collectors() -> None:
    assert taken(100, 101).missing(101) == 0


@given(st.lists(st.integers(1, 2000), unique=True, max_size=300))
def test_memory_is_bounded_and_no_number_is_taken_twice(numbers: list[int]) -> None:
    made = SeenSeqs()
    for number in numbers:
        made.take(number)
        assert not made.take(number)
        assert repr(made).count("..") <= MAX_GAPS


def test_gaps_that_were_forgotten_stay_missing() -> None:
    numbers = range(1, 1001, 2)
    assert taken(*numbers).missing(999) == 499
    late = taken(*numbers)
    assert not late.take(2)
    assert late.take(998)
    assert late.missing(999) == 498
