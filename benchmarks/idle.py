"""What does the tap of `kvxfer.integrations.vllm` cost an engine's step in which nothing was transferred?

The connectors are doubles that have vLLM's own class of stats; its `NixlConnector` gives None while they are empty, and
others give the empty object. The time is this thread's own; the publisher's runs beside it, as it does in an engine.
"""

import os
import statistics
import time
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from timeit import timeit
from types import SimpleNamespace
from typing import Any

from benchmarks.peers import vllm_class
from kvxfer.integrations.vllm.tapping import tap

CALLS = 20_000
REPETITIONS = 31
STEPS_PER_SECOND = 400  # of an engine that waits for a send to be fetched


class _Connector:
    """Has measured nothing."""

    def __init__(self, *, gives_empty: bool) -> None:
        self._stats = vllm_class()
        self._gives_empty = gives_empty

    def get_kv_connector_stats(self) -> Any:  # noqa: ANN401 - as vLLM's
        if self._gives_empty or not self._stats.is_empty():
            return self._stats
        return None

    def shutdown(self) -> None:
        """End nothing."""


def _tapped(*, gives_empty: bool) -> _Connector:
    connector = _Connector(gives_empty=gives_empty)
    transfer = SimpleNamespace(kv_connector="NixlConnector", engine_id="idle", kv_role="kv_consumer")
    config = SimpleNamespace(kv_transfer_config=transfer, parallel_config=SimpleNamespace(rank=0, data_parallel_rank=0))
    tap(connector, config, "WORKER")
    return connector


def idle_steps() -> Iterator[str]:
    """A line for each: nanoseconds with and without, their ratio, and what that is of an idle engine's second."""
    with TemporaryDirectory() as directory:
        os.environ["KVXFER_ENDPOINT"] = f"ipc://{directory}/nobody.ipc"
        for gives_empty in (False, True):
            yield _compare("an empty object" if gives_empty else "None", gives_empty=gives_empty)


def _compare(gives: str, *, gives_empty: bool) -> str:
    plain, tapped = _Connector(gives_empty=gives_empty), _tapped(gives_empty=gives_empty)
    pairs = [
        tuple(
            timeit(each.get_kv_connector_stats, timer=time.thread_time, number=CALLS) / CALLS * 1e9
            for each in (tapped, plain)
        )
        for _ in range(REPETITIONS)
    ]
    tapped.shutdown()
    with_tap, without = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    part = (with_tap - without) * STEPS_PER_SECOND / 1e9
    return (
        f"a step that gives {gives}: {with_tap:,.0f} ns tapped, {without:,.0f} ns untapped, ratio {ratio:.2f};"
        f" at {STEPS_PER_SECOND} steps a second {part * 1e6:,.0f} millionths of a core"
    )
