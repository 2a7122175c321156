"""Does a live collector take whatever is sent to it, and count those who behave exactly once all the while?

A collector of a process of its own, with a real socket, a journal and exporters, is sent `mutants` by one connection,
and by the same one, every so often, reports of eight sources that behave. Over other connections come frames beyond the
limit, messages of many parts and bytes that are no ZeroMQ. At the end what the well-behaved have recorded is compared
with what is counted, and once more with what a second collector reads from the journal; every frame is accounted for,
and the collector's memory has stayed in its bounds.

Bounds: the collector knows at most `MAX_SOURCES` sources (0.6 kB each, 2.5 MB), keeps `MAX_VIEWS` views and
`MAX_GROUPS` groups. Mutants make up sources, labels, fields and histograms as wide as they may be, until all that is
full: the growth that is allowed is what is left after the warm-up, in which most of it happens.
"""

import argparse
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import zmq

from benchmarks.mutants import Mutants
from kvxfer.cli.progress import Progress
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.errors import KVXferError
from kvxfer.exporters.jsonl import JsonlExporter
from kvxfer.exporters.log import LogExporter
from kvxfer.interval import Interval, Pipeline
from kvxfer.outbox import Outbox
from kvxfer.transport import PublisherSockets
from kvxfer.wire import MAX_FRAME_BYTES, Goodbye, Source, decode, decode_ack, source_of_topic, topic_of_ack

ENGINE = "the-well-behaved"
NUM_BEHAVED = 8
BEHAVED_EVERY = 100
NUM_PARTS = 32
WINDOW = 50_000  # frames after which all that the well-behaved have sent must be acknowledged
MAX_SOURCES, MAX_VIEWS, MAX_GROUPS = 4096, 64, 32
MAX_GROWTH_MIB = 50.0
PATIENCE_SECONDS = 60.0
QUICK_FRAMES, FRAMES = 20_000, 200_000


class FuzzError(Exception):
    """The collector does not answer any more."""


class Counted(NamedTuple):
    """What a collector counted: everything of itself, and of the well-behaved."""

    pipeline: Pipeline
    behaved: dict[str, Any]


class Outcome(NamedTuple):
    """What was sent, what was counted, and what is wrong about it."""

    mutants: int
    seconds: float
    goodbyes: int
    behaved_reports: int
    behaved_transfers: int
    counted: Counted
    rss_mib: tuple[float, float]
    """After the warm-up, and the most afterwards."""
    wrong: list[str]


def collect(config: CollectorConfig, control: Connection) -> None:
    """The process of the collector; and, when that has stopped, of the next one on its journal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exporters = [LogExporter(lambda _: None, per_rank=True), JsonlExporter("/dev/null")]
    with Collector(config, exporters) as collector:
        control.send(None)
        control.recv()
    control.send(_counted(collector.snapshot()))
    again = Collector(config)
    control.send(_counted(again.snapshot()))
    again.stop()


def _counted(snapshot: Interval) -> Counted:
    groups = [group for group in snapshot.groups if group.labels.get("engine") == ENGINE]
    return Counted(snapshot.pipeline, _counts(groups[0].stats) if len(groups) == 1 else {"groups": len(groups)})


def _counts(stats: Any) -> dict[str, Any]:  # noqa: ANN401 - of the one connector that behaves
    """Per field count, sum and extremes; durations are multiples of 2**-20 s, so sums are exact in any order."""
    summary = {name: field for name, field in stats.summary().items() if name != "transfer_rate"}
    return {
        name: {key: field[key] for key in ("count", "sum", "min", "max")} if isinstance(field, dict) else field
        for name, field in summary.items()
    }


class Behaved:
    """A source that behaves: a publisher's outbox, and what was recorded into all of them."""

    def __init__(self, rank: int, recorded: NixlConnectorStats) -> None:
        self.id = f"behaved-{rank}"
        labels = {"engine": ENGINE, "role": "kv_both", "rank": str(rank)}
        self.outbox = Outbox(Source(self.id, "host", 1, 0.0, labels), "NixlConnector", time.time())
        self._recorded = recorded

    def record(self, number: int) -> int:
        """Record some transfers, few or many, and close them into a report; how many they were."""
        rows = 1 + number * 7919 % 300
        for stats in (NixlConnectorStats(), self._recorded):
            for row in range(rows):
                stats.record_transfer((1 + row) / (1 << 20), row / (1 << 20), 1024 * (1 + number % 50), 1 + row % 8)
            stats.num_failed_transfers.add(number % 3)
            if stats is not self._recorded:
                self.outbox.observe(stats, time.time())
        self._recorded.fold()  # or all rows of all reports would wait for the end
        self.outbox.flush(time.time())
        return rows


class Sender:
    """The one connection that mutants and well-behaved reports share, so that they arrive in this order."""

    def __init__(self, endpoint: str, process: Any) -> None:  # noqa: ANN401 - a process of any context
        self._endpoint = endpoint
        self._process = process
        self._sockets = PublisherSockets(endpoint)
        self._sockets.listen(b"behaved-")  # what all their topics begin with
        self.recorded = NixlConnectorStats()
        self.behaved = [Behaved(rank, self.recorded) for rank in range(NUM_BEHAVED)]
        self._by_id = {behaved.id: behaved.outbox for behaved in self.behaved}
        self.sent = self.goodbyes = self.reports = self.transfers = 0

    def send(self, frame: bytes) -> None:
        deadline = 0.0
        while not self._sockets.send(frame):
            deadline = self._wait(deadline)
        self.sent += 1
        if frame[1:2] != b"\0":  # no report
            with contextlib.suppress(KVXferError):
                self.goodbyes += isinstance(decode(frame), Goodbye)

    def _wait(self, deadline: float) -> float:
        now = time.monotonic()
        if not self._process.is_alive() or now > (deadline or now + 1):
            message = f"the collector {'does not answer' if self._process.is_alive() else 'has ended'}"
            raise FuzzError(message)
        time.sleep(0.0005)
        return deadline or now + PATIENCE_SECONDS

    def behave(self, number: int) -> None:
        """Send a report of the next well-behaved source."""
        behaved = self.behaved[number % NUM_BEHAVED]
        if not behaved.outbox.has_room:
            self.settle()
        self.transfers += behaved.record(number)
        self.reports += 1
        self._deliver()

    def _deliver(self) -> None:
        for frame in self._sockets.acks():
            outbox = self._by_id.get(source_of_topic(topic_of_ack(frame)))
            if outbox is not None:  # what they have in common, to which we listen, is answered too
                outbox.acknowledge(decode_ack(frame), time.time())
        for outbox in self._by_id.values():
            outbox.tick(time.time())
            while (frame_to_send := outbox.next_frame) is not None:
                self.send(frame_to_send)
                outbox.sent(time.time())

    def settle(self) -> None:
        """Wait until all that the well-behaved have sent is acknowledged, so all before it was taken."""
        deadline = 0.0
        while not all(outbox.is_idle for outbox in self._by_id.values()):
            self._deliver()
            deadline = self._wait(deadline)

    def misbehave(self, noise: bytes) -> None:
        """Over other connections: a frame beyond the limit, one message of many parts, bytes that are no ZeroMQ."""
        liar = PublisherSockets(self._endpoint)
        deadline = 0.0
        while not liar.send(bytes(MAX_FRAME_BYTES + 1)):
            deadline = self._wait(deadline)
        liar.close(1.0)
        with zmq.Context() as context, context.socket(zmq.PUSH) as strange:
            strange.linger = 1000
            strange.connect(self._endpoint)
            strange.send_multipart([b"\0" + noise] * NUM_PARTS)
        self.sent += NUM_PARTS  # each is counted as a frame of its own
        with socket.socket(socket.AF_UNIX) as stranger, contextlib.suppress(OSError):
            stranger.connect(self._endpoint.removeprefix("ipc://"))
            stranger.sendall(noise)

    def close(self) -> None:
        self._sockets.close(0.0)


def run(frames: int, seed: int, progress: Progress | None = None, max_seconds: float = 3600.0) -> Outcome:
    """Send so many mutants; raises `FuzzError` where the collector does not answer any more."""
    start, window = time.monotonic(), max(1, min(WINDOW, frames // 5))
    with _collecting() as (endpoint, process, control):
        sender, mutants, sizes = Sender(endpoint, process), Mutants(seed), list[float]()
        number = 0
        for number in range(NUM_BEHAVED):  # known before anybody else is
            sender.behave(number)
        sender.settle()
        for number, mutant in zip(range(1, frames + 1), mutants, strict=False):
            sender.send(mutant)
            if not number % BEHAVED_EVERY:
                sender.behave(number // BEHAVED_EVERY)
            if not number % window or number == frames:
                sender.misbehave(mutant)
                sender.settle()
                sizes.append(_rss_mib(process.pid or 0))
                if progress:
                    progress.update(number)
                if time.monotonic() - start > max_seconds:
                    break
        control.send(None)
        counted, again = _received(control), _received(control)
        sender.close()
        process.join(PATIENCE_SECONDS)
    warm = len(sizes) // 5  # a fifth of the frames
    rss = (sizes[warm], max(sizes[warm:]))
    wrong = [*_wrong(sender, counted, again), *_grown(*rss)]
    wrong += [f"{number:,} of {frames:,} frames in {max_seconds:.0f} s"] if number < frames else []
    seconds = time.monotonic() - start
    return Outcome(number, seconds, sender.goodbyes, sender.reports, sender.transfers, counted, rss, wrong)


@contextlib.contextmanager
def _collecting() -> Iterator[tuple[str, Any, Connection]]:
    with TemporaryDirectory(prefix="kvxfer-") as directory:
        config = CollectorConfig(
            endpoint=f"ipc://{directory}/c.ipc",
            interval_seconds=1.0,
            max_groups=MAX_GROUPS,
            max_source_views=MAX_VIEWS,
            max_sources=MAX_SOURCES,
            silent_seconds=5.0,
            gone_seconds=10.0,  # so that those that were made up make room for others
            journal=str(Path(directory) / "journal.db"),
            max_journal_bytes=64 << 20,
        )
        context = get_context("spawn")
        control, other = context.Pipe()
        process = context.Process(target=collect, args=(config, other), daemon=True)
        process.start()
        other.close()
        try:
            _received(control)
            yield config.endpoint or "", process, control
        finally:
            process.kill()
            process.join()


def _received(control: Connection) -> Any:  # noqa: ANN401 - what the collector's process says
    try:
        if control.poll(PATIENCE_SECONDS):
            return control.recv()
    except EOFError:
        pass
    message = "the collector has ended, or does not"
    raise FuzzError(message)


def _rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _wrong(sender: Sender, counted: Counted, again: Counted) -> Iterator[str]:
    pipeline, expected = counted.pipeline, _counts(sender.recorded)
    if counted.behaved != expected:
        yield f"recorded {expected}, counted {counted.behaved}"
    if again.behaved != expected:
        yield f"recorded {expected}, after a restart {again.behaved}"
    taken = pipeline.reports_received + pipeline.reports_duplicate + sum(pipeline.reports_rejected.values())
    if not 0 <= sender.sent - taken <= sender.goodbyes:
        yield f"{sender.sent:,} frames sent, {sender.goodbyes:,} of them goodbyes, {taken:,} accounted for"
    for name in ("reports_received", "reports_duplicate", "reports_rejected"):
        if getattr(again.pipeline, name) != getattr(pipeline, name):
            yield f"{name} {getattr(pipeline, name)}, after a restart {getattr(again.pipeline, name)}"
    if pipeline.exports_failed or pipeline.commits_failed:
        yield f"{pipeline.exports_failed} exports and {pipeline.commits_failed} commits failed"


def _grown(warm_mib: float, most_mib: float) -> list[str]:
    growth = most_mib - warm_mib
    return [f"memory grew by {growth:.1f} MiB after the warm-up"] if growth > MAX_GROWTH_MIB else []


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, metavar="N", help=f"mutants to send (default: {FRAMES})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="the most that it may take (default: 3600)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FRAMES} mutants")
    given = parser.parse_args(arguments)
    frames = max(1, given.frames or (QUICK_FRAMES if given.quick else FRAMES))
    progress = Progress(frames, "frames") if sys.stderr.isatty() else None
    try:
        outcome = run(frames, given.seed, progress, given.seconds)
    except FuzzError as error:
        print(f"fuzz: seed {given.seed}: {error}")
        return 1
    finally:
        if progress:
            progress.clear()
    print(text(outcome, given.seed))
    return int(bool(outcome.wrong))


def text(outcome: Outcome, seed: int) -> str:
    """What a person reads."""
    pipeline, (warm, most) = outcome.counted.pipeline, outcome.rss_mib
    rejected = sorted(pipeline.reports_rejected.items(), key=lambda item: -item[1])
    rate = (outcome.mutants + outcome.behaved_reports) / outcome.seconds
    causes = ", ".join(f"{cause} {count:,}" for cause, count in rejected)
    verdict = "see below" if outcome.wrong else "each counted once, also after a restart from the journal"
    lines = f"""\
fuzz: seed {seed}, {outcome.mutants:,} mutants and {outcome.behaved_reports:,} reports of {NUM_BEHAVED} well-behaved \
sources in {outcome.seconds:.0f} s ({rate:,.0f} frames/s)
  decoded: {pipeline.reports_received:,} reports, {pipeline.reports_duplicate:,} duplicates, \
{outcome.goodbyes:,} goodbyes; {pipeline.observations_rejected:,} observations rejected
  refused: {sum(count for _, count in rejected):,}: {causes}
  well-behaved: {outcome.behaved_transfers:,} transfers, {verdict}
  memory: {warm:.1f} MiB after the warm-up, at most {most:.1f} MiB later"""
    return "\n".join([lines, *(f"  WRONG: {each}" for each in outcome.wrong)])
