"""Runs a workload: pairs of prefill and decode processes, requests handed out at their time, the tally at the end."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from kvxfer.errors import ConfigError, KVXferError
from kvxfer.workload.blocks import PoolShape
from kvxfer.workload.mover import mover_class
from kvxfer.workload.pair import PEER_ENDED, PairConfig, run_decode, run_prefill
from kvxfer.workload.tally import Recorded, add_up
from kvxfer.workload.trace import Transfer

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_BLOCK_BYTES: Final = 32 * 1024
"""A quarter of what one token of an 8 B model takes: the 182,790 blocks of an hour's trace are then 6 GB."""

DEFAULT_POOL_BLOCKS: Final = 512

# Requests of one pair under way: enough to keep both its processes busy, few enough to stop within a moment.
_WINDOW: Final = 4
_END_SECONDS: Final = 2.0


class Outcome(msgspec.Struct, frozen=True):
    """What a run did: ``requests`` handed out (those that move nothing too), ``seconds`` of wall clock, the tally."""

    requests: int
    seconds: float
    recorded: Recorded


class Workload:
    """Process pairs that move blocks for a connector and publish to an endpoint; a context manager.

    Raises `ConfigError` for a number out of range, `KVXferError` where the connector's mover is not installed, and from
    `run` when a process ends before its time. Leaving the context ends all processes and removes what they shared.
    """

    def __init__(
        self,
        connector: str,
        endpoint: str,
        *,
        workers: int = 2,
        block_bytes: int = DEFAULT_BLOCK_BYTES,
        pool_blocks: int = DEFAULT_POOL_BLOCKS,
    ) -> None:
        """Start the processes."""
        if workers < 1:
            message = f"a workload has at least one worker, got {workers}"
            raise ConfigError(message)
        shape = PoolShape(pool_blocks, block_bytes)
        self._pool_blocks = pool_blocks
        self._pairs: list[_Pair] = []
        try:
            for rank in range(workers):
                with _interrupts_held():
                    self._pairs.append(_Pair(connector, endpoint, shape, rank))
        except BaseException:
            self.close()
            raise

    def run(
        self,
        transfers: Iterable[Transfer],
        *,
        speed: float = 1.0,
        seconds: float | None = None,
        on_progress: Callable[[int], object] = lambda _: None,
    ) -> Outcome:
        """Hand out the transfers, each at its time divided by ``speed``, and wait until all are done.

        ``seconds`` ends the handing out; ``on_progress`` gets the number of requests handed out so far.
        """
        start, requests = time.monotonic(), 0
        for transfer in transfers:
            due = start + transfer.at_seconds / speed
            if seconds is not None and max(due, time.monotonic()) - start >= seconds:
                break
            self._serve_until(due)
            if transfer.blocks:
                self._hand_out(self._pairs[requests % len(self._pairs)], transfer.blocks)
            requests += 1
            on_progress(requests)
        recorded = add_up(self._finish())
        return Outcome(requests, time.monotonic() - start, recorded)

    def _hand_out(self, pair: "_Pair", blocks: tuple[int, ...]) -> None:
        for first in range(0, len(blocks), self._pool_blocks):
            while pair.under_way >= _WINDOW:
                self._serve(None)
            pair.send(blocks[first : first + self._pool_blocks])

    def _serve_until(self, due: float) -> None:
        while (left := due - time.monotonic()) > 0:
            self._serve(left)

    def _serve(self, timeout: float | None) -> None:
        """Take what the processes say; raise when one has ended."""
        waiting = {pair.progress: pair for pair in self._pairs if pair.recorded is None}
        sentinels = {process.sentinel: pair for pair in waiting.values() for process in pair.processes}
        for ready in wait([*waiting, *sentinels], timeout):
            if ready in waiting:
                waiting[ready].take()
            elif not sentinels[ready].progress.poll():
                sentinels[ready].blame()

    def _finish(self) -> list[Recorded]:
        for pair in self._pairs:
            pair.send(None)
        while any(pair.recorded is None for pair in self._pairs):
            self._serve(None)
        return [pair.recorded for pair in self._pairs if pair.recorded is not None]

    def close(self) -> None:
        """End all processes and remove what they shared."""
        with _interrupts_held():
            for pair in self._pairs:
                pair.close()
            self._pairs = []

    def __enter__(self) -> "Self":
        """Run within the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all processes."""
        self.close()


class _Pair:
    """One prefill and one decode process, seen from the parent."""

    def __init__(self, connector: str, endpoint: str, shape: PoolShape, rank: int) -> None:
        self.mover = mover_class(connector)(shape)
        self.under_way = 0
        self.recorded: Recorded | None = None
        context = get_context("spawn")
        request_end, self.requests = context.Pipe(duplex=False)
        prefill_end, decode_end = context.Pipe()
        self.progress, progress_end = context.Pipe(duplex=False)
        config = PairConfig(self.mover, shape, connector, endpoint, rank)
        prefill = context.Process(
            target=run_prefill, args=(config, request_end, prefill_end), name=f"prefill-{rank}", daemon=True
        )
        decode = context.Process(
            target=run_decode, args=(config, decode_end, progress_end), name=f"decode-{rank}", daemon=True
        )
        self.processes: list[Any] = [prefill, decode]
        self._start((request_end, prefill_end, decode_end, progress_end))

    def _start(self, child_ends: Iterable[Connection]) -> None:
        try:
            for process in self.processes:
                process.start()
        except BaseException:
            self.close()
            raise
        finally:
            # The children hold these ends now: an end that is open here too would never be seen to close.
            for end in child_ends:
                end.close()

    def send(self, hash_ids: tuple[int, ...] | None) -> None:
        """Hand a request to prefill, or with None tell it that there are no more."""
        try:
            self.requests.send(hash_ids)
        except (BrokenPipeError, ConnectionResetError):
            self.blame()
        self.under_way += hash_ids is not None

    def take(self) -> None:
        """Take one message of decode: a request is done, or all is."""
        try:
            message = self.progress.recv()
        except EOFError:
            self.blame()
        if message == 1:
            self.under_way -= 1
        else:
            self.recorded = message

    def blame(self) -> NoReturn:
        """Raise for the process of this pair that ended first."""
        guilty: list[Any] = []
        for _ in self.processes:  # the one seen first may have ended because of the other
            alive = {process.sentinel: process for process in self.processes if process.exitcode is None}
            for ended in wait(list(alive), _END_SECONDS):
                alive[ended].join(_END_SECONDS)  # a sentinel fires a moment before there is an exit code
            guilty = [process for process in self.processes if process.exitcode not in (None, 0, PEER_ENDED)]
            if guilty:
                break
        culprit = (guilty or self.processes)[0]
        message = f"{culprit.name} ended with exit code {culprit.exitcode} before its work was done"
        raise KVXferError(message) from None

    def close(self) -> None:
        """End both processes, the sooner the less they have to lose, and remove what they shared."""
        self.requests.close()
        self.progress.close()
        started = [process for process in self.processes if process.pid is not None]
        for process in reversed(started):
            process.join(_END_SECONDS if self.recorded is not None else 0)
            process.kill()
            process.join()
        self.mover.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back in this thread, and for ever in the processes started meanwhile: the parent ends the run."""
    resource_tracker.ensure_running()  # its start, else part of the first process's, would let SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
