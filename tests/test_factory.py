"""From the name of a connector to its class, and nothing imported before it is asked for."""

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from kvxfer import factory
from kvxfer.config import KVTransferConfig
from kvxfer.connectors.nixl import NixlConnector
from kvxfer.errors import ConfigError, KVXferError, UnknownConnectorError
from kvxfer.factory import KVConnectorFactory

BUILT_IN = {
    "NixlConnector": "NixlConnector",
    "NixlPullConnector": "NixlConnector",
    "NixlPushConnector": "NixlConnector",
    "MooncakeConnector": "MooncakeConnector",
    "MooncakeStoreConnector": "MooncakeStoreConnector",
    "OffloadingConnector": "OffloadingConnector",
    "SimpleCPUOffloadConnector": "SimpleCPUOffloadConnector",
    "HiSparseConnector": "HiSparseConnector",
    "HF3FSKVConnector": "HF3FSKVConnector",
    "UMBPStoreConnector": "UMBPStoreConnector",
    "FlexKVConnectorV1": "FlexKVConnectorV1",
    "LMCacheConnectorV1": "LMCacheConnectorV1",
    "LMCacheMPConnector": "LMCacheMPConnector",
    "MultiConnector": "MultiConnector",
    "SharedMemoryConnector": "SharedMemoryConnector",
}

MODULE = """
from kvxfer import Connector, Counter, TransferStats

class PageStats(TransferStats):
    num_pages = Counter("{page}", "Pages.")

class PageConnector(Connector):
    stats_class = PageStats
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that forgets at the end what a test registers."""
    monkeypatch.setattr(KVConnectorFactory, "_loaders", dict(KVConnectorFactory._loaders))
    monkeypatch.setattr(KVConnectorFactory, "_classes", {})
    monkeypatch.setattr(KVConnectorFactory, "_searched", False)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module outside of kvxfer that defines ``PageConnector``."""
    (tmp_path / "kvxfer_pages.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kvxfer_pages", raising=False)
    return "kvxfer_pages"


def offer(monkeypatch: pytest.MonkeyPatch, **connectors: str) -> list[str]:
    """Let an installed package offer connectors; returns the groups asked for."""
    asked: list[str] = []
    offered = EntryPoints(EntryPoint(name, value, factory.ENTRY_POINT_GROUP) for name, value in connectors.items())

    def entry_points(*, group: str) -> EntryPoints:
        asked.append(group)
        return offered

    monkeypatch.setattr(factory, "entry_points", entry_points)
    return asked


@pytest.mark.parametrize(("name", "class_name"), BUILT_IN.items())
def test_the_connectors_of_kvxfer_are_found_by_name(name: str, class_name: str) -> None:
    found: Any = KVConnectorFactory.get_connector_class_by_name(name)
    assert found.__name__ == class_name
    assert KVConnectorFactory.get_connector_class(KVTransferConfig(kv_connector=name, kv_role="kv_both")) is found


def test_no_connector_is_imported_until_its_name_is_asked_for() -> None:
    code = (
        "import kvxfer, sys\n"
        "for name in kvxfer.__all__: getattr(kvxfer, name)\n"
        "loaded = lambda: sorted(name for name in sys.modules if name.startswith('kvxfer.connectors.'))\n"
        "print(loaded())\n"
        "kvxfer.KVConnectorFactory.get_connector_class_by_name('MooncakeConnector')\n"
        "print(loaded())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "['kvxfer.connectors.base']",
        "['kvxfer.connectors.base', 'kvxfer.connectors.mooncake']",
    ]


def test_a_connector_of_somebody_else_is_imported_when_it_is_asked_for(module: str) -> None:
    KVConnectorFactory.register_connector("PageConnector", module, "PageConnector")
    assert KVConnectorFactory.is_registered("PageConnector")
    assert module not in sys.modules
    found: Any = KVConnectorFactory.get_connector_class_by_name("PageConnector")
    assert module in sys.modules
    assert found.build_kv_connector_stats({"num_pages": 3}).reduce() == {"num_pages": 3}
    assert KVConnectorFactory.get_connector_class_by_name("PageConnector") is found


def test_a_second_registration_of_a_name_is_an_error_and_the_first_one_stays() -> None:
    with pytest.raises(ValueError, match=r"^Connector 'NixlConnector' is already registered\.$") as raised:
        KVConnectorFactory.register_connector("NixlConnector", "os", "system")
    assert isinstance(raised.value, ConfigError)
    assert KVConnectorFactory.get_connector_class_by_name("NixlConnector") is NixlConnector


def test_a_name_that_is_not_registered_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"^Connector 'Telepathy' is not registered\.$") as raised:
        KVConnectorFactory.get_connector_class_by_name("Telepathy")
    assert isinstance(raised.value, UnknownConnectorError)
    with pytest.raises(ValueError, match=r"^Connector 'x{100}' is not registered\.$"):
        KVConnectorFactory.get_connector_class_by_name("x" * 100_000)


@pytest.mark.parametrize("name", ["os.system", "kvxfer.cli:main", "../etc", "__import__", "NixlConnector\0", ""])
def test_a_name_is_looked_up_and_never_imported(name: str) -> None:
    assert not KVConnectorFactory.is_registered(name)
    with pytest.raises(UnknownConnectorError):
        KVConnectorFactory.get_connector_class_by_name(name)


def test_a_module_path_gives_a_class_that_is_not_registered(module: str) -> None:
    config = KVTransferConfig(kv_connector="PageConnector", kv_role="kv_both", kv_connector_module_path=module)
    found: Any = KVConnectorFactory.get_connector_class(config)
    assert found.__module__ == module
    assert not KVConnectorFactory.is_registered("PageConnector")


def test_a_registered_name_wins_over_a_module_path(module: str) -> None:
    config = KVTransferConfig(kv_connector="NixlConnector", kv_role="kv_both", kv_connector_module_path=module)
    assert KVConnectorFactory.get_connector_class(config) is NixlConnector
    assert module not in sys.modules


@pytest.mark.parametrize(("path", "name"), [("no_such_module", "PageConnector"), ("kvxfer_pages", "NoSuchConnector")])
def test_a_class_that_cannot_be_loaded_is_named_with_its_place(module: str, path: str, name: str) -> None:
    assert module
    wanted = f"Connector '{name}' cannot be loaded from {path}:{name}: "
    config = KVTransferConfig(kv_connector=name, kv_role="kv_both", kv_connector_module_path=path)
    with pytest.raises(UnknownConnectorError, match=wanted):
        KVConnectorFactory.get_connector_class(config)
    KVConnectorFactory.register_connector(name, path, name)
    with pytest.raises(UnknownConnectorError, match=wanted):
        KVConnectorFactory.get_connector_class_by_name(name)


def test_installed_packages_offer_connectors_that_load_when_asked_for(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = offer(monkeypatch, PageConnector=f"{module}:PageConnector")
    assert KVConnectorFactory.is_registered("PageConnector")
    assert module not in sys.modules
    found: Any = KVConnectorFactory.get_connector_class_by_name("PageConnector")
    assert found.__module__ == module
    assert asked == ["kvxfer.connectors"]


def test_packages_are_searched_once_however_many_unknown_names_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = offer(monkeypatch)
    for number in range(100):
        assert not KVConnectorFactory.is_registered(f"Unknown-{number}")
    assert len(asked) == 1


def test_an_installed_package_does_not_replace_what_is_registered_here(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, NixlConnector=f"{module}:PageConnector")
    assert not KVConnectorFactory.is_registered("Unknown")
    assert KVConnectorFactory.get_connector_class_by_name("NixlConnector") is NixlConnector


@pytest.mark.parametrize("value", ["no_such_module:PageConnector", "kvxfer_pages:NoSuchConnector"])
def test_a_package_whose_connector_cannot_be_loaded_is_named(
    module: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    assert module
    offer(monkeypatch, PageConnector=value)
    with pytest.raises(KVXferError, match=f"Connector 'PageConnector' cannot be loaded from {value}"):
        KVConnectorFactory.get_connector_class_by_name("PageConnector")
