"""What the log says of workers: each once, crowds counted, and nobody is called slow by chance."""

from collections.abc import Callable, Sequence

import msgspec
import pytest
from recorded import run, source

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.errors import ConfigError
from kvxfer.exporters.warning import WarningExporter
from kvxfer.interval import Interval
from kvxfer.watching import MOST_SENTENCES, Ration, SlowWatch, name_of
from kvxfer.wire import Goodbye, Report, Source, encode, encode_payload

GROUP_BY = ("engine", "role")


class Watched:
    """A collector's state machine that closes an interval each 10 s, and what is said of them."""

    def __init__(self, gone_seconds: float = 100) -> None:
        self.now = 1000.0
        self._seqs: dict[int, int] = {}
        self._made = Aggregator(CollectorConfig(silent_seconds=30, gone_seconds=gone_seconds), self.now)
        self._said: list[str] = []
        self._exporter = WarningExporter(self._said.append)

    def hear(self, *ranks: int) -> None:
        for rank in ranks:
            self._seqs[rank] = self._seqs.get(rank, 0) + 1
            by = encode(source(rank))
            report = Report(1, by, "NixlConnector", self._seqs[rank], 1.0, 2.0, encode_payload({}))
            self._made.feed(encode(report), self.now)

    def part(self, rank: int) -> None:
        self._made.feed(encode(Goodbye(1, encode(source(rank)), self._seqs[rank])), self.now)

    def said(self) -> list[str]:
        self.now += 10
        self._exporter.export(self._made.close_interval(self.now))
        said, self._said[:] = list(self._said), []
        return said

    def wait(self, seconds: int) -> list[str]:
        return [sentence for _ in range(seconds // 10) for sentence in self.said()]


RANK_0 = "Worker engine=e, rank=0, host=host-0, pid=40"
SILENT = f"{RANK_0} is silent: no report, and no sign that it lives"


def test_who_falls_silent_is_said_once_and_once_more_when_it_is_back() -> None:
    watched = Watched()
    watched.hear(0)
    assert watched.wait(20) == []
    assert watched.wait(50) == [SILENT]
    watched.hear(0)
    assert watched.wait(20) == [f"{RANK_0} is back: it reports again"]
    assert watched.wait(20) == [SILENT]


def test_who_says_goodbye_is_no_matter_of_the_log() -> None:
    watched = Watched()
    watched.hear(0)
    watched.part(0)
    assert watched.wait(200) == []


def test_who_was_silent_and_is_given_up_has_left() -> None:
    watched = Watched()
    watched.hear(0)
    assert watched.wait(300) == [SILENT, f"{RANK_0} was silent and has left"]


def test_who_was_silent_and_says_goodbye_has_left() -> None:
    watched = Watched()
    watched.hear(0)
    watched.wait(30)
    watched.part(0)
    assert watched.wait(50) == [f"{RANK_0} was silent and has left"]


def flapping(watched: Watched, *ranks: int, times: int) -> list[tuple[float, str]]:
    """What is said while workers fall silent and come back, once a minute."""
    said = []
    for _ in range(times):
        watched.hear(*ranks)
        said += [(watched.now, sentence) for _ in range(6) for sentence in watched.said()]
    return said


def test_one_that_falls_silent_again_and_again_is_said_twice_in_ten_minutes_and_then_how_often() -> None:
    watched = Watched()
    said = flapping(watched, 0, times=60)
    assert [sentence for _, sentence in said[:4]] == [SILENT, f"{RANK_0} is back: it reports again"] * 2
    assert said[4][1] == f"{SILENT}; 8 more times since this was last said"
    assert len(said) <= 6 * 2 * 2
    told = sum(1 for _, sentence in said if "is silent" in sentence)
    counted = sum(int(sentence.split("; ")[1].split()[0]) for _, sentence in said if "; " in sentence)
    assert 60 - 10 <= told + counted <= 60


def test_one_that_was_silent_too_often_and_is_well_again_is_said_so() -> None:
    watched = Watched()
    flapping(watched, 0, times=5)
    said = []
    for _ in range(80):
        watched.hear(0)
        said += watched.said()
    assert said == [f"{RANK_0} reports, and was silent; 3 more times since this was last said"]


def test_one_that_is_silent_for_good_is_said_in_the_end_and_what_has_left_is_over() -> None:
    for ends, last in ((False, SILENT), (True, f"{RANK_0} was silent and has left")):
        watched = Watched(gone_seconds=1e6)
        said = [sentence for _, sentence in flapping(watched, 0, times=5)]
        watched.hear(0)
        if ends:
            watched.part(0)
        assert [*said, *watched.wait(1200)][-1].startswith(last)


def test_of_very_many_warnings_the_rest_is_counted() -> None:
    ration = Ration()
    said = [ration.take([f"{number}"] * 50, 1000.0 + 300 * number) for number in range(3)]
    assert said[0] == ["0"] * 50
    assert said[1] == ["1"] * 10 + ["Too many warnings: for up to 10 minutes they are only counted"]
    assert said[2] == ["40 more warnings were left out since"] + ["2"] * 50


def test_a_fleet_that_flaps_fills_no_log() -> None:
    watched = Watched()
    said = [each for ranks in range(30) for each in flapping(watched, *range(ranks * 10, ranks * 10 + 10), times=2)]
    assert len(said) <= (MOST_SENTENCES + 2) * 7


def test_a_crowd_is_counted() -> None:
    watched = Watched()
    watched.hear(*range(1000))
    said = watched.wait(30)
    assert said[0] == SILENT
    assert said[5:] == ["995 more workers are silent"]
    watched.hear(*range(1000))
    assert watched.said()[5:] == ["995 more workers are back"]


def test_what_a_worker_calls_itself_ends_no_line() -> None:
    assert (
        name_of(Source("id", "h\x1b[2J", 1, 0.0, {"rank": "0\nWorker 1"})) == r"rank=0\nWorker 1, host=h\x1b[2J, pid=1"
    )


# --- who is slow


def slow(watch: SlowWatch, intervals: Sequence[Interval]) -> list[int]:
    """In which of the intervals something is said."""
    return [number for number, interval in enumerate(intervals) for _ in watch.take(interval)]


def ranks(*paces: float, transfers: int = 20) -> list[list[float]]:
    return [[pace] * transfers for pace in paces]


SLOW_RANK = ranks(0.001, 0.0011, 0.0009, 0.005)


def test_a_rank_that_is_slower_than_its_group_is_said_in_the_second_interval() -> None:
    said: list[str] = []
    exporter = WarningExporter(said.append)
    for interval in run([SLOW_RANK] * 10):
        exporter.export(interval)
    (sentence,) = said
    assert sentence.startswith(
        "Worker engine=e, rank=3, host=host-1, pid=43 is slow in NixlConnector: P90 5 ms, 4.8 times"
    )
    assert sentence.endswith(" that of the group, and 4.8 times as long for a byte")


@pytest.mark.parametrize(
    "durations",
    [
        ranks(0.001, 0.001, 0.001, 0.0025),  # not three times
        ranks(0.001, 0.005),  # of two it is open which is the odd one
        ranks(0.001, 0.001, 0.001, 0.005, transfers=19),  # too few
        [*ranks(0.001, 0.001, 0.001), [0.001] * 19 + [9.0]],  # one long one
        ranks(0.001, 0.001, 0.005, 0.005),  # half of them
    ],
)
def test_what_may_be_chance_is_not_said(durations: list[list[float]]) -> None:
    assert slow(SlowWatch(3.0, GROUP_BY), run([durations] * 3)) == []


def test_one_slow_interval_is_not_said() -> None:
    usual = ranks(0.001, 0.001, 0.001, 0.001)
    assert slow(SlowWatch(3.0, GROUP_BY), run([SLOW_RANK, usual, SLOW_RANK, usual])) == []


def test_larger_transfers_are_not_slower_ones() -> None:
    intervals = [
        merge_views(small, large)
        for small, large in zip(
            run([ranks(0.001, 0.001, 0.001)] * 3), run([[[], [], [], *ranks(0.008)]] * 3, size=8 << 20), strict=True
        )
    ]
    assert slow(SlowWatch(3.0, GROUP_BY), intervals) == []


def merge_views(one: Interval, other: Interval) -> Interval:
    return msgspec.structs.replace(one, sources=(*one.sources, *other.sources))


def test_who_stays_slow_is_said_again_after_ten_minutes_with_what_was_not_said() -> None:
    watch = SlowWatch(3.0, GROUP_BY)
    said = [(number, sentence) for number, each in enumerate(run([SLOW_RANK] * 70)) for sentence in watch.take(each)]
    assert [number for number, _ in said] == [1, 61]
    assert said[1][1].endswith("; in 59 more intervals since this was last said")


def test_who_is_slow_now_and_then_is_said_as_seldom() -> None:
    usual = ranks(0.001, 0.001, 0.001, 0.001)
    assert slow(SlowWatch(3.0, GROUP_BY), run([SLOW_RANK, SLOW_RANK, usual] * 15)) == [1]


def test_slow_crowds_are_counted() -> None:
    watch = SlowWatch(3.0, GROUP_BY)
    for interval in run([ranks(*[0.001] * 20, *[0.01] * 12)] * 2):
        said = watch.take(interval)
    assert said[5:] == ["7 more workers are slower than the others of their groups"]


def test_groups_are_compared_within_themselves() -> None:
    intervals = run([ranks(0.001, 0.001, 0.001, 0.01)] * 3)
    assert slow(SlowWatch(3.0, ("rank",)), intervals) == []


@pytest.mark.parametrize("factor", [1.0, 0.5, -1.0, float("nan"), float("inf")])
def test_a_factor_that_everybody_has_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="slow_factor must be above 1, or 0 for no such warning"):
        WarningExporter(slow_factor=factor)


@pytest.fixture
def fails() -> Callable[[str], None]:
    def failing(_: str) -> None:
        raise AssertionError

    return failing


def test_a_factor_of_0_says_nothing_of_slow_ranks(fails: Callable[[str], None]) -> None:
    exporter = WarningExporter(fails, slow_factor=0)
    for interval in run([SLOW_RANK] * 3):
        exporter.export(interval)
    exporter.close()
