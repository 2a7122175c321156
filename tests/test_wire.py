"""The wire only grows: golden bytes decode for ever, hostile bytes are refused with their cause.

``python tests/test_wire.py`` writes golden files that are missing; one that exists is never written again.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer.errors import ImplausibleError, PeerError, VersionError
from kvxfer.factory import KVConnectorFactory
from kvxfer.underway import InFlight
from kvxfer.wire import (
    MAX_FRAME_BYTES,
    MAX_OUTSTANDING,
    Ack,
    Goodbye,
    Report,
    Source,
    decode,
    decode_ack,
    decode_payload,
    decode_source,
    encode,
    encode_ack,
    encode_payload,
    source_of_topic,
    topic,
)

GOLDEN = Path(__file__).parent / "golden"
SOURCE = Source("0123456789abcdef", "host-1", 4242, 1_700_000_000.25, {"engine": "decode-0", "rank": "3"})
ACK = Ack(1, "fedcba9876543210", 6)
TRANSFER = {"transfer_duration": [0.25, 0.5], "bytes_transferred": [1024, 2048], "num_failed_transfers": 1}
OFFLOADING = {
    "types": {"vllm:kv_offload_load_bytes": "counter", "vllm:kv_offload_load_size": "histogram"},
    "data": {"vllm:kv_offload_load_bytes": {(): 7}, "vllm:kv_offload_load_size": {("disk",): [3, 4]}},
    "info": {"vllm:kv_offload_config_info": {"tier": "disk"}},
}
UNDER_WAY = {"num": 2, "oldest": 0.5}
PAYLOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "nixl_exact": ("NixlConnector", TRANSFER | {"post_duration": [0.125, 0.125], "num_descriptors": [4, 8]}),
    "nixl_packed": ("NixlPullConnector", {"transfer_duration": [0.25] * 100 + [0.5] * 200}),
    "mooncake": ("MooncakeConnector", TRANSFER | {"num_descriptors": [4, 8]}),
    "shared_memory": ("SharedMemoryConnector", TRANSFER | {"num_blocks": [4, 8]}),
    "offloading": ("OffloadingConnector", OFFLOADING),
    "multi": ("MultiConnector", {"NixlPullConnector": TRANSFER, "OffloadingConnector": OFFLOADING}),
}


def build(connector: str, payload: dict[str, Any]) -> Any:
    return KVConnectorFactory.get_connector_class_by_name(connector).build_kv_connector_stats(payload)


def frame(connector: str, payload: dict[str, Any], /, **changes: Any) -> bytes:
    packed = encode_payload(build(connector, payload).to_packed())
    report = Report(1, encode(SOURCE), connector, 7, 100.0, 101.0, packed, 2)
    return encode(msgspec.structs.replace(report, **changes))


def goldens() -> dict[str, bytes]:
    reports = {name: frame(*content) for name, content in PAYLOADS.items()}
    reports["kept"] = frame(*PAYLOADS["nixl_exact"], oldest=5)
    reports["under_way"] = frame("NixlConnector", TRANSFER | {"under_way": UNDER_WAY})
    reports["relayed"] = frame(*PAYLOADS["nixl_exact"], ranks=8)
    return reports | {
        "goodbye": encode(Goodbye(1, encode(SOURCE), 7)),
        "goodbye_kept": encode(Goodbye(1, encode(SOURCE), 7, 8)),
        "ack": encode_ack(SOURCE.id, ACK),
    }


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_golden_report_decodes_to_what_was_recorded(name: str) -> None:
    report = decode((GOLDEN / f"{name}.bin").read_bytes())
    connector, payload = PAYLOADS[name]
    assert isinstance(report, Report)
    assert (report.version, report.connector, report.seq, report.start, report.end) == (1, connector, 7, 100.0, 101.0)
    assert report.cut == 2
    assert decode_source(report.source) == SOURCE
    recorded = build(connector, build(connector, payload).to_packed())
    assert build(connector, decode_payload(report.payload)).reduce() == recorded.reduce()


def test_a_golden_goodbye_decodes() -> None:
    assert decode((GOLDEN / "goodbye.bin").read_bytes()) == Goodbye(1, encode(SOURCE), 7)


def test_golden_messages_of_who_acknowledges_and_who_keeps_decode() -> None:
    kept = decode((GOLDEN / "kept.bin").read_bytes())
    assert isinstance(kept, Report)
    assert (kept.seq, kept.oldest, kept.ranks) == (7, 5, 1)
    assert decode((GOLDEN / "goodbye_kept.bin").read_bytes()) == Goodbye(1, encode(SOURCE), 7, 8)
    ack = (GOLDEN / "ack.bin").read_bytes()
    assert decode_ack(ack) == ACK
    assert ack.startswith(topic(SOURCE.id))
    assert source_of_topic(topic(SOURCE.id)) == SOURCE.id


def test_a_golden_report_of_who_relays_decodes() -> None:
    relayed = decode((GOLDEN / "relayed.bin").read_bytes())
    assert isinstance(relayed, Report)
    assert (relayed.seq, relayed.ranks) == (7, 8)


def test_a_golden_report_of_transfers_under_way_decodes() -> None:
    report = decode((GOLDEN / "under_way.bin").read_bytes())
    assert isinstance(report, Report)
    payload = decode_payload(report.payload)
    assert payload["under_way"] == UNDER_WAY
    stats = build("NixlConnector", payload)
    assert (stats.in_flight(), stats.transfer_duration.count, stats.num_rejected()) == (InFlight(2, 0.5), 2, 0)


@pytest.mark.parametrize(("seq", "oldest"), [(7, 8), (MAX_OUTSTANDING + 5, 5)])
def test_a_number_that_its_publisher_cannot_keep_is_refused(seq: int, oldest: int) -> None:
    with pytest.raises(ImplausibleError, match=f"number {seq} of a publisher that keeps from {oldest} on"):
        decode(frame(*PAYLOADS["nixl_exact"], seq=seq, oldest=oldest))
    with pytest.raises(ImplausibleError):
        decode(encode(Goodbye(1, encode(SOURCE), seq, oldest + 1)))


@pytest.mark.parametrize("noise", [b"", b"id", b"id\0", b"id\0\xc1", encode_ack("id", Ack(2, "c", 1)), b"\0" * 5000])
def test_bytes_that_are_no_acknowledgement_are_refused(noise: bytes) -> None:
    with pytest.raises(PeerError):
        decode_ack(noise)


def test_a_topic_that_names_no_source_is_refused() -> None:
    with pytest.raises(PeerError, match="a topic of 2 bytes"):
        source_of_topic(b"\xff\xfe")


def test_fields_that_a_newer_writer_appends_are_passed_over() -> None:
    parts = msgspec.msgpack.decode(frame(*PAYLOADS["nixl_exact"]))
    again = decode(msgspec.msgpack.encode([*parts, "new", {"newer": 1}]))
    assert isinstance(again, Report)
    assert again.seq == 7


def test_fields_that_an_older_writer_lacks_have_their_defaults() -> None:
    parts = msgspec.msgpack.decode(frame(*PAYLOADS["nixl_exact"]))
    again = decode(msgspec.msgpack.encode(parts[:-3]))
    assert isinstance(again, Report)
    assert (again.cut, again.oldest, again.ranks) == (0, 0, 1)


@pytest.mark.parametrize("changes", [{"seq": 0}, {"start": float("nan")}, {"end": float("inf")}])
def test_numbers_that_cannot_be_true_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ImplausibleError, match="a report numbered"):
        decode(frame(*PAYLOADS["nixl_exact"], **changes))


def test_another_version_is_refused_as_such() -> None:
    with pytest.raises(VersionError, match="wire version 2, this collector speaks 1"):
        decode(frame(*PAYLOADS["nixl_exact"], version=2))


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x92" * 500_000,  # nested without end
        b"\x00" * (MAX_FRAME_BYTES + 1),
        frame(*PAYLOADS["nixl_exact"])[:-3],
        msgspec.msgpack.encode([9, 1, b"", 1]),
        msgspec.msgpack.encode({"version": 1}),
        frame(*PAYLOADS["nixl_exact"], connector=""),
        frame(*PAYLOADS["nixl_exact"], connector="x" * 201),
    ],
)
def test_bytes_that_are_no_message_are_refused(noise: bytes) -> None:
    with pytest.raises(PeerError):
        decode(noise)


def test_a_source_beyond_its_bounds_is_refused() -> None:
    for labels in ({"x" * 201: ""}, {"engine": "x" * 201}, {f"label-{n}": "" for n in range(17)}):
        with pytest.raises(PeerError, match="a source of"):
            decode_source(encode(msgspec.structs.replace(SOURCE, labels=labels)))


@settings(max_examples=500)
@given(st.sampled_from(sorted(PAYLOADS)), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6))
def test_mutated_bytes_decode_or_are_refused(name: str, changes: list[tuple[int, int]]) -> None:
    mutant = bytearray(frame(*PAYLOADS[name]))
    for position, byte in changes:
        mutant[position % len(mutant)] = byte
    try:
        message = decode(bytes(mutant))
        if isinstance(message, Report):
            decode_source(message.source)
            decode_payload(message.payload)
    except PeerError:
        pass


def test_numpys_numbers_in_a_foreign_payload_are_written_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    payload = {"a": numpy.float64(0.5), "b": numpy.arange(3), "c": [numpy.int64(4)]}
    assert decode_payload(encode_payload(payload)) == {"a": 0.5, "b": [0, 1, 2], "c": [4]}


if __name__ == "__main__":
    for name, content in goldens().items():
        file = GOLDEN / f"{name}.bin"
        if not file.exists():
            file.write_bytes(content)
