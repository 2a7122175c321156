"""What worker processes of the tests run; importable by name, as spawned processes need it."""

import os
import sys
import time
from typing import Any

from kvxfer.integrations.pools import worker_stats
from kvxfer.publisher import StatsPublisher

CONNECTOR = "NixlConnector"


def record(count: int) -> int:
    """Record in a pool's worker."""
    stats = worker_stats()
    for _ in range(count):
        stats.record_transfer(0.001, 0.0001, 1024, 2)
    return os.getpid()


def publish(endpoint: str, count: int, ending: str = "return") -> None:
    """Record and leave in one of the ways there are, without closing the publisher."""
    publisher = StatsPublisher(CONNECTOR, endpoint)
    for _ in range(count):
        publisher.stats.record_transfer(0.001, 0.0001, 1024, 2)
    leave(publisher, ending)


def leave(publisher: Any, ending: str) -> None:
    if ending == "exit":
        sys.exit(0)
    if ending == "raise":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the traceback is expected
        message = "on purpose"
        raise RuntimeError(message)
    if ending == "os._exit":
        publisher.flush(timeout=10)
        time.sleep(0.3)  # what was handed over is on its way; nothing after this is
        publisher.stats.record_transfer(0.001, 0.0001, 1024, 2)
        os._exit(0)
