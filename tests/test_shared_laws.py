"""A worker with shared memory, killed at every point: what it left is what it recorded, and nothing of it twice.

Law: the frames that follow from its file, together with those that arrived before, count each row recorded up to the
kill exactly once. Only rows that found no room in its areas, since it last looked, may be missing.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer import shared
from kvxfer.aggregator import Aggregator
from kvxfer.area import AREA, Area
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.errors import KVXferError
from kvxfer.left import _frames
from kvxfer.publisher import StatsPublisher
from kvxfer.shared import AREAS_AT, SLOT, SLOT_BYTES, SLOTS_AT, SharedBuffer
from kvxfer.wire import Ack

COLUMNS = ("transfer_duration", "post_duration", "bytes_transferred", "num_descriptors")
SMALL_AREA = 4096
ROW_BYTES = 32
CONFIG = CollectorConfig(silent_seconds=1e6, gone_seconds=1e6)
NOW = 1e9


class Worker:
    """A publisher whose thread and socket do nothing: each of their steps is taken by hand, and looked at."""

    def __init__(self) -> None:
        self.publisher = StatsPublisher("NixlConnector", "ipc:///nowhere/c.ipc", buffer="shared", linger=0)
        self.path = self.buffer.path
        self.stats: Any = self.publisher.stats
        self.record = self.stats.record_transfer
        self.fail = self.stats.record_failed_transfer
        self.recorded = self.failed = self.unsafe = 0
        self.arrived: list[bytes] = []
        self.kills = 0

    @property
    def buffer(self) -> SharedBuffer:
        assert self.publisher._draining.shared is not None
        return self.publisher._draining.shared

    def num_spilled(self) -> int:
        return len(self.stats._buffers["record_transfer"].pending.spill) // 4

    # --- what may happen, one after the other

    def transfers(self, count: int) -> None:
        for _ in range(count):
            spilled = self.num_spilled()
            self.record(0.001, 0.0001, 1024, 2)
            self.recorded += 1
            self.unsafe += self.num_spilled() - spilled
        self.be_killed()

    def failures(self, count: int) -> None:
        for _ in range(count % 5):
            self.fail()
            self.failed += 1
        self.be_killed()

    def look(self, _: int) -> None:
        self.publisher._draining.take_in(close=False)
        self.unsafe = self.num_spilled()

    def flush(self, _: int) -> None:
        self.publisher._draining.take_in(close=True)
        self.unsafe = self.num_spilled()

    def read(self, _: int) -> None:
        """Somebody reads the stats, which folds what waits."""
        assert self.stats.reduce()["Num successful transfers"] <= self.recorded

    def send(self, count: int) -> None:
        outbox = self.publisher._draining.outbox
        for _ in range(count % 4):
            if (frame := outbox.next_frame) is not None:
                outbox.sent(NOW)
                self.arrived += [frame] * (count % 3)  # lost, arrived, arrived twice
                self.be_killed()

    def acknowledge(self, count: int) -> None:
        collector = Aggregator(CONFIG, NOW)
        for frame in self.arrived:
            collector.feed(frame, NOW)
        for _, seq in collector.sources.drain_acks():
            self.publisher._draining.outbox.acknowledge(Ack(1, f"collector {count % 2}", seq), NOW)

    # --- what a collector makes of it

    def be_killed(self, content: bytes | None = None) -> None:
        """Were it killed now, all would be there once: with this content of its file, by default what it has."""
        self.kills += 1
        transfers, failures = self.collected(self.path.read_bytes() if content is None else content)
        assert self.recorded - self.unsafe <= transfers <= self.recorded
        assert failures == self.failed

    def collected(self, content: bytes) -> tuple[int, int]:
        collector = Aggregator(CONFIG, NOW)
        for frame in [*self.arrived, *_frames(self.path, content, NOW)]:
            collector.feed(frame, NOW)
        pipeline = collector.pipeline(NOW)
        assert (pipeline.reports_rejected, pipeline.reports_lost, pipeline.observations_rejected) == ({}, 0, 0)
        groups = collector.snapshot(NOW).groups
        if not groups:
            return 0, 0
        stats: Any = groups[0].stats
        count = stats.transfer_duration.count
        assert (stats.bytes_transferred.sum, stats.num_descriptors.sum) == (1024 * count, 2 * count)
        return count, stats.num_failed_transfers.value


@contextmanager
def worker() -> Iterator[Worker]:
    """A worker in a directory of its own, with areas of 120 rows."""
    directory = Path(mkdtemp(dir="/dev/shm"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(shared, "SHARED_MEMORY", directory)
        patch.setattr(shared, "ROW_AREA_BYTES", SMALL_AREA)
        patch.setattr(shared, "COUNTER_AREA_BYTES", SMALL_AREA)
        patch.setattr(StatsPublisher, "_run", lambda _: None)
        worker = Worker()
        stack.callback(worker.publisher.close)
        watch_the_middle(patch, worker)
        yield worker


def watch_the_middle(patch: pytest.MonkeyPatch, worker: Worker) -> None:
    """Kill it where a state is half written, where another thread records before one is, where an area is emptied."""
    save, resume = SharedBuffer.save, Area.resume

    def watched_save(buffer: SharedBuffer, state: bytes) -> bool:
        worker.transfers(1)
        content = bytearray(worker.path.read_bytes())
        body = SLOTS_AT + SLOT_BYTES * ((buffer._number + 1) % 2) + SLOT.size
        content[body : body + len(state)] = state[:100] + bytes(len(state) - 100)
        worker.be_killed(bytes(content))
        saved = save(buffer, state)
        worker.be_killed()
        return saved

    def watched_resume(area: Area) -> None:
        if area._stopped_at is not None:
            content = bytearray(worker.path.read_bytes())
            start = content.index(area.name.encode(), AREAS_AT) - (AREA.size - 200) + AREA.size
            content[start : start + SMALL_AREA // 3] = b"\xff" * (SMALL_AREA // 3)
            worker.be_killed(bytes(content))
        resume(area)
        worker.be_killed()

    patch.setattr(SharedBuffer, "save", watched_save)
    patch.setattr(Area, "resume", watched_resume)


STEPS = [Worker.transfers] * 5 + [Worker.failures, Worker.read, Worker.send, Worker.acknowledge]
STEPS += [Worker.look, Worker.flush] * 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 90)), max_size=30))
def test_a_worker_killed_at_any_point_leaves_what_it_recorded_once(
    steps: list[tuple[Callable[[Worker, int], None], int]],
) -> None:
    with worker() as killed:
        for step, count in steps:
            step(killed, count)
        killed.flush(0)
        assert killed.kills > len(steps) // 20


@pytest.mark.parametrize("word", range(4))
def test_a_row_of_which_a_word_was_not_written_is_not_there(word: int) -> None:
    with worker() as killed:
        killed.transfers(3)
        content = bytearray(killed.path.read_bytes())
        third = AREAS_AT + AREA.size + 2 * ROW_BYTES + 8 * word
        content[third : third + 8] = b"\xff" * 8
        assert killed.collected(bytes(content)) == (2, 0)


def test_rows_that_found_no_room_are_saved_with_the_next_look_and_then_there_is_room_again() -> None:
    with worker() as killed:
        for _ in range(3):
            killed.transfers(300)
            assert killed.num_spilled() > 10
            killed.look(0)
            assert killed.num_spilled() <= 1  # what another thread recorded before there was room
            killed.look(0)
            killed.transfers(100)
            assert killed.num_spilled() == 0
            killed.look(0)


def test_reports_of_very_many_rows_that_nobody_takes_are_merged_and_fit_into_what_is_saved() -> None:
    random = np.random.default_rng(0)
    with worker() as killed:
        for _ in range(100):
            stats = NixlConnectorStats()
            seconds = 10 ** random.uniform(-30, 30, (2, 2000))
            columns = [*seconds.tolist(), [1024] * 2000, [2] * 2000]
            stats.aggregate(NixlConnectorStats(dict(zip(COLUMNS, columns, strict=True))))
            killed.publisher.push(stats)
            killed.recorded += 2000
            killed.unsafe += 2000  # until the thread has looked
            killed.flush(0)
        assert killed.publisher._draining.outbox.num_unacknowledged < 64
        frames = _frames(killed.path, killed.path.read_bytes(), NOW)
        collector = Aggregator(CONFIG, NOW)
        collector.feed_all(frames, NOW)
        stats = collector.snapshot(NOW).groups[0].stats
        assert (stats.transfer_duration.count, collector.pipeline(NOW).reports_lost) == (killed.recorded, 0)


def test_of_a_state_too_large_for_its_slot_the_reports_are_lost_and_counted_and_nothing_counts_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Worker, "be_killed", lambda *_: None)
    save = SharedBuffer.save
    monkeypatch.setattr(SharedBuffer, "save", lambda buffer, state: len(state) <= 700 and save(buffer, state))
    with worker() as killed:
        killed.transfers(5)
        killed.flush(0)
        killed.send(1)
        killed.transfers(40)
        killed.flush(0)
        killed.transfers(3)
        collector = Aggregator(CONFIG, NOW)
        collector.feed_all([*killed.arrived, *_frames(killed.path, killed.path.read_bytes(), NOW)], NOW)
        stats: Any = collector.snapshot(NOW).groups[0].stats
        pipeline = collector.pipeline(NOW)
        assert pipeline.reports_lost == 1
        # The 40 were in it, with one that another thread recorded while the state before it was saved.
        assert stats.transfer_duration.count == killed.recorded - 41


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=40)), max_size=4),
    st.integers(0, AREAS_AT + 4 * SMALL_AREA),
)
def test_whatever_a_file_says_is_taken_or_refused(changes: list[tuple[int, bytes]], length: int) -> None:
    content = bytearray(sample())
    for at, new in changes:
        start = (at % len(content), SLOTS_AT + at % 400, AREAS_AT + at % AREA.size, AREAS_AT + at % SMALL_AREA)[at % 4]
        content[start : start + len(new)] = new
    collector = Aggregator(CONFIG, NOW)
    try:
        frames = _frames(Path("x"), bytes(content[:length]), NOW)
    except KVXferError:
        return
    for frame in frames:
        collector.feed(frame, NOW)


def sample() -> bytes:
    """The file of a worker that has a report, an open interval and rows."""
    if not _samples:
        with worker() as killed:
            for step in (Worker.transfers, Worker.failures, Worker.flush, Worker.transfers, Worker.look):
                step(killed, 14)
            killed.transfers(7)
            _samples.append(killed.path.read_bytes())
    return _samples[0]


_samples: list[bytes] = []
