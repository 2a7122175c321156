"""Two levels: a collector that relays and the one above it, over a link with faults, with crashes of both.

Law: once the link is whole and both live for long enough, the one above has counted each transfer exactly once, where
what both commit outlives them.
"""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from list_stats import ListStats
from test_delivery import Link

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.errors import JournalError
from kvxfer.interval import Group, Interval
from kvxfer.outbox import MAX_KEPT, RESEND_MAX_SECONDS
from kvxfer.relay import Relay
from kvxfer.wire import Ack, Report, Source, encode, encode_payload

CONFIG = CollectorConfig(silent_seconds=1e6, gone_seconds=1e6)
ROLES = ("kv_producer", "kv_consumer")


def stats(count: int) -> NixlConnectorStats:
    made = NixlConnectorStats()
    for _ in range(count):
        made.record_transfer(1.0, 0.5, 1024, 2)
    return made


def group(count: int = 1, num_ranks: int = 1, **labels: str) -> Group:
    return Group("NixlConnector", labels, stats(count), num_ranks)


def relay(name: str = "node") -> Relay:
    return Relay(Source(name, "host", 1, 0.0))


def report(number: int, seq: int, role: str, count: int) -> bytes:
    source = encode(Source(f"w{number}", "host", 1, 0.0, {"role": role}))
    return encode(Report(1, source, "NixlConnector", seq, 0.0, 1.0, encode_payload(stats(count).to_packed())))


def counts(interval: Interval) -> dict[str, int]:
    held = (each for each in interval.groups if not each.stats.is_empty())
    return {each.labels["role"]: each.stats.data["transfer_duration"].count for each in held}


class Node:
    """A collector that relays; what it takes is committed at once, a kill leaves what is saved and the log after it."""

    def __init__(self, rng: random.Random) -> None:
        self.to_top, self.from_top = Link(rng), Link(rng)
        self.aggregator, self.relay = Aggregator(CONFIG, 0.0), relay()
        self.seqs = [0, 0, 0]
        self.recorded = dict.fromkeys(ROLES, 0)
        self.save()

    def save(self) -> None:
        self.saved = self.aggregator.save(), self.relay.save()
        self.log: list[tuple[bytes, float]] = []

    def record(self, number: int, count: int, now: float) -> None:
        role = ROLES[number % 2]
        self.seqs[number] += 1
        frame = report(number, self.seqs[number], role, count)
        self.recorded[role] += count
        self.aggregator.feed(frame, now)
        self.log.append((frame, now))

    def close_interval(self, now: float) -> None:
        self.relay.take(self.aggregator.close_interval(now).groups, now)
        self.save()

    def crash(self, now: float) -> None:
        state, relayed = self.saved
        self.aggregator, self.relay = Aggregator(CONFIG, now), relay("another id")
        self.aggregator.restore(state)
        for frame, taken in self.log:
            self.aggregator.feed(frame, taken)
        self.relay.restore(relayed, now)

    def exchange(self, now: float, acks: dict[bytes, tuple[str, Ack]]) -> None:
        for frame in self.from_top.receive():
            source_id, ack = acks[frame]
            self.relay.outboxes[source_id].acknowledge(ack, now)
        for outbox in self.relay.outboxes.values():
            outbox.tick(now)
            while (frame_to_send := outbox.next_frame) is not None and self.to_top.send(frame_to_send):
                outbox.sent(now)
            assert outbox.num_unacknowledged <= MAX_KEPT


class Levels:
    """A node and the collector above, which commits now and then."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now, self.number = rng, 0.0, 0
        self.acks: dict[bytes, tuple[str, Ack]] = {}
        self.node = Node(rng)
        self.top = Aggregator(CONFIG, 0.0)
        self.saved = self.top.save()

    def step(self, action: str) -> None:
        self.now += self.rng.choice([0.1, 1.0, 5.0])
        if action == "record":
            self.node.record(self.rng.randrange(3), self.rng.randint(1, 200), self.now)
        elif action == "close":
            self.node.close_interval(self.now)
        elif action == "crash":
            self.node.crash(self.now)
        elif action == "cut":
            self.node.to_top.is_up = not self.node.to_top.is_up
        elif action == "crash above":
            self.number += 1
            self.top = Aggregator(CONFIG, self.now)
            self.top.restore(self.saved)
        elif action == "commit":
            self.commit()
        self.node.exchange(self.now, self.acks)
        for frame in self.node.to_top.receive():
            self.top.feed(frame, self.now)

    def commit(self) -> None:
        self.saved = self.top.save()
        for source_id, seq in self.top.sources.drain_acks():
            frame = f"{source_id} {self.number} {seq}".encode()
            self.acks[frame] = source_id, Ack(1, f"top-{self.number}", seq)
            self.node.from_top.send(frame)

    def heal(self) -> None:
        for link in (self.node.to_top, self.node.from_top):
            link.is_up, link.faults = True, False
        for _ in range(40):
            self.now += RESEND_MAX_SECONDS / 2
            self.step("close")
            self.step("commit")
        for _ in range(2):  # the last beats are acknowledged
            self.step("commit")


ACTIONS = ["record"] * 5 + ["close"] * 4 + ["commit"] * 3 + ["crash", "crash above", "cut"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=120), st.integers(0, 1 << 30))
def test_what_a_node_has_taken_is_counted_above_exactly_once_whatever_crashes(actions: list[str], seed: int) -> None:
    levels = Levels(random.Random(seed))
    for action in actions:
        levels.step(action)
    levels.heal()
    recorded = {role: count for role, count in levels.node.recorded.items() if count}
    assert counts(levels.node.aggregator.snapshot(levels.now)) == recorded
    assert counts(levels.top.snapshot(levels.now)) == recorded
    assert levels.node.relay.num_unacknowledged == 0
    assert levels.top.pipeline(levels.now).reports_rejected == {}


def above(*frames: bytes) -> Aggregator:
    aggregator = Aggregator(CONFIG, 0.0)
    for frame in frames:
        aggregator.feed(frame, 1.0)
    return aggregator


def frames_of(made: Relay, now: float = 20.0) -> list[bytes]:
    """What a socket would be handed."""
    frames = []
    for outbox in made.outboxes.values():
        while (frame := outbox.next_frame) is not None:
            frames.append(frame)
            outbox.sent(now)
    return frames


def test_a_group_is_a_source_above_and_keeps_its_labels_and_ranks() -> None:
    made = relay()
    made.take([group(3, 8, role="kv_producer", engine="e"), group(2, 4, role="kv_consumer")], 10.0)
    interval = above(*frames_of(made)).close_interval(2.0)
    assert sorted((each.labels["role"], each.num_ranks) for each in interval.groups) == [
        ("kv_consumer", 4),
        ("kv_producer", 8),
    ]
    assert [view.source.id for view in interval.sources] == ["node-0", "node-1"]
    assert repr(made) == "<Relay node groups=2 unacked=2>"


def test_the_ranks_of_several_nodes_add_up_and_outlive_a_restart() -> None:
    nodes = [relay(name) for name in ("a", "b")]
    for number, node in enumerate(nodes):
        node.take([group(1, 10 + number, role="r")], 10.0)
    top = above(*frames_of(nodes[0]), *frames_of(nodes[1]), report(9, 1, "r", 1))
    again = Aggregator(CONFIG, 0.0)
    again.restore(top.save())
    for each in (top, again):
        assert [found.num_ranks for found in each.snapshot(2.0).groups] == [22]
        assert [found.num_ranks for found in each.close_interval(2.0).groups] == [22]
        assert [found.num_ranks for found in each.snapshot(2.0).groups] == [22]


def test_values_that_a_report_carries_exactly_stay_exact_above() -> None:
    made = relay()
    made.take([group(3, role="r")], 10.0)
    (found,) = above(*frames_of(made)).snapshot(2.0).groups
    assert found.stats.to_dict() == stats(3).to_dict()


def test_the_stats_of_an_interval_stay_as_they_are() -> None:
    made, part = relay(), group(3, role="r")
    for now in (10.0, 20.0):
        made.take([part], now)
    assert part.stats.to_dict() == stats(3).to_dict()


def test_while_nobody_is_above_intervals_merge_and_nothing_is_lost() -> None:
    made = relay()
    for number in range(3 * MAX_KEPT):
        made.take([group(2, role="r")], 10.0 * number)
    assert made.num_unacknowledged == MAX_KEPT
    again = relay("another")
    again.restore(made.save(), 0.0)
    top = above()
    for now in (1.0, 2.0):
        for frame in frames_of(again):
            top.feed(frame, now)
        for source_id, seq in top.sources.drain_acks():
            again.outboxes[source_id].acknowledge(Ack(1, "top", seq), now)
        again.take([], now)
    assert counts(top.snapshot(3.0)) == {"r": 6 * MAX_KEPT}


def test_what_is_kept_of_many_groups_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvxfer.relay.MAX_KEPT_BYTES", 10_000)
    made = relay()
    for number in range(MAX_KEPT):
        made.take([group(200, role=f"r{each}") for each in range(50)], 10.0 * number)
    kept = sum(outbox.kept_bytes for outbox in made.outboxes.values())
    assert 10_000 <= kept < 15_000
    top = above()
    for now in range(1, 200):
        for frame in frames_of(made):
            top.feed(frame, float(now))
        for source_id, seq in top.sources.drain_acks():
            made.outboxes[source_id].acknowledge(Ack(1, "top", seq), float(now))
        made.take([], float(now))
    assert counts(top.snapshot(300.0)) == {f"r{each}": 200 * MAX_KEPT for each in range(50)}


def test_a_class_that_fails_costs_its_own_group_alone_and_is_told() -> None:
    class Broken(ListStats):
        def to_dict(self) -> dict[str, Any]:
            raise RuntimeError

    made = relay()
    made.take([Group("NixlConnector", {}, Broken(data={"seconds": [1.0]}), 1), group(1, role="r")], 10.0)
    top = above(*frames_of(made))
    assert counts(top.snapshot(2.0)) == {"r": 1}
    assert top.pipeline(2.0).observations_cut == 1


def test_what_was_kept_of_a_connector_that_is_not_here_any_more_is_cut_and_told() -> None:
    made = relay()
    for number in range(MAX_KEPT + 1):
        made.take([group(1, role="r")], 10.0 * number)
    (outbox,) = msgspec.msgpack.decode(made.save())
    outbox[1] = "UninstalledConnector"
    again = relay()
    again.restore(msgspec.msgpack.encode([outbox]), 0.0)
    assert "cut=" in repr(next(iter(again.outboxes.values())))


@pytest.mark.parametrize("saved", [b"", b"\xc1", msgspec.msgpack.encode([[b"", "N", 1, [], {}, 0.0, 0]])])
def test_bytes_that_are_none_are_said(saved: bytes) -> None:
    with pytest.raises(JournalError, match="what is kept for the collector above cannot be read"):
        relay().restore(saved, 0.0)


def test_goodbye_is_said_once_for_each_group() -> None:
    made = relay()
    made.take([group(1, role="r"), group(1, role="s")], 10.0)
    made.part()
    top = above(*frames_of(made))
    assert not made.has_parted
    for source_id, seq in top.sources.drain_acks():
        made.outboxes[source_id].acknowledge(Ack(1, "top", seq), 11.0)
    assert made.has_parted
    assert top.pipeline(2.0).sources == {"live": 0, "silent": 0, "gone": 2}
