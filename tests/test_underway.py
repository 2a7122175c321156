"""Transfers that are under way: what hangs is told while it hangs, and telling harms nobody."""

import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvxfer.aggregator import Aggregator
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.exporters.jsonl import as_record
from kvxfer.exporters.prometheus import TEXT, Exposition
from kvxfer.interval import Interval
from kvxfer.publisher import StatsPublisher
from kvxfer.records.live import Live
from kvxfer.records.observed import Line, of_interval
from kvxfer.stats import MAX_CARRIED
from kvxfer.underway import MAX_TRACKED, InFlight, UnderWayState
from kvxfer.wire import Report, Source, encode, encode_payload, plain

PATIENCE = 20.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def noted(state: UnderWayState) -> InFlight | None:
    state.note()
    return state.drain().in_flight


def test_what_has_begun_is_told_until_it_ends_and_once_more() -> None:
    clock = Clock()
    state = UnderWayState(clock)
    assert noted(state) is None
    first = state.begin()
    clock.now += 5
    second = state.begin()
    clock.now += 2
    assert noted(state) == InFlight(2, 7.0)
    state.end(first)
    assert noted(state) == InFlight(1, 2.0)
    state.end(second)
    assert noted(state) == InFlight(0, 0.0)
    assert noted(state) is None


def test_what_begins_and_ends_between_two_readings_is_told_as_none() -> None:
    state = UnderWayState(Clock())
    for _ in range(2):
        state.end(state.begin())
        assert noted(state) == InFlight(0, 0.0)
        assert noted(state) is None


class Unhashable:
    def __hash__(self) -> int:
        raise OSError


@pytest.mark.parametrize("token", [None, 99, "x", [], {}, -1, float("nan"), Unhashable()])
def test_an_end_that_was_no_begin_is_none(token: Any) -> None:
    state = UnderWayState(Clock())
    state.begin()
    state.end(token)
    assert noted(state) == InFlight(1, 0.0)


def test_who_begins_and_never_ends_is_bounded_and_hangs() -> None:
    clock = Clock()
    state = UnderWayState(clock)
    tokens = [state.begin() for _ in range(MAX_TRACKED + 100)]
    clock.now += 1
    assert noted(state) == InFlight(MAX_TRACKED, 1.0)
    for token in tokens:
        state.end(token)
    assert noted(state) == InFlight(0, 0.0)


def test_threads_may_begin_end_and_read_at_once() -> None:
    stats = NixlConnectorStats()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            stats.under_way.end(stats.under_way.begin())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        stats.note_levels()
        told = stats.drain().in_flight()
        assert told is None or 0 <= told.num_transfers <= 4
    ended.set()
    for thread in threads:
        thread.join()
    stats.note_levels()
    assert stats.drain().in_flight() in (None, InFlight(0, 0.0))


def test_stats_that_nobody_tracks_hold_nothing_of_it() -> None:
    stats = NixlConnectorStats()
    stats.record_transfer(0.5, 0.1, 1024, 2)
    stats.note_levels()
    assert stats.in_flight() is None
    assert "under_way" not in stats.to_packed()


def test_a_begin_alone_is_nothing_to_report_and_a_reading_outlives_a_pickle() -> None:
    stats = NixlConnectorStats()
    stats.under_way.begin()
    assert stats.is_empty()
    stats.note_levels()
    assert not stats.is_empty()
    copied = pickle.loads(pickle.dumps(stats))  # noqa: S301 - our own
    assert copied.in_flight() == stats.in_flight()
    assert NixlConnectorStats(stats.to_packed()) == stats


ODD = [
    *(1, None, [1, 2.0], {}, {"num": 1}, {"num": {}, "oldest": {}}, {"num": {5: 1}, "oldest": {"s": 1}}),
    *({"num": num, "oldest": 2.0} for num in ("1", -1, 1.5, True, None, (1 << 53) + 1, {"s": 1, "t": "1"})),
    *({"num": 1, "oldest": age} for age in ("1", -2, float("nan"), float("inf"), None, 4e8, {"s": -1})),
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_payload_that_is_none_is_refused_and_costs_no_transfer_beside_it(odd: Any) -> None:
    stats = NixlConnectorStats({"num_failed_transfers": 2, "under_way": odd})
    assert (stats.num_rejected(), stats.failures()["num_failed_transfers"], stats.in_flight()) == (1, 2, None)


def test_a_reader_that_does_not_know_the_key_takes_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = NixlConnectorStats({"num_failed_transfers": 2})
    stats.under_way.begin()
    stats.note_levels()
    payload = stats.to_packed()
    monkeypatch.setattr("kvxfer.stats._OF_ALL", ("rejected_observations",))
    read = NixlConnectorStats(payload)
    assert (read.num_rejected(), read.data.keys()) == (1, {"num_failed_transfers", "rejected_observations"})
    assert NixlConnectorStats(read.to_dict()) == read


def test_it_takes_no_room_of_fields_that_are_carried_on() -> None:
    newer = {f"new{number}": 1 for number in range(MAX_CARRIED)}
    of_all = {"rejected_observations": 1, "under_way": {"num": 1, "oldest": 1.0}}
    assert NixlConnectorStats(of_all | newer).num_rejected() == 1


def test_what_is_stopped_begins_nothing_and_tells_once_that_there_is_none() -> None:
    state = UnderWayState(Clock())
    state.begin()
    assert noted(state) == InFlight(1, 0.0)
    state.stop()
    assert noted(state) == InFlight(0, 0.0)
    state.end(state.begin())
    state.begin()
    assert (noted(state), len(state._began)) == (None, 0)


# --- over sources


def frame(number: int, seq: int, num: int, oldest: float) -> bytes:
    by = encode(Source(f"s{number}", "host", number, 0.0, {"rank": str(number)}))
    payload = {"under_way": {"num": num, "oldest": oldest}}
    return encode(Report(1, by, "NixlConnector", seq, 0.0, 1.0, encode_payload(payload)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99)), min_size=1, max_size=6), st.randoms())
def test_over_sources_numbers_add_up_and_the_oldest_is_the_oldest_of_all(told: list[tuple[int, int]], rng: Any) -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    frames = [(number, seq) for number in range(len(told)) for seq in (1, 2)]
    rng.shuffle(frames)
    frames.sort(key=lambda each: each[1])
    for number, seq in frames:
        made.feed(frame(number, seq, *(told[number] if seq == 2 else (1000, 1000.0))), 1.0)
    (group,) = made.close_interval(10.0).groups
    assert group.stats.in_flight() == InFlight(sum(num for num, _ in told), max(age for _, age in told))
    assert made.close_interval(20.0).groups == ()


def hanging() -> Interval:
    made = Aggregator(CollectorConfig(), 0.0)
    for number in range(3):
        made.feed(frame(number, 1, number, 30.0 * number), 1.0)
    return made.close_interval(10.0)


def test_it_is_in_metrics_records_and_on_the_screen() -> None:
    interval = hanging()
    text = TEXT.write(Exposition().families(interval)).decode()
    assert 'kvxfer_in_flight{connector="NixlConnector"} 3' in text
    assert 'kvxfer_oldest_in_flight_seconds{connector="NixlConnector"} 60' in text
    record = msgspec.json.encode(as_record(interval), enc_hook=plain)
    for observed in (of_interval(interval), msgspec.json.decode(record, type=Line).observed()):
        live = Live()
        live.take(observed)
        now = live.now()
        assert now is not None
        assert (now.in_flight, now.oldest) == (InFlight(3, 60.0), "2 host:2 Nixl")


def test_totals_and_snapshots_tell_of_none_even_within_the_interval() -> None:
    made = Aggregator(CollectorConfig(), 0.0)
    payload = {"num_failed_transfers": 1, "under_way": {"num": 3, "oldest": 50.0}}
    for seq, connector in enumerate(("NixlConnector", "MultiConnector"), 1):
        by = encode(Source("s", "host", 1, 0.0))
        told = payload if seq == 1 else {"NixlConnector": payload}
        made.feed(encode(Report(1, by, connector, seq, 0.0, 1.0, encode_payload(told))), 1.0)
    for _ in range(2):
        totals = made.snapshot(5.0)
        held = [part.stats for part in (*totals.groups, *totals.sources)]
        assert [(stats.in_flight(), stats.failures()["num_failed_transfers"]) for stats in held] == [(None, 1)] * 4
        closed = made.close_interval(10.0)
        assert {part.stats.in_flight() for part in (*closed.groups, *closed.sources)} <= {InFlight(3, 50.0)}


# --- a publisher


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvxfer.draining.NOTE_SECONDS", 0.05)


def wait_for(told: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := told()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


class Collected:
    """An exporter that keeps what is under way in each interval, None where nobody tells."""

    def __init__(self) -> None:
        self.told: list[InFlight | None] = []

    def export(self, interval: Interval) -> None:
        self.told.append(next((group.stats.in_flight() for group in interval.groups), None))

    def close(self) -> None: ...


@pytest.mark.parametrize("buffer", ["process", "shared"])
def test_a_worker_that_hangs_tells_so_until_it_goes_on(ipc_endpoint: str, buffer: str) -> None:
    collected = Collected()
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.3)
    with (
        Collector(config, [collected]),
        StatsPublisher("NixlConnector", ipc_endpoint, flush_seconds=0.05, buffer=buffer) as publisher,
    ):
        token = publisher.stats.under_way.begin()
        began = time.monotonic()
        wait_for(lambda: collected.told[-1:] and collected.told[-1] and collected.told[-1].oldest_seconds > 0.9)
        assert {each.num_transfers for each in collected.told if each is not None} == {1}
        assert max(each.oldest_seconds for each in collected.told if each) <= time.monotonic() - began
        publisher.stats.under_way.end(token)
        wait_for(lambda: InFlight(0, 0.0) in collected.told)
        wait_for(lambda: collected.told[-1] is None)


def test_of_a_worker_that_ends_nothing_is_under_way(ipc_endpoint: str) -> None:
    collected = Collected()
    with Collector(CollectorConfig(endpoint=ipc_endpoint, interval_seconds=PATIENCE), [collected]) as collector:
        publisher = StatsPublisher("NixlConnector", ipc_endpoint, flush_seconds=0.05)
        publisher.stats.under_way.begin()
        wait_for(lambda: collector.pipeline().reports_received)
        publisher.close(PATIENCE)
    assert collected.told == [InFlight(0, 0.0)]


def test_what_hangs_holds_up_neither_flush_nor_close(ipc_endpoint: str) -> None:
    with Collector(CollectorConfig(endpoint=ipc_endpoint)):
        publisher = StatsPublisher("NixlConnector", ipc_endpoint, flush_seconds=0.01)
        publisher.stats.under_way.begin()
        for _ in range(20):
            publisher.stats.record_transfer(0.5, 0.1, 1024, 2)
            assert publisher.flush(PATIENCE)
            time.sleep(0.01)
        began = time.monotonic()
        publisher.close(PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2
    assert publisher.flush()


def test_a_host_that_flushes_by_itself_tells_too(ipc_endpoint: str) -> None:
    collected = Collected()
    config = CollectorConfig(endpoint=ipc_endpoint, interval_seconds=0.2)
    with Collector(config, [collected]), StatsPublisher("NixlConnector", ipc_endpoint, flush_seconds=60) as publisher:
        publisher.stats.under_way.begin()
        while not any(each and each.oldest_seconds > 0.3 for each in collected.told):
            publisher.flush()


def test_a_forked_child_has_begun_nothing() -> None:
    stats = NixlConnectorStats()
    stats.under_way.begin()
    child = os.fork()
    if not child:
        stats.renew()
        stats.note_levels()
        os._exit(stats.in_flight() is not None)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stats.note_levels()
    told = stats.in_flight()
    assert told is not None
    assert told.num_transfers == 1
