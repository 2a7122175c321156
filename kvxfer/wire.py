"""Bytes to messages and back: one ZeroMQ frame is one message of msgpack. No socket, no state.

A message is an array that begins with its tag: ``Report`` 0, ``Goodbye`` 1, ``Ack`` 2. A report's payload is msgpack
within msgpack: it stays closed until the class that the factory gives for its connector opens it. Acknowledgements
go the other way, each behind the topic of the source that it is for.

Rules of its evolution (golden bytes in ``tests/golden`` hold us to them):

1. Fields are appended, with a default; none is removed, reordered or given another type.
2. A reader passes over what is appended after the fields it knows.
3. ``version`` changes only when an old reader would misread; a reader refuses versions that it does not know.
4. A new kind of message takes a new tag; an old reader refuses it and goes on.
5. Labels, payload keys and connectors are data: a new one needs no new version.
6. A payload key that a reader does not know is carried on where it is packed bytes, a list of values or a number, and
   counted as one observation refused where it is anything else. So what is none of these is a map: ``under_way``, in a
   payload of any declared stats, is ``{"num": transfers under way, "oldest": seconds that the oldest has been}``.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from kvxfer.errors import ImplausibleError, PeerError, VersionError

VERSION: Final = 1

MAX_FRAME_BYTES: Final = 1 << 20
"""A report is a few kB; 5 MB of nested empty lists cost 1.2 s and 350 MB to decode."""

MAX_NAME: Final = 200
"""Characters of a connector's name or a label."""

MAX_OUTSTANDING: Final = 1024
"""Reports of one source that may be unacknowledged at once: sixteen times what a publisher keeps."""

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
_Label = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
_Seq = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Source(msgspec.Struct, array_like=True, frozen=True):
    """Who publishes: ``id`` is unique per publisher and process, ``start_time`` its Unix time in seconds."""

    id: _Name
    host: _Label
    pid: int
    start_time: float
    labels: Annotated[dict[_Name, _Label], msgspec.Meta(max_length=16)] = {}


class Report(msgspec.Struct, array_like=True, tag=0, gc=False):
    """What one publisher observed from ``start`` to ``end`` (Unix seconds of its clock); ``seq`` counts from 1.

    ``source`` holds the bytes of a `Source`, the same in every report of a publisher. ``cut`` counts the
    observations that the publisher left out by its own bound since the report before.
    ``oldest`` is the lowest number that the publisher still keeps: what is below was acknowledged, by whomever. 0: it
    does not say. ``ranks`` is how many publishers it speaks for: a collector that relays has merged theirs.
    """

    version: int
    source: bytes
    connector: _Name
    seq: _Seq
    start: float
    end: float
    payload: msgspec.Raw
    cut: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    oldest: _Seq = 0
    ranks: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)] = 1


class Goodbye(msgspec.Struct, array_like=True, tag=1, gc=False):
    """The publisher ends; ``seq`` is its last report's, 0 if it sent none; ``oldest`` as in `Report`."""

    version: int
    source: bytes
    seq: _Seq
    oldest: _Seq = 0


class Ack(msgspec.Struct, array_like=True, tag=2, gc=False):
    """All reports of a source up to ``seq`` are committed by ``collector``, whose id is new with each start."""

    version: int
    collector: _Name
    seq: _Seq


UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError)
"""What a decoder of msgspec raises on bytes that are none of its own: on some, other errors than its own."""


def plain(value: Any) -> Any:  # noqa: ANN401 - any object of a foreign payload
    """Numpy's scalars and arrays, which connectors put in their payloads, as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    message = f"a payload holds numbers, strings, lists and dicts, got {type(value).__name__}"
    raise TypeError(message)


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=plain)
_decoder: Final = msgspec.msgpack.Decoder(Report | Goodbye)
_ack_decoder: Final = msgspec.msgpack.Decoder(Ack)
_source_decoder: Final = msgspec.msgpack.Decoder(Source)
_payload_decoder: Final = msgspec.msgpack.Decoder()


def encode(message: Report | Goodbye | Source | Ack) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def encode_payload(payload: Mapping[str, Any]) -> msgspec.Raw:
    """A payload as a report carries it; raises TypeError for what msgpack cannot hold."""
    return msgspec.Raw(_encoder.encode(payload))


def decode(frame: bytes) -> Report | Goodbye:
    """The message in a peer's frame; raises `PeerError`, whose cause says why not."""
    if len(frame) > MAX_FRAME_BYTES:
        message = f"a frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES}"
        raise PeerError(message)
    try:
        decoded: Report | Goodbye = _decoder.decode(frame)
    except UNREADABLE as error:
        message = f"a frame of {len(frame)} bytes: {error}"
        raise PeerError(message) from error
    if decoded.version != VERSION:
        message = f"wire version {decoded.version}, this collector speaks {VERSION}"
        raise VersionError(message)
    # A goodbye's last report may be acknowledged already.
    if decoded.oldest and not decoded.oldest <= decoded.seq + isinstance(decoded, Goodbye) <= _last(decoded.oldest):
        message = f"number {decoded.seq} of a publisher that keeps from {decoded.oldest} on"
        raise ImplausibleError(message)
    if isinstance(decoded, Report):
        _check(decoded)
    return decoded


def decode_or_error(frame: bytes) -> Report | Goodbye | PeerError:
    """The message in a peer's frame, or why there is none."""
    try:
        return decode(frame)
    except PeerError as error:
        return error


def _last(oldest: int) -> int:
    return oldest + MAX_OUTSTANDING - 1


def _check(report: Report) -> None:
    # An hour of difference between two clocks is the worker's affair; a time that is no number is not.
    if not (math.isfinite(report.start) and math.isfinite(report.end) and report.seq > 0):
        message = f"a report numbered {report.seq} from {report.start} to {report.end}"
        raise ImplausibleError(message)


def topic(source_id: str) -> bytes:
    """What precedes an acknowledgement; it ends in NUL, so that no id's topic begins another's."""
    return source_id.encode() + b"\0"


def source_of_topic(subscribed: bytes) -> str:
    """The source id of a topic that a peer subscribed to; raises `PeerError` for what is none."""
    try:
        return subscribed.removesuffix(b"\0").decode()
    except UnicodeDecodeError as error:
        message = f"a topic of {len(subscribed)} bytes: {error}"
        raise PeerError(message) from error


def encode_ack(source_id: str, ack: Ack) -> bytes:
    """An acknowledgement behind its topic, in one frame."""
    return topic(source_id) + _encoder.encode(ack)


def topic_of_ack(frame: bytes) -> bytes:
    """The topic that an acknowledgement is behind."""
    return frame.partition(b"\0")[0]


def decode_ack(frame: bytes) -> Ack:
    """The acknowledgement in a collector's frame; raises `PeerError`."""
    try:
        ack = _ack_decoder.decode(frame.partition(b"\0")[2])
    except UNREADABLE as error:
        message = f"an acknowledgement of {len(frame)} bytes: {error}"
        raise PeerError(message) from error
    if ack.version != VERSION:
        message = f"wire version {ack.version}, this publisher speaks {VERSION}"
        raise VersionError(message)
    return ack


def decode_source(encoded: bytes) -> Source:
    """The source in a report; raises `PeerError`."""
    try:
        source = _source_decoder.decode(encoded)
    except UNREADABLE as error:
        message = f"a source of {len(encoded)} bytes: {error}"
        raise PeerError(message) from error
    return source


def decode_payload(payload: msgspec.Raw) -> dict[str, Any]:
    """The payload of a report as plain data; raises `PeerError`."""
    try:
        decoded = _payload_decoder.decode(payload)
    except UNREADABLE as error:
        message = f"a payload of {len(bytes(payload))} bytes: {error}"
        raise PeerError(message) from error
    if not isinstance(decoded, dict):
        message = f"a payload that is a {type(decoded).__name__}"
        raise PeerError(message)
    return decoded
