"""What a worker leaves behind in shared memory, as the frames that it would have sent. No file, no clock, no thread.

Law: a worker saves before it sends, so what it has sent is always a part of what it leaves, under the same numbers:
taken over whole, nothing is counted twice, whatever of it had arrived.
"""

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import msgspec

from kvxfer.contract import KVConnectorStats
from kvxfer.errors import ImplausibleError, PeerError
from kvxfer.factory import KVConnectorFactory
from kvxfer.fields import Counter
from kvxfer.opening import class_of_somebody_else
from kvxfer.outbox import SavedOutbox
from kvxfer.stats import TransferStats
from kvxfer.wire import UNREADABLE, VERSION, Goodbye, Report, decode_payload, encode, encode_payload


class SavedWorker(msgspec.Struct, array_like=True, frozen=True):
    """The outbox, and per area how many of its rows are in the outbox already."""

    outbox: SavedOutbox
    floors: dict[str, int]


Rows: TypeAlias = Iterable[tuple[str, list[list[float]]]]

_decoder: Final = msgspec.msgpack.Decoder(SavedWorker)


def encode_worker(saved: SavedWorker) -> bytes:
    """The bytes of what is saved."""
    return msgspec.msgpack.encode(saved)


def decode_worker(saved: bytes) -> SavedWorker:
    """What these bytes hold; raises `PeerError`."""
    try:
        return _decoder.decode(saved)
    except UNREADABLE as error:
        message = f"a saved outbox of {len(saved)} bytes: {error}"
        raise PeerError(message) from error


def frames_of(saved: SavedOutbox, rows: Rows, now: float) -> list[bytes]:
    """The reports that are kept, one more of what is open and of the rows of each area, and a goodbye.

    ``rows`` has per area the name of the row or counter that it is of, and a list of values per column. Raises
    `UnknownConnectorError` for a connector that is not registered here, `PeerError` for what does not fit it.
    """
    with class_of_somebody_else():
        stats = _added_up(saved, rows)
        payload = encode_payload(stats.to_packed())
        is_empty = stats.is_empty()
    seq, oldest = saved.seq, saved.oldest or saved.seq - len(saved.frames) + 1
    frames = list(saved.frames)
    if saved.cut or not is_empty:
        seq += 1
        frames.append(
            encode(Report(VERSION, saved.source, saved.connector, seq, saved.start, now, payload, saved.cut, oldest))
        )
    return [*frames, encode(Goodbye(VERSION, saved.source, seq, min(oldest, seq + 1)))]


def _added_up(saved: SavedOutbox, rows: Rows) -> KVConnectorStats:
    found = KVConnectorFactory.get_connector_class_by_name(saved.connector)
    stats: KVConnectorStats | None = found.build_kv_connector_stats(decode_payload(saved.payload))
    if stats is None:
        message = f"{saved.connector} builds no stats"
        raise ImplausibleError(message)
    if isinstance(stats, TransferStats):
        for name, columns in rows:
            stats.aggregate(type(stats)(_as_payload(stats, name, columns)))
    return stats


def _as_payload(stats: TransferStats, name: str, columns: list[list[float]]) -> dict[str, list[Any]]:
    """The values of an area under the names of their fields, as vLLM's payloads hold them."""
    row = stats.rows.get(name)
    if row is not None and len(columns) == len(row.columns):
        return {column.name: values for column, values in zip(row.columns, columns, strict=True)}
    if len(columns) == 1 and isinstance(stats.fields.get(name), Counter):
        return {name: as_counts(columns[0])}
    message = f"{type(stats).__name__} has no row or counter {name} of {len(columns)} values"
    raise ImplausibleError(message)


def as_counts(values: list[float]) -> list[Any]:
    """Values of a counter, which shared memory holds as floats: whole ones are ints again."""
    return [int(value) if value.is_integer() else value for value in values]
