"""Worker pools: one initializer for every kind of pool and every start method.

``multiprocessing.Pool(n, setup_worker, args)``, ``ProcessPoolExecutor(initializer=setup_worker, initargs=args)``,
joblib's ``parallel_config(backend="loky", initializer=setup_worker, initargs=args)`` and, for dask,
``dask_plugin(*args)``, where ``args`` are connector, endpoint, labels and buffer as `StatsPublisher` takes them. All
workers of a pool get the same labels; host and pid, which every source has, tell them apart, so no rank is made up.

What a worker recorded is sent at every exit that runs exit handlers. A pool that is terminated (``with Pool(): ...``
ends that way) kills its workers: ``close()`` and ``join()`` it, or call `flush_worker` at the end of a task, or record
into shared memory (``buffer="shared"``), from which a collector on the same host takes what they had not sent.
"""

import os
from collections.abc import Mapping
from typing import Any, Final

from kvxfer.errors import KVXferError, RoleError
from kvxfer.publisher import StatsPublisher

# By pid: a forked worker inherits its parent's entry, which is not its own.
_publishers: Final[dict[int, StatsPublisher]] = {}
_failures: Final[dict[int, KVXferError]] = {}


def setup_worker(
    connector: str, endpoint: str | None = None, labels: Mapping[str, str] | None = None, buffer: str = "process"
) -> None:
    """Make this process publish; once it does, another call changes nothing.

    A worker that was forked from a publishing process publishes for itself. What `StatsPublisher` would raise is
    raised by `worker_stats`, in the task: ``multiprocessing.Pool`` replaces a worker whose initializer fails for ever.
    """
    if os.getpid() in _publishers:
        return
    try:
        publisher = StatsPublisher(connector, endpoint, labels, buffer=buffer)
    except KVXferError as error:
        _failures[os.getpid()] = error
        return
    if _publishers.setdefault(os.getpid(), publisher) is not publisher:  # of several threads one is first
        publisher.close()
        return
    for pid in [pid for pid in _publishers if pid != os.getpid()]:
        _publishers.pop(pid).close()


def worker_stats() -> Any:  # noqa: ANN401 - the class of the connector
    """The stats to record into; raises `RoleError` in a process that `setup_worker` did not run in."""
    return _own_publisher().stats


def flush_worker(timeout: float = 1.0) -> bool:
    """Hand over what was recorded so far, waiting at most so many seconds; whether all of it was.

    Raises what `worker_stats` raises.
    """
    return _own_publisher().flush(timeout)


def _own_publisher() -> StatsPublisher:
    publisher = _publishers.get(os.getpid())
    if publisher is not None:
        return publisher
    if os.getpid() in _failures:
        raise _failures[os.getpid()]
    message = "this process does not publish: give its pool setup_worker as initializer"
    raise RoleError(message)


def dask_plugin(
    connector: str, endpoint: str | None = None, labels: Mapping[str, str] | None = None, buffer: str = "process"
) -> Any:  # noqa: ANN401 - dask's plugin, as far as it is installed
    """A plugin for ``client.register_plugin(...)``; raises `KVXferError` where dask is not installed.

    Each worker publishes from its start on, and hands over what is left when it ends.
    """
    try:
        from distributed import WorkerPlugin  # noqa: PLC0415 - an extra
    except ImportError as error:
        message = "dask is not installed: pip install 'kvxfer[pools]'"
        raise KVXferError(message) from error

    class PublisherPlugin(WorkerPlugin):  # type: ignore[misc]
        """Begins with its worker; the process ends the publishing, as it may have other workers."""

        name = "kvxfer"

        def setup(self, worker: Any) -> None:  # noqa: ANN401 - dask's worker
            del worker
            setup_worker(connector, endpoint, labels, buffer)

        def teardown(self, worker: Any) -> None:  # noqa: ANN401 - dask's worker
            del worker
            flush_worker()

    return PublisherPlugin()
