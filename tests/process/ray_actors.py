"""Actors that publish, and drivers that end them in each way there is; in a module, as cloudpickle names it then."""

import os
from pathlib import Path

import ray
from workers import CONNECTOR, FLUSHED, PENDING, record_into, wait_until

from kvxfer.publisher import StatsPublisher


@ray.remote(num_cpus=0)
class Actor:
    """Publishes under the name of its end."""

    def __init__(self, endpoint: str, ending: str) -> None:
        self.publisher = StatsPublisher(CONNECTOR, endpoint, {"role": ending}, flush_seconds=600)

    def record(self) -> int:
        """Flush some, and keep a little that waits; the process."""
        record_into(self.publisher.stats, FLUSHED)
        assert self.publisher.flush(timeout=20)
        record_into(self.publisher.stats, PENDING)
        return os.getpid()

    def flush(self) -> bool:
        return self.publisher.flush(timeout=20)

    def leave(self) -> None:
        ray.actor.exit_actor()


def init() -> None:
    """Start a small Ray of this driver alone."""
    ray.init("local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)


def started(endpoint: str, *endings: str) -> tuple[list[ray.actor.ActorHandle], list[int]]:
    """Actors that have recorded, and their processes."""
    actors = [Actor.remote(endpoint, ending) for ending in endings]
    return actors, ray.get([actor.record.remote() for actor in actors])


def end_actors(endpoint: str) -> None:
    """End one actor in each way, the last two by `ray.shutdown`."""
    init()
    actors, pids = started(endpoint, "exit_actor", "out of scope", "ray.kill", "ray.shutdown", "flush and ray.shutdown")
    actors[0].leave.remote()
    ray.kill(actors[2])
    assert ray.get(actors[4].flush.remote())
    del actors[:3]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids[:3]))
    ray.shutdown()


def end_driver(endpoint: str) -> None:
    """Return with an actor that lives."""
    init()
    _kept.extend(started(endpoint, "driver exit")[0])


_kept: list[ray.actor.ActorHandle] = []
