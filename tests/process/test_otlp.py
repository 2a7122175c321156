"""What is pushed to an OTLP endpoint, decoded as a receiver does, is what the collector has."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from list_stats import ListStats

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.connectors.offloading import OffloadingConnectorStats
from kvxfer.errors import ConfigError
from kvxfer.interval import Group, Interval, Pipeline
from kvxfer.publisher import StatsPublisher

pytestmark = pytest.mark.extra
DAY = 86_400
DURATION = "kvxfer_nixl_transfer_duration"
PREFERENCE = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


class Receiver:
    """An endpoint that takes all exports, and decodes them."""

    def __init__(self) -> None:
        metrics_service = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
        self.exports: list[dict[str, Any]] = []
        self.resources: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = metrics_service.ExportMetricsServiceRequest.FromString(body)
                (resource,) = request.resource_metrics
                receiver.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
                receiver.exports.append({each.name: each for each in resource.scope_metrics[0].metrics})
                self.send_response(200 if self.path == "/v1/metrics" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    serving = threading.Thread(target=made.server.serve_forever)
    serving.start()
    yield made
    made.server.shutdown()
    serving.join()
    made.server.server_close()


@contextmanager
def collecting(endpoint: str, url: str) -> Iterator[Collector]:
    otlp = pytest.importorskip("kvxfer.exporters.otlp")
    with Collector(CollectorConfig(endpoint=endpoint, interval_seconds=0.5)) as collector:
        collector.add_exporter(otlp.OtlpExporter(partial(collector.snapshot, sources=False), url))
        yield collector


def record(endpoint: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with StatsPublisher("NixlConnector", endpoint, {"engine": "e0", "rank": str(seed)}, linger=30.0) as publisher:
        for duration in np.exp(rng.normal(-6.0, 2.0, 5000)).tolist():
            publisher.stats.record_transfer(duration, 0.0, 4096, 16)
        publisher.stats.num_failed_transfers.add(seed)


def added(points: list[Any]) -> tuple[int, float, dict[int, int]]:
    """Count, sum and buckets of histograms together."""
    buckets: dict[int, int] = {}
    for point in points:
        for number, count in enumerate(point.positive.bucket_counts):
            if count:
                index = point.positive.offset + number
                buckets[index] = buckets.get(index, 0) + count
    return sum(point.count for point in points), sum(point.sum for point in points), buckets


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_counts_sums_and_buckets_arrive_as_they_are(
    receiver: Receiver, ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch, temporality: str
) -> None:
    monkeypatch.setenv(PREFERENCE, temporality)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    with collecting(ipc_endpoint, receiver.url) as collector:
        for seed in (1, 2):
            record(ipc_endpoint, seed)
    stats: Any = collector.snapshot().groups[0].stats
    told = [export[DURATION] for export in receiver.exports if DURATION in export]
    failed = [export["kvxfer_nixl_num_failed_transfers"] for export in receiver.exports if DURATION in export]
    if temporality == "cumulative":
        told, failed = told[-1:], failed[-1:]
    points = [point for metric in told for point in metric.exponential_histogram.data_points]
    count, total, buckets = added(points)
    histogram = stats.transfer_duration.histogram()
    assert count == histogram.count == 10_000
    assert total == pytest.approx(histogram.sum, rel=1e-9)
    occupied = np.flatnonzero(histogram.counts)
    assert buckets == {histogram.offset + int(at): int(histogram.counts[at]) for at in occupied}
    assert {point.scale for point in points} == {5}
    assert (told[0].unit, told[0].exponential_histogram.aggregation_temporality) == (
        "s",
        2 if temporality == "cumulative" else 1,
    )
    assert sum(point.as_int + point.as_double for metric in failed for point in metric.sum.data_points) == 3
    labels = {each.key: each.value.string_value for each in points[0].attributes}
    assert labels == {"connector": "NixlConnector", "engine": "e0"}
    assert receiver.resources[0] | {"service.name": "kvxfer", "deployment.environment": "test"} == receiver.resources[0]
    assert collector.snapshot().pipeline.exports_failed == 0


PIPELINE = Pipeline(1000, 0, 0, {}, 0, 0, exports_failed=3, commits_failed=1, connections_refused={"mechanism": 2})


def group(usage: float) -> Group:
    name = "vllm:kv_offload_cpu_cache_usage_perc"
    stats = OffloadingConnectorStats({"types": {name: "gauge"}, "data": {name: {(): usage}}})
    return Group("OffloadingConnector", {}, stats, 1)


def pushed(monkeypatch: pytest.MonkeyPatch, receiver: Receiver, temporality: str, *told: Group) -> dict[str, Any]:
    """What one export of a process tells whose journal began three days ago."""
    otlp = pytest.importorskip("kvxfer.exporters.otlp")
    monkeypatch.setenv(PREFERENCE, temporality)
    now = time.time()
    exporter = otlp.OtlpExporter(lambda: Interval(now - 3 * DAY, now, (group(0.9),), (), PIPELINE), receiver.url)
    exporter.export(Interval(now - 10, now, told, (), PIPELINE))
    exporter.close()
    return receiver.exports[-1]


def age(metric: Any) -> float:
    """Seconds from its start until now."""
    (point, *_) = metric.sum.data_points
    return time.time() - point.start_time_unix_nano / 1e9


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_counts_start_where_they_began(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, temporality: str) -> None:
    metrics = pushed(monkeypatch, receiver, temporality)
    for name in ("exports_failed", "commits_failed", "connections_refused"):
        assert age(metrics[f"kvxfer_collector_{name}"]) < 60
    received = metrics["kvxfer_collector_reports_received"]
    assert received.sum.aggregation_temporality == 2
    assert age(received) == pytest.approx(3 * DAY, abs=60)


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_gauges_and_stats_that_only_grow_are_those_of_the_interval(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, temporality: str
) -> None:
    only_grows = Group("ListConnector", {}, ListStats(data={"seconds": [1.0, 2.0]}), 1)
    metrics = pushed(monkeypatch, receiver, temporality, group(0.1), only_grows)
    found = {
        name: metric.gauge.data_points[0].as_double for name, metric in metrics.items() if metric.HasField("gauge")
    }
    assert found["kvxfer_offloading_cpu_cache_usage"] == 0.1
    assert found["kvxfer_list_reduced_sum_of_seconds"] == 3.0


def test_a_dead_endpoint_costs_a_counter_and_nothing_else(
    ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with caplog.at_level(logging.ERROR, "kvxfer"), collecting(ipc_endpoint, "http://127.0.0.1:9") as collector:
        for seed in (1, 2):
            record(ipc_endpoint, seed)
    snapshot = collector.snapshot()
    assert snapshot.groups[0].stats.reduce()["Num successful transfers"] == 10_000
    assert snapshot.pipeline.exports_failed >= 1
    assert len([each for each in caplog.messages if "OtlpExporter" in each]) == 1


@pytest.mark.parametrize("url", ["", "localhost:4318", "ftp://x", "http://", "http://x:99999"])
def test_a_url_that_is_none_is_said(url: str) -> None:
    otlp = pytest.importorskip("kvxfer.exporters.otlp")
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        otlp.checked_url(url)
    assert otlp.checked_url("http://h:4318") == "http://h:4318/v1/metrics"
    assert otlp.checked_url("https://h/in/here") == "https://h/in/here"
