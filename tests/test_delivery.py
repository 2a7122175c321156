"""Outbox and Aggregator against each other, over a link that loses, repeats, delays and reorders, with crashes of both.

Law: whatever happens in between, once the link is whole again and a collector lives for long enough, what was flushed
is counted exactly once, where the collector's commits outlive it; and what a worker that was killed had flushed and
sent is counted once or not at all.
"""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.outbox import MAX_KEPT, MAX_KEPT_BYTES, RESEND_MAX_SECONDS, Outbox
from kvxfer.wire import Ack, Source

CONFIG = CollectorConfig(interval_seconds=10.0, silent_seconds=1e6, gone_seconds=1e6)
CROWDED = CollectorConfig(group_by=("rank",), silent_seconds=1.0, gone_seconds=2.0, max_sources=2)
"""Who is quiet for a moment is gone, and makes room for one of the others."""


class Link:
    """One direction: frames wait, in any order, some twice, some never."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.waiting: list[bytes] = []
        self.is_up = True
        self.faults = True

    def send(self, frame: bytes) -> bool:
        """Whether it was taken; what is taken may be lost all the same."""
        if not self.is_up or len(self.waiting) > 40:
            return False
        if not self.faults:
            self.waiting.append(frame)
            return True
        self.waiting += [frame] * self.rng.choices([0, 1, 2], [2, 6, 1])[0]
        return True

    def receive(self) -> list[bytes]:
        if not self.faults:
            taken, self.waiting = self.waiting, []
            return taken
        self.rng.shuffle(self.waiting)
        count = self.rng.randint(0, len(self.waiting))
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken


class Worker:
    """A publisher without sockets; ``counted`` is what it has closed into reports."""

    def __init__(self, name: str, now: float, rng: random.Random) -> None:
        self.outbox = Outbox(Source(name, "host", 1, 0.0, {"rank": name}), "NixlConnector", now)
        self.to_collector, self.from_collector = Link(rng), Link(rng)
        self.name = name
        self.recorded = 0

    def record(self, count: int, now: float) -> None:
        stats = NixlConnectorStats()
        for _ in range(count):
            stats.record_transfer(1.0, 0.5, 1024, 2)
        self.outbox.observe(stats, now)
        self.recorded += count

    def step(self, now: float, acks: dict[bytes, Ack]) -> None:
        for frame in self.from_collector.receive():
            self.outbox.acknowledge(acks[frame], now)
        self.outbox.tick(now)
        while (frame_to_send := self.outbox.next_frame) is not None and self.to_collector.send(frame_to_send):
            self.outbox.sent(now)
        assert len(self.outbox._kept) <= MAX_KEPT
        assert self.outbox._kept_bytes <= MAX_KEPT_BYTES


class Pool:
    """A collector that commits now and then, what it commits outliving it, and workers that come and are killed."""

    def __init__(self, rng: random.Random, workers: int, config: CollectorConfig = CONFIG) -> None:
        self.rng, self.now, self.number, self.config = rng, 0.0, 0, config
        self.acks: dict[bytes, Ack] = {}
        fresh = Aggregator(config, 0.0)
        self.saved, self.counts, self.log = fresh.save(), fresh.save_counts(), list[tuple[bytes, float]]()
        self.pending: list[tuple[bytes, float]] = []
        self.names = iter(range(1000))
        self.workers = [self.new_worker() for _ in range(workers)]
        self.killed: list[Worker] = []
        self.start_collector()

    def new_worker(self) -> Worker:
        return Worker(f"w{next(self.names)}", self.now, self.rng)

    def start_collector(self) -> None:
        """Go on from what was committed: a state and the frames after it."""
        self.number += 1
        self.pending = []
        self.aggregator = Aggregator(self.config, 0.0)
        self.aggregator.restore(self.saved)
        for frame, now in self.log:
            self.aggregator.feed(frame, now)
        self.aggregator.restore_counts(self.counts)

    def kill_worker(self) -> None:
        worker = self.workers.pop(self.rng.randrange(len(self.workers)))
        self.killed.append(worker)
        self.workers.append(self.new_worker())

    def collect(self) -> None:
        workers = [*self.workers, *self.killed]
        for worker in self.rng.sample(workers, len(workers)):
            for frame in worker.to_collector.receive():
                if self.aggregator.feed(frame, self.now):
                    self.pending.append((frame, self.now))
        if self.aggregator.tick(self.now):
            self.save()

    def save(self) -> None:
        self.saved, self.counts = self.aggregator.save(), self.aggregator.save_counts()
        self.log, self.pending = [], []

    def commit(self) -> None:
        self.log += self.pending
        self.pending = []
        self.counts = self.aggregator.save_counts()
        if self.rng.random() < 0.3:
            self.save()
        links = {worker.name: worker.from_collector for worker in self.workers}
        for source, seq in self.aggregator.sources.drain_acks():
            frame = f"{source} {self.number} {seq}".encode()
            self.acks[frame] = Ack(1, f"collector-{self.number}", seq)
            if source in links:
                links[source].send(frame)

    def step(self, action: str) -> None:
        self.now += self.rng.choice([0.1, 0.5, 3.0])
        worker = self.rng.choice(self.workers)
        if action == "record":
            worker.record(self.rng.randint(1, 60), self.now)
        elif action == "flush":
            worker.outbox.flush(self.now)
        elif action == "crash":
            self.start_collector()
        elif action == "kill":
            self.kill_worker()
        elif action == "cut":
            worker.to_collector.is_up = not worker.to_collector.is_up
        elif action == "commit":
            self.commit()
        for each in self.workers:
            each.step(self.now, self.acks)
        self.collect()

    def heal(self) -> None:
        """Let everything that can arrive arrive."""
        for worker in (*self.workers, *self.killed):
            for link in (worker.to_collector, worker.from_collector):
                link.is_up, link.faults = True, False
        for _ in range(40):
            self.now += RESEND_MAX_SECONDS / 2
            for worker in self.workers:
                worker.outbox.flush(self.now)
            self.step("commit")
        for _ in range(2):  # the last beats are acknowledged
            self.step("commit")

    def counted(self) -> Counter[str]:
        views = self.aggregator.snapshot(self.now).sources
        return Counter({view.source.id: view.stats.data["transfer_duration"].count for view in views})


ACTIONS = ["record"] * 5 + ["flush"] * 5 + ["commit"] * 4 + ["crash", "cut", "kill"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=120), st.integers(1, 4), st.integers(0, 1 << 30))
def test_what_was_flushed_is_counted_exactly_once_whatever_the_link_and_the_crashes_do(
    actions: list[str], workers: int, seed: int
) -> None:
    pool = Pool(random.Random(seed), workers)
    for action in actions:
        pool.step(action)
    pool.heal()
    assert all(worker.outbox.is_idle for worker in pool.workers)
    counted = pool.counted()
    for worker in pool.workers:
        assert counted[worker.name] == worker.recorded
    for worker in pool.killed:
        assert counted[worker.name] <= worker.recorded
    total = sum(group.stats.transfer_duration.count for group in pool.aggregator.snapshot(pool.now).groups)
    assert total == counted.total()
    assert pool.aggregator.pipeline(pool.now).reports_rejected == {}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*ACTIONS[:-1], "cut"]), max_size=120), st.integers(0, 1 << 30))
def test_workers_that_take_each_others_place_in_a_small_collector_are_counted_exactly_once(
    actions: list[str], seed: int
) -> None:
    pool = Pool(random.Random(seed), 3, CROWDED)
    for action in actions:
        pool.step(action)
    workers, counted = pool.workers, Counter[str]()
    for worker in workers:  # one at a time, or there is never room for all
        pool.workers = [worker]
        pool.heal()
        assert worker.outbox.is_idle
    for group in pool.aggregator.snapshot(pool.now).groups:
        counted[group.labels["rank"]] += group.stats.transfer_duration.count
    assert counted == Counter({worker.name: worker.recorded for worker in workers if worker.recorded})
    assert pool.aggregator.pipeline(pool.now).reports_rejected.keys() <= {"too_many_sources"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=80), st.integers(0, 1 << 30))
def test_a_state_that_is_saved_and_restored_with_what_came_after_is_the_state_it_was(
    actions: list[str], seed: int
) -> None:
    pool = Pool(random.Random(seed), 3)
    for action in actions:
        pool.step(action)
    pool.commit()
    before = pool.aggregator
    pool.start_collector()
    now = pool.now
    for aggregator in (before, pool.aggregator):
        aggregator.sources.greet(now)
    assert pool.aggregator.save() == before.save()
    for seen in (lambda each: each.snapshot(now), lambda each: each.close_interval(now)):
        ours, theirs = seen(pool.aggregator), seen(before)
        assert repr(ours.groups) == repr(theirs.groups)
        assert sorted(map(repr, ours.sources)) == sorted(map(repr, theirs.sources))
        assert ours.pipeline == theirs.pipeline
