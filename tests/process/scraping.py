"""A real Prometheus that scrapes a real ``kvxfer collect``."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

PATIENCE = 40.0
NATIVE = "--enable-feature=native-histograms"

CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: kvxfer
    static_configs: [{{targets: ["{target}"]}}]
"""


def missing() -> str:
    """Why there can be none here; empty where there can."""
    return "" if shutil.which("prometheus") else "not installed: prometheus"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str, accept: str = "*/*") -> bytes:
    with urlopen(Request(url, headers={"Accept": accept}), timeout=10) as response:  # noqa: S310 - our own
        content: bytes = response.read()
        return content


def wait_for(told: Callable[[], Any], what: str) -> Any:
    """What is told as soon as it is something; errors of connections are waited out."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found = told()
        except URLError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.1)


class Service:
    """``kvxfer collect`` with a journal; it can be killed, and goes on at the same address."""

    def __init__(self, endpoint: str, directory: Path, *options: str) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", "kvxfer", "collect", "--endpoint", endpoint, "--interval", "1"]
        self._command += ["--journal", str(directory / "journal.db"), "--http", f"127.0.0.1:{self.port}", *options]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_for(lambda: get(self.url("/healthz")), "that it serves")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(get(self.url("/api/v1/snapshot?sources=0")))
        return found

    def fields(self, connector: str) -> dict[str, Any]:
        """The fields of the one group of a connector, since the beginning."""
        groups = [group for group in self.snapshot()["groups"] if group["connector"] == connector]
        return groups[0]["fields"] if groups else {}

    def exposed(self) -> set[str]:
        """The names of the samples on the page of text."""
        lines = get(self.url("/metrics")).decode().splitlines()
        return {re.match(r"[\w:]+", line)[0] for line in lines if not line.startswith("#")}  # type: ignore[index]


class Prometheus:
    """The server, and questions to it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str, at: float | None = None) -> list[Any]:
        """The series of an expression now, or at a time (Unix seconds)."""
        asked = {"query": expression} | ({} if at is None else {"time": str(at)})
        answer = json.loads(get(f"{self.url}/api/v1/query?{urlencode(asked)}"))
        assert answer["status"] == "success", answer
        found: list[Any] = answer["data"]["result"]
        return found

    def value(self, expression: str, at: float | None = None) -> float | None:
        """The value of an expression of one series, None where there is none."""
        found = self.query(expression, at)
        return float(found[0]["value"][1]) if found else None

    def names(self) -> set[str]:
        return set(json.loads(get(f"{self.url}/api/v1/label/__name__/values"))["data"])

    def target(self) -> dict[str, Any]:
        (found,) = json.loads(get(f"{self.url}/api/v1/targets"))["data"]["activeTargets"]
        target: dict[str, Any] = found
        return target


@contextmanager
def prometheus(target: str, directory: Path, *options: str) -> Iterator[Prometheus]:
    """One that scrapes the target once a second, until the end of the block."""
    (directory / "prometheus.yml").write_text(CONFIG.format(target=target))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={directory / 'data'}", "--log.level=warn", *options]
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"})
        try:
            server = Prometheus(f"http://{address}")
            wait_for(lambda: get(f"{server.url}/-/ready"), "that Prometheus starts")
            yield server
        finally:
            process.terminate()
            process.wait(20)
