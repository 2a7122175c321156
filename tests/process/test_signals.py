"""Signal handlers that raise, or call the publisher, while it flushes or its stats are read."""

import os
import signal
import sys
import threading
from typing import Any

import pytest
from workers import CONNECTOR, run_script, transfers

from kvxfer.collector import Collector
from kvxfer.publisher import StatsPublisher


@pytest.mark.parametrize("calls", ["flush", "reduce"])
@pytest.mark.parametrize("delay", [0.15 + number / 500 for number in range(6)])
def test_a_handler_that_leaves_in_a_flush_or_a_read_loses_nothing(
    collector: Collector, calls: str, delay: float
) -> None:
    call = f"leave_from_a_handler({collector.endpoint!r}, {calls!r}, {delay})"
    recorded = int(run_script(f"from workers import leave_from_a_handler; {call}"))
    collector.stop()
    # Whether the row in hand was recorded, where the handler broke in, its caller cannot tell.
    assert transfers(collector) in (recorded - 1, recorded)


def test_a_handler_may_flush_and_close_the_publisher_that_it_interrupts(ipc_endpoint: str) -> None:
    script = f"from workers import close_in_a_handler; close_in_a_handler({ipc_endpoint!r})"
    assert run_script(script) == "closed\n"


@pytest.mark.parametrize("busy", ["enumerate", "start", "drain", "read"])
def test_a_handler_may_record_and_read_whatever_it_interrupts(ipc_endpoint: str, busy: str) -> None:
    script = f"from workers import read_in_handlers; read_in_handlers({ipc_endpoint!r}, {busy!r})"
    recorded, found = map(int, run_script(script).split())
    assert found == recorded > 100


def test_a_flush_that_says_so_has_everything_counted(collector: Collector) -> None:
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the publisher's thread is interrupted wherever it can be
    try:
        with StatsPublisher(CONNECTOR, collector.endpoint, flush_seconds=0.001) as publisher:
            for rounds in range(1, 201):
                for _ in range(20):
                    publisher.stats.record_transfer(0.001, 0.0001, 1024, 2)
                assert publisher.flush(30)
                assert transfers(collector) == 20 * rounds
    finally:
        sys.setswitchinterval(switching)


def test_a_read_that_a_handler_breaks_off_leaves_what_was_recorded(ipc_endpoint: str) -> None:
    class BrokenOffError(Exception):
        pass

    def raise_it(*_: object) -> None:
        raise BrokenOffError

    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        with StatsPublisher(CONNECTOR, ipc_endpoint, flush_seconds=600, linger=0) as publisher:
            stats = publisher.stats
            for _ in range(1000):
                stats.record_transfer(0.001, 0.0001, 1024, 2)
            is_held, go_on = threading.Event(), threading.Event()
            holder = threading.Thread(target=hold, args=(stats, is_held, go_on))
            holder.start()
            is_held.wait(30)
            with pytest.raises(BrokenOffError):
                stats.reduce()  # waits for the holder, who has this broken off
            go_on.set()
            holder.join()
            assert stats.reduce()["Num successful transfers"] == 1000
    finally:
        signal.signal(signal.SIGUSR1, before)


def hold(stats: Any, is_held: threading.Event, go_on: threading.Event) -> None:
    """Let nobody fold until the main thread was interrupted."""
    with stats.exclusively():
        is_held.set()
        go_on.wait(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)
        go_on.wait(30)
