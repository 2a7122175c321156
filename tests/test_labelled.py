"""Labelled fields: a state per label set, bounded, and what happens to labels that are none."""

from enum import Enum
from typing import Any

import numpy as np
import pytest

from kvxfer.errors import StatsError
from kvxfer.labelled import MAX_LABEL_SETS, LabelledState
from kvxfer.states import CounterState


class Unsure:
    """What cannot say what it is."""

    def __hash__(self) -> int:
        """Fail."""
        raise ValueError

    def __eq__(self, other: object) -> bool:
        """Fail."""
        raise ValueError


# Half of a surrogate pair is a string that no report can carry.
NONE: list[tuple[Any, ...]] = [(), ("a", "b"), (1,), (None,), (b"x",), ("\ud800",), ([1],), (Unsure(),)]


def is_hashable(values: tuple[Any, ...]) -> bool:
    try:
        hash(values)
    except (TypeError, ValueError):
        return False
    return True


def labelled(**counts: int) -> LabelledState:
    made = LabelledState(CounterState, 1)
    for label, count in counts.items():
        made.labels(label).add(count)
    made.fold()
    return made


def test_label_sets_merge_one_by_one_and_leave_the_other_as_it_was() -> None:
    made, other = labelled(a=1, b=2), labelled(b=3, c=4)
    made.merge(other)
    assert made.to_value() == {("a",): 1, ("b",): 5, ("c",): 4}
    made.labels("c").add(1)
    assert other.to_value() == {("b",): 3, ("c",): 4}


def test_a_label_set_that_was_only_asked_for_holds_nothing() -> None:
    asked = labelled(a=1)
    asked.labels("b")
    assert asked.to_value() == {("a",): 1}
    assert asked == labelled(a=1)
    assert labelled(b=0).is_empty


def test_who_kept_a_label_set_goes_on_with_it_after_all_was_taken() -> None:
    made = labelled(a=1)
    kept = made.labels("a")
    taken = made.drain()
    kept.add(5)
    made.fold()
    assert (taken.to_value(), made.to_value()) == ({("a",): 1}, {("a",): 5})


def test_label_sets_beyond_the_bound_are_counted_together_however_they_come() -> None:
    one = labelled(**{f"x{number}": 1 for number in range(80)})
    other = labelled(**{f"y{number}": 1 for number in range(80)})
    one.merge(other)
    values = one.to_value()
    assert len(values) == MAX_LABEL_SETS + 1
    assert sum(values.values()) == 160
    assert values["other",] == 60


@pytest.mark.parametrize("values", NONE, ids=repr)
def test_labels_that_are_none_are_counted_under_other_and_each_call_as_rejected(values: tuple[Any, ...]) -> None:
    made = labelled(a=1)
    for _ in range(2):
        made.labels(*values).add(3)
    made.fold()
    assert made.to_value() == {("a",): 1, ("other",): 6}
    assert made.drain_rejected() == 2
    assert made == labelled(a=1, other=6)


@pytest.mark.parametrize("values", [values for values in NONE if is_hashable(values)], ids=repr)
def test_a_peers_labels_that_are_none_are_refused(values: tuple[Any, ...]) -> None:
    made = labelled(a=1)
    with pytest.raises(StatsError, match="expected 1 label values of type str, got "):
        made.load({values: 3})
    assert made == labelled(a=1)


def test_a_refused_label_is_merged_taken_and_forgotten_as_all_else() -> None:
    made, other = LabelledState(CounterState, 1), LabelledState(CounterState, 1)
    other.labels(None)  # type: ignore[arg-type]
    assert not other.is_empty
    assert other != made
    made.merge(other)
    taken = made.drain()
    assert made.is_empty
    assert taken.drain_rejected() == 1
    other.forget_pending()
    assert other.is_empty


class Tier(str, Enum):
    """A string that hashes as its name, which is not its value."""

    HOST = "host"


@pytest.mark.parametrize("label", [Tier.HOST, np.str_("host")])
def test_labels_of_a_kind_of_string_are_that_string(label: str) -> None:
    made = labelled(host=1, **{f"x{number}": 1 for number in range(MAX_LABEL_SETS - 1)})
    assert made.labels(label) is made.labels("host")
    assert made.drain_rejected() == 0
    made = LabelledState(CounterState, 1)
    made.labels(label)
    assert [type(value) for (value,) in made.children] == [str]


def test_a_payload_per_label_set_is_given_back() -> None:
    made = LabelledState(CounterState, 1)
    made.load(labelled(a=1, b=2).to_packed())
    made.load({"b": 3})
    assert made == labelled(a=1, b=5)
    with pytest.raises(StatsError, match="expected a payload per label set, got int"):
        made.load(3)


def test_what_was_loaded_or_folded_does_not_wait_to_be_folded() -> None:
    state = LabelledState(CounterState, 1)
    state.load({("a",): 3})
    assert not state
    state.labels("a").add(1)
    assert state
    state.fold()
    assert not state
    state.labels(None)  # type: ignore[arg-type]
    assert state
