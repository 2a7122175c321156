"""What worker processes of the tests run; importable by name, as spawned processes need it."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.integrations.pools import _own_publisher, flush_worker, setup_worker, worker_stats
from kvxfer.publisher import StatsPublisher

CONNECTOR = "NixlConnector"
FLUSHED = 500
PENDING = 7

_busy: list[Any] = []


def transfers(collector: Collector) -> int:
    """What was collected so far; a report that was refused or lost fails the test."""
    snapshot = collector.snapshot()
    assert snapshot.pipeline.reports_rejected == {}
    assert snapshot.pipeline.reports_lost == 0
    return sum(group.stats.reduce()["Num successful transfers"] for group in snapshot.groups)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        threading.Event().wait(0.01)


def in_a_fork(work: Callable[[], None]) -> None:
    """Run in a plain fork, which is killed if it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def run_script(code: str) -> str:
    """Run Python of this directory as a program of its own; what it printed."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=60, stdout=subprocess.PIPE, text=True)
    return done.stdout


def record_into(stats: Any, count: int) -> None:
    for _ in range(count):
        stats.record_transfer(0.001, 0.0001, 1024, 2)


def publish_with_many(endpoint: str, count: int) -> None:
    """Leave so many publishers to the end of the process, each with something to tell."""
    for _ in range(count):
        record_into(StatsPublisher(CONNECTOR, endpoint).stats, 1)


# --- signal handlers


def leave_from_a_handler(endpoint: str, calls: str, delay: float) -> None:
    """Record and flush, or read, until a handler leaves; print how much was recorded."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(0)

    recorded = 0
    publisher = StatsPublisher(CONNECTOR, endpoint, linger=30.0)
    signal.signal(signal.SIGALRM, leave)
    try:
        with publisher:
            record_transfer = publisher.stats.record_transfer
            call: Callable[[], Any] = publisher.flush if calls == "flush" else publisher.stats.reduce
            signal.setitimer(signal.ITIMER_REAL, delay)
            while True:
                for _ in range(3000):
                    recorded += 1
                    record_transfer(0.001, 0.0001, 1024, 2)
                call()
    finally:
        publisher.close(30.0)
        sys.stdout.write(f"{recorded}\n")


def close_in_a_handler(endpoint: str) -> None:
    """Flush until a handler closes."""
    publisher = StatsPublisher(CONNECTOR, endpoint, linger=0.2)

    def close(*_: object) -> NoReturn:
        publisher.flush(0.1)
        publisher.close()
        os.write(1, b"closed\n")
        os._exit(0)

    signal.signal(signal.SIGALRM, close)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    while True:
        record_into(publisher.stats, 10)
        publisher.flush()


def read_in_handlers(endpoint: str, busy: str) -> None:
    """Record and read in a handler, for a second, whatever the main thread does; print what was recorded and found."""
    publisher = StatsPublisher(CONNECTOR, endpoint, flush_seconds=600.0, linger=0.0)
    stats: Any = publisher.stats
    recorded = found = 0

    def handle(*_: object) -> None:
        nonlocal recorded
        stats.record_transfer(0.001, 0.0001, 1024, 2)
        recorded += 1
        stats.summary()
        signal.setitimer(signal.ITIMER_REAL, 0.0005)  # the next one, when this is over

    calls: dict[str, Callable[[], Any]] = {
        "enumerate": threading.enumerate,
        "start": lambda: threading.Thread(target=int).start(),
        "drain": stats.clone_and_reset,
        "read": stats.reduce,
    }
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        taken = calls[busy]()
        found += taken.transfer_duration.count if busy == "drain" else 0
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    found += stats.transfer_duration.count
    sys.stdout.write(f"{recorded} {found}\n")
    sys.stdout.flush()
    publisher.close()


# --- tasks of pools


def record(count: int) -> int:
    """Record in a pool's worker."""
    record_into(worker_stats(), count)
    return os.getpid()


def record_and_flush(count: int) -> bool:
    record(count)
    return flush_worker(10)


def set_up_again(endpoint: str) -> bool:
    """Call the initializer once more; whether the stats are still the same."""
    before = worker_stats()
    setup_worker(CONNECTOR, endpoint, {"rank": "other"})
    return worker_stats() is before


def stay() -> NoReturn:
    """Be busy until killed."""
    _busy[-1].release()
    while True:
        threading.Event().wait(60)


def record_in_a_pool_of_its_own(method: str, endpoint: str, counts: list[int]) -> int:
    """Record in this worker, and so often in the workers of a pool that it starts; the number of processes."""
    record(1)
    context = multiprocessing.get_context(method)
    initargs = (CONNECTOR, endpoint, {"role": "inner"})
    with ProcessPoolExecutor(2, mp_context=context, initializer=setup_worker, initargs=initargs) as pool:
        pids = set(pool.map(record, counts))
    record(1)
    return len(pids - {os.getpid()})


def set_up_unhurried(endpoint: str, busy: Any = None) -> None:
    """Set the worker up so that nothing is sent but what a task flushes; ``busy`` is released by `stay`."""
    setup_worker(CONNECTOR, endpoint)
    publisher = _own_publisher()
    publisher._draining.flush_seconds = math.inf
    _busy.append(busy)


def flush_and_record_more(count: int) -> int:
    """Flush what is recorded, then record a little that is not; the process."""
    assert record_and_flush(count)
    return record(PENDING)


def kill_this_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


# --- processes


def publish(endpoint: str, count: int, ending: str = "return", recorded: Any = None) -> None:
    """Record, say so, and leave in one of the ways there are, without closing the publisher."""
    publisher = StatsPublisher(CONNECTOR, endpoint, flush_seconds=600)
    if ending == "thread":
        threading.Thread(target=record_later, args=(publisher.stats, count)).start()
        return
    if ending == "executor":
        ThreadPoolExecutor(1).submit(record_later, publisher.stats, count)
        return
    record_into(publisher.stats, count)
    if recorded is not None:
        recorded.set()
    leave(ending)


def publish_until(endpoint: str, heard: Any, stop: Any, recorded: Any) -> None:
    """Record all the time until told to stop; put how much it was, and how much is not acknowledged.

    ``heard`` is released when a collector has acknowledged the first reports.
    """
    publisher = StatsPublisher(CONNECTOR, endpoint, flush_seconds=0.02, linger=20)
    count = was_heard = 0
    while not stop.wait(0.001):
        record_into(publisher.stats, 10)
        count += 10
        if not was_heard and publisher.delivery.unacknowledged < publisher.delivery.reports:
            was_heard = 1
            heard.release()
    publisher.close()
    recorded.put((count, publisher.delivery.unacknowledged))


def record_later(stats: Any, count: int) -> None:
    """Record when the main thread is long back from its function and waits for this one."""
    threading.Event().wait(0.2)  # there is nothing to be seen of it from here
    record_into(stats, count)


def leave(ending: str) -> None:
    if ending == "exit":
        sys.exit(0)
    if ending == "raise":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the traceback is expected
        message = "on purpose"
        raise RuntimeError(message)


def flush_and_stay(endpoint: str, flushed: Any, leave: Any) -> None:
    """Flush, record a little more, and stay until killed or told to leave without exit handlers."""
    publisher = StatsPublisher(CONNECTOR, endpoint, flush_seconds=600)
    record_into(publisher.stats, FLUSHED)
    assert publisher.flush(timeout=20)
    record_into(publisher.stats, PENDING)
    flushed.set()
    leave.wait(60)
    os._exit(0)


def publish_beside_a_child(method: str, endpoint: str, count: int) -> None:
    """Record, start a process that records as much, and return when it has ended."""
    stats = StatsPublisher(CONNECTOR, endpoint, flush_seconds=600).stats
    record_into(stats, count)
    child = multiprocessing.get_context(method).Process(target=publish, args=(endpoint, count))
    child.start()
    record_into(stats, count)
    child.join()
    assert child.exitcode == 0


def fork_and_exit(endpoint: str, depth: int) -> NoReturn:
    """Record before and after each of so many nested forks; every process ends by sys.exit alone."""
    stats = StatsPublisher(CONNECTOR, endpoint, flush_seconds=600).stats
    record_into(stats, 100)
    pid = 0
    while depth and pid == 0:
        depth -= 1
        pid = os.fork()
        record_into(stats, 10)
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    sys.exit(0)


def keep_recording(stats: Any, stop: threading.Event, recorded: list[int]) -> None:
    """Record as fast as possible; ``recorded`` says how many in the end."""
    count = 0
    while not stop.is_set():
        record_into(stats, 10)
        count += 10
    recorded.append(count)


def fork_under_load(endpoint: str, depth: int) -> NoReturn:
    """Fork while a thread records and the publisher flushes, so many deep; each process prints what it recorded."""
    publisher = StatsPublisher(CONNECTOR, endpoint, flush_seconds=0.005)
    pid = 0
    while pid == 0:
        stop, recorded = threading.Event(), list[int]()
        thread = threading.Thread(target=keep_recording, args=(publisher.stats, stop, recorded))
        thread.start()
        stop.wait(0.1)
        pid, depth = os.fork() if depth else -1, depth - 1
    stop.wait(0.1)
    stop.set()
    thread.join()
    sys.stdout.write(f"{recorded[0]}\n")
    sys.stdout.flush()
    if pid > 0:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    sys.exit(0)


# --- programs that become another one


def become(code: str) -> NoReturn:
    """Replace this program by another one of this directory."""
    os.execv(sys.executable, [sys.executable, "-W", "ignore", "-c", code])  # noqa: S606 - no shell is wanted


def publish_and_become_another(endpoint: str, ending: str) -> NoReturn:
    """Flush, record a little more, perhaps close, and become a program that says what it holds and publishes."""
    publisher = StatsPublisher(CONNECTOR, endpoint, flush_seconds=600)
    record_into(publisher.stats, FLUSHED)
    assert publisher.flush(timeout=20)
    record_into(publisher.stats, PENDING)
    if ending == "close":
        publisher.close(20)
    become(f"from workers import inherited, publish; print(inherited()); publish({endpoint!r}, 1)")


def inherited() -> list[str]:
    """What the descriptors of this program lead to, without the three of every program."""
    found = (Path("/proc/self/fd") / str(fd) for fd in range(3, 256))
    return [str(fd.readlink()) for fd in found if fd.is_symlink()]


def collect_and_become_another(endpoint: str, journal: str) -> NoReturn:
    """Collect, and become a program that collects at the same endpoint, with the same journal, until one row came."""
    collector = Collector(CollectorConfig(endpoint=endpoint, journal=journal)).start()
    wait_until(lambda: transfers(collector) == 1)
    become(f"from workers import collect_two; collect_two({endpoint!r}, {journal!r})")


def collect_two(endpoint: str, journal: str) -> None:
    """Go on where the program before has ended, until another row came."""
    with Collector(CollectorConfig(endpoint=endpoint, journal=journal)) as collector:
        wait_until(lambda: transfers(collector) == 2)
