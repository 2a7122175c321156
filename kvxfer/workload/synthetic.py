"""Requests made up from a seed, for runs without a trace file."""

from collections.abc import Iterator

import numpy as np

from kvxfer.workload.trace import Request

TOKENS_PER_BLOCK = 512
NEW_BLOCKS = (10, 30)
SYSTEM_PROMPT = tuple(range(4))
# Of the Mooncake conversation trace's requests 61 % open a conversation; the others go on with one.
OPENING_RATIO = 0.6
OPEN_CONVERSATIONS = 64
# 200 blocks are 102,400 tokens: a context of the length that ends a conversation with the models of today.
LONGEST_CONTEXT = 200


def synthetic_requests(seed: int, requests_per_second: float = 50.0) -> Iterator[Request]:
    """Yield requests without end, the same for the same seed: conversations that grow by 10 to 30 blocks a turn.

    All conversations share a system prompt of four blocks, a turn repeats the blocks of its conversation so far, and
    the times between requests are exponential. Memory is bounded: 64 conversations are open at a time.
    """
    random = np.random.default_rng(seed)
    conversations: list[tuple[int, ...]] = []
    milliseconds, next_id = 0.0, len(SYSTEM_PROMPT)
    while True:
        size = int(random.integers(*NEW_BLOCKS, endpoint=True))
        hash_ids = (*_context(random, conversations), *range(next_id, next_id + size))
        next_id += size
        conversations.append(hash_ids)
        yield Request(milliseconds, len(hash_ids) * TOKENS_PER_BLOCK, int(random.integers(1, 1000)), hash_ids)
        milliseconds += float(random.exponential(1000 / requests_per_second))


def _context(random: np.random.Generator, conversations: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Give the blocks that the next request repeats, and take their conversation out of the bounded list."""
    goes_on = bool(conversations) and random.random() >= OPENING_RATIO
    if not goes_on and len(conversations) < OPEN_CONVERSATIONS:
        return SYSTEM_PROMPT
    context = conversations.pop(int(random.integers(len(conversations))))
    return context if goes_on and len(context) < LONGEST_CONTEXT else SYSTEM_PROMPT
