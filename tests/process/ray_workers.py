"""Drivers of clusters whose collectors are actors that are killed; in a module, as cloudpickle names it then.

Each checks for itself: an assertion that fails ends the program with 1.
"""

import contextlib
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from workers import CONNECTOR, record_into, wait_until

from kvxfer.config import CollectorConfig
from kvxfer.errors import KVXferError
from kvxfer.integrations.ray import (
    NAMESPACE,
    Place,
    RayCollector,
    flush_worker,
    setup_worker,
    start_collector,
    worker_stats,
)
from kvxfer.interval import Interval

FOUND_SECONDS = 5.0
"""In which each worker is with a collector that moved, on a machine that runs it."""

SETUP_HOOK = {"worker_process_setup_hook": "kvxfer.integrations.ray.setup_worker"}
ENVIRONMENT = {"KVXFER_CONNECTOR": CONNECTOR, "KVXFER_LABELS": "role=kv_consumer"}


@contextlib.contextmanager
def stalls() -> Iterator[list[float]]:
    """The seconds by which a thread that only sleeps was late, each time that it was by more than it had slept."""
    late: list[float] = []
    ending = threading.Event()

    def watch() -> None:
        nap = 0.05
        while not ending.is_set():
            began = time.monotonic()
            ending.wait(nap)
            if (over := time.monotonic() - began - nap) > nap:
                late.append(over)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield late
    finally:
        ending.set()
        watching.join()


@ray.remote(num_cpus=0)
class Worker:
    """Records on a thread, as fast as it is asked to."""

    def __init__(self, collector: str = "kvxfer") -> None:
        setup_worker(CONNECTOR, collector)
        self._stopping = threading.Event()
        self._flushing = threading.Lock()
        self._count = 0
        self._thread = threading.Thread(target=self._record)

    def begin(self) -> None:
        self._thread.start()

    def _record(self) -> None:
        while not self._stopping.wait(0.002):
            with self._flushing:
                record_into(worker_stats(), 10)
                self._count += 10

    def flush(self, timeout: float) -> bool:
        """Record a little, and wait until it is committed; nothing else is recorded meanwhile."""
        with self._flushing:
            record_into(worker_stats(), 1)
            self._count += 1
            return flush_worker(timeout)

    def seconds_to_flush(self) -> float:
        """How long `flush` takes, without what the machine stalled meanwhile."""
        with stalls() as stalled:
            began = time.monotonic()
            assert self.flush(60)
            took = time.monotonic() - began
        return took - sum(stalled)

    def leave(self) -> None:
        record_into(worker_stats(), 1)
        ray.actor.exit_actor()

    def pid(self) -> int:
        return os.getpid()

    def finish(self) -> int:
        """Stop recording and flush; how much was recorded."""
        self._stopping.set()
        self._thread.join()
        assert flush_worker(20)
        return self._count


@ray.remote(num_cpus=1)
def record_once() -> str:
    """Record one, in a worker that the hook has set up; its node."""
    record_into(worker_stats(), 1)
    assert flush_worker()
    return str(ray.get_runtime_context().get_node_id())


def init(**more: Any) -> None:
    ray.init(
        "local",  # not one that somebody else has started
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        **more,
    )


@contextlib.contextmanager
def three_nodes() -> Iterator[tuple[Cluster, list[str]]]:
    """A cluster of three nodes at one address, and their ids; this program is its driver."""
    small = {"num_cpus": 2, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**small)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, [node["NodeID"] for node in ray.nodes()]
    finally:
        ray.shutdown()
        cluster.shutdown()


def on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def answer(call: Callable[[], Any]) -> Any:
    """What a collector answers that may be about to start."""
    deadline = time.monotonic() + 90  # Ray takes a second to start an actor again, on a busy machine half a minute
    while True:
        try:
            return call()
        except KVXferError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def kill(collector: RayCollector) -> Place:
    """Kill a collector; where it is when it is back."""
    before: Place = answer(collector.place)
    os.kill(before.pid, signal.SIGKILL)
    while (after := answer(collector.place)).pid == before.pid:
        time.sleep(0.05)
    assert after.endpoint != before.endpoint
    return after


def transfers(snapshot: Interval) -> int:
    assert snapshot.pipeline.reports_lost == 0
    assert snapshot.pipeline.reports_rejected == {}
    return sum(group.stats.transfer_duration.count for group in snapshot.groups)  # type: ignore[attr-defined]


def begin(nodes: Sequence[str], count: int, collector: str = "kvxfer") -> list[Any]:
    """So many workers that record, spread over the nodes."""
    strategies = [on(nodes[number % len(nodes)]) for number in range(count)]
    workers = [Worker.options(scheduling_strategy=strategy).remote(collector) for strategy in strategies]
    ray.get([worker.begin.remote() for worker in workers])
    return workers


def kill_three_times(journal: str) -> None:
    """Twelve workers on three nodes, one collector: each finds it again in time, and everything is counted once."""
    with three_nodes() as (_, nodes):
        collector = start_collector(CollectorConfig(journal=journal))
        workers = begin(nodes, 12)
        assert all(ray.get([worker.flush.remote(20) for worker in workers]))
        for _ in range(3):
            kill(collector)
            took = ray.get([worker.seconds_to_flush.remote() for worker in workers])
            assert max(took) < FOUND_SECONDS, took
        recorded = sum(ray.get([worker.finish.remote() for worker in workers]))
        snapshot = collector.snapshot()
        assert transfers(snapshot) == recorded > 0
        assert {view.source.labels["node"] for view in snapshot.sources} == set(nodes)
        collector.stop()


def kill_on_both_levels(directory: str) -> None:
    """A collector on each node below one of the cluster; one of the first and the second are killed."""
    with three_nodes() as (_, nodes):
        names = "kvxfer-{node}"
        config = CollectorConfig(interval_seconds=0.5)
        above = start_collector(CollectorConfig(journal=f"{directory}/above.db"))
        below = [start_collector(config, name=names, node_id=node, above=above.name) for node in nodes]
        workers = begin(nodes, 6, names)
        assert all(ray.get([worker.flush.remote(20) for worker in workers]))
        kill(below[2])
        kill(above)
        recorded = sum(ray.get([worker.finish.remote() for worker in workers]))
        assert sum(transfers(collector.snapshot()) for collector in below) == recorded > 0
        wait_until(lambda: transfers(above.snapshot()) == recorded)
        for collector in (*below, above):
            collector.stop()


def lose_the_node(journal: str) -> None:
    """The node of the collector goes: who starts another one with its journal loses nothing, and workers find it."""
    with three_nodes() as (cluster, nodes):
        here = ray.get_runtime_context().get_node_id()
        config = CollectorConfig(journal=journal)
        lost = next(node for node in cluster.list_all_nodes() if node.node_id != here)
        collector = start_collector(config, node_id=lost.node_id)
        workers = begin([node for node in nodes if node != lost.node_id], 2)
        assert all(ray.get([worker.flush.remote(20) for worker in workers]))
        cluster.remove_node(lost)
        wait_until(lambda: has_failed(collector.place))
        collector = start_collector(config)
        recorded = sum(ray.get([worker.finish.remote() for worker in workers]))
        assert transfers(collector.snapshot()) == recorded > 0
        collector.stop()


def has_failed(call: Callable[[], Any]) -> bool:
    try:
        call()
    except KVXferError:
        return True
    return False


def shut_down_after_a_flush(journal: str) -> None:
    """Flush, and shut everything down at once; print how much was recorded."""
    init()
    start_collector(CollectorConfig(journal=journal))
    workers = begin([ray.get_runtime_context().get_node_id()], 3)
    Path(journal).with_suffix(".recorded").write_text(str(sum(ray.get([each.finish.remote() for each in workers]))))
    ray.shutdown()


def set_up_by_the_hook(directory: str) -> None:
    """Tasks record before their collector is there; the hook has set their workers up."""
    init(runtime_env={**SETUP_HOOK, "env_vars": ENVIRONMENT})
    tasks = [record_once.remote() for _ in range(5)]
    time.sleep(1)
    collector = start_collector(CollectorConfig(journal=f"{directory}/j.db"))
    assert start_collector().place() == collector.place()
    nodes = set(ray.get(tasks))
    snapshot = collector.snapshot()
    assert transfers(snapshot) == 5
    assert all(view.connector == CONNECTOR for view in snapshot.sources)
    assert {view.source.labels["node"] for view in snapshot.sources} == nodes
    assert {group.labels["role"] for group in snapshot.groups} == {"kv_consumer"}
    collector.stop()
    assert NAMESPACE not in {each["namespace"] for each in ray.util.list_named_actors(all_namespaces=True)}
    ray.shutdown()


def serve_metrics(directory: str) -> None:
    """The file for Prometheus leads to the metrics, also when the collector was killed."""
    init()
    file = Path(directory) / "targets.json"
    journal = f"{directory}/j.db"
    collector = start_collector(CollectorConfig(journal=journal), http="127.0.0.1:0", file_sd=str(file))
    assert collector.place().url is not None
    for _ in range(2):
        (entry,) = json.loads(file.read_bytes())
        assert entry["labels"] == {"kvxfer_collector": "kvxfer"}
        with urllib.request.urlopen(f"http://{entry['targets'][0]}/metrics", timeout=10) as response:
            assert b"kvxfer_collector_reports_received_total" in response.read()
        kill(collector)
    ray.shutdown()


def leave_without_a_collector(_: str) -> None:
    """Actors that look for a collector which never comes: they record, leave at once, and are shut down at once."""
    init()
    leaving, staying = Worker.remote(), Worker.remote()
    pid = ray.get(leaving.pid.remote())
    assert not ray.get(staying.flush.remote(1.5))
    leaving.leave.remote()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ray.shutdown()


def say_what_is_wrong(_: str) -> None:
    """A collector that cannot start says why, and leaves nothing behind; nor does a driver publish as a worker."""
    init()
    for config, more, said in (
        (CollectorConfig(endpoint="tcp://0.0.0.0:*"), {}, "--insecure"),
        (CollectorConfig(), {"http": "nowhere"}, "HOST:PORT"),
        (CollectorConfig(), {"file_sd": "targets.json"}, "give http too"),
    ):
        assert said in error_of(lambda config=config, more=more: start_collector(config, **more))
    assert "does not answer" in error_of(lambda: start_collector(node_id="ab" * 28))
    assert not ray.util.list_named_actors(all_namespaces=True)
    assert "setup_worker" in error_of(worker_stats)
    setup_worker(CONNECTOR)
    assert "StatsPublisher" in error_of(worker_stats)
    ray.shutdown()


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except KVXferError as error:
        return str(error)
    raise AssertionError
