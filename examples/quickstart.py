"""Two worker processes record transfers, this process collects them and prints the line.

Command: ``python examples/quickstart.py``. Expected, within seconds (the two marked numbers vary with the machine):

    KV Transfer metrics: Num successful transfers=200, Avg xfer time (ms)=3.5, P90 xfer time (ms)=5.0,
    Avg MB per transfer=1.5, Throughput (MB/s)=428.571, Avg number of blocks=24.0, Num failed transfers=0,
    Wall throughput (MB/s)=..., Avg in flight=..., Num ranks=2, engine=decode-0, role=kv_consumer   (one line)
"""

from multiprocessing import get_context

from kvxfer import Collector, LogExporter, StatsPublisher


def work(endpoint: str, rank: int) -> None:
    labels = {"engine": "decode-0", "role": "kv_consumer", "rank": str(rank)}
    with StatsPublisher("SharedMemoryConnector", endpoint, labels) as publisher:
        for _ in range(100):  # each call is what a worker does after each of its transfers
            publisher.stats.record_transfer((0.002, 0.005)[rank], (1 + rank) << 20, 16 * (1 + rank))


def main() -> None:
    with Collector(exporters=[LogExporter(print)]) as collector:
        workers = [get_context("spawn").Process(target=work, args=(collector.endpoint, rank)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
