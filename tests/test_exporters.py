"""Where intervals go: the line that operators know, and records that outlive a killed writer."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.errors import RecordError
from kvxfer.exporters.jsonl import JsonlExporter, as_record, read_records
from kvxfer.exporters.log import LogExporter
from kvxfer.interval import Interval
from kvxfer.wire import Report, Source, encode, encode_payload

OFFLOADING = {
    "types": {"hits": "counter", "delay": "histogram", "usage": "gauge"},
    "data": {"hits": {("cpu",): 2, ("disk",): 1}, "delay": {(): [0.5, 1.5]}, "usage": {(): 0.25}},
    "info": {"config": {"tier": "cpu"}},
}


def two_ranks(seconds: float = 10.0) -> Interval:
    """Two decode ranks: two transfers of 1 MiB in 1 s and 3 s, one of 2 MiB in 2 s."""
    made = Aggregator(CollectorConfig(), 1000.0)
    for rank, durations in (("0", [1.0, 3.0]), ("1", [2.0])):
        stats = NixlConnectorStats()
        for duration in durations:
            stats.record_transfer(duration, 0.5, 2**20 * (1 + int(rank)), 4)
        by = encode(Source(f"id-{rank}", "host-1", 40 + int(rank), 999.0, {"engine": "e", "rank": rank}))
        made.feed(encode(Report(1, by, "NixlConnector", 1, 1.0, 1001.0, encode_payload(stats.to_packed()))), 1002.5)
    return made.close_interval(1000.0 + seconds)


def idle() -> Interval:
    return Aggregator(CollectorConfig(), 1000.0).close_interval(1010.0)


def offloading() -> Interval:
    made = Aggregator(CollectorConfig(), 1000.0)
    by = encode(Source("id", "host-1", 1, 999.0, {}))
    made.feed(encode(Report(1, by, "OffloadingConnector", 1, 1.0, 2.0, encode_payload(OFFLOADING))), 1002.0)
    return made.close_interval(1010.0)


def test_a_record_names_who_was_expected_to_report_and_did_not() -> None:
    made = Aggregator(CollectorConfig(silent_seconds=30.0), 1000.0)
    for name in ("quiet", "heard"):
        by = encode(Source(name, "host-1", 40, 999.0, {"rank": name}))
        made.feed(encode(Report(1, by, "NixlConnector", 1, 1.0, 2.0, encode_payload({}))), 1000.0)
    made.feed(encode(Report(1, by, "NixlConnector", 2, 1.0, 2.0, encode_payload({}))), 1029.0)
    record = as_record(made.close_interval(1031.0))
    assert record["silent"] == [{"source": "quiet", "host": "host-1", "pid": 40, "labels": {"rank": "quiet"}}]


NIXL_KEYS = (
    "Num successful transfers=3, Avg xfer time (ms)=2000.0, P90 xfer time (ms)=2800.0, Avg post time (ms)=500.0, "
    "P90 post time (ms)=500.0, Avg MB per transfer=1.333, Throughput (MB/s)=0.667, Avg number of descriptors=4.0, "
    "Num failed transfers=0, Num KV expired reqs=0, Num notifs after expiry=0"
)


def test_the_line_has_vllms_keys_then_wall_throughput_in_flight_ranks_and_labels() -> None:
    lines: list[str] = []
    LogExporter(lines.append).export(two_ranks())
    assert lines == [
        f"KV Transfer metrics: {NIXL_KEYS}, Wall throughput (MB/s)=0.4, Avg in flight=0.6, Num ranks=2, engine=e"
    ]


def test_a_line_per_rank_names_its_labels_host_and_pid() -> None:
    lines: list[str] = []
    LogExporter(lines.append, per_rank=True).export(two_ranks())
    assert len(lines) == 3
    assert all(line.startswith("KV Transfer metrics of one rank: Num successful transfers=") for line in lines[1:])
    assert [line.partition("Wall ")[2] for line in lines[1:]] == [
        "throughput (MB/s)=0.2, Avg in flight=0.4, engine=e, rank=0, host=host-1, pid=40",
        "throughput (MB/s)=0.2, Avg in flight=0.2, engine=e, rank=1, host=host-1, pid=41",
    ]


def reported(connector: str, payload: dict[str, Any], source: Source, group_by: tuple[str, ...]) -> Interval:
    made = Aggregator(CollectorConfig(group_by=group_by), 1000.0)
    assert made.feed(encode(Report(1, encode(source), connector, 1, 1.0, 2.0, encode_payload(payload))), 1002.0)
    return made.close_interval(1010.0)


def test_what_a_peer_named_ends_no_line_and_moves_no_cursor() -> None:
    payload = {"types": {"hits\nx": "counter"}, "data": {"hits\nx": {("c\rpu",): 2}}}
    source = Source("id", "h\x1b[31m", 1, 0.0, {"eng\nine": "e\nKV Transfer metrics: forged=1\u2028é"})
    lines: list[str] = []
    LogExporter(lines.append, per_rank=True).export(
        reported("OffloadingConnector", payload, source, group_by=("eng\nine",))
    )
    labels = r"eng\nine=e\nKV Transfer metrics: forged=1\u2028é"
    assert lines == [
        rf"KV Transfer metrics: hits\nx:('c\rpu',)=2, Num ranks=1, {labels}",
        rf"KV Transfer metrics of one rank: hits\nx:('c\rpu',)=2, {labels}, host=h\x1b[31m, pid=1",
    ]


def test_a_label_takes_the_place_of_no_number_and_of_no_host() -> None:
    stats = NixlConnectorStats()
    stats.record_transfer(1.0, 0.5, 2**20, 4)
    taken = ("Num ranks", "Avg xfer time (ms)", "Wall throughput (MB/s)", "host", "pid")
    source = Source("id", "host-1", 40, 0.0, dict.fromkeys((*taken, "rank"), "forged"))
    lines: list[str] = []
    LogExporter(lines.append, per_rank=True).export(
        reported("NixlConnector", stats.to_packed(), source, group_by=(*taken[:3], "rank"))
    )
    group, rank = lines
    assert "Avg xfer time (ms)=1000.0, " in group
    assert group.endswith(", Wall throughput (MB/s)=0.1, Avg in flight=0.1, Num ranks=1, rank=forged")
    assert "Avg xfer time (ms)=1000.0, " in rank
    assert "Wall throughput (MB/s)=0.1, " in rank
    assert ", host=host-1, pid=40" in rank


def test_no_line_has_a_number_that_is_not_plain() -> None:
    lines: list[str] = []
    for interval in (two_ranks(), offloading()):
        LogExporter(lines.append, per_rank=True).export(interval)
    assert not [line for line in lines if "np." in line or "float64" in line]


def test_an_idle_interval_makes_no_line() -> None:
    lines: list[str] = []
    LogExporter(lines.append, per_rank=True).export(idle())
    assert lines == []


def test_an_interval_of_no_length_has_rates_of_zero() -> None:
    lines: list[str] = []
    LogExporter(lines.append).export(two_ranks(seconds=0.0))
    assert "Wall throughput (MB/s)=0.0, Avg in flight=0.0, Num ranks=2" in lines[0]


def written(path: Path, *intervals: Interval) -> list[dict[str, Any]]:
    exporter = JsonlExporter(path)
    for interval in intervals:
        exporter.export(interval)
    exporter.close()
    return list(read_records(path))


def test_a_record_has_the_numbers_of_the_line_and_the_rates_unrounded(tmp_path: Path) -> None:
    (record,) = written(tmp_path / "a.jsonl", two_ranks())
    assert list(record) == ["version", "start", "end", "groups", "sources", "pipeline", "silent", "departed"]
    assert (record["version"], record["start"], record["end"]) == (1, 1000.0, 1010.0)
    (group,) = record["groups"]
    assert (group["connector"], group["labels"], group["num_ranks"]) == ("NixlConnector", {"engine": "e"}, 2)
    assert ", ".join(f"{key}={value}" for key, value in group["reduced"].items()) == NIXL_KEYS
    assert group["fields"]["bytes_transferred"] == {
        "count": 3,
        "sum": 4 * 2**20,
        "min": 2**20,
        "max": 2 * 2**20,
        "p50": 2**20,
        "p90": pytest.approx(1.8 * 2**20),
        "p99": pytest.approx(1.98 * 2**20),
    }
    assert (group["num_bytes"], group["busy_seconds"]) == (4 * 2**20, 6.0)
    assert group["durations"] == group["fields"]["transfer_duration"]
    assert group["failures"]["num_failed_transfers"] == 0
    assert group["bytes_per_second"] == 4 * 2**20 / 10
    assert group["bytes_per_busy_second"] == 4 * 2**20 / 6
    assert group["mean_in_flight"] == 0.6
    assert [(view["source"], view["host"], view["pid"], view["labels"]["rank"]) for view in record["sources"]] == [
        ("id-0", "host-1", 40, "0"),
        ("id-1", "host-1", 41, "1"),
    ]
    assert [view["clock_offset_seconds"] for view in record["sources"]] == [1.5, 1.5]
    assert record["pipeline"]["reports_received"] == 2
    assert record["pipeline"]["sources"] == {"live": 2, "silent": 0, "gone": 0}


def test_labelled_metrics_and_those_without_rates_are_records_too(tmp_path: Path) -> None:
    (record,) = written(tmp_path / "a.jsonl", offloading())
    (group,) = record["groups"]
    assert group["reduced"] == {
        "hits:('cpu',)": 2,
        "hits:('disk',)": 1,
        "delay_count": 2,
        "delay_sum": 2.0,
        "usage": 0.25,
    }
    assert group["fields"]["hits"] == {"cpu": 2, "disk": 1}
    assert (group["fields"]["delay"]["count"], group["fields"]["usage"]) == (2, 0.25)
    assert "bytes_per_second" not in group


def test_label_sets_whose_labels_hold_commas_are_told_apart(tmp_path: Path) -> None:
    labels = [("a", "b"), ("a,b", "c"), ("a", "b,c"), ("a\\", "b,c"), ("a\\,b", "c")]
    payload = {"types": {"hits": "counter"}, "data": {"hits": dict.fromkeys(labels, 1)}}
    (record,) = written(tmp_path / "a.jsonl", reported("OffloadingConnector", payload, Source("id", "h", 1, 0.0), ()))
    hits = record["groups"][0]["fields"]["hits"]
    assert len(hits) == len(labels)
    assert list(hits)[:3] == ["a,b", r"a\,b,c", r"a,b\,c"]


def test_what_a_peer_named_breaks_no_record(tmp_path: Path) -> None:
    labels = {"host": "x", "reduced": "x", "en\ngine": "e\n{}\x1b"}
    (record,) = written(
        tmp_path / "a.jsonl",
        reported("NixlConnector", {"num_failed_transfers": 1}, Source("id", "h", 1, 0.0, labels), ()),
    )
    (view,) = record["sources"]
    assert (view["host"], view["labels"], view["fields"]) == ("h", labels, {"num_failed_transfers": 1})


def test_every_line_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", two_ranks(), idle(), offloading())
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [
        ["departed", "end", "groups", "pipeline", "silent", "sources", "start", "version"]
    ] * 3


def test_idle_intervals_are_records_too(tmp_path: Path) -> None:
    records = written(tmp_path / "a.jsonl", idle(), two_ranks(), idle())
    assert [len(record["groups"]) for record in records] == [0, 1, 0]


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    assert len(written(tmp_path / "a.jsonl", two_ranks())) == 1
    assert len(written(tmp_path / "a.jsonl", two_ranks(), idle())) == 3


@pytest.mark.parametrize("kept", [1, 10, 11, 200, -1])
def test_a_line_torn_by_a_kill_is_passed_over_and_cut_off_by_the_next_writer(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.jsonl"
    written(path, two_ranks(), idle())
    whole, last = path.read_bytes().split(b"\n")[:2]
    path.write_bytes(whole + b"\n" + last[:kept])
    assert len(list(read_records(path))) == 1
    assert [len(record["groups"]) for record in written(path, idle(), two_ranks())] == [1, 0, 1]


def test_a_first_line_torn_by_a_kill_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    written(path, two_ranks())
    path.write_bytes(path.read_bytes()[:37])
    assert list(read_records(path)) == []
    assert [len(record["groups"]) for record in written(path, two_ranks())] == [1]


@pytest.mark.parametrize("broken", [b"{", b"nonsense", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_line_in_the_middle_is_named_by_its_number(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "a.jsonl"
    written(path, two_ranks(), idle())
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, broken, second, b""]))
    with pytest.raises(RecordError, match=r"a\.jsonl:2: "):
        list(read_records(path))


@pytest.mark.parametrize("content", [b"precious notes\n", b"precious notes", b'{"other": 1}\n', b"\n", b"\x00" * 20])
def test_a_file_of_something_else_is_refused_and_left_as_it_was(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="holds no intervals of kvxfer: name another file"):
        JsonlExporter(path)
    assert path.read_bytes() == content


def test_a_path_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"missing/a\.jsonl: No such file or directory"):
        JsonlExporter(tmp_path / "missing" / "a.jsonl")
    with pytest.raises(RecordError, match="Is a directory"):
        JsonlExporter(tmp_path)
    with pytest.raises(RecordError, match=r"gone\.jsonl: No such file or directory: name a file of intervals"):
        list(read_records(tmp_path / "gone.jsonl"))
