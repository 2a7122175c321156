"""Does a worker grow while its collector is away?

An hour of reports of 1,000 transfers, one a second, with a clock that is told the time: what the process holds after
the first 64 reports, which are kept, beside what it holds in the end.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.harness import Row
from benchmarks.peers import telemetry
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.outbox import MAX_KEPT, Outbox
from kvxfer.wire import Source

REPETITIONS = 3
UNIT = "MiB"
HOUR = 3600


def resident() -> float:
    """What this process holds, in MiB."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - a file of the kernel
        return int(statm.read().split()[1]) * 4096 / 2**20


def _away(quick: bool, seconds: int) -> float:  # noqa: FBT001 - the harness calls it
    outbox = Outbox(Source("away", "host", 1, 0.0, {}), "NixlConnector", 0.0)
    stats, results = NixlConnectorStats(), telemetry(1000)
    for now in range(1, 1 + (min(seconds, 300) if quick else seconds)):
        for r in results:
            stats.record_transfer(r.xferDuration / 1e6, r.postDuration / 1e6, r.totalBytes, r.descCount)
        outbox.observe(stats.drain(for_report=True), now)
        outbox.flush(now)
        while outbox.next_frame is not None:
            outbox.sent(now)
        outbox.tick(now)
    return resident()


CASES: dict[str, Callable[[bool], float]] = {
    "hour": partial(_away, seconds=HOUR),
    "kept": partial(_away, seconds=MAX_KEPT),
}
ROWS = (Row("a worker whose collector is away for an hour, beside 64 reports", "hour", "kept", 1.02),)
