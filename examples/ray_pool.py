"""Ray: a collector that is a named actor, and a pool of actors that record; the collector is killed in between.

Command: ``python examples/ray_pool.py`` (``pip install 'kvxfer[ray]'``). Expected, within half a minute:

    64 of 64 copies were collected, 4.0 MiB each, of 2 workers
"""

import os
import signal
import time

import ray
from ray.util import ActorPool

from kvxfer import CollectorConfig
from kvxfer.integrations.ray import flush_worker, start_collector, worker_stats

BLOCK_BYTES = 64 * 1024
RUNTIME_ENV = {
    "worker_process_setup_hook": "kvxfer.integrations.ray.setup_worker",
    "env_vars": {"KVXFER_CONNECTOR": "SharedMemoryConnector", "KVXFER_LABELS": "role=kv_consumer"},
}


@ray.remote
class Mover:
    """A worker; the hook has set its process up."""

    def copy(self, count: int) -> None:
        """Move so many blocks."""
        source, target = bytes(count * BLOCK_BYTES), bytearray(count * BLOCK_BYTES)
        start = time.perf_counter()
        target[:] = source
        worker_stats().record_transfer(time.perf_counter() - start, len(target), count)

    def flush(self) -> bool:
        """The last call: Ray runs no exit handlers when it shuts down."""
        return flush_worker()


def main() -> None:
    ray.init("local", num_cpus=2, runtime_env=RUNTIME_ENV, log_to_driver=False)
    collector = start_collector(CollectorConfig(endpoint="tcp://127.0.0.1:*"))  # this node alone
    movers = [Mover.remote() for _ in range(2)]
    pool = ActorPool(movers)
    list(pool.map(lambda mover, count: mover.copy.remote(count), [64] * 32))
    os.kill(collector.place().pid, signal.SIGKILL)  # it is back in seconds, at another port, with its journal
    list(pool.map(lambda mover, count: mover.copy.remote(count), [64] * 32))
    flushed = ray.get([mover.flush.remote() for mover in movers])
    snapshot = collector.snapshot()
    collector.stop()
    ray.shutdown()
    reduced = snapshot.groups[0].stats.reduce()
    count, size = reduced["Num successful transfers"], reduced["Avg MB per transfer"]
    print(f"{count} of 64 copies were collected, {size} MiB each, of {sum(flushed)} workers")


if __name__ == "__main__":
    main()
