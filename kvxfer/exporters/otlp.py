"""OpenTelemetry: pushes to an OTLP endpoint over HTTP when an interval closes. Extra: ``pip install 'kvxfer[otlp]'``.

The families are those of `kvxfer.exporters.prometheus`, with units of UCUM in place of their words: the duration of a
NixlConnector's transfers is ``kvxfer_nixl_transfer_duration`` in ``s``. Distributions are exponential histograms of
scale 5, without loss: the bucket rule is the same. OpenTelemetry's variables hold, of which
``OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`` says whether totals are told (cumulative, the default), or what
each interval held (delta). The pipeline's own counts are totals either way.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from kvxfer.buckets import SCALE
from kvxfer.errors import ConfigError, KVXferError
from kvxfer.exporters.prometheus import Exposition
from kvxfer.exporters.prometheus.families import Counted, Family, Kind, Labels, Measured, Value
from kvxfer.interval import Interval

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric

_PATH: Final = "/v1/metrics"
_UCUM: Final = {"seconds": "s", "bytes": "By", "ratio": "1", "bytes_per_second": "By/s"}
_OF_THE_PIPELINE: Final = "kvxfer_collector_"
_OF_THE_PROCESS: Final = frozenset(
    f"{_OF_THE_PIPELINE}{name}" for name in ("exports_failed", "commits_failed", "connections_refused")
)
"""Counters that no journal carries on: they begin with the process."""

_NANO: Final = 1_000_000_000
_PREFERENCE: Final = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


class ExportFailedError(KVXferError):
    """An endpoint that did not take an export."""


class OtlpExporter:
    """An exporter of a collector: give it to `Collector.add_exporter`, which calls it on a thread of its own.

    ``totals`` gives all since the beginning, as ``collector.snapshot(sources=False)``. ``url`` is the endpoint's, by
    default that of the environment. Raises `ConfigError` for a url that is none, `KVXferError` without the extra.
    """

    def __init__(self, totals: Callable[[], Interval], url: str | None = None) -> None:
        """Connect to nothing yet."""
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415 - an extra
                OTLPMetricExporter,
            )
        except ImportError as error:
            message = "OTLP needs OpenTelemetry's exporter: pip install 'kvxfer[otlp]'"
            raise KVXferError(message) from error
        self._totals = totals
        self._exporter = OTLPMetricExporter(endpoint=None if url is None else checked_url(url))
        self._is_delta = os.environ.get(_PREFERENCE, "").strip().lower() in ("delta", "lowmemory")
        self._exposition = Exposition()
        self._resource = _resource()
        self._began = time.time()
        self._totals_start: float | None = None

    def __repr__(self) -> str:
        """Say how."""
        return f"<OtlpExporter {'delta' if self._is_delta else 'cumulative'}>"

    def export(self, interval: Interval) -> None:
        """Push; raises `ExportFailedError` where it was not taken within the exporter's timeout (10 s by default)."""
        from opentelemetry.sdk.metrics import export  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

        told = interval if self._is_delta else self._totals()
        # Of an interval each call is by itself: what one remembers of sums holds for totals alone.
        exposition = Exposition() if self._is_delta else self._exposition
        families = exposition.families(told, interval)
        metrics = [metric for pair in families if (metric := self._metric(*pair, told)) is not None]
        scope = export.ScopeMetrics(InstrumentationScope("kvxfer"), metrics, "")
        data = export.MetricsData([export.ResourceMetrics(self._resource, [scope], "")])
        if self._exporter.export(data) is not export.MetricExportResult.SUCCESS:
            message = "the OTLP endpoint did not take an interval: look whether it is there, and its log"
            raise ExportFailedError(message)

    def close(self) -> None:
        """Finish."""
        self._exporter.shutdown()

    def _metric(self, family: Family, series: dict[Labels, Value], told: Interval) -> "Metric | None":
        from opentelemetry.sdk.metrics import export  # noqa: PLC0415 - an extra

        # The pipeline's counts are totals in an interval too.
        is_delta = self._is_delta and not family.name.startswith(_OF_THE_PIPELINE)
        kinds = export.AggregationTemporality
        temporality = kinds.DELTA if is_delta else kinds.CUMULATIVE
        start = self._start(family, told)
        points: list[Any] = list(_points(series, int(start * _NANO), int(told.end * _NANO)))
        if not points:
            return None
        data: Any
        if family.kind is Kind.HISTOGRAM:
            data = export.ExponentialHistogram(points, temporality)
        elif family.kind is Kind.COUNTER:
            data = export.Sum(points, temporality, is_monotonic=True)
        elif family.kind is Kind.GAUGE:
            data = export.Gauge(points)
        else:  # how long scrapes took, and what is for sources alone
            return None
        unit = _UCUM.get(family.unit, "")
        name = family.name.removesuffix(f"_{family.unit}") if unit else family.name
        return export.Metric(name, family.help, unit, data)

    def _start(self, family: Family, told: Interval) -> float:
        """Since when its points count: a receiver takes what is there at the first one for all of that time's."""
        if family.name in _OF_THE_PROCESS:
            return min(self._began, told.end)
        if not (self._is_delta and family.name.startswith(_OF_THE_PIPELINE)):
            return told.start
        if self._totals_start is None:  # it never changes, and totals cost more than an interval
            self._totals_start = self._totals().start
        return self._totals_start


def _points(series: dict[Labels, Value], start: int, end: int) -> Iterator[Any]:
    from opentelemetry.sdk.metrics import export  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.metrics._internal.point import Buckets  # noqa: PLC0415 - it has no other address

    for labels, value in series.items():
        if isinstance(value, Measured):
            histogram, empty = value.histogram, Buckets(0, [])
            yield export.ExponentialHistogramDataPoint(
                dict(labels),
                start,
                end,
                histogram.count,
                value.sum,
                SCALE,
                histogram.zeros,
                Buckets(histogram.offset, histogram.counts.tolist()),
                empty,
                0,
                histogram.min if histogram.count else 0.0,
                histogram.max if histogram.count else 0.0,
            )
        elif not isinstance(value, Counted):
            yield export.NumberDataPoint(dict(labels), start, end, value)


def checked_url(url: str) -> str:
    """The url of an endpoint, with the path of the specification where it has none; raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        message = f"expected http://HOST:PORT of an OTLP endpoint, got {url!r}"
        raise ConfigError(message)
    return url if parts.path not in ("", "/") else url.rstrip("/") + _PATH


def _resource() -> Any:  # noqa: ANN401 - a resource of OpenTelemetry
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415 - an extra

    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: "kvxfer"}))
    return found
