"""Worker pools: one initializer for every kind of pool and every start method.

``multiprocessing.Pool(n, setup_worker, args)``, ``ProcessPoolExecutor(initializer=setup_worker, initargs=args)``,
joblib's ``parallel_config(backend="loky", initializer=setup_worker, initargs=args)`` and, for dask,
``dask_plugin(*args)``, where ``args`` are those of `StatsPublisher`. What a worker recorded is sent at every exit that
runs exit handlers; a pool that is terminated (``with Pool(): ...`` ends that way) kills its workers: ``close()`` and
``join()`` it, or flush before.
"""

import os
from collections.abc import Mapping
from typing import Any

from kvxfer.errors import KVXferError, RoleError
from kvxfer.publisher import StatsPublisher

_publisher: StatsPublisher | None = None
_owner = 0


def setup_worker(connector: str, endpoint: str | None = None, labels: Mapping[str, str] | None = None) -> None:
    """Make this process publish; a second call in a process changes nothing.

    A worker that was forked from a publishing process publishes for itself. Raises what `StatsPublisher` raises.
    """
    global _publisher, _owner  # noqa: PLW0603 - a process has one, as it has one pid
    if _owner == os.getpid():
        return
    inherited, _publisher = _publisher, StatsPublisher(connector, endpoint, labels)
    _owner = os.getpid()
    if inherited is not None:
        inherited.close(0)


def worker_stats() -> Any:  # noqa: ANN401 - the class of the connector
    """The stats to record into; raises `RoleError` in a process that `setup_worker` did not run in."""
    return _own_publisher().stats


def flush_worker(timeout: float = 1.0) -> bool:
    """Send what was recorded so far, waiting at most so many seconds; whether all of it was handed over."""
    return _own_publisher().flush(timeout)


def close_worker() -> None:
    """Send what is left and publish no more, for pools that tell their workers when they end."""
    global _owner  # noqa: PLW0603 - as above
    if _publisher is not None and _owner == os.getpid():
        _publisher.close()
        _owner = 0


def _own_publisher() -> StatsPublisher:
    if _publisher is None or _owner != os.getpid():
        message = "this process does not publish: give its pool setup_worker as initializer"
        raise RoleError(message)
    return _publisher


def dask_plugin(connector: str, endpoint: str | None = None, labels: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401
    """A plugin for ``client.register_plugin(...)``: each worker publishes from its start to its end."""
    try:
        from distributed import WorkerPlugin  # noqa: PLC0415 - an extra
    except ImportError as error:
        message = "dask is not installed: pip install 'kvxfer[pools]'"
        raise KVXferError(message) from error

    class PublisherPlugin(WorkerPlugin):  # type: ignore[misc]
        """Begins and ends with its worker."""

        name = "kvxfer"

        def setup(self, worker: Any) -> None:  # noqa: ANN401 - dask's worker
            del worker
            setup_worker(connector, endpoint, labels)

        def teardown(self, worker: Any) -> None:  # noqa: ANN401 - dask's worker
            del worker
            close_worker()

    return PublisherPlugin()
