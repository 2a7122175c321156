"""Ray: a collector that is a named actor, and workers that find it by that name. The only file that imports ray.

In the driver `start_collector`; each worker process calls `setup_worker`, or Ray does, for all workers of a job:

    ray.init(runtime_env={
        "worker_process_setup_hook": "kvxfer.integrations.ray.setup_worker",
        "env_vars": {"KVXFER_CONNECTOR": "NixlConnector", "KVXFER_LABELS": "role=kv_consumer"},
    })

They record into `worker_stats()`. Ray runs no exit handlers at ``ray.kill`` and ``ray.shutdown``: a last remote call of
`flush_worker` loses nothing.
"""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kvxfer.config import CollectorConfig, default_journal
from kvxfer.errors import ConfigError, KVXferError, RoleError
from kvxfer.integrations.following import NOWHERE, Following
from kvxfer.integrations.ranks import rank_labels
from kvxfer.publisher import StatsPublisher
from kvxfer.saved import at_once, decode_interval, encoding_interval

if TYPE_CHECKING:
    from kvxfer.interval import Interval

NAMESPACE: Final = "kvxfer"
"""The namespace of the actors, so that every job of the cluster finds them."""

DEFAULT_NAME: Final = "kvxfer"

_ASK_SECONDS: Final = 1.0
# A collector that lives answers in milliseconds; of one that is being started again nobody knows where it will be.
_START_SECONDS: Final = 60.0
# Ray starts an actor in seconds; where no node has room for it, it waits for ever.


class Place(msgspec.Struct, frozen=True):
    """Where a collector is now; all but the journal may be others when its actor was started again."""

    endpoint: str
    node_id: str
    pid: int
    journal: str | None
    url: str | None
    """Where it serves pages and metrics, None for nowhere."""


# --- the collector


class RayCollector:
    """A collector that an actor runs; `start_collector` gives it. It can be sent to tasks."""

    def __init__(self, name: str, actor: Any) -> None:  # noqa: ANN401 - Ray's handle
        """Speak for the actor of this name."""
        self.name = name
        self._actor = actor

    def __repr__(self) -> str:
        """Give the name."""
        return f"<RayCollector {self.name}>"

    def place(self) -> Place:
        """Where it is now; raises `KVXferError` where it cannot be started, or not within a minute."""
        place: Place = self._call("place")
        return place

    def snapshot(self) -> "Interval":
        """`Collector.snapshot`, all that its journal has, quantiles within 1.1 %; raises what `place` does."""
        return decode_interval(self._call("snapshot"))

    def stop(self) -> None:
        """Finish the interval, commit, acknowledge, export, and end the actor for good."""
        import ray  # noqa: PLC0415 - an extra

        try:
            self._call("stop")
        finally:
            ray.kill(self._actor)

    def _call(self, method: str) -> Any:  # noqa: ANN401 - of the method
        import ray  # noqa: PLC0415 - an extra

        try:
            return ray.get(getattr(self._actor, method).remote(), timeout=_START_SECONDS)
        except ray.exceptions.RayError as error:
            *_, last = str(error).strip().splitlines() or [type(error).__name__]
            message = f"the collector {self.name!r} does not answer: {last}"
            raise KVXferError(message) from error


def start_collector(
    config: CollectorConfig | None = None,
    *,
    name: str = DEFAULT_NAME,
    node_id: str | None = None,
    above: str | None = None,
    http: str | None = None,
    file_sd: str | None = None,
) -> RayCollector:
    """Start a collector as a named, detached actor of the cluster, or give the one of that name as it is.

    It stays on one node, ``node_id`` or that of the caller, as its journal does: `CollectorConfig.journal`, by default
    a file per cluster and name below ``XDG_STATE_HOME`` there. Ray starts it again whenever its process dies; it goes
    on with the journal, and what workers had flushed is neither lost nor counted twice. Without an endpoint in
    ``config`` it binds a free port of the node's address, which beyond loopback takes ``curve`` or ``insecure``; where
    the port it is to have is taken, another one.

    One per node: ``name="kvxfer-{node}"``, in which the node's id is filled in, with ``above`` the name of a collector
    that is told each interval. ``http`` is as ``kvxfer collect --http`` takes it, and ``file_sd`` a file on that node
    in which Prometheus (``file_sd_configs``) finds the address of its metrics, written anew when it moves.

    Raises `ConfigError`, and `KVXferError` where it cannot start.
    """
    ray = _ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an extra

    node = node_id or ray.get_runtime_context().get_node_id()
    name = name.replace("{node}", node)
    if http is not None:
        from kvxfer.web import parse_address  # noqa: PLC0415 - no worker of a job has a server

        parse_address(http)
    elif file_sd is not None:
        message = "file_sd tells where metrics are served: give http too, '0.0.0.0:0' for a free port"
        raise ConfigError(message)
    actor = (
        ray.remote(CollectorActor)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(config or CollectorConfig(), name, above, http, file_sd and file_sd.replace("{node}", node))
    )
    collector = RayCollector(name, actor)
    collector.place()
    return collector


class CollectorActor:
    """What the actor is: a collector on a thread of its process, and what serves it."""

    def __init__(
        self, config: CollectorConfig, name: str, above: str | None, http: str | None, file_sd: str | None
    ) -> None:
        """Bind and begin, for the first time or again."""
        import ray  # noqa: PLC0415 - an extra

        from kvxfer.integrations.resuming import resume, serve, tell_prometheus  # noqa: PLC0415 - no worker of a job

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
        context = ray.get_runtime_context()
        self._node_id, address = context.get_node_id(), ray.util.get_node_ip_address()
        completed = msgspec.structs.replace(
            config,
            endpoint=config.endpoint or (f"tcp://[{address}]:*" if ":" in address else f"tcp://{address}:*"),
            journal=config.journal or default_journal(f"ray://{context.get_session_name()}-{name}"),
            upstream=config.upstream if above is None else NOWHERE,
        )
        self._collector = resume(completed)
        self._server = None if http is None else serve(self._collector, http)
        if self._server is not None and file_sd is not None:
            tell_prometheus(Path(file_sd), self._server, address, name)
        self._collector.start()
        self._waiting = self._answers = 0
        if above is not None:
            Following(lambda: _endpoint_of(above), self._collector.move_upstream, self._waiting_for_above).start()

    def _waiting_for_above(self) -> int | None:
        before, self._waiting = self._waiting, self._collector.pipeline().relay_unacknowledged
        self._answers += self._waiting < before
        return self._answers if self._waiting else None

    def place(self) -> Place:
        """Where it is."""
        url = None if self._server is None else self._server.url
        return Place(self._collector.endpoint, self._node_id, os.getpid(), self._collector.config.journal, url)

    def snapshot(self) -> bytes:
        """All that was taken, in bytes, as an `Interval` is not to be pickled."""
        return at_once(encoding_interval(self._collector.snapshot()))

    def stop(self) -> None:
        """Stop collecting and serving."""
        if self._server is not None:
            self._server.stop()
        self._collector.stop()


# --- the workers


class _Worker:
    """What this process publishes."""

    def __init__(self, connector: str, collector: str, labels: dict[str, str]) -> None:
        self.publisher = StatsPublisher(connector, NOWHERE, labels)
        Following(lambda: _endpoint_of(collector), self.publisher.move_to, self._progress).start()

    def _progress(self) -> int | None:
        delivery = self.publisher.delivery
        return delivery.reports - delivery.unacknowledged if delivery.unacknowledged else None


_lock: Final = threading.Lock()
_settings: list[tuple[str | None, str | None, Mapping[str, str] | None]] = []
_workers: Final[list[_Worker]] = []


def setup_worker(
    connector: str | None = None, collector: str | None = None, labels: Mapping[str, str] | None = None
) -> None:
    """Let this process, a worker of Ray, publish from its first `worker_stats` on; once it does nothing is changed.

    By default ``connector`` is ``KVXFER_CONNECTOR`` and ``collector``, the name of one, ``KVXFER_RAY_COLLECTOR`` or
    "kvxfer"; "{node}" in it is the node's id. The collector may come later and move. Labels are `rank_labels`,
    the node's id as ``node``, and those given. A worker of Ray that waits for work all its life is no silent rank: it
    does not publish. Raises nothing, since Ray would start a worker whose hook fails again and again.
    """
    _settings[:] = [(connector, collector, labels)]


def worker_stats() -> Any:  # noqa: ANN401 - the class of the connector
    """The stats to record into.

    Raises `RoleError` in a process that `setup_worker` did not run in, or that is no worker of Ray, `ConfigError` for
    unusable labels and where no connector is named, `UnknownConnectorError` for one that is not registered.
    """
    return _own_publisher().stats


def flush_worker(timeout: float = 10.0) -> bool:
    """Hand over what was recorded so far, waiting at most so many seconds; whether all of it is committed.

    By default as long as a collector takes that was killed just now. Raises what `worker_stats` raises.
    """
    return _own_publisher().flush(timeout)


def _own_publisher() -> StatsPublisher:
    if not _workers:
        with _lock:
            if not _workers:
                _workers.append(_begin())
    return _workers[0].publisher


def _begin() -> _Worker:
    if not _settings:
        message = "this process does not publish: call setup_worker, or name it as worker_process_setup_hook"
        raise RoleError(message)
    context = _ray().get_runtime_context()
    if context.worker.mode != _ray().WORKER_MODE:
        message = "this is no worker of Ray: publish with StatsPublisher(connector, collector.place().endpoint)"
        raise RoleError(message)
    connector, collector, labels = _settings[0]
    connector = connector or os.environ.get("KVXFER_CONNECTOR")
    if not connector:
        message = "no connector is named: give setup_worker one, or set KVXFER_CONNECTOR in env_vars of runtime_env"
        raise ConfigError(message)
    name = collector or os.environ.get("KVXFER_RAY_COLLECTOR") or DEFAULT_NAME
    node = context.get_node_id()
    return _Worker(connector, name.replace("{node}", node), {**rank_labels(), "node": node, **(labels or {})})


# --- both


def _ray() -> Any:  # noqa: ANN401 - the package, as far as it is installed
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        message = "ray is not installed: pip install 'kvxfer[ray]'"
        raise KVXferError(message) from error
    return ray


def _endpoint_of(name: str) -> str | None:
    """Where the collector of this name is now, None for nowhere; raises what Ray does where that is not known."""
    ray = _ray()
    if not ray.is_initialized():  # or it would start a Ray of its own
        return None
    actor = ray.get_actor(name, namespace=NAMESPACE)
    place: Place = ray.get(actor.place.remote(), timeout=_ASK_SECONDS)
    return place.endpoint
