"""A front end that embeds its collector: on a thread, or in its own event loop, and asked by a route of its own.

Command: ``python examples/embed_in_frontend.py``. Expected, once for each way (the count of the lines varies):

    KV Transfer metrics: Num successful transfers=9, Avg xfer time (ms)=2.0, ..., Num ranks=1   (one line)
    thread: served 20 requests, the last answer was {"transfers": 20, "ranks": 1}
    loop: served 20 requests, the last answer was {"transfers": 20, "ranks": 1}
"""

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator

from kvxfer import Collector, CollectorConfig, LogExporter, StatsPublisher


class FrontEnd:
    """Serves one JSON document over TCP; here it also plays the worker."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.publisher = StatsPublisher("SharedMemoryConnector", collector.endpoint)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request moves a block, and is answered with the totals: a snapshot is a copy, from any thread."""
        await reader.readline()
        self.publisher.stats.record_transfer(0.002, 1 << 20, 16)
        await asyncio.to_thread(self.publisher.flush, 5.0)  # it waits for the collector: not on the loop
        snapshot = self.collector.snapshot()
        transfers = sum(group.stats.reduce()["Num successful transfers"] for group in snapshot.groups)
        writer.write(json.dumps({"transfers": transfers, "ranks": len(snapshot.sources)}).encode() + b"\n")
        writer.close()


@contextlib.asynccontextmanager
async def on_a_thread(collector: Collector) -> AsyncIterator[None]:
    """The simplest way: everything of it on a thread of its own."""
    collector.start()
    try:
        yield
    finally:
        await asyncio.to_thread(collector.stop)  # it takes what is on its way, commits and exports


@contextlib.asynccontextmanager
async def in_the_loop(collector: Collector) -> AsyncIterator[None]:
    """No thread: take what is there between other coroutines. A poll of 0 seconds costs microseconds when idle."""

    async def polling() -> None:
        while True:
            collector.poll()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(polling())
    try:
        yield
    finally:
        task.cancel()
        collector.stop()


async def ask(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\n")
    answer = await reader.readline()
    writer.close()
    return answer.decode().strip()


async def main() -> None:
    for name, embedded in (("thread", on_a_thread), ("loop", in_the_loop)):
        with tempfile.TemporaryDirectory() as directory:
            config = CollectorConfig(endpoint=f"ipc://{directory}/collector.ipc", interval_seconds=0.5)
            collector = Collector(config, [LogExporter(print)])
            front_end = FrontEnd(collector)
            server = await asyncio.start_server(front_end.answer, "127.0.0.1", 0)
            async with server, embedded(collector):
                port = server.sockets[0].getsockname()[1]
                answers = [await ask(port) for _ in range(20)]
                await asyncio.to_thread(front_end.publisher.close)
        print(f"{name}: served {len(answers)} requests, the last answer was {answers[-1]}")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
