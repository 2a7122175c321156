"""What a worker leaves, as frames: all of it once, and refused where it cannot be a worker's."""

from typing import Any

import msgspec
import pytest

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.errors import KVXferError, PeerError, UnknownConnectorError
from kvxfer.outbox import Outbox, SavedOutbox
from kvxfer.takeover import SavedWorker, decode_worker, encode_worker, frames_of
from kvxfer.wire import Source, encode_payload

ROWS = ("record_transfer", [[0.5, 1.5], [0.1, 0.1], [1024.0, 2048.0], [2.0, 2.0]])
FAILURES = ("num_failed_transfers", [[1.0, 2.0]])


def outbox(*, closed: int, held: int) -> Outbox:
    """An outbox with so many reports of one transfer each, of which none was sent, and so many transfers open."""
    box = Outbox(Source("id", "host", 1, 0.0), "NixlConnector", 0.0)
    for number in range(closed + held):
        stats = NixlConnectorStats()
        stats.record_transfer(1.0, 0.1, 1024, 2)
        box.observe(stats, 1.0)
        if number < closed:
            box.flush(1.0)
    return box


def saved(**changes: Any) -> SavedOutbox:
    return msgspec.structs.replace(outbox(closed=0, held=0).save(), **changes)


@pytest.mark.parametrize("arrived", range(4))
def test_kept_reports_what_is_open_and_the_rows_count_once_whatever_had_arrived(arrived: int) -> None:
    box = outbox(closed=3, held=2)
    collector = Aggregator(CollectorConfig(), 0.0)
    kept = decode_worker(encode_worker(SavedWorker(box.save(), {}))).outbox
    for _ in range(arrived):
        collector.feed(box.next_frame or b"", 2.0)
        box.sent(2.0)
    for frame in frames_of(kept, [ROWS, FAILURES], 3.0):
        collector.feed(frame, 3.0)
    (group,) = collector.snapshot(3.0).groups
    assert group.stats.transfer_duration.count == 3 + 2 + 2
    assert group.stats.num_failed_transfers.value == 3
    pipeline = collector.pipeline(3.0)
    assert (pipeline.reports_duplicate, pipeline.reports_lost, pipeline.sources["gone"]) == (arrived, 0, 1)
    assert pipeline.reports_rejected == {}
    assert collector.sources.drain_acks() == [("id", 4)]


def test_a_worker_that_left_nothing_only_says_goodbye() -> None:
    (frame,) = frames_of(saved(), [], 1.0)
    collector = Aggregator(CollectorConfig(), 0.0)
    collector.feed(frame, 1.0)
    assert collector.pipeline(1.0).sources["gone"] == 1


def test_what_is_saved_briefly_keeps_its_number_and_its_cut() -> None:
    box = outbox(closed=3, held=2)
    box.count_cut(7)
    brief = box.save(brief=True)
    assert (brief.seq, brief.frames, brief.cut, brief.oldest) == (3, [], 7 + 2 * 5, 1)


def test_reports_that_were_not_saved_are_lost_and_what_was_open_is_cut_and_both_are_counted() -> None:
    collector = Aggregator(CollectorConfig(), 0.0)
    box = outbox(closed=3, held=2)
    collector.feed(box.next_frame or b"", 1.0)
    for frame in frames_of(box.save(brief=True), [], 2.0):
        collector.feed(frame, 2.0)
    pipeline = collector.pipeline(3.0)
    assert (pipeline.reports_received, pipeline.reports_lost, pipeline.observations_cut) == (2, 2, 10)
    assert pipeline.sources["gone"] == 1


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, ("record_transfer", [[1.0]])),
        ({}, ("no_such_row", [[1.0]])),
        ({"payload": encode_payload({"bytes_transferred": "none"})}, ROWS),
        ({"payload": msgspec.Raw(b"\xc1")}, ROWS),
        ({"connector": "UnknownConnector"}, ROWS),
    ],
)
def test_what_does_not_fit_its_connector_is_refused(changes: dict[str, Any], rows: Any) -> None:
    with pytest.raises(KVXferError):
        frames_of(saved(**changes), [rows], 1.0)


def test_an_unknown_connector_is_said_to_be_one() -> None:
    with pytest.raises(UnknownConnectorError):
        frames_of(saved(connector="UnknownConnector"), [], 1.0)


@pytest.mark.parametrize("changes", [{"seq": 1 << 63}, {"seq": -1}, {"cut": -1}, {"frames": [1]}, {"source": 3}])
def test_numbers_that_no_outbox_has_are_refused(changes: dict[str, Any]) -> None:
    hostile = msgspec.structs.replace(SavedWorker(saved(**changes), {}))
    with pytest.raises(PeerError):
        decode_worker(encode_worker(hostile))
