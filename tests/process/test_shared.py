"""Recording into shared memory: what a killed worker had not sent is counted, once, and nobody is harmed by it."""

import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from workers import CONNECTOR, record, record_into, transfers, wait_until

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.errors import ConfigError
from kvxfer.integrations.pools import setup_worker
from kvxfer.publisher import StatsPublisher
from kvxfer.shared import directory_of

# From 3.12 on Python warns of every fork in a process with threads, which a collector's process has.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")


@pytest.fixture
def place(ipc_endpoint: str) -> Iterator[Path]:
    """The directory in which workers of the endpoint leave what they had not sent."""
    directory = directory_of(ipc_endpoint)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def record_until_killed(endpoint: str, counts: Any, threads: int) -> NoReturn:
    """Record in so many threads, each with its own count of what it has recorded."""
    stats = StatsPublisher(CONNECTOR, endpoint, flush_seconds=0.3, buffer="shared").stats
    record, fail = stats.record_transfer, stats.record_failed_transfer

    def work(number: int) -> NoReturn:
        while True:
            for _ in range(50):
                record(0.001, 0.0001, 1024, 2)
                counts[number] += 1
            threading.Event().wait(0.002)

    fail()
    for number in range(1, threads):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    work(0)


def record_killed(method: str, endpoint: str, seconds: float, threads: int = 1) -> int:
    """Let a worker record for some time and kill it; what it had recorded."""
    context = multiprocessing.get_context(method)
    counts = context.RawArray("Q", threads)
    worker = context.Process(target=record_until_killed, args=(endpoint, counts, threads))
    worker.start()
    wait_until(lambda: min(counts) > 0)
    threading.Event().wait(seconds)
    worker.kill()
    worker.join()
    return sum(counts)


def is_all_there(collector: Collector, recorded: int, uncounted: int) -> bool:
    """Whether all is counted; of each thread the last row may be recorded and not yet in the test's count."""
    return recorded <= transfers(collector) <= recorded + uncounted


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_the_last_transfer_that_a_killed_worker_recorded_is_in_the_totals(
    collector: Collector, place: Path, method: str
) -> None:
    rng = random.Random(method)
    recorded = 0
    for kill in range(1, 4):
        recorded += record_killed(method, collector.endpoint, rng.uniform(0, 0.8))
        wait_until(lambda killed=kill, all_of_it=recorded: is_all_there(collector, all_of_it, killed))
    (group,) = collector.snapshot().groups
    assert group.stats.num_failed_transfers.value == 3
    assert collector.pipeline().sources["gone"] == 3
    wait_until(lambda: not list(place.iterdir()))  # removed when what was in it is committed


def test_of_a_killed_worker_that_records_in_threads_every_row_is_counted(collector: Collector, place: Path) -> None:
    assert not place.exists()
    recorded = record_killed("spawn", collector.endpoint, 0.5, threads=3)
    wait_until(lambda: is_all_there(collector, recorded, 3))


def test_what_was_left_with_no_collector_there_is_counted_once_by_those_that_come(
    ipc_endpoint: str, place: Path, tmp_path: Path
) -> None:
    recorded = record_killed("spawn", ipc_endpoint, 0.7)
    (left,) = place.iterdir()
    content = left.read_bytes()
    config = CollectorConfig(endpoint=ipc_endpoint, journal=str(tmp_path / "journal.db"))
    for _ in range(2):  # the second finds it once more, as if the first had been killed before it removed it
        with Collector(config) as collector:
            wait_until(lambda: not left.exists())
            assert is_all_there(collector, recorded, 1)
        left.write_bytes(content)
        left.chmod(0o600)


def test_a_worker_that_closes_leaves_a_file_where_it_was_not_acknowledged_and_else_none(
    ipc_endpoint: str, place: Path
) -> None:
    publisher = StatsPublisher(CONNECTOR, ipc_endpoint, buffer="shared", linger=0)
    record_into(publisher.stats, 300)
    publisher.close()
    (left,) = place.iterdir()
    assert left.name == publisher.source.id
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as collector:
        wait_until(lambda: transfers(collector) == 300)
        with StatsPublisher(CONNECTOR, ipc_endpoint, buffer="shared", linger=10) as publisher:
            record_into(publisher.stats, 5)
        assert transfers(collector) == 305
        assert list(place.iterdir()) == []


def test_a_forked_child_writes_into_a_file_of_its_own(collector: Collector, place: Path) -> None:
    publisher = StatsPublisher(CONNECTOR, collector.endpoint, buffer="shared", flush_seconds=60)
    record = publisher.stats.record_transfer
    record(0.001, 0.0001, 1024, 2)
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(Exception):
            for _ in range(10):
                record(0.001, 0.0001, 1024, 2)
            code = 0
        os._exit(code)  # without a word: what it recorded is in its file
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    record(0.001, 0.0001, 1024, 2)
    wait_until(lambda: transfers(collector) == 10)
    assert publisher.flush(10)
    assert transfers(collector) == 12
    publisher.close()
    assert list(place.iterdir()) == []


def test_files_that_no_worker_left_are_counted_and_cost_nothing_else(ipc_endpoint: str, place: Path) -> None:
    recorded = record_killed("spawn", ipc_endpoint, 0.2)
    (left,) = place.iterdir()
    content = left.read_bytes()
    (place / "1-noise").write_bytes(random.Random(1).randbytes(5000))
    (place / "1-empty").write_bytes(b"")
    (place / "1-link").symlink_to("/etc/passwd")
    (place / "1-torn").write_bytes(content[:100_000])
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as collector:
        wait_until(lambda: collector.pipeline().reports_rejected.get("unreadable_file") == 4)
        wait_until(lambda: bool(collector.snapshot().groups))
        assert collector.pipeline().reports_rejected == {"unreadable_file": 4}
        (group,) = collector.snapshot().groups
        assert recorded <= group.stats.transfer_duration.count <= recorded + 1


def test_where_there_is_no_place_recording_goes_on_in_process_memory(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("kvxfer.shared.SHARED_MEMORY", tmp_path / "file")
    with StatsPublisher(CONNECTOR, collector.endpoint, buffer="shared", linger=10) as publisher:
        record_into(publisher.stats, 500)
        publisher.stats.record_failed_transfer()
    wait_until(lambda: transfers(collector) == 500)
    assert "kvxfer cannot publish" in caplog.text


def lock_of(path: Path) -> str:
    """Whether another process finds the file locked, as that of a living worker is."""
    script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=False)
    return "locked" if "BlockingIOError" in run.stderr else f"free {run.stderr}"


def test_a_worker_without_room_for_its_rows_is_not_taken_for_a_dead_one(
    collector: Collector, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = StatsPublisher(CONNECTOR, collector.endpoint, buffer="shared", linger=10)
    fallocate, calls = os.posix_fallocate, iter(range(100))

    def fallocate_once(file: int, start: int, size: int) -> None:
        if next(calls) == 1:  # of the first row's two areas the second
            raise OSError(errno.ENOSPC, "no space left on device")
        fallocate(file, start, size)

    monkeypatch.setattr("kvxfer.shared.os.posix_fallocate", fallocate_once)
    record_into(publisher.stats, 500)
    assert next(calls) == 2
    assert lock_of(place / publisher.source.id) == "locked"
    publisher.close()
    assert transfers(collector) == 500


def test_of_very_many_left_files_the_next_worker_adds_none(
    collector: Collector, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kvxfer.shared.MAX_FILES", 1)
    with (
        StatsPublisher(CONNECTOR, collector.endpoint, buffer="shared", linger=10),
        StatsPublisher(CONNECTOR, collector.endpoint, buffer="shared", linger=10) as second,
    ):
        assert len(list(place.iterdir())) == 1
        record_into(second.stats, 500)
    assert transfers(collector) == 500
    assert "start a collector" in caplog.text


def test_a_pool_that_is_terminated_loses_nothing_of_what_it_recorded(collector: Collector, place: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(
        2, setup_worker, (CONNECTOR, collector.endpoint, None, "shared")
    ) as pool:
        pool.map(record, [50] * 20, chunksize=1)
    pool.join()
    wait_until(lambda: transfers(collector) == 1000)
    wait_until(lambda: not list(place.iterdir()))


def test_more_rows_than_there_is_room_for_are_all_counted(collector: Collector, place: Path) -> None:
    with StatsPublisher(CONNECTOR, collector.endpoint, buffer="shared", linger=20) as publisher:
        record_into(publisher.stats, 400_000)
        publisher.stats.record_transfer(float("nan"), 0.1, 1, 1)
        publisher.stats.record_transfer("no number", 0.1, 1, 1)
    wait_until(lambda: transfers(collector) == 400_000)
    assert collector.pipeline().observations_rejected == 2
    assert list(place.iterdir()) == []


def test_another_buffer_is_refused(ipc_endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"expected buffer=process\|shared, got 'disk'"):
        StatsPublisher(CONNECTOR, ipc_endpoint, buffer="disk")
