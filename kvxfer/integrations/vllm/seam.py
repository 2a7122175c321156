"""Where kvxfer takes hold of vLLM: what of vLLM it knows by name, and nothing of what is done then.

vLLM makes each connector, a worker's and a scheduler's, by one classmethod of its factory. That is wrapped, so that
each connector made is tapped (`tapping`). In a vLLM that has no such method the stats that reach its front end are
published instead (`fallback`): every process looks at the same vLLM, so the front end knows what the workers do.
"""

import functools
import importlib
import inspect
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any, Final

from kvxfer.integrations.vllm import logger
from kvxfer.integrations.vllm.fallback import offer_stat_logger
from kvxfer.integrations.vllm.tapping import tap

FACTORIES: Final = (("vllm.distributed.kv_transfer.kv_connector.factory", "KVConnectorFactory", "create_connector"),)
"""Module, class and classmethod, the newest first, that takes ``config`` and ``role`` and makes a connector.

vLLM 0.11.0 to 0.32.0 have the first; what else it takes, ``kv_cache_config`` in all but 0.11.0, is passed on.
"""

_PARAMETERS: Final = {"config", "role"}


def install() -> None:
    """Tap every connector that this process makes from now on; calls after the first change nothing."""
    for module, class_name, method in FACTORIES:
        factory = _class_of(module, class_name)
        create = inspect.getattr_static(factory, method, None)
        if isinstance(create, classmethod) and inspect.signature(create.__func__).parameters.keys() >= _PARAMETERS:
            if not hasattr(create, "is_tapped_by_kvxfer"):
                setattr(factory, method, _tapped(create.__func__))
            return
    offer_stat_logger()
    if multiprocessing.parent_process() is None:  # each process of an engine comes here
        logger.warning(
            "kvxfer does not know how this vLLM makes its KV connectors: it publishes what reaches the front end, "
            "merged over the ranks, instead of each rank's own stats"
        )


def _class_of(module: str, class_name: str) -> Any:  # noqa: ANN401 - a class of vLLM's, or None
    try:
        return getattr(importlib.import_module(module), class_name, None)
    except ImportError:
        return None


def _tapped(create: Callable[..., Any]) -> Any:  # noqa: ANN401 - a classmethod
    signature = inspect.signature(create)
    making = threading.local()

    @functools.wraps(create)
    def create_and_tap(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM's
        if hasattr(making, "parent"):  # vLLM 0.11.0 makes children of a MultiConnector here too: tapped with it
            return create(*args, **kwargs)
        making.parent = True
        try:
            connector = create(*args, **kwargs)
        finally:
            del making.parent
        try:
            given = signature.bind(*args, **kwargs).arguments
            tap(connector, given["config"], given["role"].name)
        except Exception as error:  # noqa: BLE001 - serving goes on
            logger.warning("kvxfer publishes nothing of %s: %r", type(connector).__name__, error)
        return connector

    wrapped = classmethod(create_and_tap)
    wrapped.is_tapped_by_kvxfer = True  # type: ignore[attr-defined]
    return wrapped
