"""The two processes of one worker: prefill writes the blocks of a request, decode pulls, checks and records them.

One request at a time goes parent -> prefill -> decode -> parent; decode tells prefill which slots are free again. Every
connection that ends ends the process behind it, so that none outlives its parent.
"""

import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

import msgspec

from kvxfer.publisher import StatsPublisher
from kvxfer.workload.blocks import BlockWriter, PoolShape, checksum
from kvxfer.workload.mover import Mover, Puller
from kvxfer.workload.tally import Recorded, Tally

PEER_ENDED: Final = 3
"""Exit code of a process whose peer ended before it: not the one to blame."""

# Delivery to a live collector takes milliseconds; a machine that is busy moving may need more.
_LINGER_SECONDS: Final = 10.0


class Offer(msgspec.Struct, frozen=True):
    """Blocks that stand in the pool: their ids, slots and checksums."""

    hash_ids: tuple[int, ...]
    slots: tuple[int, ...]
    checksums: tuple[int, ...]


class PairConfig(msgspec.Struct, frozen=True):
    """What both processes of a pair are told."""

    mover: Any  # a Mover, which travels by pickle
    shape: PoolShape
    connector: str
    endpoint: str
    rank: int


def run_prefill(config: PairConfig, requests: Connection, decode: Connection) -> None:
    """Be the prefill process: take requests (tuples of hash ids, None at the end) until they end."""
    _run(lambda: _prefill(config, requests, decode))


def run_decode(config: PairConfig, prefill: Connection, parent: Connection) -> None:
    """Be the decode process: send the parent a 1 per request and, at the end, what was recorded."""
    _run(lambda: _decode(config, prefill, parent))


def _run(end: Callable[[], None]) -> None:
    try:
        end()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(PEER_ENDED)


def _prefill(config: PairConfig, requests: Connection, decode: Connection) -> None:
    mover: Mover = config.mover
    pool = mover.open_pool()
    decode.send(pool.address)
    writer = BlockWriter(config.shape.block_bytes)
    free = list(range(config.shape.num_blocks))
    while (hash_ids := requests.recv()) is not None:
        while len(free) < len(hash_ids) or decode.poll():
            free += decode.recv()
        slots = tuple(free.pop() for _ in hash_ids)
        checksums = (writer.write(pool.blocks[slot], hash_id) for slot, hash_id in zip(slots, hash_ids, strict=True))
        decode.send(Offer(hash_ids, slots, tuple(checksums)))
    decode.send(None)
    while decode.recv() is not None:  # None: the other end has let go of the pool
        pass
    pool.close()


def _decode(config: PairConfig, prefill: Connection, parent: Connection) -> None:
    mover: Mover = config.mover
    puller = mover.open_puller(prefill.recv())
    labels = {"engine": "decode", "role": "kv_consumer", "rank": str(config.rank)}
    # The collector is of this process tree and asks for no keys, whatever the environment says of another one.
    with StatsPublisher(config.connector, config.endpoint, labels, curve="", linger=_LINGER_SECONDS) as publisher:
        recorded = _pull_all(puller, publisher.stats, Tally(mover.fields, mover.counters), prefill, parent)
    puller.close()
    prefill.send(None)
    parent.send(recorded)


def _pull_all(puller: Puller, stats: Any, tally: Tally, prefill: Connection, parent: Connection) -> Recorded:  # noqa: ANN401
    while (offer := prefill.recv()) is not None:
        token = stats.under_way.begin()
        row = puller.pull(offer.slots)
        stats.under_way.end(token)
        if row is not None and _arrived(puller, offer):
            stats.record_transfer(*row)
            tally.add(row)
        else:
            stats.record_failed_transfer()
            tally.count("num_failed_transfers")
        prefill.send(offer.slots)
        parent.send(1)
    return tally.recorded()


def _arrived(puller: Puller, offer: Offer) -> bool:
    """Whether every block holds what prefill wrote."""
    blocks = zip(offer.slots, offer.hash_ids, offer.checksums, strict=True)
    return all(checksum(puller.blocks[slot], hash_id) == expected for slot, hash_id, expected in blocks)
