"""How many bytes is a report, with its envelope? Against the payload of vLLM's lists without one."""

from collections.abc import Callable
from functools import partial

from benchmarks.harness import Row
from benchmarks.peers import VllmStats, telemetry
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.outbox import Outbox
from kvxfer.wire import Source

SIZES = (10, 100, 1_000, 10_000, 100_000)
BUDGETS = {1_000: 1 / 12, 10_000: 1 / 60}
UNIT = "B"
LABELS = {"engine": "decode-0", "role": "kv_consumer", "rank": "0"}


def report(transfers: int, seed: int = 1) -> bytes:
    """The frame of one report of so many transfers."""
    stats = NixlConnectorStats()
    for result in telemetry(transfers, seed):
        stats.record_transfer(result.xferDuration / 1e6, result.postDuration / 1e6, result.totalBytes, result.descCount)
    outbox = Outbox(Source("0" * 32, "host", 1, 0.0, LABELS), "NixlConnector", 0.0)
    outbox.observe(stats.drain(for_report=True), 1.0)
    outbox.flush(1.0)
    return outbox.next_frame or b""


def payload(transfers: int, seed: int = 1) -> bytes:
    """vLLM's lists of the same transfers."""
    stats = VllmStats()
    for result in telemetry(transfers, seed):
        stats.record_transfer(result)
    return stats.encode()


CASES: dict[str, Callable[[bool], float]] = {}
for _size in SIZES:
    CASES[f"kvxfer_{_size}"] = partial(lambda _quick, size: len(report(size)), size=_size)
    CASES[f"vllm_{_size}"] = partial(lambda _quick, size: len(payload(size)), size=_size)
ROWS = tuple(Row(f"{size:,} transfers", f"kvxfer_{size}", f"vllm_{size}", BUDGETS.get(size)) for size in SIZES)
