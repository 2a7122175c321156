"""Each example runs on its own and prints what its docstring promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def output(name: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(directory)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def runtime(ipc_endpoint: str) -> Path:
    return Path(ipc_endpoint.removeprefix("ipc://")).parent


def test_quickstart(runtime: Path) -> None:
    (line,) = output("quickstart.py", runtime).splitlines()
    assert line.startswith(
        "KV Transfer metrics: Num successful transfers=200, Avg xfer time (ms)=3.5, P90 xfer time (ms)=5.0, "
        "Avg MB per transfer=1.5, Throughput (MB/s)=428.571, Avg number of blocks=24.0, Num failed transfers=0, Wall"
    )
    assert line.endswith("Num ranks=2, engine=decode-0, role=kv_consumer")


def test_custom_connector(runtime: Path) -> None:
    (line,) = output("custom_connector.py", runtime).splitlines()
    assert line.startswith(
        "KV Transfer metrics: fetch_duration_seconds_count=2, fetch_duration_seconds_mean=0.004, "
        "fetch_duration_seconds_p50=0.004,"
    )
    assert ", num_misses=3, pool_usage_ratio=0.5, fetch_rate_bytes_per_second_count=2," in line
    assert line.endswith(", Num ranks=1")


def test_a_custom_connector_is_declared_in_under_25_lines() -> None:
    source = (EXAMPLES / "custom_connector.py").read_text()
    declaration = source[source.index("class PageConnectorStats") : source.index("def main")]
    assert len([line for line in declaration.splitlines() if line.strip()]) < 25


def test_worker_pool(runtime: Path) -> None:
    (line,) = output("worker_pool.py", runtime).splitlines()
    assert line.startswith("KV Transfer metrics: Num successful transfers=64, ")
    assert "Avg MB per transfer=4.0, " in line
    assert line.endswith("Num ranks=2, role=kv_consumer")


def test_embed_in_frontend(runtime: Path) -> None:
    lines = output("embed_in_frontend.py", runtime).splitlines()
    ends = [number for number, line in enumerate(lines) if not line.startswith("KV Transfer metrics: ")]
    assert [lines[number] for number in ends] == [
        f'{name}: served 20 requests, the last answer was {{"transfers": 20, "ranks": 1}}'
        for name in ("thread", "loop")
    ]
    assert ends[-1] == len(lines) - 1
    counts = [
        re.search(r"Num successful transfers=(\d+), Avg xfer time \(ms\)=2.0, .*, Num ranks=1$", line) for line in lines
    ]
    assert sum(int(count[1]) for count in counts[: ends[0]] if count) == 20
    assert sum(int(count[1]) for count in counts[ends[0] :] if count) == 20


@pytest.mark.extra
@pytest.mark.timeout(240)
def test_ray_pool(runtime: Path) -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "ray_pool.py")],
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
        check=True,
        # On this host alone, nothing told to anybody, no token of a user's.
        env={
            **os.environ,
            "XDG_STATE_HOME": str(runtime),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        },
    )
    assert done.stdout.splitlines()[-1] == "64 of 64 copies were collected, 4.0 MiB each, of 2 workers"
