"""Reports added up many at a time say what they say one by one, to the connector's own class."""

import random
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kvxfer.aggregator import Aggregator
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.distribution import DistributionState
from kvxfer.wire import Goodbye, Report, Source, encode, encode_payload

SOURCES = [
    encode(Source(f"s{number}", "host", 1, 0.0, {"engine": f"e{number % 2}", "rank": str(number)}))
    for number in range(4)
]
DURATIONS = [2.0**-20, 0.001953125, 0.25, 4.0]  # with the rates their sums are exact, in any order

UNDER_WAY: list[dict[str, Any]] = [
    {"under_way": told}
    for told in (
        *({"num": 2, "oldest": 7}, {"num": 2, "oldest": 0.5, "newer": 1}, {"num": {"a": 1}, "oldest": {"a": 1}}),
        *({"num": 2, "oldest": float("nan")}, {"num": 2.0, "oldest": 0.5}, {"num": -1, "oldest": 1}, [1, 2], None),
    )
]


def transfers(rng: random.Random, count: int) -> NixlConnectorStats:
    stats = NixlConnectorStats()
    for _ in range(count):
        stats.record_transfer(rng.choice(DURATIONS), 0.25, rng.choice([0, 1024, 4096]), 2)
    return stats


def payload(rng: random.Random) -> dict[str, Any]:
    """What publishers send, of many transfers and few, and what only others would."""
    stats = transfers(rng, rng.choice([0, 1, 5, 100, 101, 300, 3000]))
    if rng.random() < 0.3:
        stats.num_failed_transfers.add(rng.choice([1, 1 << 60, 0.5]))
    if rng.random() < 0.2:
        stats.transfer_duration.observe(rng.choice([-1.0, 0.5]))
    if rng.random() < 0.4:
        tokens = [stats.under_way.begin() for _ in range(rng.randrange(3))]
        stats.note_levels()
        stats.under_way.end(tokens and tokens[0])
        stats.note_levels()
    packed = stats.to_dict() if rng.random() < 0.2 else stats.to_packed()
    odd: dict[str, Any] = rng.choice(
        [{}] * 9 + [{"newer": 3}, {"post_duration": b""}, {"num_failed_transfers": -1}] + UNDER_WAY
    )
    return packed | odd


def report(rng: random.Random, seq: int) -> bytes:
    raw = bytes(encode_payload(payload(rng)))
    if rng.random() < 0.2:
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    connector = rng.choice(["NixlConnector"] * 6 + ["MooncakeConnector", "OffloadingConnector", "NoConnector"])
    return encode(Report(1, rng.choice(SOURCES), connector, seq, 0.0, 1.0, msgspec.Raw(raw), rng.choice([0, 2])))


def messages(rng: random.Random, count: int) -> list[bytes]:
    frames = [report(rng, rng.randrange(1, 1 + count)) for _ in range(count)]
    frames += rng.choices(frames, k=3)
    frames.insert(rng.randrange(len(frames)), encode(Goodbye(1, SOURCES[0], 1)))
    frames.insert(rng.randrange(len(frames)), rng.randbytes(9))
    return frames


def content(stats: Any) -> Any:
    """All that stats hold, with sums to the ninth digit: a float's last ones depend on the order of additions."""
    found = {}
    for name, state in stats.data.items():
        if state.is_empty:
            continue
        if not isinstance(state, DistributionState):
            found[name] = repr(state)
        else:
            held = state.histogram()
            counts = tuple(held.counts.tolist())
            sums = f"{state.sum:.9g}", f"{held.sum:.9g}"
            found[name] = (state.is_exact, state.whole, sums, held.count, held.zeros, held.min, held.max, counts)
    return found


def seen(of: Aggregator) -> Any:
    interval = of.close_interval(2.0)
    groups = {
        (group.connector, *group.labels.values()): (content(group.stats), group.num_ranks) for group in interval.groups
    }
    views = {(view.source.id, view.connector): content(view.stats) for view in interval.sources}
    return repr(of), interval.pipeline, groups, views, of.sources.drain_acks()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([1, 3, 12, 60]), st.integers(0, 3))
def test_any_messages_at_once_in_parts_or_one_by_one_are_what_the_classes_make_of_each(
    seed: int, count: int, views: int
) -> None:
    rng = random.Random(seed)
    frames = messages(rng, count)
    config = CollectorConfig(max_source_views=views)
    at_once, in_parts, one_by_one, by_class = (Aggregator(config, 0.0) for _ in range(4))
    taken = at_once.feed_all(frames, 1.0)
    cuts = sorted(rng.sample(range(len(frames)), rng.randrange(min(9, len(frames)))))
    pairs = zip([0, *cuts], [*cuts, len(frames)], strict=True)
    assert [each for start, end in pairs for each in in_parts.feed_all(frames[start:end], 1.0)] == taken
    assert [one_by_one.feed(frame, 1.0) for frame in frames] == taken
    with patch("kvxfer.aggregator.open_all", lambda messages: [None] * len(messages)):
        assert by_class.feed_all(frames, 1.0) == taken
    expected = seen(by_class)
    assert [seen(each) for each in (at_once, in_parts, one_by_one)] == [expected] * 3
