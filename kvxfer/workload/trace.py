"""Request traces in the Mooncake format, and the transfers that follow from them.

A trace is a file of JSON lines, one request a line (kvcache-ai/Mooncake, ``FAST25-release/traces``). Only reading and
planning live here: nothing moves and no clock is read.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from kvxfer.errors import TraceError

# Bounds the plan of an endless stream to about 100 MiB; the Mooncake traces have fewer than 200,000 blocks.
CACHE_BLOCKS = 1 << 20

NotNegative = msgspec.Meta(ge=0)


class Request(msgspec.Struct, frozen=True):
    """One request of a trace; fields that are not named here are ignored.

    ``timestamp`` is in milliseconds since the start of the trace, lengths are in tokens, and ``hash_ids`` has one id
    per block of 512 prompt tokens: equal ids are equal prefixes.
    """

    timestamp: Annotated[float, NotNegative]
    input_length: Annotated[int, NotNegative]
    output_length: Annotated[int, NotNegative]
    hash_ids: tuple[Annotated[int, NotNegative], ...]


class Transfer(msgspec.Struct, frozen=True):
    """What one request moves: the blocks that are not there yet, ``at_seconds`` after the start; maybe none."""

    at_seconds: float
    blocks: tuple[int, ...]


def read_trace(path: str | Path) -> Iterator[Request]:
    """Yield the requests of a trace file in the order of its lines; blank lines are skipped.

    Raises `TraceError` when the file cannot be read, and at the first line that is no plausible request.
    """
    decoder = msgspec.json.Decoder(Request)
    for number, line in _numbered_lines(Path(path)):
        try:
            yield decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            message = (
                f"{path}:{number}: {error}: give one JSON object a line, "
                "with timestamp, input_length, output_length and hash_ids"
            )
            raise TraceError(message) from error


def plan_transfers(requests: Iterable[Request]) -> Iterator[Transfer]:
    """Yield one transfer per request: its blocks that no earlier request had, each once, in their order.

    This is the prefix cache of one decode pool that keeps the last 2**20 blocks. A request whose blocks are all there
    yields a transfer of no blocks: it moves nothing, and it is still a request.
    """
    moved: OrderedDict[int, None] = OrderedDict()
    for request in requests:
        blocks = tuple(hash_id for hash_id in dict.fromkeys(request.hash_ids) if hash_id not in moved)
        moved.update(dict.fromkeys(blocks))
        while len(moved) > CACHE_BLOCKS:
            moved.popitem(last=False)
        yield Transfer(request.timestamp / 1000, blocks)


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their numbers, the first being 1."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        message = f"{path}: {error.strerror}: name a readable trace file in the Mooncake format"
        raise TraceError(message) from error
