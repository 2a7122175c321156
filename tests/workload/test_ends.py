"""How a workload ends when it is not let finish, and what a transfer that went wrong counts as."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import Pipe
from multiprocessing.context import SpawnProcess
from typing import IO, Any

import pytest

from kvxfer.errors import KVXferError
from kvxfer.underway import UnderWayState
from kvxfer.workload import nixl, pair
from kvxfer.workload.blocks import BlockWriter, PoolShape
from kvxfer.workload.run import Workload
from kvxfer.workload.shared_memory import SEGMENT_FILES, SharedMemoryMover
from kvxfer.workload.tally import Tally

DRIVER = """
import signal, sys
from kvxfer.workload.run import Workload
from kvxfer.workload.trace import Transfer

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
    with Workload("SharedMemoryConnector", sys.argv[1], workers=2, block_bytes=4096, pool_blocks=8) as workload:
        print("started", flush=True)
        paced = (Transfer(n / 1000, (n,)) for n in range(1_000_000))
        workload.run(paced, on_progress=lambda requests: requests == 20 and print("moving", flush=True))
"""


class Counted:
    """Stats that keep what they are given."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.failed = 0
        self.under_way = UnderWayState()

    def record_transfer(self, *row: float) -> None:
        self.rows.append(row)

    def record_failed_transfer(self) -> None:
        self.failed += 1


def segments(pid: int) -> list[str]:
    return [file.name for file in SEGMENT_FILES.glob(f"kvxfer-{pid}-*")]


@pytest.fixture
def mover() -> Iterator[SharedMemoryMover]:
    with closing(SharedMemoryMover(PoolShape(4, 64))) as mover:
        yield mover


@pytest.mark.skipif(not SEGMENT_FILES.exists(), reason="the system does not show its segments as files")
@pytest.mark.parametrize("moment", ["started", "moving"])
def test_ctrl_c_ends_everything_and_only_the_parent_speaks(ipc_endpoint: str, moment: str) -> None:
    command = [sys.executable, "-c", DRIVER, ipc_endpoint]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        assert moment in until(driver.stdout, moment)
        os.killpg(driver.pid, signal.SIGINT)
        _, said = driver.communicate(timeout=5)  # every process holds stderr: its end is the end of them all
    assert driver.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1
    assert "resource_tracker" not in said
    assert not segments(driver.pid)


def until(lines: IO[str] | None, word: str) -> str:
    assert lines is not None
    return next((line for line in lines if word in line), "")


def test_a_process_that_cannot_be_started_leaves_nothing(ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, names = SpawnProcess.start, []

    def refuse_the_last(process: SpawnProcess) -> None:
        names.append(process.name)
        if process.name == "decode-1":
            raise OSError("no more processes")
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", refuse_the_last)
    with pytest.raises(OSError, match="no more processes"):
        Workload("SharedMemoryConnector", ipc_endpoint, workers=2, block_bytes=64, pool_blocks=4)
    assert names == ["prefill-0", "decode-0", "prefill-1", "decode-1"]
    assert not segments(os.getpid())


def test_a_block_changed_on_its_way_makes_a_failed_transfer_and_no_row(mover: SharedMemoryMover) -> None:
    stats, tally = Counted(), Tally(mover.fields, mover.counters)
    with closing(mover.open_pool()) as pool, closing(mover.open_puller(b"")) as puller:
        writer = BlockWriter(64)
        checksums = tuple(writer.write(pool.blocks[slot], hash_id) for slot, hash_id in ((0, 10), (1, 11)))
        pool.blocks[1][5] ^= 1
        offers, decode_end = Pipe()
        progress_end, parent_end = Pipe()
        for offer in (pair.Offer((10,), (0,), checksums[:1]), pair.Offer((10, 11), (0, 1), checksums), None):
            offers.send(offer)
        recorded = pair._pull_all(puller, stats, tally, decode_end, parent_end)
    assert [row[1:] for row in stats.rows] == [(64, 1)]
    assert stats.failed == recorded["num_failed_transfers"] == 1
    assert recorded["num_blocks"] == {"count": 1, "sum": 1}
    assert [offers.recv(), offers.recv()] == [(0,), (0, 1)]
    assert [progress_end.recv(), progress_end.recv()] == [1, 1]
    for end in (offers, decode_end, progress_end, parent_end):
        end.close()


def test_a_transfer_the_mover_refused_counts_as_failed(mover: SharedMemoryMover) -> None:
    class Refusing:
        blocks = None

        def pull(self, slots: tuple[int, ...]) -> None:
            """Move nothing."""

    stats, tally = Counted(), Tally(mover.fields, mover.counters)
    offers, decode_end = Pipe()
    progress_end, parent_end = Pipe()
    for offer in (pair.Offer((10,), (0,), (0,)), None):
        offers.send(offer)
    recorded = pair._pull_all(Refusing(), stats, tally, decode_end, parent_end)  # type: ignore[arg-type]
    assert (stats.failed, stats.rows, recorded["num_failed_transfers"]) == (1, [], 1)
    for end in (offers, decode_end, progress_end, parent_end):
        end.close()


def test_without_nixl_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "find_spec", lambda _: None)
    with pytest.raises(KVXferError, match=r"pip install 'kvxfer\[nixl\]'"):
        nixl.NixlMover(PoolShape(4, 64))
