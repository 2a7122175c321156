"""Worker pools of every kind and start method: everything recorded is collected."""

import contextlib
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
from workers import (
    CONNECTOR,
    FLUSHED,
    PENDING,
    flush_and_record_more,
    kill_this_process,
    record,
    record_and_flush,
    record_in_a_pool_of_its_own,
    record_into,
    set_up_again,
    set_up_unhurried,
    stay,
    transfers,
)

from kvxfer.collector import Collector
from kvxfer.errors import EndpointError, KVXferError, RoleError
from kvxfer.integrations import pools
from kvxfer.integrations.pools import dask_plugin, flush_worker, setup_worker, worker_stats
from kvxfer.publisher import StatsPublisher

METHODS = ("fork", "spawn", "forkserver")
# From 3.12 on Python warns of every fork in a process with threads, which a collector's process has.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
TASKS = [50] * 20


@pytest.mark.parametrize("method", METHODS)
def test_a_multiprocessing_pool_that_is_closed_delivers_everything(collector: Collector, method: str) -> None:
    pool = multiprocessing.get_context(method).Pool(2, setup_worker, (CONNECTOR, collector.endpoint))
    pool.map(record, TASKS, chunksize=1)
    pool.close()
    pool.join()
    collector.stop()
    assert transfers(collector) == sum(TASKS)


@pytest.mark.parametrize("method", METHODS)
def test_a_process_pool_executor_delivers_everything(collector: Collector, method: str) -> None:
    context = multiprocessing.get_context(method)
    initargs = (CONNECTOR, collector.endpoint)
    with ProcessPoolExecutor(2, mp_context=context, initializer=setup_worker, initargs=initargs) as pool:
        list(pool.map(record, TASKS))
    collector.stop()
    assert transfers(collector) == sum(TASKS)


def test_a_pool_whose_workers_are_replaced_delivers_everything(collector: Collector) -> None:
    context = multiprocessing.get_context("spawn")
    pool = context.Pool(2, setup_worker, (CONNECTOR, collector.endpoint), maxtasksperchild=5)
    pids = set(pool.map(record, TASKS, chunksize=1))
    pool.close()
    pool.join()
    assert len(pids) > 2
    collector.stop()
    assert transfers(collector) == sum(TASKS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", ["terminate", "with"])
def test_a_busy_pool_that_is_terminated_delivers_what_its_tasks_flushed_and_loses_the_rest(
    collector: Collector, method: str, ending: str
) -> None:
    context = multiprocessing.get_context(method)
    busy = context.Semaphore(0)
    pool = context.Pool(2, set_up_unhurried, (collector.endpoint, busy))
    with pool if ending == "with" else contextlib.nullcontext():
        pids = set(pool.map(flush_and_record_more, [FLUSHED] * 2, chunksize=1))
        for _ in range(2):
            pool.apply_async(stay)
        assert all(busy.acquire(timeout=30) for _ in range(2))
        if ending == "terminate":
            pool.terminate()
    pool.join()
    collector.stop()
    # One worker may have taken both tasks: the second flushed what the first had left.
    assert transfers(collector) == 2 * FLUSHED + (2 - len(pids)) * PENDING
    assert collector.snapshot().pipeline.sources == {"live": len(pids), "silent": 0, "gone": 0}


def test_an_executor_that_a_worker_breaks_delivers_what_was_flushed(collector: Collector) -> None:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(2, mp_context=context, initializer=set_up_unhurried, initargs=(collector.endpoint,))
    with pool:
        assert all(pool.map(record_and_flush, TASKS))
        with pytest.raises(BrokenProcessPool):
            pool.submit(kill_this_process).result()
    collector.stop()
    assert transfers(collector) == sum(TASKS)


# The forkserver of one process is none for its forked children, hence not every pair.
@pytest.mark.parametrize(("outer", "inner"), [("fork", "fork"), ("fork", "spawn"), ("spawn", "forkserver")])
def test_a_pool_in_a_pool_delivers_everything(collector: Collector, outer: str, inner: str) -> None:
    context = multiprocessing.get_context(outer)
    initargs = (CONNECTOR, collector.endpoint, {"role": "outer"})
    with ProcessPoolExecutor(1, mp_context=context, initializer=setup_worker, initargs=initargs) as pool:
        workers = pool.submit(record_in_a_pool_of_its_own, inner, collector.endpoint, TASKS).result()
    collector.stop()
    found = {group.labels["role"]: group.stats.transfer_duration.count for group in collector.snapshot().groups}
    assert found == {"outer": 2, "inner": sum(TASKS)}
    assert collector.snapshot().pipeline.sources == {"live": 0, "silent": 0, "gone": 1 + workers}


def test_workers_forked_from_a_publishing_process_publish_for_themselves(collector: Collector) -> None:
    with StatsPublisher(CONNECTOR, collector.endpoint, {"rank": "parent"}) as publisher:
        record_into(publisher.stats, 1)
        pool = multiprocessing.get_context("fork").Pool(2, setup_worker, (CONNECTOR, collector.endpoint))
        pool.map(record, TASKS, chunksize=1)
        pool.close()
        pool.join()
    collector.stop()
    assert transfers(collector) == sum(TASKS) + 1


@pytest.fixture
def unset() -> Iterator[None]:
    """This process is again one that `setup_worker` did not run in, afterwards."""
    yield
    for publisher in pools._publishers.values():
        publisher.close()
    pools._publishers.clear()
    pools._failures.clear()


def test_workers_forked_from_a_process_that_is_set_up_take_their_own_labels(collector: Collector, unset: None) -> None:
    del unset
    setup_worker(CONNECTOR, collector.endpoint, {"role": "parent"})
    record_into(worker_stats(), 3)
    arguments = (CONNECTOR, collector.endpoint, {"role": "child"})
    pool = multiprocessing.get_context("fork").Pool(1, setup_worker, arguments)
    pool.map(record, TASKS)
    pool.close()
    pool.join()
    assert flush_worker(10)
    pools._publishers[os.getpid()].close()
    collector.stop()
    found = {group.labels["role"]: group.stats.transfer_duration.count for group in collector.snapshot().groups}
    assert found == {"parent": 3, "child": sum(TASKS)}


def test_a_second_call_in_a_worker_changes_nothing(collector: Collector) -> None:
    initargs = (CONNECTOR, collector.endpoint)
    with ProcessPoolExecutor(1, initializer=setup_worker, initargs=initargs) as pool:
        assert pool.submit(set_up_again, collector.endpoint).result()


def test_threads_that_set_their_process_up_at_once_share_one_publisher(collector: Collector, unset: None) -> None:
    del unset
    begin = threading.Barrier(4)

    def setup(*arguments: str) -> None:
        begin.wait(10)
        setup_worker(*arguments)

    with ThreadPoolExecutor(4, initializer=setup, initargs=(CONNECTOR, collector.endpoint)) as pool:
        list(pool.map(record, TASKS))
    pools._publishers[os.getpid()].close()
    collector.stop()
    assert transfers(collector) == sum(TASKS)
    assert collector.snapshot().pipeline.sources["gone"] == 1


def test_a_setting_that_does_not_fit_fails_the_task_and_hangs_no_pool() -> None:
    pool = multiprocessing.get_context("spawn").Pool(1, setup_worker, (CONNECTOR, "nonsense"))
    with pytest.raises(EndpointError, match="expected ipc://PATH or tcp://HOST:PORT, got 'nonsense'"):
        pool.apply_async(record, (1,)).get(30)
    pool.close()
    pool.join()


def test_a_process_without_the_initializer_is_told_so() -> None:
    with pytest.raises(RoleError, match="give its pool setup_worker as initializer"):
        worker_stats()
    with pytest.raises(RoleError):
        flush_worker()


def test_what_a_pool_takes_is_pickled_by_name() -> None:
    for function in (setup_worker, worker_stats, flush_worker):
        assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301 - our own bytes


def test_without_dask_its_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(KVXferError, match=r"pip install 'kvxfer\[pools\]'"):
        dask_plugin(CONNECTOR)


@pytest.mark.extra
def test_joblibs_loky_workers_deliver_everything(collector: Collector) -> None:
    joblib = pytest.importorskip("joblib")
    from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415

    with joblib.parallel_config(backend="loky", initializer=setup_worker, initargs=(CONNECTOR, collector.endpoint)):
        joblib.Parallel(n_jobs=2)(joblib.delayed(record)(count) for count in TASKS)
    get_reusable_executor().shutdown(wait=True)
    collector.stop()
    assert transfers(collector) == sum(TASKS)


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")  # of dask's own start and end
def test_dask_workers_deliver_everything(collector: Collector) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        client.register_plugin(dask_plugin(CONNECTOR, collector.endpoint))
        client.gather(client.map(record, TASKS, pure=False))
    collector.stop()
    assert transfers(collector) == sum(TASKS)


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")  # of dask's own start and end
def test_a_dask_worker_that_ends_leaves_the_others_of_its_process_publishing(collector: Collector, unset: None) -> None:
    del unset
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        client.register_plugin(dask_plugin(CONNECTOR, collector.endpoint))
        client.gather(client.map(record, TASKS, pure=False))
        client.retire_workers(list(client.scheduler_info()["workers"])[:1])
        client.gather(client.map(record, TASKS, pure=False))
    collector.stop()
    assert transfers(collector) == 2 * sum(TASKS)
