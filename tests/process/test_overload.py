"""A collector that is away, stopped, slow or without a disk: nobody waits, memory stays flat, the totals are equal."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers import wait_until

from benchmarks.faults import PAGE_BYTES, ROWS, Recorded, Service, differences, memory_mib
from kvxfer.config import CollectorConfig
from kvxfer.interval import Interval

PAUSE = 0.02  # of each worker between two thousand rows: 50,000 a second
GROWTH_MIB = 8.0  # a report of these rows takes 4 kB, 64 of them a quarter of a MiB


class SlowExporter:
    """Takes 100 ms for an interval that lasts as long."""

    def export(self, interval: Interval) -> None:
        del interval
        time.sleep(0.1)

    def close(self) -> None:
        """Be done."""


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def config(endpoint: str, directory: Path) -> CollectorConfig:
    return CollectorConfig(endpoint=endpoint, journal=str(directory / "journal.db"), interval_seconds=0.5)


def workers_mib(service: Service) -> list[float]:
    return [memory_mib(worker) for worker, _ in service.workers]


def wait_until_all_record(service: Service) -> None:
    wait_until(lambda: min(service.times) > ROWS // 100)


def finish(service: Service) -> tuple[list[Recorded], Interval]:
    recorded = service.stop_workers()
    assert service.stop_collector() == 0
    found = service.committed()
    assert differences(service.expected(recorded), found) == []
    assert found.pipeline.reports_lost == found.pipeline.observations_cut == 0
    assert found.pipeline.reports_rejected == {}
    return recorded, found


def stay_away(service: Service, seconds: float) -> None:
    """With the collector away: all workers go on recording, and once 64 reports wait, in no more memory."""
    wait(64 * 0.05 + 2)
    before, memory = list(service.times), workers_mib(service)
    wait(seconds)
    assert all(now > then + seconds for now, then in zip(service.times, before, strict=True))
    assert all(now < then + GROWTH_MIB for now, then in zip(workers_mib(service), memory, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_collector_stopped_for_30_s_holds_nobody_up_and_grows_nobodys_memory(
    ipc_endpoint: str, tmp_path: Path
) -> None:
    with Service(config(ipc_endpoint, tmp_path), pause=PAUSE) as service:
        wait_until_all_record(service)
        wait(2)
        memory = memory_mib(service.collector)
        os.kill(service.collector.pid or 0, signal.SIGSTOP)
        stay_away(service, 25)
        os.kill(service.collector.pid or 0, signal.SIGCONT)
        wait(3)
        assert memory_mib(service.collector) < memory + 2 * GROWTH_MIB
        finish(service)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_collector_away_for_a_minute_finds_every_count_on_its_return(ipc_endpoint: str, tmp_path: Path) -> None:
    with Service(config(ipc_endpoint, tmp_path), pause=PAUSE) as service:
        service.kill_collector()
        wait_until_all_record(service)
        stay_away(service, 60)
        service.start_collector()
        recorded, _ = finish(service)
    # The rest was merged into the interval that stayed open.
    assert all(worker.reports < 300 for worker in recorded)


@pytest.mark.timeout(200)
def test_an_exporter_that_takes_as_long_as_the_interval_costs_no_count(ipc_endpoint: str, tmp_path: Path) -> None:
    slow = CollectorConfig(endpoint=ipc_endpoint, journal=str(tmp_path / "journal.db"), interval_seconds=0.1)
    with Service(slow, pause=PAUSE, exporters=(SlowExporter(),)) as service:
        wait_until_all_record(service)
        memory = memory_mib(service.collector)
        wait(5)
        assert memory_mib(service.collector) < memory + 2 * GROWTH_MIB
        finish(service)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a small file system is root's to do")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=4m", "kvxfer", disk), check=True, timeout=20)
    yield disk
    subprocess.run(("umount", disk), check=True, timeout=20)


def fill(disk: Path) -> Path:
    """Take every page that is free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE_BYTES))
        except OSError:
            return filler


@pytest.mark.timeout(200)
def test_a_disk_that_is_full_for_a_while_costs_no_count_and_a_kill_after_it_neither(
    ipc_endpoint: str, small_disk: Path
) -> None:
    with Service(config(ipc_endpoint, small_disk), workers=2, pause=PAUSE) as service:
        wait_until_all_record(service)
        filler = fill(small_disk)
        wait(5)
        filler.unlink()
        wait(7)  # a write that failed is tried again after 5 s
        service.kill_collector()  # what was acknowledged without a disk was written as soon as there was one
        service.start_collector()
        finish(service)
