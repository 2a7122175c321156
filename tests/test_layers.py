"""Imports point down, and each foreign thing is imported in the one place that is for it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvxfer

PACKAGE = Path(kvxfer.__file__).parent
LAYERS = (
    ("errors", "units"),
    (
        "buckets",
        "histogram",
        "packing",
        "distribution",
        "bulk",
        "states",
        "underway",
        "labelled",
        "fields",
        "rows",
        "reading",
        "contract",
        "stats",
        "config",
    ),
    ("connectors", "factory", "wire"),
    (
        "seqs",
        "interval",
        "saved",
        "forgotten",
        "sources",
        "groups",
        "copying",
        "opening",
        "packed",
        "sums",
        "views",
        "outbox",
        "pushed",
        "takeover",
        "relay",
        "aggregator",
        "reporting",
        "pace",
        "watching",
    ),
    ("transport", "journal", "exits", "area", "shared", "left"),
    ("clock", "commits", "exporting", "delivering", "draining", "publisher", "collector"),
    ("exporters", "web", "shipped"),
    ("integrations", "workload", "records"),
    ("cli", "__main__"),
)
STATE_MACHINES = (
    "outbox",
    "pushed",
    "takeover",
    "relay",
    "aggregator",
    "packed",
    "sums",
    "views",
    "forgotten",
    "sources",
    "groups",
    "seqs",
    "interval",
    "saved",
    "reporting",
    "pace",
    "watching",
)
IMPURE = {"time", "socket", "threading", "sqlite3", "zmq", "random", "subprocess"}
EXTRAS = {"nixl_cu12", "nixl", "ray", "vllm", "torch", "joblib", "distributed", "dask", "opentelemetry", "rich"}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(module: str) -> int:
    """The layer of ``kvxfer.x.y``; the package itself, which re-exports, is above all."""
    part = module.removeprefix("kvxfer").lstrip(".").split(".")[0]
    found = [number for number, names in enumerate(LAYERS) if part in names]
    return found[0] if found else len(LAYERS)


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, *, top_level: bool = False) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_no_import_points_up(file: Path) -> None:
    mine = layer_of(module_of(file))
    assert mine < len(LAYERS) or file.name == "__init__.py", f"{file} is in no layer: give it one"
    above = [name for name in imports(file) if name.startswith("kvxfer") and layer_of(name) > mine]
    assert not above


def test_each_layer_is_there() -> None:
    present = {module_of(file).removeprefix("kvxfer").lstrip(".").split(".")[0] for file in FILES}
    assert present - {""} == {name for names in LAYERS for name in names}


@pytest.mark.parametrize(("module", "place"), [("zmq", "transport"), ("sqlite3", "journal")])
def test_a_foreign_module_is_imported_in_one_place_only(module: str, place: str) -> None:
    users = {module_of(file) for file in FILES if module in {name.split(".")[0] for name in imports(file)}}
    assert all(user == f"kvxfer.{place}" or user.startswith(f"kvxfer.{place}.") for user in users)
    assert module != "zmq" or users


@pytest.mark.parametrize("name", STATE_MACHINES)
def test_a_state_machine_has_no_socket_clock_or_thread(name: str) -> None:
    used = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}
    assert not used & IMPURE


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_extras_are_imported_where_they_are_used(file: Path) -> None:
    assert not {name.split(".")[0] for name in imports(file, top_level=True)} & EXTRAS


def test_importing_kvxfer_imports_no_extra() -> None:
    code = "import kvxfer, sys; print(' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (EXTRAS | {"sqlite3", "asyncio"})


def test_a_worker_of_ray_that_a_hook_sets_up_imports_no_collector_and_no_server() -> None:
    code = "from kvxfer.integrations.ray import setup_worker; setup_worker(); import sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"kvxfer.collector", "kvxfer.web", "kvxfer.exporters", "ray", "sqlite3"}


def test_a_module_of_the_package_is_an_attribute_of_it_and_what_is_none_is_said() -> None:
    code = "import kvxfer, sys; print(kvxfer.errors is sys.modules['kvxfer.errors'], hasattr(kvxfer, 'telepathy'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_module_says_what_may_live_in_it_and_stays_small(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))
    assert len(file.read_text().splitlines()) <= 400
