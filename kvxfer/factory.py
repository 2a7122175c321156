"""From the name of a connector to its class. Nothing is imported until its name is asked for."""

import importlib
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import entry_points
from typing import Any, ClassVar, Final, Protocol, cast

from kvxfer.contract import KVConnectorStats
from kvxfer.errors import ConfigError, UnknownConnectorError

ENTRY_POINT_GROUP: Final = "kvxfer.connectors"


class ConnectorClass(Protocol):
    """What kvxfer asks of a connector class."""

    def build_kv_connector_stats(self, data: Any = None) -> KVConnectorStats | None:  # noqa: ANN401 - a payload
        """The stats of a payload, empty ones without; None if the connector has none (a classmethod)."""


class TransferConfig(Protocol):
    """What kvxfer reads of a KV transfer config, vLLM's own or `KVTransferConfig`."""

    @property
    def kv_connector(self) -> str | None:
        """The name of the connector."""


class KVConnectorFactory:
    """The registry of this process. A peer's report is looked up here and can register nothing."""

    _loaders: ClassVar[dict[str, Callable[[], ConnectorClass]]] = {}
    _classes: ClassVar[dict[str, ConnectorClass]] = {}
    _searched: ClassVar[bool] = False

    @classmethod
    def register_connector(cls, name: str, module_path: str, class_name: str) -> None:
        """Register a class to be imported when it is asked for; ValueError (`ConfigError`) for a name in use."""
        cls._register(name, partial(_load, name, module_path, class_name))

    @classmethod
    def register_generic(cls, name: str) -> None:
        """Register a connector whose class is not here: its payloads are read by their form, see `connectors.generic`.

        Named by whoever runs the collector, one by one, and not taken for every unknown name: a name is a group of its
        own, so a peer could fill the memory with names, and what arrives before the connector's package is installed
        would be read wrong instead of kept by its publisher. ValueError (`ConfigError`) for a name in use.
        """
        cls._register(name, partial(cls.get_generic_class, name))

    @classmethod
    def get_generic_class(cls, name: str) -> ConnectorClass:
        """The class that reads payloads by their form, named after the connector, whether it is registered or not."""
        return _load_generic(name)

    @classmethod
    def _register(cls, name: str, load: Callable[[], ConnectorClass]) -> None:
        if name in cls._loaders:
            message = f"Connector '{name}' is already registered."
            raise ConfigError(message)
        cls._loaders[name] = load

    @classmethod
    def get_connector_class(cls, kv_transfer_config: TransferConfig) -> ConnectorClass:
        """The class of a config: a registered name, else from its ``kv_connector_module_path``.

        Raises `UnknownConnectorError` (a ValueError) where neither leads to one.
        """
        name = kv_transfer_config.kv_connector
        module_path = getattr(kv_transfer_config, "kv_connector_module_path", None)
        if name and module_path and not cls.is_registered(name):
            return _load(name, module_path, name)
        return cls.get_connector_class_by_name(str(name))

    @classmethod
    def get_connector_class_by_name(cls, name: str) -> ConnectorClass:
        """The class of a registered name; raises `UnknownConnectorError` (a ValueError) for others."""
        found = cls._classes.get(name)
        if found is not None:
            return found
        if not cls.is_registered(name):
            message = f"Connector '{name:.100}' is not registered."
            raise UnknownConnectorError(message)
        return cls._classes.setdefault(name, cls._loaders[name]())

    @classmethod
    def is_registered(cls, name: str) -> bool:
        """Whether a class is known for the name, here or by an installed package."""
        if name not in cls._loaders and not cls._searched:
            cls._find_entry_points()
        return name in cls._loaders

    @classmethod
    def _find_entry_points(cls) -> None:
        """Note what installed packages offer, once: peers may ask for unknown names as often as they like.

        Of several threads that come at once each finds the same: a lock would stay locked in a child forked meanwhile.
        """
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            module, _, attribute = entry.value.partition(":")
            cls._loaders.setdefault(entry.name, partial(_load, entry.name, module, attribute))
        cls._searched = True


def _load(name: str, module_path: str, class_name: str) -> ConnectorClass:
    try:
        return cast("ConnectorClass", getattr(importlib.import_module(module_path), class_name))
    except (ImportError, AttributeError) as error:
        message = f"Connector '{name}' cannot be loaded from {module_path}:{class_name}: {error}"
        raise UnknownConnectorError(message) from error


@lru_cache(maxsize=64)
def _load_generic(name: str) -> ConnectorClass:
    generic = _load(name, "kvxfer.connectors.generic", "GenericConnector")
    # A class of its own name, as series are called after it.
    return cast("ConnectorClass", type(name, (cast("type", generic),), {}))


for _name, _module in {
    "NixlConnector": "nixl:NixlConnector",
    # vLLM 0.32 and newer name the two directions apart; the stats are the same.
    "NixlPullConnector": "nixl:NixlConnector",
    "NixlPushConnector": "nixl:NixlConnector",
    "MooncakeConnector": "mooncake:MooncakeConnector",
    "MooncakeStoreConnector": "mooncake_store:MooncakeStoreConnector",
    "OffloadingConnector": "offloading:OffloadingConnector",
    "SimpleCPUOffloadConnector": "simple_cpu_offload:SimpleCPUOffloadConnector",
    "HiSparseConnector": "hisparse:HiSparseConnector",
    "HF3FSKVConnector": "hf3fs:HF3FSKVConnector",
    "UMBPStoreConnector": "umbp:UMBPStoreConnector",
    "MultiConnector": "multi:MultiConnector",
    "SharedMemoryConnector": "shared_memory:SharedMemoryConnector",
}.items():
    _file, _, _class = _module.partition(":")
    KVConnectorFactory.register_connector(_name, f"kvxfer.connectors.{_file}", _class)

# Their stats are classes of their own packages, which change with them.
for _name in ("FlexKVConnectorV1", "LMCacheConnectorV1", "LMCacheMPConnector"):
    KVConnectorFactory.register_generic(_name)
