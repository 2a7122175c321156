"""The shipped dashboard and alert rules, asked of a real Prometheus that scrapes real workers."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scraping import Prometheus, Service, missing, prometheus, wait_for
from workers import CONNECTOR

from kvxfer.publisher import StatsPublisher
from kvxfer.shipped import SHIPPED, shipped

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(240)]
VARIABLES = {"$__rate_interval": "30s", "$job": ".*", "$connector": ".*", "$engine": ".*", "$rank": ".*"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a collector twice at least, with two ranks that work and fail in every way."""
    directory = tmp_path_factory.mktemp("dashboard")
    endpoint = f"ipc://{directory.parent.parent}/d.ipc"
    service = Service(endpoint, directory, "--metrics-per-source", "10")
    try:
        with prometheus(f"127.0.0.1:{service.port}", directory) as made:
            publishers = [
                StatsPublisher(CONNECTOR, endpoint, {"engine": "decode-0", "role": "kv_consumer", "rank": str(rank)})
                for rank in range(2)
            ]
            for count in range(1, 5):
                for publisher in publishers:
                    work(publisher, 100)
                wait_for(lambda count=count: scraped(made) >= 200 * count, "that it scrapes")  # type: ignore[misc]
            yield made
            for publisher in publishers:
                publisher.close(0)
    finally:
        service.kill()


def work(publisher: StatsPublisher, count: int) -> None:
    for _ in range(count):
        publisher.stats.record_transfer(0.001, 0.0001, 1024, 2)
    for name in ("num_failed_transfers", "num_kv_expired_reqs", "num_notifications_after_expiry"):
        getattr(publisher.stats, name).add(1)
    publisher.flush(30)


def scraped(made: Prometheus) -> float:
    return made.value("sum(kvxfer_nixl_transfer_duration_seconds_count)") or 0.0


def queries() -> list[tuple[str, str]]:
    dashboard = json.loads(shipped("grafana"))
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]


def filled(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize(("title", "expression"), queries(), ids=lambda value: re.sub(r"\W+", "-", value)[:40])
def test_every_query_of_the_dashboard_has_data(server: Prometheus, title: str, expression: str) -> None:
    if "_rejected_total" in expression and "by (cause)" in expression:
        server.query(filled(expression))  # nothing was rejected: there is no cause to name
    else:
        assert server.query(filled(expression)), title


def test_every_variable_of_the_dashboard_has_values(server: Prometheus) -> None:
    for variable in json.loads(shipped("grafana"))["templating"]["list"][1:]:
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        assert all(each["metric"].get(label) for each in server.query(filled(series))), variable["name"]
        assert server.query(filled(series)), variable["name"]


def test_the_rules_are_rules_and_each_can_be_asked(server: Prometheus, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None
    rules = tmp_path / "kvxfer.yml"
    rules.write_text(printed("alerts"))
    checked = subprocess.run([promtool, "check", "rules", str(rules)], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "SUCCESS: 7 rules found" in checked.stdout
    found = {name: server.query(expression) for name, expression in expressions(printed("alerts"))}
    firing = {name for name, series in found.items() if series}
    assert firing == {"KVTransfersFail", "KVExpires", "KVNotificationsAfterExpiry"}
    assert {each["metric"]["engine"] for each in found["KVTransfersFail"]} == {"decode-0"}


def expressions(text: str) -> list[tuple[str, str]]:
    """Name and expression of each rule; of a block its lines."""
    parts: list[Any] = re.split(r"- alert: (\w+)\n", text)[1:]
    blocks = re.compile(r"expr: (?:\|\n((?: {10,}.*\n)+)|(.*)\n)")
    return [
        (name, " ".join((found[1] or found[2]).split()))
        for name, body in zip(parts[::2], parts[1::2], strict=True)
        if (found := blocks.search(body))
    ]


def printed(what: str) -> str:
    command = [sys.executable, "-m", "kvxfer", "dashboard", what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_what_is_printed_is_what_is_shipped() -> None:
    assert {what: printed(what) for what in SHIPPED} == {what: shipped(what) for what in SHIPPED}
    assert json.loads(printed("grafana"))["title"].startswith("KV cache")
