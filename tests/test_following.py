"""A collector that moved is found again by its name, and what it had not acknowledged is told to where it is now."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.errors import ConfigError, EndpointError
from kvxfer.integrations.following import (
    AGAIN_MAX_SECONDS,
    GIVING_UP_SECONDS,
    MAX_SECONDS,
    NOWHERE,
    STUCK_SECONDS,
    Asking,
    Following,
)
from kvxfer.publisher import StatsPublisher


def collecting(endpoint: str, journal: Path | None = None, upstream: str | None = None) -> Collector:
    where = None if journal is None else str(journal)
    return Collector(CollectorConfig(endpoint=endpoint, journal=where, interval_seconds=0.1, upstream=upstream))


def failed(collector: Collector) -> int:
    return sum(group.stats.reduce()["Num failed transfers"] for group in collector.snapshot().groups)


@pytest.fixture
def worker() -> Iterator[StatsPublisher]:
    with StatsPublisher("NixlConnector", NOWHERE, linger=0.1) as publisher:
        publisher.stats.record_failed_transfer()
        yield publisher


# --- when to ask


def test_it_asks_at_once_and_again_until_somebody_is_found_ever_less_and_after_minutes_hardly() -> None:
    asking = Asking()
    asked = times_asked(asking, None, None)
    gaps = [round(after - before) for before, after in itertools.pairwise(asked)]
    assert asked[0] == 0
    assert gaps[:4] == [1, 2, 4, AGAIN_MAX_SECONDS]
    assert [gap for before, gap in zip(asked, gaps, strict=False) if before < GIVING_UP_SECONDS][
        -1
    ] == AGAIN_MAX_SECONDS
    assert {gap for before, gap in zip(asked, gaps, strict=False) if before >= GIVING_UP_SECONDS} == {MAX_SECONDS}
    asking.answered("a", 400.0)
    asking.is_due(7, 450.0)
    asking.answered(None, 500.0)
    assert asking.is_due(7, 501.0)


def times_asked(asking: Asking, progress: int | None, answer: str | None) -> list[float]:
    """When it asks within 400 seconds of the same progress and the same answers."""
    asked = []
    for step in range(4000):
        now = step / 10
        if asking.is_due(progress, now):
            asked.append(now)
            asking.answered(answer, now)
    return asked


def test_who_misses_the_same_collector_asks_at_another_time() -> None:
    asking, other = Asking(lambda: 0.75), Asking(lambda: 1.0)
    for each in (asking, other):
        each.answered(None, 100.0)
    assert asking.is_due(None, 100.8)
    assert not other.is_due(None, 100.8)


def test_while_acknowledgements_come_or_nothing_waits_nobody_is_asked() -> None:
    asking = Asking()
    asking.answered("a", 0.0)
    assert not any(asking.is_due(second, float(second)) for second in range(100))
    assert not any(asking.is_due(None, float(second)) for second in range(100, 200))


def test_without_an_acknowledgement_it_asks_ever_less_while_the_answer_is_the_same() -> None:
    asking = Asking()
    asking.answered("a", 0.0)
    asked = times_asked(asking, 7, "a")
    gaps = [round(after - before) for before, after in itertools.pairwise(asked)]
    assert asked[0] == STUCK_SECONDS
    assert gaps[:4] == [4, 8, 16, MAX_SECONDS]
    assert set(gaps[3:]) == {MAX_SECONDS}


def test_a_collector_that_moved_is_given_as_much_time_as_at_first() -> None:
    asking = Asking()
    asking.answered("a", 0.0)
    asking.is_due(7, 0.0)
    for now in (2.0, 6.0, 14.0):
        asking.answered("a", now)
    asking.answered("b", 20.0)
    assert not asking.is_due(7, 20.0 + STUCK_SECONDS / 2)
    assert asking.is_due(7, 20.0 + STUCK_SECONDS)


# --- moving


def test_a_publisher_that_is_moved_tells_the_next_collector_what_the_first_had_not_written_down(
    worker: StatsPublisher, ipc_endpoint: str, tmp_path: Path
) -> None:
    source = worker.source
    with collecting(ipc_endpoint, tmp_path / "j.db"):
        worker.move_to(ipc_endpoint)
        assert worker.flush(10)
    worker.stats.record_failed_transfer()
    assert not worker.flush()
    with collecting(f"{ipc_endpoint}2", tmp_path / "j.db") as second:
        worker.move_to(second.endpoint)
        assert worker.flush(10)
        assert failed(second) == 2
        assert second.pipeline().reports_lost == 0
    assert worker.source is source


def test_what_was_handed_to_a_collector_that_does_not_answer_goes_to_the_next_one_at_once(
    ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvxfer.outbox.RESEND_SECONDS", 600.0)  # what it would wait without an acknowledgement
    hanging = collecting(ipc_endpoint)  # nobody polls it
    try:
        with StatsPublisher("NixlConnector", ipc_endpoint, linger=0.1) as worker:
            worker.stats.record_failed_transfer()
            deadline = time.monotonic() + 30
            while "sent=1" not in repr(worker):
                assert time.monotonic() < deadline
                worker.flush(0.01)
            with collecting(f"{ipc_endpoint}2") as second:
                worker.move_to(second.endpoint)
                assert worker.flush(30)
                assert failed(second) == 1
    finally:
        hanging.stop()


def test_a_publisher_says_where_it_cannot_move(worker: StatsPublisher, ipc_endpoint: str) -> None:
    with pytest.raises(EndpointError, match="expected ipc://PATH"):
        worker.move_to("nowhere")
    shared = StatsPublisher("NixlConnector", ipc_endpoint, buffer="shared", linger=0.0)
    with pytest.raises(ConfigError, match="stays at its endpoint"):
        shared.move_to(f"{ipc_endpoint}2")
    shared.close()
    assert shared.endpoint == ipc_endpoint


def test_a_collector_is_told_where_the_one_above_has_moved(worker: StatsPublisher, ipc_endpoint: str) -> None:
    with collecting(f"{ipc_endpoint}2") as above, collecting(ipc_endpoint, upstream=NOWHERE) as collector:
        worker.move_to(ipc_endpoint)
        assert worker.flush(10)
        with pytest.raises(EndpointError, match="expected ipc://PATH"):
            collector.move_upstream("nowhere")
        collector.move_upstream(above.endpoint)
        deadline = time.monotonic() + 10
        while failed(above) != 1:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)


# --- the thread


def test_who_follows_finds_a_collector_that_comes_later_whatever_a_look_up_raises(
    worker: StatsPublisher, ipc_endpoint: str
) -> None:
    answers = iter([OSError("no such name"), None, ipc_endpoint])

    def find() -> str | None:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    following = Following(find, worker.move_to, lambda: None)
    with collecting(ipc_endpoint) as collector:
        following.start()
        assert worker.flush(10)
        assert failed(collector) == 1
    following.stop()
    assert list(answers) == []


def test_a_move_and_a_progress_that_fail_are_tried_again(ipc_endpoint: str) -> None:
    failing, moved = {"progress", "move"}, threading.Event()

    def fail_once(what: str) -> None:
        if what in failing:
            failing.remove(what)
            raise OSError(what)

    def move(endpoint: str) -> None:
        fail_once("move")
        assert endpoint == ipc_endpoint
        moved.set()

    following = Following(lambda: ipc_endpoint, move, lambda: fail_once("progress"))
    following.start()
    assert moved.wait(30)
    following.stop()
    assert not failing


def test_a_look_up_that_hangs_holds_up_no_end_for_long(worker: StatsPublisher) -> None:
    hanging, ended = threading.Event(), threading.Event()

    def find() -> None:
        hanging.set()
        ended.wait(20)

    following = Following(find, worker.move_to, lambda: None)
    following.start()
    assert hanging.wait(10)
    begun = time.monotonic()
    following.stop()
    assert time.monotonic() - begun < 5
    ended.set()
