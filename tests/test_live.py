"""What `kvxfer top` shows: who was there stays to be seen, and keys do what they say."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from recorded import BEGIN, SECONDS, journal, lines, run, source

from kvxfer.cli import main
from kvxfer.cli.keys import HELP, ORDERS, View
from kvxfer.cli.screen import plain
from kvxfer.cli.top import Following
from kvxfer.interval import Interval, Pipeline
from kvxfer.records.files import open_records
from kvxfer.records.live import Live, LiveRow, Now
from kvxfer.records.observed import Observed, of_interval
from kvxfer.wire import Source

NOTHING = Pipeline(0, 0, 0, {}, 0, 0)


def idle(number: int, *, silent: Iterable[int] = (), departed: Iterable[int] = ()) -> Observed:
    start = BEGIN + SECONDS * number
    ends = (tuple(source(rank) for rank in ranks) for ranks in (silent, departed))
    return of_interval(Interval(start, start + SECONDS, (), (), NOTHING, *ends))


def seen(*observed: Observed) -> Now:
    live = Live()
    for each in observed:
        live.take(each)
    now = live.now()
    assert now is not None
    return now


def ranks(number: int) -> list[Observed]:
    return [of_interval(each) for each in run([[[0.001]] * number])]


def states(now: Now) -> dict[str, str]:
    return {row.row.labels["rank"]: row.state for row in now.ranks}


def test_before_the_first_interval_there_is_nothing_to_see() -> None:
    assert Live().now() is None


def test_an_interval_is_seen_as_a_whole_by_group_and_by_rank() -> None:
    now = seen(*ranks(3))
    assert (now.total.num_transfers, now.total.bytes_per_second) == (3, 3 * (1 << 20) / SECONDS)
    assert [(row.name, row.row.num_ranks) for row in now.groups] == [("Nixl e", 3)]
    assert [row.name for row in now.ranks] == [f"{rank} e host-{rank % 2}:{40 + rank} Nixl" for rank in range(3)]


def test_a_rank_that_reports_nothing_is_idle_then_silent_then_gone() -> None:
    first = ranks(2)
    assert states(seen(*first)) == {"0": "live", "1": "live"}
    assert states(seen(*first, idle(1))) == {"0": "idle", "1": "idle"}
    assert states(seen(*first, idle(1, silent=[1]))) == {"0": "idle", "1": "silent"}
    assert states(seen(*first, idle(1, silent=[1]), idle(2, departed=[1]))) == {"0": "idle", "1": "gone"}


def test_one_that_left_is_seen_for_a_minute() -> None:
    first, left = ranks(1), idle(1, departed=[0])
    assert states(seen(*first, left, *(idle(number) for number in range(2, 8)))) == {"0": "gone"}
    assert states(seen(*first, left, *(idle(number) for number in range(2, 9)))) == {}


def test_one_of_whom_nothing_is_told_any_more_is_forgotten() -> None:
    assert states(seen(*ranks(1), idle(90))) == {"0": "idle"}
    assert states(seen(*ranks(1), idle(91))) == {}


def test_one_that_was_silent_all_along_is_seen_and_once_alone_when_it_is_back() -> None:
    silent = idle(-1, silent=[0])
    assert states(seen(silent)) == {"0": "silent"}
    assert [(row.name, row.state) for row in seen(silent, *ranks(1)).ranks] == [("0 e host-0:40 Nixl", "live")]


def test_a_rank_that_reports_again_is_live_though_it_was_gone() -> None:
    assert states(seen(idle(-1, departed=[0]), *ranks(1))) == {"0": "live"}


def test_one_that_is_slower_than_its_group_is_slow_at_once() -> None:
    (interval,) = run([[[0.001] * 20, [0.001] * 20, [0.001] * 20, [0.01] * 20]])
    now = seen(of_interval(interval))
    assert states(now) == {"0": "live", "1": "live", "2": "live", "3": "slow"}
    assert [row.state for row in pressed("s").sorted(now.ranks)][:2] == ["slow", "live"]
    (few,) = run([[[0.001] * 19, [0.001] * 19, [0.001] * 19, [0.01] * 19]])
    assert states(seen(of_interval(few)))["3"] == "live"


# --- keys


def pressed(*keys: str) -> View:
    view = View()
    for key in keys:
        view.press(key)
    return view


@pytest.fixture
def twelve() -> list[LiveRow]:
    return seen(of_interval(run([[[0.001 * (1 + rank % 5)] for rank in range(12)]])[0])).ranks


def order(view: View, rows: list[LiveRow]) -> list[int]:
    return [int(row.row.labels["rank"]) for row in view.sorted(rows)]


def test_ranks_stand_in_the_order_of_their_numbers(twelve: list[LiveRow]) -> None:
    assert order(View(), twelve[::-1]) == list(range(12))
    assert order(pressed("r"), twelve) == list(range(11, -1, -1))


def test_s_goes_through_the_columns_and_begins_again(twelve: list[LiveRow]) -> None:
    titles = [pressed(*"s" * number).order for number in range(len(ORDERS) + 1)]
    assert titles[0] == titles[-1] == "rank ^"
    assert titles[1:3] == ["state ^", "transfers v"]
    by_p99 = pressed(*"ssssss")
    assert by_p99.order == "P99 ms v"
    assert order(by_p99, twelve) == [4, 9, 3, 8, 2, 7, 1, 6, 11, 0, 5, 10]
    by_p99.press("r")
    assert (by_p99.order, order(by_p99, twelve)[:3]) == ("P99 ms ^", [0, 5, 10])


def test_by_state_those_come_first_who_are_missing() -> None:
    now = seen(*ranks(3), idle(1, silent=[2], departed=[1]))
    assert [row.state for row in pressed("s").sorted(now.ranks)] == ["silent", "gone", "idle"]


def test_f_filters_by_what_is_typed_while_it_is_typed(twelve: list[LiveRow]) -> None:
    typing = pressed("f", *"RANK=1x", "\x7f")
    assert repr(typing) == "<View rank ^ filter='' typed='RANK=1' paused=False>"
    assert [row.row.labels["rank"] for row in typing.chosen(twelve)] == ["1", "10", "11"]
    typing.press("\r")
    assert (typing.filter, typing.typed) == ("RANK=1", None)
    assert len(typing.chosen(twelve)) == 3
    typing.press("f")
    typing.press("\x1b")
    assert len(typing.chosen(twelve)) == 12


def test_what_is_typed_has_an_end_and_no_control_characters() -> None:
    assert pressed("f", *"x" * 99, "\x00", "\t").typed == "x" * 60


def test_commands_are_text_while_a_filter_is_typed() -> None:
    view = pressed("f", *"qsrp?")
    assert (view.typed, view.has_ended, view.is_paused, view.shows_help) == ("qsrp?", False, False, False)


def test_p_pauses_and_q_ends() -> None:
    assert (pressed("p").is_paused, pressed("p", "p").is_paused) == (True, False)
    assert (pressed("q").has_ended, pressed("x", "\x1b").has_ended) == (True, False)


def test_any_key_leaves_the_help_and_does_nothing_else() -> None:
    assert pressed("?").shows_help
    view = pressed("?", "p")
    assert (view.shows_help, view.is_paused) == (False, False)
    assert pressed("?", "q").has_ended


def test_the_help_names_each_key() -> None:
    assert [key for key, _ in HELP] == list("qsrfp?")


# --- without a terminal


def test_plain_output_has_both_tables_and_the_pipeline() -> None:
    out = plain(seen(*ranks(2), idle(1, silent=[1])), View()).splitlines()
    assert out[2] == "no groups"
    assert [line.split()[:5] for line in out[4:7]] == [
        ["rank", "state", "transfers", "MiB", "wall"],
        ["0", "e", "host-0:40", "Nixl", "idle"],
        ["1", "e", "host-1:41", "Nixl", "silent"],
    ]
    assert [line for line in out if line][-1] == "pipeline: 0 received, 0 duplicate, 0 lost, 0 rejected, 0 cut"


def test_what_a_peer_named_moves_no_cursor() -> None:
    (interval,) = run([[[0.001]]])
    group = interval.groups[0]
    named = Source("id", "h\x1b[2J", 1, 0.0, {"rank": "\x1b]0;x\x07"})
    observed = of_interval(
        Interval(interval.start, interval.end, (group,), (), NOTHING, (named,)),
    )
    assert "\x1b" not in plain(seen(observed), View())


@pytest.mark.parametrize("keep", [journal, lines], ids=["journal", "lines"])
def test_a_file_is_followed_as_it_grows(tmp_path: Path, keep: type) -> None:
    intervals = run([[[0.001]], [[0.001]] * 2, [[0.001]] * 3])
    path = keep(tmp_path / "f", intervals[:1])
    records = open_records(path)
    following = Following(records)
    assert following.look() == []
    keep(path, intervals[1:])
    assert [now.total.num_transfers for now in following.look()] == [2, 3]
    assert following.look() == []
    now = following.now()
    assert now is not None
    assert now.end == intervals[2].end
    records.close()


def test_what_cannot_be_watched_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for arguments, message in (
        (["--endpoint", "tcp://127.0.0.1:5999"], "no collector has written this journal: start `kvxfer collect`, or"),
        ([str(tmp_path / "none")], "No such file or directory: name a journal or a file of --jsonl"),
        (["none"], "the collector there keeps no journal: name a file of --jsonl"),
    ):
        assert main(["top", *arguments]) == 2
        assert message in capsys.readouterr().err
