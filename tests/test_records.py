"""Records of a run: what is added up is what was recorded, whichever file it is read from, and nothing is made up."""

import random
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np
import pytest
from recorded import BEGIN, MIB, journal, lines, run

from kvxfer.config import CollectorConfig
from kvxfer.errors import JournalError, RecordError
from kvxfer.interval import Interval, Pipeline
from kvxfer.records.change import Comparison, compare
from kvxfer.records.columns import COLUMNS, digits, flat, shown
from kvxfer.records.files import Span, open_records
from kvxfer.records.observed import Bounds, Durations, Observed, of_interval
from kvxfer.records.report import Report, make_report
from kvxfer.records.times import Moment, Range, WarmUp, choose, clock, read_moment, read_warm_up
from kvxfer.records.totals import Losses

BY = ("connector", "engine", "role")
Keep = Callable[[Path, Iterable[Interval]], Path]
both_files = pytest.mark.parametrize("keep", [journal, lines], ids=["journal", "lines"])


def read(path: Path) -> list[Observed]:
    records = open_records(path)
    try:
        return [observed for observed in map(records.read, records.spans()) if observed is not None]
    finally:
        records.close()


def report(intervals: Iterable[Interval], by: Iterable[str] = BY, wanted: Range | None = None) -> Report:
    return make_report("run", map(of_interval, intervals), tuple(by), wanted or Range())


def drawn(num_intervals: int, num_ranks: int, each: int, seed: int = 0) -> list[list[list[float]]]:
    draw = random.Random(seed)
    return [[[draw.lognormvariate(-7, 1) for _ in range(each)] for _ in range(num_ranks)] for _ in range(num_intervals)]


# --- adding up


@both_files
def test_a_row_holds_what_was_recorded_over_all_intervals(tmp_path: Path, keep: Keep) -> None:
    durations = drawn(5, 3, 400)
    (row,) = make_report("run", read(keep(tmp_path / "f", run(durations, failures=2))), BY).rows
    values = np.array(durations).ravel()
    assert (row.labels, row.num_ranks) == ({"connector": "NixlConnector", "engine": "e"}, 3)
    assert (row.num_transfers, row.num_bytes) == (6000, 6000 * MIB)
    assert row.bytes_per_second == 6000 * MIB / 50
    assert row.bytes_per_busy_second == pytest.approx(6000 * MIB / values.sum(), rel=1e-12)
    assert row.mean_in_flight == pytest.approx(values.sum() / 50, rel=1e-12)
    assert row.durations is not None
    assert row.durations.sum == pytest.approx(values.sum(), rel=1e-12)
    assert (row.durations.min, row.durations.max) == (values.min(), values.max())
    assert row.failures["num_failed_transfers"] == 30


def test_quantiles_of_a_journal_merge_to_those_of_all_transfers(tmp_path: Path) -> None:
    durations = drawn(7, 2, 500)
    (row,) = make_report("run", read(journal(tmp_path / "j", run(durations))), BY).rows
    assert row.durations is not None
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        bounds = row.durations.quantiles[name]
        assert bounds.is_known
        assert bounds.low == pytest.approx(np.percentile(np.array(durations).ravel(), percent), rel=0.0125)


def test_quantiles_of_lines_are_bounds_around_those_of_all_transfers(tmp_path: Path) -> None:
    durations = drawn(7, 2, 500)
    (row,) = make_report("run", read(lines(tmp_path / "l", run(durations))), BY).rows
    assert row.durations is not None
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
        bounds = row.durations.quantiles[name]
        assert bounds.low < np.percentile(np.array(durations).ravel(), percent) < bounds.high


def test_a_quantile_of_one_line_is_known(tmp_path: Path) -> None:
    (row,) = make_report("run", read(lines(tmp_path / "l", run(drawn(1, 1, 50)))), BY).rows
    assert row.durations is not None
    assert all(bounds.is_known for bounds in row.durations.quantiles.values())


@both_files
def test_an_interval_without_transfers_is_no_bound(tmp_path: Path, keep: Keep) -> None:
    durations = [[[2.0]], [[]], [[2.0]]]
    (row,) = make_report("run", read(keep(tmp_path / "f", run(durations))), BY).rows
    assert row.durations is not None
    assert row.durations.quantiles["p50"] == Bounds(2.0, 2.0)
    assert (row.durations.min, row.durations.max) == (2.0, 2.0)


def test_durations_without_transfers_add_nothing() -> None:
    nothing = Durations(0, 0.0, 0.0, 0.0, {"p50": Bounds(0.0, 0.0)})
    some = Durations(1, 2.0, 2.0, 2.0, {"p50": Bounds(2.0, 2.0)})
    assert nothing.with_added(some) == some.with_added(nothing) == some


@both_files
def test_failures_are_counted_in_intervals_without_a_transfer(tmp_path: Path, keep: Keep) -> None:
    stats = run([[[0.001]]], failures=3)
    (row,) = make_report("run", read(keep(tmp_path / "f", stats)), BY).rows
    assert (row.num_failures, row.failures["num_kv_expired_reqs"]) == (3, 0)


# --- rows


@both_files
def test_what_sources_alone_are_called_makes_a_row_of_each(tmp_path: Path, keep: Keep) -> None:
    durations = [[[1.0], [2.0, 2.0], [3.0]]] * 2
    observed = read(keep(tmp_path / "f", run(durations)))
    rows = make_report("run", observed, ("rank",)).rows
    assert [(row.labels, row.num_transfers, row.num_ranks) for row in rows] == [
        ({"rank": "0"}, 2, 1),
        ({"rank": "1"}, 4, 1),
        ({"rank": "2"}, 2, 1),
    ]
    by_host = make_report("run", observed, ("host",)).rows
    assert [(row.labels, row.num_ranks) for row in by_host] == [({"host": "host-0"}, 2), ({"host": "host-1"}, 1)]


def test_ranks_are_in_the_order_of_their_numbers() -> None:
    rows = report(run([[[0.5]] * 12]), ["rank"]).rows
    assert [row.labels["rank"] for row in rows] == [str(rank) for rank in range(12)]


def test_sources_that_came_one_after_the_other_are_all_ranks_of_the_group() -> None:
    (row,) = report(run([[[1.0], []], [[], [1.0]]])).rows
    assert row.num_ranks == 2


def test_a_label_that_nobody_has_is_refused_and_those_that_are_there_are_named() -> None:
    with pytest.raises(RecordError, match="nobody has the label 'zone' in that range: use connector, engine, rank, so"):
        report(run([[[1.0]]]), ["zone"])


def test_what_sources_without_numbers_of_their_own_moved_is_said() -> None:
    intervals = run([[[1.0], [1.0], [1.0]]], config=CollectorConfig(max_source_views=1))
    assert report(intervals).notes == ()
    assert report(intervals, ["rank"]).notes == (
        "2 transfers of sources whose own numbers were not kept are in no row",
    )


# --- ranges


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1700000000.5", Moment(1700000000.5, is_relative=False)),
        ("2023-11-14T22:13:20Z", Moment(BEGIN, is_relative=False)),
        ("2023-11-14 23:13:20+01:00", Moment(BEGIN, is_relative=False)),
        ("-10", Moment(10.0, is_relative=True)),
        ("-1.5h", Moment(5400.0, is_relative=True)),
        ("-2d", Moment(172_800.0, is_relative=True)),
    ],
)
def test_a_moment_is_read_in_each_of_its_forms(text: str, moment: Moment) -> None:
    assert read_moment(text) == moment


def test_a_moment_without_an_offset_is_local() -> None:
    local = datetime.fromtimestamp(BEGIN, timezone.utc).astimezone().replace(tzinfo=None)
    assert read_moment(local.isoformat()).seconds == BEGIN


@pytest.mark.parametrize("text", ["", "-", "soon", "-10y", "10m", "1e9", "2023-14-01", "--1", "\u0661"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, the command says more
        read_moment(text)


@pytest.mark.parametrize(
    ("text", "warm_up"), [("30", WarmUp(30.0)), ("1.5m", WarmUp(90.0)), ("3i", WarmUp(num_intervals=3))]
)
def test_a_warm_up_is_read_in_each_of_its_forms(text: str, warm_up: WarmUp) -> None:
    assert read_warm_up(text) == warm_up


def numbers(wanted: Range) -> tuple[list[int], int | None]:
    spans = [Span(10.0 * number, 10.0 * number + 10, number) for number in range(6)]
    chosen = choose("run", spans, wanted)
    return [span.place for span in chosen.spans], None if chosen.before is None else chosen.before.place


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Range(), ([0, 1, 2, 3, 4, 5], None)),
        (Range(since=Moment(20.0, is_relative=False)), ([2, 3, 4, 5], 1)),
        (Range(since=Moment(20.0, is_relative=True)), ([4, 5], 3)),
        (Range(until=Moment(20.0, is_relative=False)), ([0, 1], None)),
        (Range(Moment(20.0, is_relative=False), Moment(30.0, is_relative=True)), ([2], 1)),
    ],
)
def test_a_range_takes_the_intervals_that_ended_in_it(wanted: Range, found: tuple[list[int], int | None]) -> None:
    assert numbers(wanted) == found


def test_a_range_in_which_no_interval_ended_says_what_there_is() -> None:
    with pytest.raises(RecordError, match=r"run: no interval ended in that range: it holds 6, from .* to .*"):
        numbers(Range(since=Moment(99.0, is_relative=False)))
    with pytest.raises(RecordError, match="run: holds no interval yet"):
        choose("run", [], Range())


def test_a_time_of_no_calendar_is_shown_as_its_number() -> None:
    assert clock(1e300) == "1e+300"


IDLE: list[list[float]] = [[]]
ENDS = [IDLE, IDLE, [[1.0]], IDLE, [[2.0]], [[3.0]], IDLE]


def covered(wanted: Range) -> tuple[float, float, float, int, int, int | None]:
    found = report(run(ENDS), wanted=wanted)
    ends = (found.start - BEGIN, found.end - BEGIN, found.seconds)
    return (*ends, found.num_intervals, found.num_idle_intervals, found.rows[0].num_transfers)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Range(), (20, 60, 40, 4, 1, 3)),
        (Range(since=Moment(0.0, is_relative=False)), (0, 60, 60, 6, 3, 3)),
        (Range(until=Moment(BEGIN + 70, is_relative=False)), (20, 70, 50, 5, 2, 3)),
        (Range(warm_up=WarmUp(5.0)), (30, 60, 30, 3, 1, 2)),
        (Range(warm_up=WarmUp(num_intervals=2)), (40, 60, 20, 2, 0, 2)),
        (Range(since=Moment(0.0, is_relative=False), warm_up=WarmUp(20.0)), (20, 60, 40, 4, 1, 3)),
    ],
)
def test_a_run_begins_and_ends_with_what_was_reported_where_no_bound_is_given(
    wanted: Range, found: tuple[float, ...]
) -> None:
    assert covered(wanted) == found


def test_a_range_of_which_nothing_is_left_is_refused() -> None:
    for wanted in (Range(warm_up=WarmUp(1e6)), Range(warm_up=WarmUp(num_intervals=9))):
        with pytest.raises(RecordError, match="nothing was reported in that range, the warm-up left out"):
            report(run(ENDS), wanted=wanted)


def test_time_without_a_collector_is_not_counted_and_said() -> None:
    first, second = run([[[1.0]]] * 2)
    later = msgspec.structs.replace(second, start=second.start + 60, end=second.end + 60)
    found = report([first, later])
    assert (found.seconds, found.notes) == (
        20.0,
        ("no collector ran for 60.0 s of the range: they are not counted as seconds",),
    )


# --- losses


def counted(received: int, lost: int = 0, **rejected: int) -> Pipeline:
    return Pipeline(received, 0, lost, rejected, 0, 0)


def lost(*pipelines: Pipeline, before: Pipeline | None = None) -> Pipeline:
    losses = Losses(before)
    for each in pipelines:
        losses.add(each)
    return losses.total()


def test_losses_are_those_of_the_range() -> None:
    found = lost(counted(12, 3, version=1), counted(15, 3, version=1, undecodable=2), before=counted(10, 2, version=1))
    assert found == counted(5, 1, undecodable=2)


def test_losses_go_on_over_the_restart_of_a_collector_that_began_anew() -> None:
    assert lost(counted(12, 3), counted(2, 1), counted(4, 1), before=counted(10, 3)) == counted(6, 1)


def test_counts_of_the_process_begin_anew_with_it_where_a_journal_goes_on() -> None:
    before, after = (msgspec.structs.replace(counted(10), exports_failed=failed) for failed in (7, 3))
    assert lost(after, before=before).exports_failed == 3


def test_the_states_of_the_sources_are_those_at_the_end() -> None:
    first, last = (msgspec.structs.replace(counted(1), sources={"live": live}) for live in (1, 2))
    assert lost(first, last).sources == {"live": 2}


def test_losses_of_the_warm_up_are_not_counted() -> None:
    intervals = [
        msgspec.structs.replace(each, pipeline=counted(10 * number, number))
        for number, each in enumerate(run([[[1.0]]] * 4), 1)
    ]
    assert report(intervals, wanted=Range(warm_up=WarmUp(num_intervals=2))).pipeline == counted(20, 2)


def test_what_may_have_been_lost_before_the_file_began_is_said() -> None:
    (interval,) = run([[[1.0]]])
    found = report([msgspec.structs.replace(interval, pipeline=counted(10, 1))])
    assert found.notes == ("the file begins here: what the pipeline counted before its first interval is counted too",)


# --- two runs


def percents(comparison: Comparison) -> dict[str, tuple[float | None, str]]:
    (row,) = comparison.rows
    return {change.column: (change.percent, change.word) for change in row.changes}


def test_a_change_is_given_in_per_cent_of_the_first() -> None:
    found = percents(compare(report(run([[[1.0, 1.0]]], failures=2)), report(run([[[2.0, 2.0, 2.0]]], failures=1))))
    assert found["num_transfers"] == (50.0, "")
    assert found["mean_seconds"] == (100.0, "")
    assert found["bytes_per_busy_second"] == (-50.0, "")
    assert found["num_failed_transfers"] == (-50.0, "")
    assert found["num_kv_expired_reqs"] == (0.0, "")


def test_a_change_from_nothing_or_to_nothing_is_a_word() -> None:
    none, some = report(run([[[1.0]]])), report(run([[[1.0]]], failures=1))
    assert percents(compare(none, some))["num_failures"] == (None, "new")
    assert percents(compare(some, none))["num_failures"] == (None, "gone")


def test_a_quantile_of_a_histogram_has_not_changed_within_its_error(tmp_path: Path) -> None:
    durations = drawn(3, 2, 3000)
    slower = [[[1.015 * value for value in rank] for rank in ranks] for ranks in durations]
    first, second = (
        make_report("run", read(journal(tmp_path / name, run(part))), BY)
        for name, part in (("a", durations), ("b", slower))
    )
    found = percents(compare(first, second))
    assert found["p90_seconds"] == (None, "within 2.2 %")
    assert found["mean_seconds"][0] == pytest.approx(1.5)


def test_between_bounds_there_is_no_change(tmp_path: Path) -> None:
    first, second = (
        make_report("run", read(lines(tmp_path / name, run(drawn(3, 1, 50, seed)))), BY)
        for seed, name in enumerate(["a", "b"])
    )
    assert percents(compare(first, second))["p99_seconds"] == (None, "unknown")


def test_a_group_of_one_run_is_named_as_such() -> None:
    both, one = report(run([[[1.0], [1.0]]]), ["rank"]), report(run([[[1.0]]]), ["rank"])
    assert [(row.labels["rank"], row.where) for row in compare(both, one).rows] == [("0", "both"), ("1", "first")]
    assert [(row.labels["rank"], row.where) for row in compare(one, both).rows] == [("0", "both"), ("1", "second")]


def test_runs_of_unequal_length_are_said_to_be() -> None:
    short, long = report(run([[[1.0]]])), report(run([[[1.0]]] * 2))
    assert compare(short, short).notes == ()
    assert compare(short, long).notes == (
        "the runs cover 10.0 s and 20.0 s: transfers, bytes and failures are of unequal times",
    )


# --- columns


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (3, "3"),
        (11913, "11,913"),
        (1234.5, "1,234"),
        (318.64, "318.6"),
        (30.849, "30.85"),
        (4.0791, "4.079"),
        (0.15, "0.150"),
        (0.0426, "0.0426"),
        (0.04, "0.0400"),
        (1.5e-7, "1.50e-07"),
    ],
)
def test_a_number_is_shown_with_three_digits_or_four(number: float, text: str) -> None:
    assert digits(number) == text


def test_what_is_not_known_is_shown_as_such() -> None:
    (p50,) = (column for column in COLUMNS if column.key == "p50_seconds")
    assert [shown(bounds, p50) for bounds in (None, Bounds(0.001, 0.001), Bounds(0.001, 0.0025))] == [
        "-",
        "1",
        "1..2.500",
    ]


def test_flat_rows_have_the_same_columns_in_base_units() -> None:
    rows = flat(report(run([[[1.0], [2.0]]], failures=1), ["rank"]))
    assert [list(row) for row in rows] == [list(rows[0])] * 2
    assert (rows[1]["rank"], rows[1]["p50_seconds_low"], rows[1]["num_failed_transfers"]) == ("1", 2.0, 1)


# --- files


def test_a_last_line_without_an_end_is_left_out_and_known(tmp_path: Path) -> None:
    path = lines(tmp_path / "l", run([[[1.0]]] * 3))
    path.write_bytes(path.read_bytes()[:-1])
    records = open_records(path)
    assert (len(records.spans()), records.is_torn) == (2, True)
    records.close()


@pytest.mark.parametrize(
    "content", [b"\n", b"precious notes\n", b'{"other": 1}\n', b"[1]\n", b"\xff\n", b"[" * 9999 + b"\n"]
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, content: bytes) -> None:
    path = lines(tmp_path / "l", run([[[1.0]]]))
    path.write_bytes(path.read_bytes() + content + path.read_bytes())
    if content == b"\n":
        assert len(read(path)) == 2
        return
    with pytest.raises(RecordError, match=r"l:2: .*: remove the line, or the file is none of kvxfer's"):
        read(path)


def test_a_line_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "l", run([[[1.0]]]))
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(RecordError, match="l:1: has version 2, this kvxfer reads 1: upgrade kvxfer"):
        read(path)


def test_an_interval_that_was_pruned_meanwhile_is_left_out(tmp_path: Path) -> None:
    records = open_records(journal(tmp_path / "j", run([[[1.0]]])))
    (span,) = records.spans()
    assert records.read(span._replace(place=span.place + 1)) is None
    records.close()


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"SQLite format 3\0" + b"x" * 100)
    with pytest.raises(JournalError, match="foreign"):
        open_records(foreign)
    with pytest.raises(RecordError, match="No such file or directory: name a journal or a file of --jsonl"):
        open_records(tmp_path / "missing")
    with pytest.raises(RecordError, match="Is a directory"):
        open_records(tmp_path)
    with pytest.raises(RecordError, match="null"):
        open_records("a\0b")


def test_what_came_of_a_connector_that_is_not_registered_is_said_to_be_missing(tmp_path: Path) -> None:
    known, unknown = (run([[[1.0]]])[0] for _ in range(2))
    stranger = tuple(msgspec.structs.replace(group, connector="StrangeConnector") for group in unknown.groups)
    both = msgspec.structs.replace(known, groups=(*known.groups, *stranger))
    found = make_report("run", read(journal(tmp_path / "both", [both])), BY)
    assert found.notes == ("what came of StrangeConnector is left out: it is not registered here",)
    alone = msgspec.structs.replace(known, groups=stranger)
    with pytest.raises(RecordError, match="run: StrangeConnector is not registered here: register it, or install"):
        make_report("run", read(journal(tmp_path / "alone", [alone])), BY)
