"""A collector within somebody's event loop: it polls between other coroutines and never blocks them.

Command: ``python examples/embedded_collector.py``. Expected (a line every half second, 20 transfers in all):

    KV Transfer metrics: Num successful transfers=9, Avg xfer time (ms)=2.0, ..., Num ranks=1   (one line)
    served 20 requests beside it
"""

import asyncio
import tempfile

from kvxfer import Collector, CollectorConfig, LogExporter, StatsPublisher


async def collect(collector: Collector) -> None:
    """Take what is there, let the others run: a poll of 0 seconds costs microseconds when nothing has arrived."""
    while True:
        collector.poll()
        await asyncio.sleep(0.05)


async def serve(publisher: StatsPublisher) -> int:
    """What the host does anyway; here it also plays the worker."""
    served = 0
    for _ in range(20):
        await asyncio.sleep(0.05)
        publisher.stats.record_transfer(0.002, 1 << 20, 16)
        publisher.flush()
        served += 1
    return served


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        config = CollectorConfig(endpoint=f"ipc://{directory}/collector.ipc", interval_seconds=0.5)
        collector = Collector(config, [LogExporter(print)])
        collecting = asyncio.create_task(collect(collector))
        publisher = StatsPublisher("SharedMemoryConnector", collector.endpoint)
        served = await serve(publisher)
        publisher.close()
        collecting.cancel()
        collector.stop()
    print(f"served {served} requests beside it")


if __name__ == "__main__":
    asyncio.run(main())
