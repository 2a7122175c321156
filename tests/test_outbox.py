"""The worker's state machine, step by step, with a clock that is passed in."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from kvxfer import KVConnectorStats
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.distribution import PACK_ABOVE
from kvxfer.outbox import MAX_KEPT, MAX_OPEN_BYTES, RESEND_MAX_SECONDS, RESEND_SECONDS, Outbox
from kvxfer.wire import Ack, Goodbye, Report, Source, decode, decode_payload, encode

SOURCE = Source("id", "host", 1, 0.0)


@dataclass
class ListStats(KVConnectorStats):
    """Stats as vLLM's connectors write them: lists that only grow."""

    def __post_init__(self) -> None:
        if not self.data:
            self.reset()

    def reset(self) -> None:
        self.data: dict[str, Any] = {"durations": []}

    def aggregate(self, other: KVConnectorStats) -> "ListStats":
        self.data["durations"].extend(other.data["durations"])
        return self

    def reduce(self) -> dict[str, Any]:
        return {"Num transfers": len(self.data["durations"])}

    def is_empty(self) -> bool:
        return not self.data["durations"]


def outbox() -> Outbox:
    return Outbox(SOURCE, "NixlConnector", 10.0)


def transfers(count: int) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for _ in range(count):
        stats.record_transfer(0.5, 0.001, 1024, 2)
    return stats


def send_all(box: Outbox, now: float = 0.0) -> list[Report]:
    """Send what waits, to a collector that takes it and has not acknowledged it yet."""
    reports = []
    while (frame := box.next_frame) is not None:
        report = decode(frame)
        assert isinstance(report, Report)
        reports.append(report)
        box.sent(now)
    return reports


def deliver_all(box: Outbox) -> list[Report]:
    """Send what waits, to a collector that commits it at once."""
    reports = send_all(box)
    acknowledge(box, reports[-1].seq if reports else 0)
    return reports


def acknowledge(box: Outbox, seq: int, now: float = 0.0, collector: str = "c") -> None:
    box.acknowledge(Ack(1, collector, seq), now)


def counts(reports: list[Report]) -> list[int]:
    payloads = [decode_payload(report.payload) for report in reports]
    return [NixlConnectorStats(payload).transfer_duration.count for payload in payloads]


def test_an_interval_is_closed_into_a_numbered_report_and_kept_until_it_is_acknowledged() -> None:
    box = outbox()
    assert repr(box) == "<Outbox open=0 unacked=0 sent=0>"
    box.observe(transfers(2), 11.0)
    box.observe(transfers(3), 12.0)
    assert repr(box) == "<Outbox open=2 unacked=0 sent=0>"
    assert box.flush(13.0)
    assert repr(box) == "<Outbox open=0 unacked=1 (1..1) sent=0>"
    (report,) = send_all(box)
    assert (report.seq, report.start, report.end, counts([report])) == (1, 10.0, 13.0, [5])
    assert repr(box) == "<Outbox open=0 unacked=1 (1..1) sent=1>"
    assert not box.is_idle
    acknowledge(box, 1)
    assert repr(box) == "<Outbox open=0 unacked=0 sent=1>"
    assert box.is_idle


def test_nothing_observed_makes_no_report() -> None:
    box = outbox()
    assert not box.flush(11.0)
    box.observe(transfers(0), 11.0)
    assert not box.flush(12.0)
    assert box.next_frame is None


def test_intervals_follow_each_other_without_a_gap() -> None:
    box = outbox()
    for now in (11.0, 12.0, 15.0):
        box.observe(transfers(1), now)
        box.flush(now)
    assert [(report.seq, report.start, report.end) for report in deliver_all(box)] == [
        (1, 10.0, 11.0),
        (2, 11.0, 12.0),
        (3, 12.0, 15.0),
    ]


def test_while_nobody_acknowledges_the_rest_merges_and_every_count_is_there_at_the_end() -> None:
    box = outbox()
    for now in range(1000):
        box.observe(transfers(1), now)
        box.flush(now)
        send_all(box, now)
    assert repr(box) == f"<Outbox open={1000 - MAX_KEPT} unacked=64 (1..64) sent=64>"
    box.tick(1e6)
    reports = deliver_all(box)
    assert box.flush(1001.0)
    reports += deliver_all(box)
    assert [report.seq for report in reports] == list(range(1, MAX_KEPT + 2))
    assert sum(counts(reports)) == 1000


def test_an_hour_without_a_collector_needs_no_more_memory_than_a_minute() -> None:
    box = outbox()
    sizes = []
    for second in range(3600):
        box.observe(transfers(2), second)
        box.flush(second)
        if second in (1800, 3599):
            assert box._open is not None
            sizes.append(len(str(box._open.to_packed())))
    assert sizes[1] <= sizes[0] + 50
    reports = deliver_all(box)
    box.flush(3600.0)
    assert sum(counts(reports + deliver_all(box))) == 7200


def test_values_that_a_report_carries_exactly_are_not_folded_by_merging() -> None:
    box = outbox()
    for now in range(4):
        box.observe(transfers(PACK_ABOVE // 2), now)
    box.flush(5.0)
    reports = deliver_all(box)
    assert counts(reports) == [PACK_ABOVE, PACK_ABOVE]
    assert all(NixlConnectorStats(decode_payload(report.payload)).transfer_duration.is_exact for report in reports)


def test_stats_that_only_grow_are_cut_at_a_bound_and_what_was_cut_is_told() -> None:
    box = Outbox(SOURCE, "ListConnector", 0.0)
    part, observed = 10_000, 0
    while box.has_room or "cut" not in repr(box):
        box.observe(ListStats({"durations": [0.5] * part}), 1.0)
        observed += part
        assert observed < 100_000_000
    reports = deliver_all(box)
    assert box.flush(2.0)
    reports += deliver_all(box)
    arrived = sum(len(decode_payload(report.payload)["durations"]) for report in reports)
    assert arrived + sum(report.cut for report in reports) == observed
    assert all(len(bytes(report.payload)) <= MAX_OPEN_BYTES + 9 * part for report in reports)


def test_one_push_larger_than_a_report_is_cut_whole_and_told() -> None:
    box = Outbox(SOURCE, "ListConnector", 0.0)
    box.observe(ListStats({"durations": [0.5] * 200_000}), 1.0)
    box.observe(ListStats({"durations": [0.5] * 3}), 1.0)
    box.flush(2.0)
    (report,) = deliver_all(box)
    assert report.cut == 200_000
    assert decode_payload(report.payload) == {"durations": [0.5] * 3}


def test_goodbye_follows_the_last_report_and_names_its_number() -> None:
    box = outbox()
    box.observe(transfers(1), 11.0)
    box.flush(12.0)
    box.part()
    (frame,) = [box.next_frame]
    assert frame is not None
    assert isinstance(decode(frame), Report)
    box.sent(12.0)
    frame = box.next_frame
    assert frame is not None
    assert decode(frame) == Goodbye(1, encode(SOURCE), 1, 1)
    box.sent(12.0)
    assert (box.next_frame, box.has_parted) == (None, False)
    acknowledge(box, 1)
    assert box.has_parted


def test_a_publisher_that_sent_nothing_parts_without_a_word() -> None:
    box = outbox()
    box.part()
    assert (box.next_frame, box.has_parted) == (None, True)


def test_what_is_not_acknowledged_in_time_is_sent_again_and_ever_more_seldom() -> None:
    box = outbox()
    for now in (11.0, 12.0):
        box.observe(transfers(1), now)
        box.flush(now)
    sent_at, now = [], 12.0
    while now < 200.0:
        again = box.tick(now)
        if send_all(box, now):
            sent_at.append(now)
            assert again is (len(sent_at) > 1)
        now += 0.5
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent_at)]
    assert gaps[:5] == [RESEND_SECONDS, 6.0, 12.0, 24.0, RESEND_MAX_SECONDS]
    assert set(gaps[4:]) == {RESEND_MAX_SECONDS}
    acknowledge(box, 1, now)
    box.tick(now + RESEND_SECONDS)
    assert [report.seq for report in send_all(box, now)] == [2]


def test_another_collector_gets_at_once_what_none_has_acknowledged() -> None:
    box = outbox()
    for now in (11.0, 12.0, 13.0):
        box.observe(transfers(1), now)
        box.flush(now)
    send_all(box, 13.0)
    acknowledge(box, 1, 13.0, "first")
    assert box.next_frame is None
    acknowledge(box, 0, 13.1, "second")
    assert [(report.seq, report.oldest) for report in send_all(box, 13.1)] == [(2, 2), (3, 2)]
    acknowledge(box, 3, 13.2, "second")
    assert repr(box) == "<Outbox open=0 unacked=0 sent=3>"


def test_an_acknowledgement_that_comes_late_or_twice_changes_nothing() -> None:
    box = outbox()
    for now in (11.0, 12.0):
        box.observe(transfers(1), now)
        box.flush(now)
        send_all(box, now)
    for seq in (2, 1, 2, 0):
        acknowledge(box, seq, 13.0)
        assert repr(box) == "<Outbox open=0 unacked=0 sent=2>"


def test_a_publisher_with_nothing_to_tell_says_now_and_then_that_it_lives() -> None:
    box, seqs = outbox(), []
    for now in range(10, 71):
        box.flush(now)
        seqs += [(now, report.seq, decode_payload(report.payload)) for report in deliver_all(box)]
    assert seqs == [(20 + 10 * n, n + 1, {}) for n in range(6)]


def test_without_a_collector_no_more_than_one_sign_of_life_is_kept() -> None:
    box = outbox()
    for now in range(10, 3600):
        box.flush(now)
    assert repr(box) == "<Outbox open=0 unacked=1 (1..1) sent=0>"


@pytest.mark.parametrize("times", [1, 2])
def test_draining_twice_sends_nothing_twice(times: int) -> None:
    box = outbox()
    box.observe(transfers(7), 11.0)
    for _ in range(times):
        box.flush(12.0)
    assert counts(deliver_all(box)) == [7]
