"""Protobuf: ``io.prometheus.client.MetricFamily``, delimited, with native histograms. Encoded here, by hand.

The fields are those of Prometheus' ``metrics.proto``. A native histogram of schema 5 is what `kvxfer.buckets` counts
in, each index one higher: its bucket ``i`` ends at ``2**(i/32)``, ours begins there. Nothing is lost between the two.
"""

from functools import lru_cache
from struct import Struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvxfer.buckets import SCALE, SMALLEST
from kvxfer.exporters.prometheus.classic import cumulative
from kvxfer.exporters.prometheus.families import Counted, Family, Kind, Labels, Measured, Value
from kvxfer.exporters.prometheus.text import Exposed
from kvxfer.histogram import Histogram

SCHEMA: Final = SCALE
"""Prometheus takes schemas up to 8."""

ZERO_THRESHOLD: Final = SMALLEST / 2
"""Where the zero bucket ends: below the first one. That it is above 0 tells that an empty histogram is native."""

_TYPES: Final = {Kind.COUNTER: 0, Kind.GAUGE: 1, Kind.INFO: 1, Kind.SUMMARY: 2, Kind.HISTOGRAM: 4}
_NAME_SUFFIX: Final = {Kind.COUNTER: "_total", Kind.INFO: "_info"}
_VALUE_FIELD: Final = {Kind.COUNTER: 3, Kind.GAUGE: 2, Kind.INFO: 2}
_VARINT, _FIXED64, _BYTES = 0, 1, 2
_double: Final = Struct("<d").pack
_MORE: Final = 0x80


def as_protobuf(families: Exposed) -> bytes:
    """Families one after the other, each behind its length; those without a series are left out."""
    encoded = (_family(family, series) for family, series in families if series)
    return b"".join(_varint(len(each)) + each for each in encoded)


def _family(family: Family, series: dict[Labels, Value]) -> bytes:
    name = family.name + _NAME_SUFFIX.get(family.kind, "")
    head = _text(1, name) + _text(2, family.help) + _int(3, _TYPES[family.kind])
    metrics = (_bytes(4, _labels(labels) + _value(family, value)) for labels, value in series.items())
    return head + b"".join(metrics)


def _labels(labels: Labels) -> bytes:
    return b"".join(_bytes(1, _text(1, name) + _text(2, value)) for name, value in labels)


def _value(family: Family, value: Value) -> bytes:
    if isinstance(value, Measured):
        native = _native(value.histogram) if family.is_native else b""
        return _bytes(7, _int(1, value.histogram.count) + _float(2, value.sum) + _classic(family, value) + native)
    if isinstance(value, Counted):
        return _bytes(4, _int(1, value.num_values) + _float(2, value.sum))
    return _bytes(_VALUE_FIELD[family.kind], _float(1, value))


def _classic(family: Family, value: Measured) -> bytes:
    counts = cumulative(value.histogram, family.boundaries)
    pairs = zip(counts, _bounds(family.boundaries), strict=True)
    return b"".join([_bytes(3, _int(1, count) + bound) for count, bound in pairs])


@lru_cache(maxsize=64)
def _bounds(boundaries: tuple[float, ...]) -> tuple[bytes, ...]:
    return tuple(_float(2, boundary) for boundary in boundaries)


_WIDEST_GAP: Final = 2
"""Empty buckets within a span, as in Prometheus' own clients: they take less than another span."""


def _native(histogram: Histogram) -> bytes:
    """Schema, zero bucket, and runs of buckets: spans, and each count less the one before."""
    head = _int(5, _zigzag(SCHEMA)) + _float(6, ZERO_THRESHOLD) + _int(7, histogram.zeros)
    filled = np.flatnonzero(histogram.counts)
    if not filled.size:
        return head
    breaks = np.flatnonzero(filled[1:] - filled[:-1] > _WIDEST_GAP + 1)
    starts = filled[np.concatenate(([0], breaks + 1))]
    ends = filled[np.concatenate((breaks, [filled.size - 1]))] + 1
    # The first offset is an index, the others are the empty buckets since the span before.
    offsets = starts - np.concatenate(([-histogram.offset - 1], ends[:-1]))
    pairs = zip(offsets.tolist(), (ends - starts).tolist(), strict=True)
    spans = b"".join([_bytes(12, _int(1, _zigzag(offset)) + _int(2, length)) for offset, length in pairs])
    runs = zip(starts.tolist(), ends.tolist(), strict=True)
    counts = np.concatenate([histogram.counts[start:end] for start, end in runs])
    counts[1:] -= counts[:-1].copy()
    return head + spans + _bytes(13, _packed(counts))


# --- the encoding


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


_SMALL: Final = tuple(bytes((number,)) for number in range(_MORE))


def _varint(number: int) -> bytes:
    if number < _MORE:
        return _SMALL[number]
    encoded, rest = bytearray(), number
    while rest >= _MORE:
        encoded.append(rest & 0x7F | _MORE)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def _packed(numbers: NDArray[np.int64]) -> bytes:
    """Numbers as zigzag varints, a byte of all of them at a time."""
    rest = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    columns, used = [], [np.ones(rest.size, bool)]
    while used[-1].any():
        columns.append((rest & np.uint64(0x7F)).astype(np.uint8))
        rest = rest >> np.uint64(7)
        used.append(rest > 0)
        columns[-1] |= used[-1].astype(np.uint8) << np.uint8(7)
    encoded: bytes = np.stack(columns, axis=1)[np.stack(used[:-1], axis=1)].tobytes()
    return encoded


def _int(field: int, number: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(number)


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | _FIXED64) + _double(number)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())
