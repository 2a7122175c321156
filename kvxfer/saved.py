"""States as bytes and back: what a journal keeps of an aggregator, and of the intervals that it closed.

The same rules of evolution as in `wire`: fields are appended with defaults. A payload is what the connector's own
class reads; of a class that is not there (any more) it is carried on unread.
"""

from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from kvxfer.contract import KVConnectorStats
from kvxfer.errors import JournalError
from kvxfer.factory import KVConnectorFactory
from kvxfer.interval import Group, Interval, Pipeline, SourceView
from kvxfer.wire import UNREADABLE, Source, decode_payload, encode_payload, plain


class TakenFrames(NamedTuple):
    """Frames that were taken at one time (Unix seconds of the collector)."""

    now: float
    frames: list[bytes]


class SavedInterval(NamedTuple):
    """A closed interval from ``start`` to ``end`` (Unix seconds), in the bytes of `encode_interval`."""

    start: float
    end: float
    saved: bytes


Steps: TypeAlias = Generator[None, None, bytes]
"""Bytes that are made step by step, for who has something else to do in between."""

AT_ONCE: Final = 64
"""Sources that are added up, or encoded, in a step: some 3 ms, with ten reports in each 5."""

NOTHING: Final = msgspec.Raw(b"\xc0")
"""The nil of msgpack, for stats that are not there: msgspec reads no ``Raw | None``."""


class SavedGroup(msgspec.Struct, array_like=True):
    """One group; ranks are positions in the list of sources."""

    connector: str
    labels: tuple[str | None, ...]
    stats: msgspec.Raw
    totals: msgspec.Raw
    ranks: list[int]
    total_ranks: list[int]


class SavedCounts(msgspec.Struct, array_like=True):
    """What an aggregator counts of messages that changed nothing else, and are therefore in no log."""

    duplicate: int
    rejected: dict[str, int]


class SavedSource(msgspec.Struct, array_like=True):
    """One source; ``above`` is the bits of `seqs.TakenSeqs` as little-endian bytes."""

    encoded: bytes
    floor: int
    above: bytes
    final_seq: int | None
    lost: int
    clock_offset: float
    stats: dict[str, msgspec.Raw]
    totals: dict[str, msgspec.Raw]
    num_ranks: int = 1
    period: float = 0.0
    most_ranks: int = 1


class SavedState(msgspec.Struct, array_like=True):
    """All that an aggregator knows."""

    begin: float
    start: float
    due: float
    group_by: tuple[str, ...]
    groups: list[SavedGroup]
    sources: list[SavedSource]
    received: int
    lost: int
    cut: int
    rejected_observations: int
    carried: list[bytes] = []
    """Reports whose numbers are taken, and that no class here could open."""
    forgotten: list[SavedSource] = []
    """The numbers of sources that made room for others, the oldest first."""
    views: list[tuple[int, str]] = []
    """Who has a view, as position in the list of sources and connector, in the order in which they began."""


class _SavedGroupOfInterval(msgspec.Struct, array_like=True):
    connector: str
    labels: dict[str, str]
    num_ranks: int
    payload: msgspec.Raw


class _SavedView(msgspec.Struct, array_like=True):
    source: Source
    connector: str
    clock_offset_seconds: float
    last_seen: float
    state: str
    payload: msgspec.Raw


class _SavedInterval(msgspec.Struct, array_like=True):
    start: float
    end: float
    groups: list[_SavedGroupOfInterval]
    sources: list[_SavedView]
    pipeline: Pipeline
    silent: tuple[Source, ...] = ()
    departed: tuple[Source, ...] = ()


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=plain)
_state_decoder: Final = msgspec.msgpack.Decoder(SavedState)
_counts_decoder: Final = msgspec.msgpack.Decoder(SavedCounts)
_interval_decoder: Final = msgspec.msgpack.Decoder(_SavedInterval)


def encode_state(state: SavedState) -> bytes:
    """The bytes of a state."""
    return _encoder.encode(state)


def decode_state(saved: bytes) -> SavedState:
    """The state in these bytes; raises `JournalError`."""
    try:
        return _state_decoder.decode(saved)
    except UNREADABLE as error:
        message = f"the saved state cannot be read: {error}"
        raise JournalError(message) from error


def encode_counts(counts: SavedCounts) -> bytes:
    """The bytes of counts."""
    return _encoder.encode(counts)


def decode_counts(saved: bytes) -> SavedCounts:
    """The counts in these bytes; raises `JournalError`."""
    try:
        return _counts_decoder.decode(saved)
    except UNREADABLE as error:
        message = f"the saved counts cannot be read: {error}"
        raise JournalError(message) from error


def save_stats(stats: KVConnectorStats | None) -> msgspec.Raw | None:
    """The payload of stats without loss, None where there are none or their own class cannot give it."""
    if stats is None:
        return None
    try:
        return encode_payload(stats.to_dict())
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return None


def load_stats(connector: str, payload: msgspec.Raw) -> KVConnectorStats | None:
    """The stats in a payload, None where the connector is not registered or does not read it."""
    try:
        opened = decode_payload(payload)
        if opened.get("generic") is True and not KVConnectorFactory.is_registered(connector):
            found = KVConnectorFactory.get_generic_class(connector)
        else:
            found = KVConnectorFactory.get_connector_class_by_name(connector)
        stats: KVConnectorStats | None = found.build_kv_connector_stats(opened)
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return None
    return stats


def at_once(steps: Steps) -> bytes:
    """What the steps lead to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: bytes = end.value
            return found


def encoding_interval(interval: Interval) -> Steps:
    """A closed interval as a record of history, `AT_ONCE` sources in each step; quantiles within 1.1 %, all else exact.

    `decode_interval` reads it.
    """
    groups = [
        _SavedGroupOfInterval(group.connector, group.labels, group.num_ranks, payload)
        for group, payload in _with_payloads(interval.groups)
    ]
    views: list[_SavedView] = []
    for start in range(0, len(interval.sources), AT_ONCE):
        yield
        views += (
            _SavedView(view.source, view.connector, view.clock_offset_seconds, view.last_seen, view.state, payload)
            for view, payload in _with_payloads(interval.sources[start : start + AT_ONCE])
        )
    ends = (interval.silent, interval.departed)
    return _encoder.encode(_SavedInterval(interval.start, interval.end, groups, views, interval.pipeline, *ends))


def _with_payloads(parts: Sequence[Any]) -> list[tuple[Any, msgspec.Raw]]:
    found = []
    for part in parts:
        try:
            found.append((part, encode_payload(part.stats.to_packed())))
        except Exception:  # noqa: BLE001, S112 - a class of somebody else costs the others nothing
            continue
    return found


def decode_interval(saved: bytes, *, sources: bool = True) -> Interval:
    """The interval in a record, without what no class here reads; raises `JournalError`.

    ``sources``: with what each source reported by itself, nearly all of the cost where there are many.
    """
    return decode_interval_and_rest(saved, sources=sources)[0]


def decode_interval_and_rest(saved: bytes, *, sources: bool = True) -> tuple[Interval, set[str]]:
    """The same, and the connectors of which something is left out since no class here reads it."""
    try:
        found = _interval_decoder.decode(saved)
    except UNREADABLE as error:
        message = f"a saved interval cannot be read: {error}"
        raise JournalError(message) from error
    groups = [(group, load_stats(group.connector, group.payload)) for group in found.groups]
    views = [(view, load_stats(view.connector, view.payload)) for view in (found.sources if sources else ())]
    interval = Interval(
        found.start,
        found.end,
        tuple(
            Group(group.connector, group.labels, stats, group.num_ranks) for group, stats in groups if stats is not None
        ),
        tuple(
            SourceView(view.source, view.connector, stats, view.clock_offset_seconds, view.last_seen, view.state)
            for view, stats in views
            if stats is not None
        ),
        found.pipeline,
        found.silent,
        found.departed,
    )
    unread = {group.connector for group, stats in groups if stats is None}
    return interval, unread | {view.connector for view, stats in views if stats is None}
