"""A collector's memory over restarts: totals, numbers, intervals and counts go on, whatever the journal's file does."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from disks import fill, small_disk
from list_stats import ListStats

from kvxfer.commits import COMMIT_SECONDS, HURRY_SECONDS, MAX_PENDING_BYTES, RETRY_SECONDS, Commits
from kvxfer.config import CollectorConfig
from kvxfer.connectors.base import Connector
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.errors import ConfigError, JournalError, JournalHeldError
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Interval, Pipeline
from kvxfer.journal import History
from kvxfer.saved import decode_interval
from kvxfer.wire import Goodbye, Report, Source, encode, encode_payload


def source(name: str = "a", **labels: str) -> bytes:
    return encode(Source(name, "host", 1, 0.0, labels))


def transfers(count: int) -> dict[str, Any]:
    stats = NixlConnectorStats()
    for _ in range(count):
        stats.record_transfer(0.5, 0.25, 1024, 2)
    return stats.to_packed()


def report(seq: int, count: int = 1, **changes: Any) -> bytes:
    made = Report(1, source(), "NixlConnector", seq, 100.0, 101.0, encode_payload(transfers(count)))
    return encode(msgspec.structs.replace(made, **changes))


UNREADABLE = {"payload": encode_payload({"transfer_duration": "long"})}


class Running:
    """What a collector does with its commits, without socket and clock; it is killed by making another one."""

    def __init__(self, path: Path, now: float = 100.0, **config: Any) -> None:
        self.path, self.config = path, {**config}
        self.now = now
        self.commits = Commits(CollectorConfig(journal=str(path), **config), threading.Lock(), now)

    @property
    def aggregator(self) -> Any:
        return self.commits.aggregator

    def take(self, *frames: bytes) -> "Running":
        self.commits.note([frame for frame in frames if self.aggregator.feed(frame, self.now)], self.now)
        return self

    def commit(self, seconds: float = COMMIT_SECONDS) -> "Running":
        self.now += seconds
        self.commits.commit(self.now)
        return self

    def close_interval(self, seconds: float = 10.0) -> Interval:
        self.now += seconds
        interval: Interval = self.aggregator.close_interval(self.now)
        self.commits.close_interval(interval, self.now)
        self.commits.finish()
        return interval

    def pipeline(self) -> Pipeline:
        pipeline: Pipeline = self.aggregator.pipeline(self.now)
        return pipeline

    def restart(self, seconds: float = 0.0, **config: Any) -> "Running":
        """As after a kill: only what is in the file goes on."""
        self.commits.close()
        return Running(self.path, self.now + seconds, **{**self.config, **config})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def running(path: Path) -> Iterator[Running]:
    made = Running(path)
    yield made
    made.commits.close()


def counted(interval: Interval) -> int:
    return sum(group.stats.reduce().get("Num successful transfers", 0) for group in interval.groups)


def total(running: Running) -> int:
    return counted(running.aggregator.snapshot(running.now))


# --- over a restart


def test_what_was_committed_is_there_after_a_kill_and_what_was_not_is_sent_again(running: Running) -> None:
    running.take(report(1, 10), report(2, 20)).commit().take(report(3, 40))
    after = running.restart()
    assert total(after) == 30
    assert after.aggregator.feed(report(3, 40), after.now)
    assert total(after) == 70
    after.commits.close()


def test_a_report_that_was_committed_is_a_duplicate_after_a_restart_and_is_acknowledged(running: Running) -> None:
    running.take(report(1), report(2)).commit()
    after = running.restart()
    after.aggregator.sources.drain_acks()
    assert not after.aggregator.feed(report(2), after.now)
    assert after.pipeline().reports_duplicate == 1
    assert after.aggregator.sources.drain_acks() == [("a", 2)]
    after.commits.close()


def test_the_counts_of_the_pipeline_go_on(running: Running) -> None:
    running.take(report(1), report(1), report(2), b"nonsense", report(3, **UNREADABLE), report(4, cut=7)).commit()
    before = running.pipeline()
    after = running.restart()
    assert after.pipeline() == before
    assert before.reports_rejected == {"undecodable": 1, "implausible": 1}
    after.take(report(1), b"nonsense").commit()
    again = after.restart()
    assert again.pipeline().reports_duplicate == 2
    assert again.pipeline().reports_rejected == {"undecodable": 2, "implausible": 1}
    again.commits.close()


SOURCES = 150  # some steps of `AT_ONCE`


def of_all(seq: int, count: int) -> list[bytes]:
    """A report of each source."""
    return [report(seq, count, source=source(f"s{number}", rank=str(number))) for number in range(SOURCES)]


def being_written(running: Running) -> Running:
    """One whose closed interval is being written; 450 transfers are in it, all of them committed."""
    running.take(*of_all(1, 3)).commit()
    running.now += 10.0
    running.commits.close_interval(running.aggregator.close_interval(running.now), running.now)
    return running


def test_what_comes_while_an_interval_is_written_is_committed_after_it(running: Running) -> None:
    later = iter(of_all(2, 5))
    being_written(running)
    num_steps = 0
    while running.commits.is_writing:
        running.take(next(later)).commit(0.0)
        running.commits.step(0.0)
        num_steps += 1
    assert num_steps > 5
    num_committed = total(running)
    running.commit(0.0).take(next(later))  # this one is not
    after = running.restart()
    assert total(after) == num_committed == 450 + 5 * num_steps
    history = History(running.path)
    (saved,) = history.intervals(0.0, 1e12)
    history.close()
    interval = decode_interval(saved)
    assert counted(interval) == 450
    assert len(interval.sources) == SOURCES
    views = after.aggregator.close_interval(200.0).sources
    assert {view.stats.data["transfer_duration"].count for view in views} == {5}
    after.commits.close()


@pytest.mark.parametrize("num_steps", range(8))
def test_a_kill_while_an_interval_is_written_leaves_what_was_committed_before(running: Running, num_steps: int) -> None:
    being_written(running)
    for frame in of_all(2, 5)[:num_steps]:
        running.take(frame)
        running.commits.step(0.0)
    assert running.commits.is_writing
    after = running.restart().take(*of_all(1, 3), *of_all(2, 5))
    assert total(after) == SOURCES * 8
    assert after.pipeline().reports_duplicate == SOURCES
    after.commits.close()


def test_frames_for_which_a_state_is_cheaper_while_an_interval_is_written_are_not_missing(
    running: Running,
) -> None:
    being_written(running)
    running.commits._state_bytes = 100  # the state before was small
    running.take(*of_all(2, 5)[:100])  # far more than of the state that was expected, less than of the one written
    running.commits.finish()
    after = running.take(*of_all(2, 5)[100:]).commit().restart()
    assert total(after) == SOURCES * 8
    after.commits.close()


def test_an_interval_that_cannot_be_written_leaves_what_came_meanwhile_to_be_saved_with_the_rest(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    being_written(running).take(*of_all(2, 5))
    with monkeypatch.context() as broken:
        broken.setattr("kvxfer.journal.Journal.save", failing)
        running.commits.finish()
    assert running.commits.failed == 1
    running.take(*of_all(3, 1)).commit(RETRY_SECONDS)
    after = running.restart()
    assert total(after) == SOURCES * 9
    after.commits.close()


def failing(*_: object) -> None:
    message = "the disk is full"
    raise JournalError(message)


def test_the_open_interval_goes_on_and_ends_when_it_would_have(running: Running) -> None:
    running.take(report(1, 10))
    running.close_interval()
    running.take(report(2, 20)).commit(3.0)
    after = running.restart(4.0)
    after.take(report(3, 40))
    assert after.aggregator.due == 120.0
    interval = after.close_interval(3.0)
    assert (interval.start, interval.end, counted(interval)) == (110.0, 120.0, 60)
    assert total(after) == 70
    after.commits.close()


def test_a_clock_that_was_ahead_before_the_restart_does_not_keep_the_interval_from_ending(running: Running) -> None:
    running.take(report(1)).commit()
    after = running.restart(-1e6)
    assert after.aggregator.tick(after.now + 9.9) == []
    (interval,) = after.aggregator.tick(after.now + 10.0)
    assert interval.seconds == 10.0
    assert after.aggregator.snapshot(after.now + 10.0).seconds == 10.0
    after.commits.close()


def test_a_source_that_is_gone_stays_gone_and_one_that_lived_lives(running: Running) -> None:
    running.take(report(1), report(1, source=source("b")), encode(Goodbye(1, source(), 3))).commit()
    after = running.restart(1e6)
    assert after.pipeline().sources == {"live": 1, "silent": 0, "gone": 1}
    assert after.pipeline().reports_lost == 2
    after.close_interval()
    again = after.restart()
    assert again.pipeline().sources == {"live": 1, "silent": 0, "gone": 1}
    assert again.pipeline().reports_lost == 2
    again.commits.close()


def test_a_report_that_cannot_be_read_is_not_lost_after_a_restart_either(running: Running) -> None:
    running.take(report(1), report(2, **UNREADABLE)).commit()
    for each in (running, running.restart()):
        each.aggregator.sources.expire(each.now + 1e6)
        assert each.pipeline().reports_lost == 0
        each.commits.close()


def test_each_source_keeps_its_own_totals(running: Running) -> None:
    running.take(report(1, 10), report(1, 20, source=source("b")))
    running.close_interval()
    running.take(report(2, 1)).commit()
    after = running.restart()
    views = after.aggregator.snapshot(after.now).sources
    assert {view.source.id: view.stats.reduce()["Num successful transfers"] for view in views} == {"a": 11, "b": 20}
    after.commits.close()


def test_a_journal_grouped_by_other_labels_is_refused_by_name_and_given_free(running: Running, path: Path) -> None:
    running.take(report(1)).commit()
    running.close_interval()
    with pytest.raises(ConfigError) as said:
        running.restart(group_by=("rank",))
    assert str(said.value) == (
        f"{path}: the journal groups by engine,role, this collector by rank: group as before, or name another journal"
    )
    after = Running(path)
    assert total(after) == 1
    after.commits.close()


def test_a_journal_of_another_collector_is_refused(running: Running, path: Path) -> None:
    with pytest.raises(JournalHeldError):
        Running(path)
    running.take(report(1)).commit()
    after = running.restart()
    assert total(after) == 1
    after.commits.close()


# --- connectors that come and go


class OtherConnector(Connector):
    """A connector of an extra package."""

    stats_class = NixlConnectorStats


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers and unregisters ``OtherConnector``."""
    monkeypatch.setattr(KVConnectorFactory, "_classes", dict(KVConnectorFactory._classes))
    monkeypatch.setattr(KVConnectorFactory, "_loaders", dict(KVConnectorFactory._loaders))

    def register(*, there: bool) -> None:
        KVConnectorFactory._classes.pop("OtherConnector", None)
        KVConnectorFactory._loaders.pop("OtherConnector", None)
        if there:
            KVConnectorFactory._loaders["OtherConnector"] = lambda: OtherConnector

    register(there=True)
    return register


def others(seq: int, count: int, **changes: Any) -> bytes:
    return report(seq, count, connector="OtherConnector", **changes)


@pytest.mark.parametrize("restarts", [1, 3])
def test_totals_and_log_of_a_connector_that_is_not_there_are_carried_until_it_is(
    running: Running, other: Any, restarts: int
) -> None:
    running.take(others(1, 10), report(1, 1, source=source("b")))
    running.close_interval()
    running.take(others(2, 20), others(1, 40, source=source("c"))).commit()
    received = running.pipeline().reports_received
    other(there=False)
    for _ in range(restarts):
        running = running.restart()
        assert total(running) == 1
        assert running.pipeline().reports_received == received
        running.close_interval()
    # Their publishers have heard that these are committed: numbers go on, what comes twice is refused.
    assert not running.aggregator.feed(others(2, 20), running.now)
    assert running.pipeline().reports_duplicate == 1
    running.commit()
    other(there=True)
    running = running.restart()
    assert total(running) == 71
    groups = {group.connector: group for group in running.aggregator.snapshot(running.now).groups}
    assert groups["OtherConnector"].num_ranks == 2
    running.take(others(3, 100)).commit()
    running.close_interval()
    running = running.restart()
    assert total(running) == 171
    running.commits.close()


def test_a_connector_that_is_registered_while_its_totals_are_carried_adds_to_them(running: Running, other: Any) -> None:
    running.take(others(1, 10)).commit()
    running.close_interval()
    other(there=False)
    running = running.restart()
    other(there=True)
    running.take(others(2, 20)).commit()
    running.close_interval()
    running = running.restart()
    assert total(running) == 30
    running.commits.close()


def test_ranks_of_carried_groups_are_right_though_sources_were_forgotten_meanwhile(path: Path, other: Any) -> None:
    running = Running(path, max_sources=3)
    running.take(report(1, source=source("a")), encode(Goodbye(1, source("a"), 1)))
    running.take(others(1, 1, source=source("b")), others(1, 1, source=source("c")))
    running.close_interval()
    other(there=False)
    running = running.restart()
    running.take(report(1, source=source("d")))  # takes the place of the one that is gone
    running.close_interval()
    other(there=True)
    running = running.restart()
    groups = {group.connector: group for group in running.aggregator.snapshot(running.now).groups}
    assert groups["OtherConnector"].num_ranks == 2
    assert running.aggregator._groups.by_key["OtherConnector", (None, None)].total_ranks == {source("b"), source("c")}
    running.commits.close()


# --- when it is written


def test_a_commit_is_due_each_second_at_once_where_much_waits_and_soon_where_somebody_waits_to_end(
    running: Running,
) -> None:
    assert running.commits.seconds_left(running.now) == COMMIT_SECONDS
    running.take(report(1), encode(Goodbye(1, source(), 1)))
    assert running.commits.seconds_left(running.now) == pytest.approx(HURRY_SECONDS)
    running.aggregator.sources.drain_acks()
    running.commits._state_bytes = MAX_PENDING_BYTES  # with as many sources as that takes
    running.commits.note([bytes(MAX_PENDING_BYTES + 1)], running.now)
    assert running.commits.seconds_left(running.now) == 0.0


def test_where_more_frames_come_than_a_state_costs_it_is_written_in_their_place_and_nothing_waits_in_memory(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvxfer.commits.MIN_STATE_BYTES", 1000)
    running.close_interval()
    for seq in range(1, 101):
        running.take(report(seq, 3))
        assert len(running.commits._pending.batches) < 40
    assert running.commits.seconds_left(running.now) == COMMIT_SECONDS
    running.commit()
    assert list(running.commits._journal.log()) == []
    running.take(report(101, 3)).commit()
    assert len(list(running.commits._journal.log())) == 1
    assert total(running.restart()) == 303


def test_without_a_journal_a_commit_is_due_at_once() -> None:
    commits = Commits(CollectorConfig(), threading.Lock(), 0.0)
    assert (commits.seconds_left(0.0), commits.is_durable) == (0.0, False)
    commits.commit(1.0)
    commits.close_interval(commits.aggregator.close_interval(1.0), 1.0)
    assert commits.failed == 0


def test_a_log_that_has_grown_long_is_replaced_by_a_state(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvxfer.commits.MAX_LOG_BYTES", 2000)
    for seq in range(1, 40):
        running.take(report(seq)).commit()
    running = running.restart()  # which counts what is in the log already
    journal = running.commits._journal
    assert journal is not None
    for seq in range(40, 60):
        running.take(report(seq)).commit()
        assert sum(len(frame) for batch in journal.log() for frame in batch.frames) < 2000 + 2 * len(report(1))
    assert total(running) == 59
    after = running.restart()
    assert total(after) == 59
    after.commits.close()


def test_history_holds_each_interval_with_the_counts_of_its_end(running: Running, path: Path) -> None:
    for seq in range(1, 4):
        running.take(report(seq, seq), b"nonsense").commit()
        running.close_interval(9.0)
    history = History(path)
    found = [decode_interval(saved) for saved in history.intervals(110.0, 130.0)]
    history.close()
    assert [(interval.start, interval.end, counted(interval)) for interval in found] == [
        (110.0, 120.0, 2),
        (120.0, 130.0, 3),
    ]
    assert [interval.pipeline.reports_rejected for interval in found] == [{"undecodable": 2}, {"undecodable": 3}]
    assert [view.source.id for view in found[0].sources] == ["a"]


def test_intervals_are_kept_for_the_retention(path: Path) -> None:
    running = Running(path, retention_seconds=35.0)
    for _ in range(20):
        running.close_interval()
    history = History(path)
    assert [decode_interval(saved).end for saved in history.intervals(0.0, 1e9)] == [270.0, 280.0, 290.0, 300.0]
    history.close()
    running.commits.close()


# --- when it cannot be written


def test_a_journal_that_cannot_be_used_is_said_once_counted_and_collecting_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("no journal")
    running = Running(path)
    running.take(report(1)).commit()
    running.close_interval()
    running.take(report(2)).commit()
    assert total(running) == 2
    assert running.commits.failed == 2
    assert not running.commits.is_durable
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path} cannot be used as journal: file is not a database: name another file, or move it away;"
        " collecting goes on in memory, what it holds is lost if this process is killed"
    )
    assert path.read_text() == "no journal"
    running.commits.close()


@pytest.mark.parametrize("part", ["state", "counts"])
def test_a_saved_part_that_is_none_is_said_and_left_as_it_is(
    running: Running, path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    running.take(report(1)).commit()
    journal = running.commits._journal
    assert journal is not None
    broken = {"state": running.aggregator.save(), "counts": running.aggregator.save_counts()} | {part: b"\x93\1\2\3"}
    journal.save(broken["state"], broken["counts"])
    after = running.restart()
    after.take(report(2)).commit()
    assert (total(after), after.commits.failed) == (1, 1)
    assert caplog.records[0].getMessage().startswith(f"{path}: the saved {part} cannot be read: ")
    assert "move it away, or name another file; collecting goes on in memory" in caplog.records[0].getMessage()
    after.commits.close()
    again = Running(path)
    assert total(again) == 0
    again.commits.close()


def test_a_state_that_holds_what_cannot_be_is_said(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.take(report(1))
    state = msgspec.msgpack.decode(running.aggregator.save())
    state[4][0][4] = [77]  # the position of a source that is not there
    journal = running.commits._journal
    assert journal is not None
    journal.save(msgspec.msgpack.encode(state), b"")
    after = running.restart()
    assert after.commits.failed == 1
    assert "the saved state cannot be used: IndexError" in caplog.records[0].getMessage()
    after.commits.close()


def test_after_a_full_disk_the_totals_are_written_and_a_restart_has_them_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        running = Running(disk / "journal.db")
        running.take(report(1, 10)).commit()
        running.close_interval()
        filler = fill(disk)
        for seq in range(2, 30):
            running.take(report(seq, 10), report(seq), b"nonsense").commit()
        running.close_interval()
        failed = running.commits.failed
        assert failed >= 2
        assert not running.commits.is_durable
        filler.unlink()
        running.commit(RETRY_SECONDS)
        assert running.commits.is_durable
        running.take(report(30, 10)).commit()
        running.close_interval()
        assert running.commits.failed == failed
        before = running.pipeline()
        running = running.restart()
        assert total(running) == 300
        assert running.pipeline() == before
        running.commits.close()
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == [logging.ERROR, logging.WARNING]
    assert "is full: free the disk, or name another file; collecting goes on in memory" in said[0][1]
    assert "is written again, nothing is missing in its totals" in said[1][1]


def test_counts_that_a_peer_inflates_do_not_keep_a_state_from_being_saved(running: Running) -> None:
    for seq in range(1, 9):
        running.take(report(seq, cut=1 << 62))
    running.commit()
    running.close_interval()
    assert running.commits.failed == 0
    after = running.restart()
    assert total(after) == 8
    after.commits.close()


def test_stats_of_somebody_else_that_only_grow_are_in_history_and_in_no_total(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ListConnector(Connector):
        stats_class = ListStats

    monkeypatch.setitem(KVConnectorFactory._classes, "ListConnector", ListConnector)
    running.take(report(1, connector="ListConnector", payload=encode_payload({"a": [1, 2]}))).commit()
    running = running.restart()
    interval = running.close_interval()
    assert interval.groups[0].stats.reduce() == {"Sum of a": 3}
    running = running.restart()
    assert running.aggregator.snapshot(running.now).groups == ()
    running.commits.close()


def test_an_error_of_the_file_at_its_end_is_none_of_the_collector(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = running.commits._journal
    assert journal is not None
    close = journal.close

    def fail() -> None:
        close()
        raise JournalError("at the end")

    monkeypatch.setattr(journal, "close", fail)
    running.commits.close()
