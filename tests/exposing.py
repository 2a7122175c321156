"""Expositions of known stats, and readers of the formats that know nothing of how they are written."""

import math
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from kvxfer.connectors.base import Connector
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.contract import KVConnectorStats
from kvxfer.exporters.prometheus import OPENMETRICS, TEXT, Exposition, Options
from kvxfer.fields import Counter, Distribution, Gauge
from kvxfer.interval import Group, Interval, Pipeline
from kvxfer.stats import TransferStats

PIPELINE = Pipeline(7, 1, 2, {"version": 3}, 4, 5, sources={"live": 2, "silent": 1, "gone": 0})


class PageStats(TransferStats):
    """Fetches of pages."""

    hit_part = Distribution("1", "Part of a fetch that was\nthere.")
    num_misses = Counter("{page}", 'Pages "missed".')
    num_errors = Counter("{error}", "Errors by cause.", labels=("cause",))
    pool_usage = Gauge("1", "Part of the pool in use.", merge="max")


class PageStoreConnector(Connector):
    """Their connector."""

    stats_class = PageStats


class PoolStats(TransferStats):
    """Levels of a pool of pages."""

    usage = Gauge("1", "Part of the pool in use.", merge="max")
    num_blocks = Gauge("{block}", "Blocks in use.", merge="sum")


class PoolConnector(Connector):
    """Their connector."""

    stats_class = PoolStats


def pages() -> PageStats:
    stats = PageStats()
    for part in (0.0, 0.25, 0.2, 1.0):
        stats.hit_part.observe(part)
    stats.num_misses.add(2)
    stats.num_errors.labels('a "b"\n\\').add(1)
    stats.pool_usage.set(0.5)
    return stats


def of_groups(*groups: Group) -> Interval:
    return Interval(1000.0, 1010.0, groups, (), PIPELINE)


def of_stats(stats: KVConnectorStats, connector: str, labels: Mapping[str, str] | None = None) -> Interval:
    return of_groups(Group(connector, dict(labels or {}), stats, 1))


def measured(interval: Interval, options: Options | None = None, **more: Any) -> list[Any]:
    """The families of what is measured, without those of the pipeline itself."""
    families = Exposition(options).families(interval, **more)
    return [each for each in families if not each[0].name.startswith(("kvxfer_collector_", "kvxfer_build"))]


def samples(families: list[Any]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Name and labels to value, as both parsers of prometheus_client read it, which must be of one mind."""
    both = []
    for parse, text in ((parse_text, TEXT.write(families)), (parse_openmetrics, OPENMETRICS.write(families))):
        found = [sample for family in parse(text.decode()) for sample in family.samples]
        by_key = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
        assert len(by_key) == len(found)
        both.append(by_key)
    assert both[0] == both[1]
    return both[0]


def label_pairs(connector: str = "PageStoreConnector", **more: str) -> Any:
    return {"connector": connector, **more}.items()


def value(families: list[Any], name: str, connector: str = "NixlConnector", **labels: str) -> float:
    return samples(families)[name, frozenset(label_pairs(connector, **labels))]


def transfers(*durations: float) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for duration in durations:
        stats.record_transfer(duration, duration / 2, 1 << 20, 4)
    return stats


class Native(NamedTuple):
    """A native histogram, as it arrives."""

    count: int
    sum: float
    schema: int
    zero_threshold: float
    zero_count: int
    buckets: dict[int, int]
    """Count by index."""

    classic: dict[float, int]


def protobuf_families(delimited: bytes) -> dict[str, tuple[int, list[tuple[dict[str, str], Any]]]]:
    """Per name its type and series; a series is its labels and a number, a pair or a `Native`."""
    found, at = {}, 0
    while at < len(delimited):
        size, at = _varint(delimited, at)
        family = _message(delimited[at : at + size])
        at += size
        assert family[2][0].decode()
        series = [_series(metric) for metric in family[4]]
        found[family[1][0].decode()] = (family[3][0], series)
    return found


def _series(encoded: bytes) -> tuple[dict[str, str], Any]:
    metric = _message(encoded)
    pairs = [_message(pair) for pair in metric[1]]
    labels = {pair[1][0].decode(): pair[2][0].decode() for pair in pairs}
    assert len(labels) == len(pairs)
    (field,) = metric.keys() - {1}
    content = _message(metric[field][0])
    if field == 7:
        return labels, _histogram(content)
    if field == 4:
        return labels, (content[1][0], _double(content[2][0]))
    return labels, _double(content[1][0])


def _histogram(content: Mapping[int, list[Any]]) -> Native:
    buckets: dict[int, int] = {}
    index = count = 0
    deltas = iter(_packed(content.get(13, [b""])[0]))
    for encoded in content.get(12, []):
        span = _message(encoded)
        index += _zigzag(span.get(1, [0])[0])
        for _ in range(span[2][0]):
            count += next(deltas)
            buckets[index] = count
            index += 1
    assert next(deltas, None) is None
    classic = {_double(each[2][0]): each[1][0] for each in map(_message, content.get(3, []))}
    threshold = _double(content[6][0]) if 6 in content else math.nan
    schema = _zigzag(content.get(5, [0])[0])
    return Native(content[1][0], _double(content[2][0]), schema, threshold, content.get(7, [0])[0], buckets, classic)


def _message(encoded: bytes) -> defaultdict[int, list[Any]]:
    """Each field's values: ints of varints, bytes of all else."""
    fields: defaultdict[int, list[Any]] = defaultdict(list)
    at = 0
    while at < len(encoded):
        tag, at = _varint(encoded, at)
        field, kind = tag >> 3, tag & 7
        assert kind in (0, 1, 2)
        if kind == 0:
            value, at = _varint(encoded, at)
            fields[field].append(value)
        else:
            size, at = (8, at) if kind == 1 else _varint(encoded, at)
            fields[field].append(encoded[at : at + size])
            at += size
    assert at == len(encoded)
    return fields


def _packed(encoded: bytes) -> Iterator[int]:
    at = 0
    while at < len(encoded):
        number, at = _varint(encoded, at)
        yield _zigzag(number)


def _varint(encoded: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = encoded[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def _zigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


def _double(encoded: bytes) -> float:
    number: float = struct.unpack("<d", encoded)[0]
    return number
