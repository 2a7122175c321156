"""The shipped dashboard and alert rules, asked of a real Prometheus that scrapes real workers."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from copies import ENTRY_POINT, CopyStats
from scraping import NATIVE, Prometheus, Service, missing, prometheus, wait_for
from workers import CONNECTOR

from kvxfer.connectors.nixl import NixlConnectorStats
from kvxfer.factory import KVConnectorFactory
from kvxfer.publisher import StatsPublisher
from kvxfer.shipped import SHIPPED, shipped

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(240)]
VARIABLES = {"$__rate_interval": "30s", "$job": ".*", "$connector": ".*", "$engine": ".*", "$rank": ".*"}
ROUNDS = 4


class Scraped(NamedTuple):
    """A Prometheus, and when it had scraped all that was recorded."""

    server: Prometheus
    at: float
    is_native: bool

    def panel(self, title: str) -> str:
        """The first query of a panel."""
        return filled(next(expression for name, expression in queries() if name == title))

    def by_connector(self, expression: str) -> dict[str, float]:
        found = self.server.query(expression, self.at)
        assert len({each["metric"]["connector"] for each in found}) == len(found)
        return {each["metric"]["connector"]: float(each["value"][1]) for each in found}


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "native"])
def scraped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Two ranks that work and fail in every way, beside a connector of somebody else, scraped a few times."""
    directory = tmp_path_factory.mktemp("dashboard")
    endpoint = f"ipc://{directory}/d.ipc"
    options = [NATIVE] if request.param else []
    with installed(directory):
        service = Service(endpoint, directory, "--metrics-per-source", "10")
        try:
            with prometheus(f"127.0.0.1:{service.port}", directory, *options) as made, working(endpoint) as publishers:
                for count in range(1, ROUNDS + 1):
                    for publisher in publishers:
                        work(publisher)
                    wait_for(lambda count=count: counted(made) == 400 * count, "that it scrapes")  # type: ignore[misc]
                yield Scraped(made, time.time(), request.param)
        finally:
            service.kill()


@contextmanager
def installed(directory: Path) -> Iterator[None]:
    """The connector of somebody else as an installed package, to this process and to those that it starts."""
    package = directory / "copies-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: copies\nVersion: 1\n")
    (package / "entry_points.txt").write_text(ENTRY_POINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(directory), str(Path(__file__).parent), *sys.path]))
        for name in ("_loaders", "_classes"):
            patch.setattr(KVConnectorFactory, name, dict(getattr(KVConnectorFactory, name)))
        KVConnectorFactory.register_connector("CopyConnector", "copies", "CopyConnector")
        yield


@contextmanager
def working(endpoint: str) -> Iterator[list[StatsPublisher]]:
    """Two ranks of NIXL and one of the other connector, which report when they are told to."""
    labels = {"engine": "decode-0", "role": "kv_consumer"}
    ranks = [(CONNECTOR, "0"), (CONNECTOR, "1"), ("CopyConnector", "0")]
    made = [StatsPublisher(name, endpoint, {**labels, "rank": rank}, flush_seconds=600.0) for name, rank in ranks]
    yield made
    for publisher in made:
        publisher.close(0)


def work(publisher: StatsPublisher) -> None:
    """Make 100 transfers of each kind, one in a hundred of which fails."""
    stats = publisher.stats
    if isinstance(stats, CopyStats):
        for _ in range(100):
            stats.record_copy(0.001, 1024)
            stats.record_h2d(0.001, 1024)
    else:
        for _ in range(100):
            stats.record_transfer(0.001, 0.0001, 1024, 2)
    for name in stats.failures():
        getattr(stats, name).add(1)
    assert publisher.flush(30)


def counted(made: Prometheus) -> float:
    return made.value("sum(kvxfer_transfers_total)") or 0.0


def queries() -> list[tuple[str, str]]:
    dashboard = json.loads(shipped("grafana"))
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]


def filled(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize(("title", "expression"), queries(), ids=lambda value: re.sub(r"\W+", "-", value)[:40])
def test_every_query_of_the_dashboard_has_data(scraped: Scraped, title: str, expression: str) -> None:
    found = scraped.server.query(filled(expression), scraped.at)
    if "_rejected_total" in expression and "by (cause)" in expression:
        return  # nothing was rejected: there is no cause to name
    assert found, title
    assert "NaN" not in {each["value"][1] for each in found}


def test_what_is_counted_is_what_was_recorded_of_each_connector(scraped: Scraped) -> None:
    each = 200 * ROUNDS
    assert scraped.by_connector("kvxfer_transfers_total") == {CONNECTOR: each, "CopyConnector": each}
    assert scraped.by_connector("kvxfer_moved_bytes_total") == {CONNECTOR: 1024 * each, "CopyConnector": 1024 * each}
    failed = scraped.server.query("kvxfer_failures_total", scraped.at)
    counts = {(found["metric"]["connector"], found["metric"]["kind"]): int(found["value"][1]) for found in failed}
    assert counts == {
        **dict.fromkeys(((CONNECTOR, name) for name in NixlConnectorStats().failures()), 2 * ROUNDS),
        **dict.fromkeys((("CopyConnector", name) for name in CopyStats().failures()), ROUNDS),
    }


def test_the_rates_of_the_dashboard_are_those_of_what_was_recorded(scraped: Scraped) -> None:
    transfers, throughput = scraped.panel("Transfers"), scraped.panel("Throughput over the wall clock")
    in_flight, failing = scraped.panel("Transfers in flight"), scraped.panel("Failures and expiry")
    assert min(scraped.by_connector(transfers).values()) > 0
    for expression, expected in (
        (f"({throughput}) / ({transfers})", 1024.0),
        (scraped.panel("Throughput over busy time"), 1024.0 / 0.001),
        (f"({in_flight}) / ({transfers})", 0.001),
    ):
        found = scraped.by_connector(expression)
        assert found == {name: pytest.approx(expected, rel=1e-6) for name in (CONNECTOR, "CopyConnector")}
    one_in = f"({failing}) / on (connector, engine, role) group_left () ({transfers})"
    rates = {
        (each["metric"]["connector"], each["metric"]["kind"]): float(each["value"][1])
        for each in scraped.server.query(one_in, scraped.at)
    }
    assert rates[CONNECTOR, "num_failed_transfers"] == pytest.approx(0.01, rel=1e-6)
    assert rates["CopyConnector", "h2d_num_failed_transfers"] == pytest.approx(0.005, rel=1e-6)
    ranks = scraped.server.query(scraped.panel("Mean duration per rank"), scraped.at)
    assert [float(each["value"][1]) for each in ranks] == [pytest.approx(0.001, rel=1e-6)] * 3


def test_quantiles_are_there_of_native_and_of_classic_histograms(scraped: Scraped) -> None:
    found = scraped.by_connector(scraped.panel("Duration of transfers"))
    expected = pytest.approx(0.001, rel=0.022) if scraped.is_native else pytest.approx(0.00075, rel=1e-6)
    assert found == {CONNECTOR: expected, "CopyConnector": expected}


def test_every_variable_of_the_dashboard_has_values(scraped: Scraped) -> None:
    for variable in json.loads(shipped("grafana"))["templating"]["list"][1:]:
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        found = scraped.server.query(filled(series), scraped.at)
        assert found, variable["name"]
        assert all(each["metric"].get(label) for each in found), variable["name"]


def test_the_rules_are_rules_and_each_can_be_asked(scraped: Scraped, tmp_path: Path) -> None:
    assert "SUCCESS: 8 rules found" in promtool(tmp_path, "check", "rules", "kvxfer.yml")
    found = {name: scraped.server.query(expression, scraped.at) for name, expression in expressions(printed("alerts"))}
    firing = {name for name, series in found.items() if series}
    assert firing == {"KVTransfersFail", "KVExpires", "KVNotificationsAfterExpiry"}
    failing = {(each["metric"]["connector"], each["metric"]["kind"]) for each in found["KVTransfersFail"]}
    assert {(CONNECTOR, "num_failed_handshakes"), ("CopyConnector", "h2d_num_failed_transfers")} <= failing
    assert {each["metric"]["engine"] for each in found["KVTransfersFail"]} == {"decode-0"}


RULE_TESTS = """
rule_files: [kvxfer.yml]
tests:
  - interval: 1m
    input_series:
      - series: 'kvxfer_failures_total{connector="MooncakeConnector",engine="e0",role="r",kind="num_failed_recvs"}'
        values: 0+60x20
      - series: 'kvxfer_source_mooncake_num_failed_recvs_total{connector="MooncakeConnector",engine="e0",role="r"}'
        values: 0+60x20
      - series: 'kvxfer_failures_total{connector="NixlConnector",engine="e1",role="r",kind="num_kv_expired_reqs"}'
        values: 0+30x20
      - {series: 'kvxfer_source_transfer_seconds_sum{engine="e0",rank="0",host="h"}', values: 0+10x20}
      - {series: 'kvxfer_source_transfer_seconds_sum{engine="e0",rank="1",host="h"}', values: 0+10x20}
      - {series: 'kvxfer_source_transfer_seconds_sum{engine="e0",rank="2",host="h"}', values: 0+30x20}
      - {series: 'kvxfer_source_transfer_seconds_count{engine="e0",rank="0",host="h"}', values: 0+10x20}
      - {series: 'kvxfer_source_transfer_seconds_count{engine="e0",rank="1",host="h"}', values: 0+10x20}
      - {series: 'kvxfer_source_transfer_seconds_count{engine="e0",rank="2",host="h"}', values: 0+10x20}
      - {series: 'kvxfer_oldest_in_flight_seconds{connector="NixlConnector",engine="e2",role="r"}', values: 0+10x20}
      - {series: 'kvxfer_oldest_in_flight_seconds{connector="NixlConnector",engine="e3",role="r"}', values: 59x20}
      - {series: 'kvxfer_oldest_in_flight_seconds{connector="NixlConnector",engine="e4",role="r"}', values: 90x12 stale}
      - {series: 'kvxfer_oldest_in_flight_seconds{connector="NixlConnector",engine="e5",role="r"}', values: 90x8 stale}
    promql_expr_test:
      - expr: count by (alertname, engine, rank, kind) (ALERTS{alertstate="firing"})
        eval_time: 15m
        exp_samples:
          - {labels: '{alertname="KVTransfersFail", engine="e0", kind="num_failed_recvs"}', value: 1}
          - {labels: '{alertname="KVExpires", engine="e1"}', value: 1}
          - {labels: '{alertname="KVTransferHangs", engine="e2"}', value: 1}
          - {labels: '{alertname="KVTransferHangs", engine="e4"}', value: 1}
          - {labels: '{alertname="KVRankSlow", engine="e0", rank="2"}', value: 1}
"""


def test_the_rules_fire_for_the_engine_and_the_rank_whose_fault_it_is(tmp_path: Path) -> None:
    (tmp_path / "tests.yml").write_text(RULE_TESTS)
    assert "SUCCESS" in promtool(tmp_path, "test", "rules", "tests.yml")


def promtool(directory: Path, *arguments: str) -> str:
    """What it says of the printed rules; it must be content with them."""
    (directory / "kvxfer.yml").write_text(printed("alerts"))
    done = subprocess.run(["promtool", *arguments], check=False, capture_output=True, text=True, cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
