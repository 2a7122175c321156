"""Frames as a broken, strange or hostile publisher sends them: seeded, each in one of the ways of `WAYS`.

They are made of frames of sources of their own, so that none can be taken for one of a source that is counted.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from kvxfer.connectors.generic import GenericConnectorStats
from kvxfer.connectors.hf3fs import HF3FSKVConnectorStats
from kvxfer.connectors.hisparse import HiSparseConnectorStats
from kvxfer.connectors.mooncake import MooncakeConnectorStats
from kvxfer.connectors.mooncake_store import MooncakeStoreConnectorStats
from kvxfer.connectors.multi import MultiKVConnectorStats
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.connectors.shared_memory import SharedMemoryConnectorStats
from kvxfer.connectors.umbp import UMBPStoreConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.wire import MAX_FRAME_BYTES, VERSION, Goodbye, Report, Source, encode, encode_payload

NESTED_EVERY = 20_000
"""Frames of a mebibyte of nested lists: the costliest there are, some 0.3 s each."""

NAN, INFINITY = float("nan"), float("inf")
NUMBERS: list[Any] = [-1, 0, 1, 1023, 1 << 31, 1 << 53, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)]
NUMBERS += [NAN, INFINITY, -INFINITY, 1e308, -1e308, 5e-324, -0.0, 0.5]
VALUES: list[Any] = [None, True, "", "x" * 300, "\0", "\ud7ff", b"", b"\0", b"\x80", b"\xff" * 60, [], [[]], {}]
VALUES += [{"a": {}}, {1: 2}, [None] * 50, [NAN, -1, "x"], [1e308] * 200, [1] * 5000, ["", b""], *NUMBERS]
# Headers of msgpack that announce more than any frame holds, and types that it does not have.
HEADERS = [b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xde\xff\xff", b"\xc6\xff\xff\xff\xff"]
HEADERS += [b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc1", b"\xd4\xff\x00", b"\xcb\xff\xff"]


def _nixl(rows: int) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for number in range(rows):
        stats.record_transfer(0.001 + number / 1e5, 0.0001, 1 << (10 + number % 12), 1 + number % 64)
    return stats


def _offloading() -> OffloadingConnectorStats:
    types = {"load_bytes": "counter", "usage": "gauge", "load_size": "histogram"}
    ways = [("gpu", "cpu"), ("cpu", "disk")]
    data = {
        "load_bytes": dict.fromkeys(ways, 1 << 20),
        "usage": {(): 0.5},
        "load_size": {way: [1.0, 2.0, 300.0] for way in ways},
    }
    return OffloadingConnectorStats({"types": types, "data": data, "info": {"block_size": 16}})


def _moved(stats: Any) -> Any:  # noqa: ANN401 - two classes that have the method
    stats.record_transfer(0.5, 4096, 3)
    return stats


def _stores() -> list[tuple[str, KVConnectorStats]]:
    store, tasks, cache, pool = (
        MooncakeStoreConnectorStats(),
        HF3FSKVConnectorStats(),
        HiSparseConnectorStats(),
        UMBPStoreConnectorStats(),
    )
    for number in range(20):
        store.record_operation("save_put", 0.001 * number, 4, num_bytes=1 << 20, status="error" if number % 7 else "ok")
        tasks.record_save(0.001 * number)
        cache.record_snapshot(number, 1, 1 << 20)
        pool.record("load", submitted=number, completed=1)
    cache.record_host_usage(0.5, 3)
    generic = GenericConnectorStats({"seconds": [0.5, 0.25], "tiers": {"cpu": {"num_hits": 3}}, "words": ["a", "b"]})
    return [
        ("MooncakeStoreConnector", store),
        ("HF3FSKVConnector", tasks),
        ("HiSparseConnector", cache),
        ("UMBPStoreConnector", pool),
        ("FlexKVConnectorV1", generic),
    ]


def _contents() -> list[tuple[str, KVConnectorStats]]:
    return [
        ("NixlConnector", _nixl(20)),
        ("NixlConnector", _nixl(1000)),
        ("NixlPullConnector", _nixl(1)),
        ("MooncakeConnector", _moved(MooncakeConnectorStats())),
        ("SharedMemoryConnector", _moved(SharedMemoryConnectorStats())),
        ("OffloadingConnector", _offloading()),
        ("MultiConnector", MultiKVConnectorStats({"NixlConnector": _nixl(5), "OffloadingConnector": _offloading()})),
        *_stores(),
        ("TelepathyConnector", _nixl(1)),
    ]


class Mutants:
    """Endless; the same seed gives the same frames."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._names = itertools.count()
        self._reports = [
            Report(VERSION, self._new_source(), connector, 1, 100.0, 101.0, encode_payload(payload))
            for connector, stats in _contents()
            for payload in (stats.to_packed(), stats.to_dict())
        ]

    def __iter__(self) -> Iterator[bytes]:
        for number in itertools.count(1):
            yield self._deep() if number % NESTED_EVERY == NESTED_EVERY // 2 else self._rng.choice(WAYS)(self)

    def _new_source(self) -> bytes:
        labels = {"engine": f"fuzz-{self._rng.randrange(4)}", "role": "kv_both", "rank": str(next(self._names))}
        return encode(Source(f"fuzz-{next(self._names)}", "host", 1, 0.0, labels))

    def _report(self) -> Report:
        """The next report of a source; now and then an earlier one again, or the first one of another source."""
        report = self._rng.choice(self._reports)
        report.seq += 1
        way = self._rng.random()
        if way < 0.05:
            return msgspec.structs.replace(report, seq=self._rng.randint(1, report.seq))
        if way < 0.1:  # an absurd number has made duplicates of all that would follow
            report.source, report.seq = self._new_source(), 1
        return msgspec.structs.replace(report, oldest=max(1, report.seq - 3))

    # --- as they are

    def _intact(self) -> bytes:
        return encode(self._report())

    def _of_a_new_source(self) -> bytes:
        return encode(msgspec.structs.replace(self._report(), source=self._new_source(), seq=1, oldest=1))

    def _noise(self) -> bytes:
        return self._rng.randbytes(self._rng.randrange(200))

    # --- bytes

    def _flipped(self) -> bytes:
        return self._flip(self._frame())

    def _flip(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self._rng.choice((1, 1, 2, 8)) if changed else 0):
            changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    def _frame(self) -> bytes:
        return self._goodbye() if self._rng.random() < 0.1 else encode(self._report())

    def _truncated(self) -> bytes:
        frame = self._frame()
        return frame[: self._rng.randrange(len(frame))]

    def _longer(self) -> bytes:
        return self._frame() + (self._noise() if self._rng.random() < 0.5 else self._frame())

    def _spliced(self) -> bytes:
        one, other = self._frame(), self._frame()
        return one[: self._rng.randrange(len(one))] + other[self._rng.randrange(len(other)) :]

    def _announcing(self) -> bytes:
        frame, header = self._frame(), self._rng.choice(HEADERS)
        position = self._rng.randrange(len(frame))
        return frame[:position] + header + frame[position + self._rng.choice((0, 1, len(header))) :]

    # --- what they say

    def _nested(self) -> bytes:
        opening = self._rng.choice((b"\x91", b"\x81\xa1a", b"\x92\xc0", b"\x81\x91"))
        nested = msgspec.Raw(b"\x81\xa1a" + opening * (1 << self._rng.randrange(12)) + b"\xc0")
        return encode(msgspec.structs.replace(self._report(), payload=nested))

    def _deep(self) -> bytes:
        room = MAX_FRAME_BYTES - 1000
        nested = self._rng.choice((b"\x91" * room, b"\xdd\0\0\0\1" * (room // 5), b"\xdc\xff\xff" + b"\x90" * room))
        return encode(msgspec.structs.replace(self._report(), payload=msgspec.Raw(b"\x81\xa1a" + nested[:room])))

    def _of_other_types(self) -> bytes:
        return self._with(VALUES)

    def _absurd(self) -> bytes:
        return self._with(NUMBERS)

    def _with(self, values: list[Any]) -> bytes:
        fields = msgspec.msgpack.decode(self._frame())
        for _ in range(self._rng.choice((1, 1, 2))):
            fields[self._rng.randrange(len(fields))] = self._rng.choice(values)
        return msgspec.msgpack.encode(fields)

    def _of_another_payload(self) -> bytes:
        report = self._report()
        payload = msgspec.msgpack.decode(report.payload)
        part = payload
        while (inner := [key for key, value in part.items() if isinstance(value, dict)]) and self._rng.random() < 0.9:
            part = part[self._rng.choice(inner)]
        key = self._rng.choice([*part, self._noise().hex()])
        value = part.get(key)
        is_packed = isinstance(value, bytes) and self._rng.random() < 0.7
        part[key] = self._flip(value) if is_packed else self._rng.choice(VALUES)
        return encode(msgspec.structs.replace(report, payload=encode_payload(payload)))

    def _goodbye(self) -> bytes:
        report = self._rng.choice(self._reports)
        source = report.source if self._rng.random() < 0.5 else self._new_source()
        seq = self._rng.choice((0, 1, report.seq, report.seq + 500, 1 << 62))
        return encode(Goodbye(VERSION, source, seq, self._rng.choice((0, 1, seq))))


WAYS: tuple[Callable[[Mutants], bytes], ...] = (
    Mutants._intact,
    Mutants._of_a_new_source,
    Mutants._noise,
    Mutants._flipped,
    Mutants._flipped,
    Mutants._truncated,
    Mutants._longer,
    Mutants._spliced,
    Mutants._announcing,
    Mutants._nested,
    Mutants._of_other_types,
    Mutants._absurd,
    Mutants._of_another_payload,
    Mutants._of_another_payload,
    Mutants._goodbye,
)
