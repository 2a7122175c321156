"""A process pool whose workers copy blocks, time each copy and record it; this process collects and prints.

Command: ``python examples/worker_pool.py``. Expected (the times vary with the machine):

    KV Transfer metrics: Num successful transfers=64, Avg xfer time (ms)=..., Avg MB per transfer=4.0, ...,
    Avg number of blocks=64.0, Num failed transfers=0, ..., Num ranks=2, role=kv_consumer   (one line)
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from kvxfer import Collector, LogExporter
from kvxfer.integrations.pools import setup_worker, worker_stats

BLOCK_BYTES = 64 * 1024


def copy_blocks(count: int) -> int:
    """What a task moves; its worker publishes without being asked."""
    source, target = bytes(count * BLOCK_BYTES), bytearray(count * BLOCK_BYTES)
    start = time.perf_counter()
    target[:] = source
    worker_stats().record_transfer(time.perf_counter() - start, len(target), count)
    time.sleep(0.01)  # a worker does more than to move; and so both get their share
    return len(target)


def main() -> None:
    with Collector(exporters=[LogExporter(print)]) as collector:
        arguments = ("SharedMemoryConnector", collector.endpoint, {"role": "kv_consumer"})
        context = get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context, initializer=setup_worker, initargs=arguments) as pool:
            list(pool.map(copy_blocks, [64] * 64))


if __name__ == "__main__":
    main()
