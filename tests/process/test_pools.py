"""Worker pools of every kind and start method: everything recorded is collected."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from workers import CONNECTOR, record

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.errors import RoleError
from kvxfer.integrations.pools import dask_plugin, flush_worker, setup_worker, worker_stats
from kvxfer.publisher import StatsPublisher

METHODS = ("fork", "spawn", "forkserver")
# From 3.12 on Python warns of every fork in a process with threads, which a collector's process has.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
TASKS = [50] * 20


def transfers(collector: Collector) -> int:
    collector.stop()
    snapshot = collector.snapshot()
    assert snapshot.pipeline.reports_rejected == {}
    return sum(group.stats.reduce()["Num successful transfers"] for group in snapshot.groups)


@pytest.fixture
def collector(ipc_endpoint: str) -> Any:
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as collector:
        yield collector


@pytest.mark.parametrize("method", METHODS)
def test_a_multiprocessing_pool_that_is_closed_delivers_everything(collector: Collector, method: str) -> None:
    pool = multiprocessing.get_context(method).Pool(2, setup_worker, (CONNECTOR, collector.endpoint))
    pool.map(record, TASKS, chunksize=1)
    pool.close()
    pool.join()
    assert transfers(collector) == sum(TASKS)


@pytest.mark.parametrize("method", METHODS)
def test_a_process_pool_executor_delivers_everything(collector: Collector, method: str) -> None:
    context = multiprocessing.get_context(method)
    initargs = (CONNECTOR, collector.endpoint)
    with ProcessPoolExecutor(2, mp_context=context, initializer=setup_worker, initargs=initargs) as pool:
        list(pool.map(record, TASKS))
    assert transfers(collector) == sum(TASKS)


def test_a_pool_whose_workers_are_replaced_delivers_everything(collector: Collector) -> None:
    context = multiprocessing.get_context("spawn")
    pool = context.Pool(2, setup_worker, (CONNECTOR, collector.endpoint), maxtasksperchild=5)
    pids = set(pool.map(record, TASKS, chunksize=1))
    pool.close()
    pool.join()
    assert len(pids) > 2
    assert transfers(collector) == sum(TASKS)


def test_workers_forked_from_a_publishing_process_publish_for_themselves(collector: Collector) -> None:
    with StatsPublisher(CONNECTOR, collector.endpoint, {"rank": "parent"}) as publisher:
        publisher.stats.record_transfer(0.001, 0.0001, 1024, 2)
        pool = multiprocessing.get_context("fork").Pool(2, setup_worker, (CONNECTOR, collector.endpoint))
        pool.map(record, TASKS, chunksize=1)
        pool.close()
        pool.join()
    assert transfers(collector) == sum(TASKS) + 1


def test_a_process_without_the_initializer_is_told_so() -> None:
    with pytest.raises(RoleError, match="give its pool setup_worker as initializer"):
        worker_stats()
    with pytest.raises(RoleError):
        flush_worker()


@pytest.mark.extra
def test_joblibs_loky_workers_deliver_everything(collector: Collector) -> None:
    joblib = pytest.importorskip("joblib")
    from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415

    with joblib.parallel_config(backend="loky", initializer=setup_worker, initargs=(CONNECTOR, collector.endpoint)):
        joblib.Parallel(n_jobs=2)(joblib.delayed(record)(count) for count in TASKS)
    get_reusable_executor().shutdown(wait=True)
    assert transfers(collector) == sum(TASKS)


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")  # of dask's own start and end
def test_dask_workers_deliver_everything(collector: Collector) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        client.register_plugin(dask_plugin(CONNECTOR, collector.endpoint))
        client.gather(client.map(record, TASKS, pure=False))
    assert transfers(collector) == sum(TASKS)
