"""Who comes back after it made room for others: nothing of it counts twice, nothing is lost that was not lost."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer import CollectorConfig
from kvxfer.aggregator import Aggregator
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.interval import Interval
from kvxfer.outbox import Outbox
from kvxfer.sources import SOURCE_BYTES
from kvxfer.wire import Ack, Goodbye, Report, Source, decode, encode, encode_payload

LABELS = {f"{n:200}": "y" * 200 for n in range(16)}


def source(name: str = "a", labels: dict[str, str] | None = None) -> bytes:
    return encode(Source(name, "host", 1, 0.0, labels or {}))


def transfers(count: int = 1) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for _ in range(count):
        stats.record_transfer(0.5, 0.001, 1024, 2)
    return stats


def report(seq: int, name: str = "a", *, count: int = 1) -> bytes:
    packed = encode_payload(transfers(count).to_packed())
    return encode(Report(1, source(name), "NixlConnector", seq, 0.0, 1.0, packed))


def goodbye(seq: int, name: str = "a") -> bytes:
    return encode(Goodbye(1, source(name), seq))


def config(most: int = 1, views: int = 1024) -> CollectorConfig:
    return CollectorConfig(silent_seconds=30.0, gone_seconds=60.0, max_sources=most, max_source_views=views)


def aggregator(most: int = 1, views: int = 1024) -> Aggregator:
    return Aggregator(config(most, views), 0.0)


def restarted(made: Aggregator, now: float) -> Aggregator:
    again = Aggregator(made._config, now)
    again.restore(made.save())
    again.restore_counts(made.save_counts())
    again.resume(now)
    return again


def total(made: Aggregator, now: float) -> int:
    groups = made.snapshot(now).groups
    return sum(group.stats.reduce()["Num successful transfers"] for group in groups)


def counts(made: Aggregator, now: float) -> tuple[int, int, int]:
    """What was received, what was duplicate, what is lost."""
    pipeline = made.pipeline(now)
    return pipeline.reports_received, pipeline.reports_duplicate, pipeline.reports_lost


def views(interval: Interval) -> list[tuple[str, str, float, int]]:
    return [
        (view.source.id, view.state, view.last_seen, view.stats.data["transfer_duration"].count)
        for view in interval.sources
    ]


def forgotten(*frames: bytes, others: int = 1) -> Aggregator:
    """A collector for one source, which has taken the frames; then others came and went, the last one at 10.0."""
    made = aggregator()
    for frame in frames:
        made.feed(frame, 1.0)
    made.close_interval(2.0)
    for number in range(others):
        for frame in (report(1, f"b{number}"), goodbye(1, f"b{number}")):
            made.feed(frame, 10.0)
    made.close_interval(11.0)
    return made


def test_a_worker_that_was_cut_off_for_so_long_that_it_was_forgotten_is_counted_once() -> None:
    box = Outbox(Source("a", "host", 1, 0.0), "NixlConnector", 0.0)
    box.observe(transfers(5), 1.0)
    box.flush(1.0)
    frame = box.next_frame
    assert frame is not None
    made = aggregator()
    made.feed(frame, 1.0)  # the acknowledgement goes nowhere
    made.sources.drain_acks()
    made.close_interval(100.0)
    made.feed(report(1, "b"), 101.0)
    made.close_interval(200.0)
    assert made.feed(frame, 201.0)  # since its source is known again, which a restarted collector has to be told too
    assert (total(made, 202.0), counts(made, 202.0)) == (6, (2, 1, 0))
    for _, seq in made.sources.drain_acks():
        box.acknowledge(Ack(1, "c", seq), 203.0)
    assert box.is_idle


def test_the_numbers_of_who_was_forgotten_outlive_a_restart_before_and_after_it_came_back() -> None:
    made = restarted(forgotten(report(1, count=5), goodbye(1)), 20.0)
    made.feed(report(1, count=5), 21.0)
    assert (total(made, 22.0), counts(made, 22.0)) == (6, (2, 1, 0))
    made = restarted(made, 30.0)
    made.feed(report(1, count=5), 31.0)
    made.feed(report(1, "b0"), 32.0)
    assert (total(made, 33.0), counts(made, 33.0)) == (6, (2, 3, 0))
    assert not made.feed(report(1, "b0"), 34.0)  # of one that is known nothing is to be kept


def test_a_state_in_which_nobody_is_remembered_yet_is_read() -> None:
    fields = msgspec.msgpack.decode(forgotten(report(1), goodbye(1)).save(), type=list[msgspec.Raw])
    made = aggregator()
    made.restore(msgspec.msgpack.encode(fields[:-2]))
    assert (len(made.sources), len(made.sources.forgotten)) == (1, 0)


def test_what_was_lost_of_who_was_forgotten_is_lost_no_more_when_it_comes_after_all() -> None:
    made = forgotten(report(1), report(3), report(5), goodbye(5))
    assert (total(made, 20.0), counts(made, 20.0)) == (4, (4, 0, 2))
    for seq, lost in ((3, 2), (2, 1), (2, 1), (4, 0)):
        made.feed(report(seq), 20.0)
        assert made.pipeline(20.0).reports_lost == lost
    assert (total(made, 20.0), counts(made, 20.0)) == (6, (6, 2, 0))
    assert made.pipeline(20.0).sources == {"live": 0, "silent": 0, "gone": 1}


def test_who_was_forgotten_lives_when_it_reports_something_new_and_can_be_gone_and_forgotten_again() -> None:
    made = forgotten(report(1), report(3), goodbye(3))
    made.feed(report(4), 20.0)
    assert made.pipeline(20.0).sources == {"live": 1, "silent": 0, "gone": 0}
    assert not made.feed(report(1, "c"), 20.0)  # no room
    assert counts(made, 20.0) == (4, 0, 0)
    made.feed(goodbye(4), 21.0)
    assert counts(made, 21.0) == (4, 0, 1)
    made.feed(report(1, "c"), 22.0)
    made.feed(goodbye(1, "c"), 23.0)
    for seq in (4, 3, 1, 2):
        made.feed(report(seq), 24.0)
    assert (total(made, 24.0), counts(made, 24.0)) == (6, (6, 3, 0))


def test_a_goodbye_of_who_was_forgotten_loses_nothing_twice() -> None:
    made = forgotten(report(1), report(3), goodbye(3))
    made.feed(goodbye(3), 20.0)
    assert (counts(made, 20.0), made.sources.drain_acks()) == ((3, 0, 1), [("a", 1)])
    made.feed(goodbye(5), 20.0)
    assert counts(made, 20.0) == (3, 0, 3)


def test_who_was_forgotten_and_finds_no_room_is_remembered_until_there_is_some() -> None:
    made = forgotten(report(1), goodbye(1))
    made.feed(report(2, "b0"), 20.0)
    for _ in range(3):
        assert not made.feed(report(1), 21.0)
    assert made.pipeline(21.0).reports_rejected == {"too_many_sources": 3}
    made.feed(goodbye(2, "b0"), 22.0)
    made.feed(report(1), 23.0)
    assert (total(made, 24.0), counts(made, 24.0)) == (3, (3, 1, 0))


def test_an_id_is_refused_where_it_is_known_and_not_where_it_is_remembered() -> None:
    made = forgotten(report(1), goodbye(1))
    other = encode(Source("a", "elsewhere", 2, 0.0))
    report_of_other = decode(report(1))
    report_of_other.source = other
    assert made.feed(encode(report_of_other), 20.0)
    assert not made.feed(report(1), 21.0)
    assert made.pipeline(21.0).reports_rejected == {"implausible": 1}


def test_as_many_are_remembered_as_may_be_known_and_the_oldest_goes_first() -> None:
    made = aggregator(most=4)
    for number in range(1000):
        made.feed(report(1, f"s{number}"), 1.0)
        made.feed(goodbye(1, f"s{number}"), 1.0)
    assert (len(made.sources), len(made.sources.forgotten)) == (4, 4)
    for number in range(996, 1000):  # known
        made.feed(report(1, f"s{number}"), 2.0)
    for number in range(992, 996):  # remembered, each makes room for the next one
        made.feed(report(1, f"s{number}"), 2.0)
    assert counts(made, 2.0) == (1000, 8, 0)
    assert (len(made.sources), len(made.sources.forgotten)) == (4, 4)
    made.feed(report(1, "s0"), 2.0)
    assert counts(made, 2.0) == (1001, 8, 0)


def test_those_with_long_labels_take_the_room_of_many() -> None:
    made = aggregator(most=64)
    for number in range(200):
        made.feed(encode(Goodbye(1, source(f"s{number}", LABELS), 0)), 1.0)
    size = len(source("s100", LABELS))
    assert 64 * SOURCE_BYTES - size < len(made.sources.forgotten) * size <= 64 * SOURCE_BYTES
    for number in range(100, 300):
        made.feed(goodbye(0, f"t{number}"), 2.0)
    assert repr(made.sources.forgotten) == f"<Forgotten sources=64 bytes={64 * len(source('t100'))}>"
    assert repr(restarted(made, 3.0).sources.forgotten) == repr(made.sources.forgotten)


def test_the_view_of_who_was_forgotten_goes_and_begins_anew_when_it_comes_back() -> None:
    made = forgotten(report(1, count=5), goodbye(1))
    assert views(made.snapshot(12.0)) == [("b0", "gone", 10.0, 1)]
    made.feed(report(1, count=5), 20.0)
    assert views(made.snapshot(20.0)) == []
    made.feed(report(2, count=2), 21.0)
    assert views(made.snapshot(22.0)) == [("a", "live", 21.0, 2)]
    assert views(restarted(made, 22.0).snapshot(22.0)) == [("a", "live", 22.0, 2)]
    assert views(made.close_interval(60.0)) == [("a", "silent", 21.0, 2)]
    made.feed(report(3, count=3), 61.0)
    assert views(made.close_interval(62.0)) == [("a", "live", 61.0, 3)]
    assert views(made.snapshot(63.0)) == [("a", "live", 61.0, 5)]
    assert len(made._views.known) == 1


def test_what_was_reported_in_the_interval_in_which_its_source_was_forgotten_is_in_its_view() -> None:
    made = aggregator()
    for frame in (report(1, count=5), goodbye(1), report(1, "b"), goodbye(1, "b"), report(1, "c")):
        made.feed(frame, 1.0)
    assert views(made.snapshot(2.0)) == [("c", "live", 1.0, 1)]
    assert views(made.close_interval(2.0)) == [("a", "gone", 1.0, 5), ("b", "gone", 1.0, 1), ("c", "live", 1.0, 1)]
    assert views(made.close_interval(3.0)) == []


def test_who_is_forgotten_and_back_within_an_interval_has_one_view_of_all_that_it_reported() -> None:
    made = aggregator()
    for now, frame in enumerate((report(1, count=5), goodbye(1), report(1, "b"), goodbye(1, "b"), goodbye(1)), 1):
        made.feed(frame, now)
    assert views(made.snapshot(6.0)) == [("a", "gone", 5.0, 5)]
    made.feed(report(2, count=2), 6.0)
    made.feed(report(1, count=5), 7.0)
    assert sorted(views(made.close_interval(8.0))) == [("a", "live", 7.0, 7), ("b", "gone", 4.0, 1)]
    assert views(made.snapshot(9.0)) == [("a", "live", 7.0, 7)]


def test_who_is_forgotten_with_an_open_view_gives_its_place_away_when_the_interval_closes() -> None:
    made = aggregator(most=2, views=1)
    for number in range(50):
        for frame in (report(1, f"s{number}"), goodbye(1, f"s{number}")):
            made.feed(frame, 1.0)
    made.feed(report(2, "s0"), 2.0)
    assert (len(made._views.known), len(made._views.open)) == (1, 1)
    assert views(made.close_interval(3.0)) == [("s0", "live", 2.0, 2)]
    made.feed(goodbye(2, "s0"), 3.0)
    made.feed(report(1, "t"), 4.0)
    assert views(made.close_interval(5.0)) == [("t", "live", 4.0, 1)]


def test_who_left_first_makes_room_first_also_after_a_restart() -> None:
    made = aggregator(most=2)
    for frame in (report(1, "a"), report(1, "b"), goodbye(1, "b"), goodbye(1, "a")):
        made.feed(frame, 1.0)
    made.close_interval(2.0)
    for each in (restarted(made, 3.0), made):
        each.feed(report(1, "c"), 4.0)
        assert [numbers.encoded for numbers in each.sources.forgotten.save()] == [source("b")]


def test_the_view_that_began_first_makes_room_first_also_after_a_restart() -> None:
    made = aggregator(most=3, views=2)
    for frame in (report(1, "a"), report(1, "b"), goodbye(1, "b"), goodbye(1, "a")):
        made.feed(frame, 1.0)
    made.close_interval(2.0)
    for each in (restarted(made, 3.0), made):
        each.feed(report(1, "c"), 4.0)
        assert [view.source.id for view in each.snapshot(5.0).sources] == ["b", "c"]


class Crowd:
    """A collector for fewer sources than there are, beside what it should have counted and what outlives a crash."""

    def __init__(self, most: int, num_views: int) -> None:
        self.made, self.now = aggregator(most, num_views), 0.0
        self.taken: set[tuple[str, int]] = set()
        self.last = dict.fromkeys("abc", 0)
        self.commit()

    def commit(self) -> None:
        self.saved, self.log = self.made.save(), list[tuple[bytes, float]]()

    def feed(self, frame: bytes) -> bool:
        """Whether it was taken, now or before."""
        rejected = self.made.num_rejected
        if self.made.feed(frame, self.now):
            self.log.append((frame, self.now))
        return self.made.num_rejected == rejected

    def report(self, name: str, seq: int) -> None:
        if self.feed(report(seq, name)):
            self.taken.add((name, seq))
            self.last[name] = max(self.last[name], seq)

    def goodbye(self, name: str) -> None:
        self.feed(goodbye(self.last[name], name))

    def close(self) -> None:
        self.made.close_interval(self.now)
        self.commit()

    def restart(self) -> None:
        before, self.made = self.made, Aggregator(self.made._config, 0.0)
        self.made.restore(self.saved)
        assert all(self.made.feed(frame, now) for frame, now in self.log)
        self.made.restore_counts(before.save_counts())
        assert self.made.save() == before.save()
        closed = []
        for each in (self.made, before):
            each.sources.greet(self.now)
            closed.append([(name, state, count) for name, state, _, count in views(each.close_interval(self.now))])
        assert closed[0] == closed[1]
        self.commit()


names = st.sampled_from("abc")
steps = st.lists(
    st.tuples(st.just("report"), names, st.integers(1, 4))
    | st.tuples(st.just("goodbye"), names)
    | st.sampled_from([("close",), ("restart",)]),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(2, 3), st.integers(0, 3), st.sampled_from([1.0, 40.0]))
def test_each_number_counts_once_and_a_restarted_collector_is_what_it_was(
    steps: list[tuple[str]], most: int, num_views: int, seconds: float
) -> None:
    crowd = Crowd(most, num_views)
    for name, *arguments in steps:
        crowd.now += seconds
        getattr(crowd, name)(*arguments)
        assert total(crowd.made, crowd.now) == crowd.made.pipeline(crowd.now).reports_received == len(crowd.taken)
    for name in crowd.last:
        crowd.now += 100.0
        crowd.close()
        crowd.goodbye(name)
    assert crowd.made.pipeline(crowd.now).reports_lost == sum(crowd.last.values()) - len(crowd.taken)
