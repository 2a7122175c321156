"""What a real Prometheus stores of real transfers is what the collector has, also over a kill of the collector."""

import bisect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scraping import NATIVE, Prometheus, Service, get, missing, prometheus, wait_for

from kvxfer.exporters.prometheus.classic import BOUNDARIES
from kvxfer.publisher import StatsPublisher
from kvxfer.workload.run import Workload
from kvxfer.workload.synthetic import synthetic_requests
from kvxfer.workload.trace import plan_transfers

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(240)]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
ROWS = 20_000

# Of the process, not of the totals: these begin anew with it.
OF_THE_PROCESS = re.compile("kvxfer_collector_.*_seconds_(sum|count)")


class Scraped(NamedTuple):
    service: Service
    server: Prometheus
    endpoint: str
    is_native: bool


@pytest.fixture(params=[False, True], ids=["classic", "native"])
def scraped(request: pytest.FixtureRequest, ipc_endpoint: str, tmp_path: Path) -> Iterator[Scraped]:
    is_native: bool = request.param
    service = Service(ipc_endpoint, tmp_path, "--metrics-per-source", "10")
    try:
        with prometheus(f"127.0.0.1:{service.port}", tmp_path, *([NATIVE] if is_native else [])) as server:
            yield Scraped(service, server, ipc_endpoint, is_native)
    finally:
        service.kill()


def record(endpoint: str, seed: int) -> None:
    """Transfers of widely different durations, and some that failed."""
    rng = np.random.default_rng(seed)
    labels = {"engine": "decode-0", "role": "kv_consumer", "rank": str(seed)}
    with StatsPublisher("NixlConnector", endpoint, labels, linger=30.0) as publisher:
        for duration in np.exp(rng.normal(-6.0, 1.5, ROWS)).tolist():
            publisher.stats.record_transfer(duration, duration / 10, int(1e9 * duration), 16)
        publisher.stats.num_failed_transfers.add(3)


def move(endpoint: str) -> None:
    """Real transfers over shared memory."""
    with Workload("SharedMemoryConnector", endpoint, workers=2) as workload:
        workload.run(plan_transfers(synthetic_requests(1)), seconds=2.0)


def counted(scraped: Scraped, field: str) -> str:
    return f"histogram_count({field})" if scraped.is_native else f"{field}_count"


def summed(scraped: Scraped, field: str) -> str:
    return f"histogram_sum({field})" if scraped.is_native else f"{field}_sum"


def has_all(scraped: Scraped, num_rows: int) -> Any:
    """The collector's own numbers once Prometheus has scraped the last of them."""
    fields = scraped.service.fields("NixlConnector")
    found = scraped.server.value(counted(scraped, "kvxfer_nixl_transfer_duration_seconds"))
    return fields if found == num_rows == fields["transfer_duration"]["count"] else None


def test_what_prometheus_stores_is_what_was_collected(scraped: Scraped) -> None:
    record(scraped.endpoint, 1)
    move(scraped.endpoint)
    fields = wait_for(lambda: has_all(scraped, ROWS), "that all was scraped")
    check_totals(scraped, "nixl", fields)
    check_totals(scraped, "shared_memory", scraped.service.fields("SharedMemoryConnector"))
    check_quantiles(scraped, fields)
    check_names(scraped)
    check_style(scraped)
    assert scraped.server.target()["health"] == "up"
    assert scraped.server.value('kvxfer_source_live{rank="1"}') is None  # it said goodbye


def check_totals(scraped: Scraped, stem: str, fields: dict[str, Any]) -> None:
    ends = {"transfer_duration": "_seconds", "bytes_transferred": "_bytes", "transfer_rate": "_bytes_per_second"}
    for field, end in ends.items():
        name = f"kvxfer_{stem}_{field}{end}"
        assert scraped.server.value(f"sum({counted(scraped, name)})") == fields[field]["count"] > 0
        assert scraped.server.value(f"sum({summed(scraped, name)})") == pytest.approx(fields[field]["sum"], rel=1e-11)
    failed = fields.get("num_failed_transfers", 0)
    assert scraped.server.value(f"sum(kvxfer_{stem}_num_failed_transfers_total)") == failed
    moved = scraped.server.value(f"sum(kvxfer_{stem}_moved_bytes_total)")
    assert moved == fields["bytes_transferred"]["sum"]


def check_quantiles(scraped: Scraped, fields: dict[str, Any]) -> None:
    name = "kvxfer_nixl_transfer_duration_seconds"
    for key, q in QUANTILES.items():
        ours = fields["transfer_duration"][key]
        if scraped.is_native:
            assert scraped.server.value(f"histogram_quantile({q}, {name})") == pytest.approx(ours, rel=0.011)
        else:
            theirs = scraped.server.value(f"histogram_quantile({q}, sum by (le) ({name}_bucket))")
            boundaries = BOUNDARIES["seconds"]
            at = bisect.bisect_left(boundaries, ours)
            assert theirs is not None
            assert boundaries[at - 1] <= theirs <= boundaries[at]


def check_style(scraped: Scraped) -> None:
    """Prometheus' own linter has nothing to say."""
    page = get(scraped.service.url("/metrics"))
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False, timeout=20)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def check_names(scraped: Scraped) -> None:
    """Every sample on the page is stored; of a native histogram its name instead of those of its parts."""
    missed = scraped.service.exposed() - scraped.server.names()
    if scraped.is_native:
        parts = {name for name in missed if name.endswith("_bucket")}
        whole = {name.removesuffix("_bucket") for name in parts}
        assert whole <= scraped.server.names()
        missed -= {name + end for name in whole for end in ("_bucket", "_sum", "_count")}
    assert missed == set()


def test_a_collector_that_is_killed_goes_on_without_a_reset(scraped: Scraped) -> None:
    record(scraped.endpoint, 1)
    wait_for(lambda: has_all(scraped, ROWS), "that all was scraped")
    scraped.service.kill()
    wait_for(lambda: scraped.server.target()["health"] == "down", "that it is down")
    scraped.service.start()
    # Idle at first: sums that are added up in another order must not fall by their last bit.
    wait_for(lambda: scraped.server.value("time() - timestamp(kvxfer_nixl_ranks) < 2"), "that it is scraped again")
    record(scraped.endpoint, 2)
    fields = wait_for(lambda: has_all(scraped, 2 * ROWS), "that all was scraped")
    check_totals(scraped, "nixl", fields)
    assert [name for name in monotonic(scraped) if scraped.server.query(f"resets({name}[10m]) > 0")] == []
    increase = scraped.server.value("increase(kvxfer_nixl_num_failed_transfers_total[10m])")
    assert increase is not None
    assert increase < 6


def monotonic(scraped: Scraped) -> list[str]:
    names = [name for name in scraped.server.names() if name.endswith(("_total", "_bucket", "_sum", "_count"))]
    assert len(names) > 20
    return [name for name in names if not OF_THE_PROCESS.fullmatch(name)]


def test_dashboards_of_vllm_find_their_names(ipc_endpoint: str, tmp_path: Path) -> None:
    service = Service(ipc_endpoint, tmp_path, "--metric-names", "vllm")
    try:
        with prometheus(f"127.0.0.1:{service.port}", tmp_path, NATIVE) as server:
            record(ipc_endpoint, 1)
            wait_for(lambda: server.value("vllm:nixl_xfer_time_seconds_count") == ROWS, "that all was scraped")
            quantile = server.value("histogram_quantile(0.9, sum by (le) (vllm:nixl_xfer_time_seconds_bucket))")
            assert quantile == pytest.approx(service.fields("NixlConnector")["transfer_duration"]["p90"], rel=0.5)
            assert server.value("vllm:nixl_num_failed_transfers_total") == 3
    finally:
        service.kill()
