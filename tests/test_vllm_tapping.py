"""What real engines cannot show of kvxfer within vLLM: an exception inside, an unknown vLLM, two children of a class.

The doubles have of vLLM what `kvxfer.integrations.vllm` takes hold of; `tests/process/test_vllm.py` has the engines.
"""

import enum
import logging
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pytest

import kvxfer.integrations.vllm as integration
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.multi import MAX_CHILDREN
from kvxfer.integrations.vllm import fallback, seam
from kvxfer.publisher import StatsPublisher

Role = enum.Enum("Role", ["SCHEDULER", "WORKER"])


class Stats:
    """Transfers, as vLLM's class holds them."""

    def __init__(self, count: int) -> None:
        self.data = {name: [0.5] * count for name in ("transfer_duration", "post_duration")}
        self.data |= {name: [8.0] * count for name in ("bytes_transferred", "num_descriptors")}

    def is_empty(self) -> bool:
        return not self.data["transfer_duration"]

    def to_dict(self) -> dict[str, Any]:
        return self.data


class NixlConnector:
    """Gives what it has, once."""

    def __init__(self, *waiting: Any) -> None:
        self.waiting = list(waiting)
        self.is_shut_down = False

    def get_kv_connector_stats(self) -> Any:
        return self.waiting.pop(0) if self.waiting else None

    def shutdown(self) -> str:
        self.is_shut_down = True
        return "as without"


class MultiConnector(NixlConnector):
    """Has children."""

    def __init__(self, *children: Any) -> None:
        super().__init__()
        self._connectors = children

    def get_kv_connector_stats(self) -> Any:
        return [child.get_kv_connector_stats() for child in self._connectors]


class Factory:
    """Makes the connector that its config names."""

    @classmethod
    def create_connector(cls, config: Any, role: Any, kv_cache_config: Any = None) -> Any:
        del cls, role, kv_cache_config
        return config.connector


def config_of(connector: Any) -> Any:
    transfer = SimpleNamespace(kv_connector=type(connector).__name__, engine_id="e0", kv_role="kv_both")
    parallel = SimpleNamespace(rank=3, data_parallel_rank=1)
    return SimpleNamespace(connector=connector, kv_transfer_config=transfer, parallel_config=parallel)


@pytest.fixture
def collector(ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("KVXFER_ENDPOINT", ipc_endpoint)
    for name in ("KVXFER_LABELS", "POD_NAME", "POD_NAMESPACE", "NODE_NAME", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as running:
        yield running


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A factory of this test, which kvxfer takes for vLLM's."""
    made = type("KVConnectorFactory", (), {"create_connector": vars(Factory)["create_connector"]})
    monkeypatch.setitem(sys.modules, "a_vllm", SimpleNamespace(KVConnectorFactory=made))
    monkeypatch.setattr(seam, "FACTORIES", (("a_vllm", "KVConnectorFactory", "create_connector"),))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    return made


def made_by(factory: Any, connector: Any, role: Role = Role.WORKER) -> Any:
    integration.plugin()
    return factory.create_connector(config=config_of(connector), role=role, kv_cache_config=None)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- nobody asks for it


def test_where_nobody_asks_for_it_the_plugin_imports_nothing() -> None:
    code = (
        "import sys; from kvxfer.integrations.vllm import plugin; plugin()\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in {'kvxfer', 'numpy', 'zmq', 'msgspec'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['kvxfer', 'kvxfer.integrations', 'kvxfer.integrations.vllm']"


def test_a_vllm_that_is_known_is_offered_no_stat_logger(factory: Any, collector: Collector) -> None:
    integration.plugin()
    assert factory.create_connector.__name__ == "create_connector"
    assert "kvxfer" not in {each.name for each in entry_points(group="vllm.stat_logger_plugins")}
    del collector


# --- what is taken


def test_what_vllm_gets_is_the_object_that_it_gets_without_and_a_copy_is_published(
    factory: Any, collector: Collector
) -> None:
    stats = Stats(2)
    connector = made_by(factory, NixlConnector(stats))
    assert connector.get_kv_connector_stats() is stats
    stats.data["transfer_duration"].extend([1.0] * 100)  # as the engine does with the first rank's
    assert connector.get_kv_connector_stats() is None
    assert connector.shutdown() == "as without"
    (group,) = collector.snapshot().groups
    assert group.stats.transfer_duration.count == 2
    (source,) = collector.snapshot().sources
    assert source.source.labels == {"engine": "e0", "role": "kv_both", "rank": "3", "dp_rank": "1"}


def test_what_has_come_since_the_last_step_is_published_when_it_shuts_down(factory: Any, collector: Collector) -> None:
    connector = made_by(factory, NixlConnector(Stats(3)))
    connector.shutdown()
    assert connector.is_shut_down
    assert vars(connector).keys() == vars(NixlConnector()).keys(), "nothing keeps it alive"
    assert collector.snapshot().groups[0].stats.transfer_duration.count == 3


def test_loading_the_plugin_twice_counts_nothing_twice(factory: Any, collector: Collector) -> None:
    integration.plugin()
    connector = made_by(factory, NixlConnector(Stats(3)))
    connector.get_kv_connector_stats()
    connector.shutdown()
    assert collector.snapshot().groups[0].stats.transfer_duration.count == 3


def test_children_of_one_class_are_told_apart(factory: Any, collector: Collector) -> None:
    first, second = Stats(1), Stats(2)
    connector = made_by(factory, MultiConnector(NixlConnector(first), NixlConnector(second)))
    assert connector.get_kv_connector_stats() == [first, second]
    connector.shutdown()
    (group,) = collector.snapshot().groups
    assert {name: stats.transfer_duration.count for name, stats in group.stats.data.items()} == {
        "NixlConnector": 1,
        "NixlConnector#2": 2,
    }


def test_a_scheduler_is_a_source_once_it_has_stats(factory: Any, collector: Collector) -> None:
    without = made_by(factory, NixlConnector(None, Stats(0)), Role.SCHEDULER)
    assert without.get_kv_connector_stats() is None
    without.shutdown()
    assert not list(collector.snapshot().sources)
    made_by(factory, NixlConnector(Stats(1)), Role.SCHEDULER).shutdown()
    (source,) = collector.snapshot().sources
    assert source.source.labels["rank"] == "scheduler"


# --- what fails


def test_an_exception_in_kvxfer_is_logged_and_the_connector_is_made(
    factory: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(seam, "tap", None)
    connector = NixlConnector()
    assert made_by(factory, connector) is connector
    assert warnings_of(caplog) == [
        "kvxfer publishes nothing of NixlConnector: TypeError(\"'NoneType' object is not callable\")"
    ]
    del collector


def test_a_push_that_fails_is_said_once_and_vllm_gets_its_stats(
    factory: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = [Stats(1), Stats(1)]
    connector = made_by(factory, NixlConnector(*given))
    monkeypatch.setattr(StatsPublisher, "push", None)
    assert [connector.get_kv_connector_stats() for _ in given] == given
    connector.shutdown()
    assert len(warnings_of(caplog)) == 1
    assert collector.snapshot().pipeline.observations_cut == 2


def test_a_tap_that_fails_halfway_leaves_nothing_behind(
    factory: Any, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    class Slotted:
        __slots__ = ()

        def get_kv_connector_stats(self) -> Any:
            return "slotted"

    connector = made_by(factory, MultiConnector(NixlConnector("first"), Slotted()))
    assert len(warnings_of(caplog)) == 1
    assert "get_kv_connector_stats" not in vars(connector._connectors[0])
    assert connector.get_kv_connector_stats() == ["first", "slotted"]
    del collector


def test_children_beyond_those_that_stats_can_hold_are_left_out_with_one_warning(
    factory: Any, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    given = [Stats(1) for _ in range(MAX_CHILDREN + 2)]
    connector = made_by(factory, MultiConnector(*map(NixlConnector, given)))
    assert connector.get_kv_connector_stats() == given
    connector.shutdown()
    (said,) = warnings_of(caplog)
    assert said == "kvxfer publishes 6 children of a MultiConnector, not NixlConnector, NixlConnector"
    (group,) = collector.snapshot().groups
    assert [stats.transfer_duration.count for stats in group.stats.data.values()] == [1] * MAX_CHILDREN
    assert collector.snapshot().pipeline.observations_cut == 0


def test_labels_of_the_environment_are_a_workers_too_and_a_launchers_ranks_are_not(
    factory: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"KVXFER_LABELS": "role=mine,team=a", "POD_NAME": "p-0", "NODE_NAME": "n1", "RANK": "7"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made_by(factory, NixlConnector(Stats(1))).shutdown()
    (source,) = collector.snapshot().sources
    labels = {"engine": "e0", "rank": "3", "dp_rank": "1", "role": "mine", "team": "a", "pod": "p-0", "node": "n1"}
    assert source.source.labels == labels


def test_labels_of_the_environment_that_are_none_are_one_warning_and_the_others_are_published(
    factory: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KVXFER_LABELS", "role")
    made_by(factory, NixlConnector(Stats(1))).shutdown()
    (source,) = collector.snapshot().sources
    assert source.source.labels == {"engine": "e0", "role": "kv_both", "rank": "3", "dp_rank": "1"}
    (said,) = warnings_of(caplog)
    assert "KVXFER_LABELS: expected name=value" in said


def test_stats_that_cannot_be_read_are_counted_as_cut(factory: Any, collector: Collector) -> None:
    unreadable = SimpleNamespace(data={"transfer_duration": object()})
    connector = made_by(factory, NixlConnector(unreadable, unreadable))
    assert [connector.get_kv_connector_stats() for _ in range(2)] == [unreadable] * 2
    connector.shutdown()
    assert collector.snapshot().pipeline.observations_cut == 2


def test_a_shutdown_that_raises_raises_for_vllm(factory: Any, collector: Collector) -> None:
    connector = NixlConnector(Stats(1))
    connector.shutdown = lambda: 1 // 0  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        made_by(factory, connector).shutdown()
    assert collector.snapshot().groups[0].stats.transfer_duration.count == 1


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://here", "ipc://" + "x" * 200])
def test_an_endpoint_that_is_none_is_one_warning(
    factory: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KVXFER_ENDPOINT", endpoint)
    given = [Stats(1), Stats(1)]
    connector = made_by(factory, NixlConnector(*given))
    assert [connector.get_kv_connector_stats() for _ in given] == given
    assert connector.shutdown() == "as without"
    (said,) = warnings_of(caplog)
    assert endpoint in said


# --- another vLLM


@pytest.mark.parametrize("made", [None, lambda config, role: (config, role), classmethod(lambda cls, it: (cls, it))])
def test_a_vllm_that_makes_connectors_otherwise_is_offered_a_stat_logger_with_one_warning(
    factory: Any, collector: Collector, made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    factory.create_connector = made
    integration.plugin()
    assert vars(factory)["create_connector"] is made
    found = [each for each in entry_points(group="vllm.stat_logger_plugins") if each.name == "kvxfer"]
    assert [each.value for each in found] == [f"{fallback.__name__}:StatLogger"]
    assert len(warnings_of(caplog)) == 1
    del collector


def test_a_vllm_without_that_module_is_offered_a_stat_logger(
    factory: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seam, "FACTORIES", (("a_module_that_is_not_there", "KVConnectorFactory", "create_connector"),))
    integration.plugin()
    assert "kvxfer" in {each.name for each in entry_points(group="vllm.stat_logger_plugins")}
    del collector, factory
