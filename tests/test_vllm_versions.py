"""What moved between vLLM 0.11.0 and 0.32.0: how it makes a connector, where children are, what payloads look like."""

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.factory import KVConnectorFactory
from kvxfer.integrations.vllm.seam import FACTORIES, install

MOVED = {"transfer_duration": [0.1], "post_duration": [0.01], "bytes_transferred": [64], "num_descriptors": [2]}
FAILED: dict[str, list[float]] = {"num_failed_transfers": [1.0], "num_failed_notifications": []}


class Role(Enum):
    SCHEDULER = 0
    WORKER = 1


class Stats:
    """As those of vLLM up to 0.29: their payload is ``data``, there is no ``to_dict``."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def is_empty(self) -> bool:
        return not self.data


class NixlConnector:
    def get_kv_connector_stats(self) -> Any:
        return Stats(MOVED | FAILED)

    def shutdown(self) -> None:
        """Nothing to end."""


class MultiConnector(NixlConnector):
    def __init__(self, children: list[Any]) -> None:
        self._connectors = children

    def get_kv_connector_stats(self) -> Any:
        return Stats({type(child).__name__: child.get_kv_connector_stats() for child in self._connectors})

    def shutdown(self) -> None:
        for child in self._connectors:
            child.shutdown()


def vllm_config(connector: str) -> Any:
    transfer = SimpleNamespace(kv_connector=connector, engine_id="one", kv_role="kv_both")
    return SimpleNamespace(kv_transfer_config=transfer, parallel_config=SimpleNamespace(rank=3, data_parallel_rank=1))


def factory_of_0_11_0() -> Any:
    class KVConnectorFactory:
        @classmethod
        def create_connector(cls, config: Any, role: Role) -> Any:
            if config.kv_transfer_config.kv_connector != "MultiConnector":
                return NixlConnector()
            return MultiConnector([cls.create_connector(vllm_config("NixlConnector"), role) for _ in range(2)])

    return KVConnectorFactory


def factory_of_0_11_2() -> Any:
    class KVConnectorFactory:
        @classmethod
        def create_connector(cls, config: Any, role: Role, kv_cache_config: Any = None) -> Any:  # noqa: ARG003 - vLLM's
            is_multi = config.kv_transfer_config.kv_connector == "MultiConnector"
            return MultiConnector([NixlConnector(), NixlConnector()]) if is_multi else NixlConnector()

    return KVConnectorFactory


def factory_of_0_21_0() -> Any:
    class KVConnectorFactory:
        @classmethod
        def create_connector(cls, config: Any, role: Role, kv_cache_config: Any) -> Any:
            return factory_of_0_11_2().create_connector(config, role, kv_cache_config)

    return KVConnectorFactory


VERSIONS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "0.11.0": (factory_of_0_11_0, {}),
    "0.11.2 to 0.20.2": (factory_of_0_11_2, {"kv_cache_config": object()}),
    "0.21.0 to 0.32.0": (factory_of_0_21_0, {"kv_cache_config": object()}),
}
of_each_version = pytest.mark.parametrize(("make_factory", "more"), VERSIONS.values(), ids=VERSIONS)


@pytest.fixture
def collector(ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as running:
        monkeypatch.setenv("KVXFER_ENDPOINT", running.endpoint)
        yield running


def install_into(factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install kvxfer's plugin in a process whose vLLM has this factory."""
    (module_name, class_name, _), *_ = FACTORIES
    module = ModuleType(module_name)
    setattr(module, class_name, factory)
    monkeypatch.setitem(sys.modules, module_name, module)
    install()
    install()  # each process may load a plugin more than once


# --- how it makes a connector


@of_each_version
def test_a_connector_is_published_by_each_vllm(
    make_factory: Callable[[], Any], more: dict[str, Any], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = make_factory()
    install_into(factory, monkeypatch)
    connector = factory.create_connector(config=vllm_config("NixlConnector"), role=Role.WORKER, **more)
    assert connector.get_kv_connector_stats().data == MOVED | FAILED
    connector.shutdown()  # takes what came since, and waits until the collector has it
    (source,) = collector.snapshot().sources
    assert source.stats.reduce()["Num successful transfers"] == 2
    # No index of the engine before 0.14, and no ranks where nobody can be asked for them.
    assert source.source.labels == {"engine": "one", "role": "kv_both", "rank": "3", "dp_rank": "1"}


@of_each_version
def test_children_of_a_multi_connector_are_counted_once_and_told_apart(
    make_factory: Callable[[], Any], more: dict[str, Any], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = make_factory()
    install_into(factory, monkeypatch)
    connector = factory.create_connector(vllm_config("MultiConnector"), Role.WORKER, *more.values())
    connector.get_kv_connector_stats()
    connector.shutdown()
    (source,) = collector.snapshot().sources
    counts = {child: reduced["Num successful transfers"] for child, reduced in source.stats.reduce().items()}
    assert counts == {"NixlConnector": 2, "NixlConnector#2": 2}


def test_a_connector_that_cannot_be_made_leaves_the_next_one_tapped(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = factory_of_0_11_0()
    install_into(factory, monkeypatch)
    with pytest.raises(AttributeError):
        factory.create_connector(config=None, role=Role.WORKER)
    factory.create_connector(vllm_config("NixlConnector"), Role.WORKER).shutdown()
    assert len(collector.snapshot().sources) == 1


# --- what payloads look like

OLD_OFFLOADING = {
    "CPU_to_GPU": [{"op_size": 1000, "op_time": 0.25}, {"op_size": 3000, "op_time": 0.5}],
    "GPU_to_CPU": [{"op_size": 5, "op_time": 0.125}],
}
OFFLOADED = {
    "vllm:kv_offload_load_bytes": 4000,
    "vllm:kv_offload_load_time": 0.75,
    "vllm:kv_offload_load_size_count": 2,
    "vllm:kv_offload_load_size_sum": 4000,
    "vllm:kv_offload_store_bytes": 5,
    "vllm:kv_offload_store_time": 0.125,
    "vllm:kv_offload_store_size_count": 1,
    "vllm:kv_offload_store_size_sum": 5,
}


def build(connector: str, payload: dict[str, Any]) -> Any:
    return KVConnectorFactory.get_connector_class_by_name(connector).build_kv_connector_stats(payload)


@pytest.mark.parametrize(
    ("payload", "transfers", "failed", "expired"),
    [
        pytest.param({"num_successful_transfers": 3}, 3, 0, 0, id="0.11.0"),
        pytest.param(MOVED | FAILED, 1, 1, 0, id="0.11.2 to 0.14.1"),
        pytest.param(MOVED | FAILED | {"num_kv_expired_reqs": [1, 1]}, 1, 1, 2, id="0.15.1 to 0.30.0"),
        pytest.param(MOVED | FAILED | {"num_failed_handshakes": [1]}, 1, 2, 0, id="0.31.0"),
    ],
)
def test_nixl_stats_of_older_vllms_open(payload: dict[str, Any], transfers: int, failed: int, expired: int) -> None:
    stats = build("NixlConnector", payload)
    for _ in range(2):
        reduced = stats.reduce()
        assert reduced["Num successful transfers"] == transfers
        assert reduced["Num failed transfers"] == failed
        assert reduced["Num KV expired reqs"] == expired
        stats = build("NixlConnector", stats.to_packed())  # as it travels
    assert stats.num_rejected() == 0


def test_a_number_of_transfers_that_is_none_is_none() -> None:
    stats = build("NixlConnector", {"num_successful_transfers": [1.0]})
    assert stats.reduce()["Num successful transfers"] == 0


def test_transfers_of_an_older_offloading_connector_read_as_a_newer_one_tells_them() -> None:
    stats = build("OffloadingConnector", OLD_OFFLOADING)
    assert stats.reduce() == OFFLOADED
    assert stats.moved() == (4005, 0.875)
    assert build("OffloadingConnector", stats.to_packed()).reduce() == OFFLOADED


def test_other_media_than_the_cpu_load_and_store_too() -> None:
    stats = build("OffloadingConnector", {"DISK_to_GPU": [{"op_size": 7, "op_time": 1}]}).reduce()
    assert stats["vllm:kv_offload_load_bytes"] == 7


def test_media_of_one_direction_add_up_and_rows_of_another_form_are_refused() -> None:
    row = {"op_size": 7, "op_time": 1}
    stats = build("OffloadingConnector", {f"{medium}_to_GPU": [row, 7, [row]] for medium in ("CPU", "DISK", "S3")})
    assert stats.moved() == (21, 3)
    assert stats.num_rejected() == 6


@pytest.mark.parametrize(
    "row", [None, {}, {"op_size": 1}, {"op_size": -1, "op_time": 1}, {"op_size": 1, "op_time": float("nan")}]
)
def test_an_offloaded_transfer_that_is_not_plausible_is_refused_and_the_others_count(row: Any) -> None:
    stats = build("OffloadingConnector", {"CPU_to_GPU": [row, {"op_size": 7, "op_time": 1}]})
    assert stats.num_rejected() == 1
    assert stats.reduce()["vllm:kv_offload_load_bytes"] == 7
    assert build("OffloadingConnector", {"CPU_to_GPU": [row]}).num_rejected() == 1


@pytest.mark.parametrize("wrap", [lambda child: {"data": child}, lambda child: child], ids=["to 0.29", "since 0.30"])
def test_children_are_wrapped_or_bare(wrap: Callable[[Any], Any]) -> None:
    stats = build("MultiConnector", {"NixlConnector": wrap(MOVED), "OffloadingConnector": wrap(OLD_OFFLOADING)})
    assert stats["NixlConnector"].reduce()["Num successful transfers"] == 1
    assert stats["OffloadingConnector"].reduce() == OFFLOADED
