"""Tapping one connector: what its `get_kv_connector_stats` gives to vLLM is pushed too, copied before it is returned.

The methods of the one object are shadowed, no class is changed, and what vLLM gets is what it would get without.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvxfer.connectors.multi import MAX_CHILDREN, names_of_children
from kvxfer.copying import payload_of
from kvxfer.errors import ConfigError
from kvxfer.factory import KVConnectorFactory
from kvxfer.integrations.ranks import place_labels
from kvxfer.integrations.vllm import logger
from kvxfer.integrations.vllm.pushing import Pusher

CHILDREN: Final = ("sub_connectors", "_connectors")
"""Names, the newest first, of what a MultiConnector calls the list of its children: public since vLLM 0.30.0."""

PARALLEL_STATE: Final = "vllm.distributed.parallel_state"
"""Where a worker's ranks are asked for: vLLM 0.11.0 to 0.32.0."""

_MARK: Final = "is_kvxfers"
# On the methods that shadow others.


def tap(connector: Any, config: Any, role: str) -> None:  # noqa: ANN401 - vLLM's own
    """Publish what a connector measures, from the process that made it, until it is shut down.

    ``config`` is vLLM's, ``role`` WORKER or SCHEDULER. The children of a MultiConnector are tapped one by one, as it
    merges those of one class. Few connectors have stats of their scheduler: its publisher is made for the first ones.
    """
    name = name_of(connector, config.kv_transfer_config.kv_connector)
    is_worker = role == "WORKER"
    pusher = Pusher(name, labels_of(config, is_worker=is_worker))
    children = _published(children_of(connector)) if name == "MultiConnector" else []
    try:
        _tap_all(connector, children, pusher)
    except Exception:
        _untap([connector, *children])
        raise
    if is_worker:
        pusher.start()


def _published(children: list[Any]) -> list[Any]:
    """As many children as stats of a MultiConnector hold; of the others it is said that they are left out."""
    if left_out := [type(child).__name__ for child in children[MAX_CHILDREN:]]:
        logger.warning("kvxfer publishes %d children of a MultiConnector, not %s", MAX_CHILDREN, ", ".join(left_out))
    return children[:MAX_CHILDREN]


def _tap_all(connector: Any, children: list[Any], pusher: Pusher) -> None:  # noqa: ANN401 - vLLM's own
    names = names_of_children(type(child).__name__ for child in children)
    takes = [_tap_stats(child, pusher, of=name) for child, name in zip(children, names, strict=True)]
    _tap_shutdown(connector, pusher, takes or [_tap_stats(connector, pusher)], [connector, *children])


def _untap(tapped: list[Any]) -> None:
    """Shadow nothing any more: methods of an object within itself would keep it, and its KV, until a collection."""
    for each in tapped:
        for method in ("get_kv_connector_stats", "shutdown"):
            if hasattr(getattr(each, "__dict__", {}).get(method), _MARK):
                delattr(each, method)


def name_of(connector: Any, configured: str) -> str:  # noqa: ANN401 - vLLM's own
    """Its name to a collector: one that has a class there, the configured one or that of its class, where one has."""
    names = (configured, type(connector).__name__)
    return next(filter(KVConnectorFactory.is_registered, names), configured)


def children_of(connector: Any) -> list[Any]:  # noqa: ANN401 - vLLM's own
    """The children of a MultiConnector, none where they are not found: then it is tapped as a whole."""
    return next((list(getattr(connector, name)) for name in CHILDREN if hasattr(connector, name)), [])


def labels_of(config: Any, *, is_worker: bool) -> dict[str, str]:  # noqa: ANN401 - vLLM's own
    """Engine, role and ranks, and `place_labels`; what a vLLM of another version calls otherwise is left out."""
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    finders: dict[str, Callable[[], Any]] = {
        "engine": lambda: transfer.engine_id,
        "role": lambda: transfer.kv_role,
        "rank": lambda: parallel.rank if is_worker else "scheduler",
        # The index, since vLLM 0.14, stays where engines that share nothing are each told that they are the only one.
        "dp_rank": lambda: getattr(parallel, "data_parallel_index", parallel.data_parallel_rank),
    }
    if is_worker:
        finders["pp_rank"] = lambda: importlib.import_module(PARALLEL_STATE).get_pp_group().rank_in_group
        finders["tp_rank"] = lambda: importlib.import_module(PARALLEL_STATE).get_tp_group().rank_in_group
    labels = {}
    for name, find in finders.items():
        with contextlib.suppress(Exception):
            labels[name] = str(find())
    try:
        labels |= place_labels()
    except ConfigError as error:
        logger.warning("kvxfer goes on without these labels: %s", error)
    return labels


def _tap_stats(connector: Any, pusher: Pusher, of: str | None = None) -> Callable[[], Any]:  # noqa: ANN401 - vLLM's own
    """Shadow its method; what is pushed is the payload itself or, with ``of``, that of this child."""
    take = connector.get_kv_connector_stats

    @functools.wraps(take)
    def take_and_push(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM's
        stats = take(*args, **kwargs)
        if stats is not None:  # an engine that waits for a send steps 400 times a second, for nothing
            pusher.push(stats if of is None else _OfChild(of, stats))
        return stats

    setattr(take_and_push, _MARK, True)
    connector.get_kv_connector_stats = take_and_push
    return take_and_push


def _tap_shutdown(connector: Any, pusher: Pusher, takes: list[Callable[[], Any]], tapped: list[Any]) -> None:  # noqa: ANN401 - vLLM's own
    """Send what is left while it shuts down; a process that ends without that sends it in its exit handlers."""
    shut_down = getattr(connector, "shutdown", None)
    if shut_down is None:
        return

    @functools.wraps(shut_down)
    def shut_down_and_close(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM's
        for take in takes:
            with contextlib.suppress(Exception):  # what has come since the last step, which nobody else will take
                take()
        pusher.ask_to_close()
        try:
            return shut_down(*args, **kwargs)
        finally:
            pusher.close()
            _untap(tapped)

    setattr(shut_down_and_close, _MARK, True)
    connector.shutdown = shut_down_and_close


class _OfChild:
    """Stats of a child, as the payload of a MultiConnector."""

    def __init__(self, child: str, stats: Any) -> None:  # noqa: ANN401 - any vLLM-style object
        self._child = child
        self._stats = stats

    def is_empty(self) -> bool:
        return bool(self._stats.is_empty())

    def to_dict(self) -> Mapping[str, Any]:
        return {self._child: payload_of(self._stats)}
