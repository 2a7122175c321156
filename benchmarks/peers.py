"""The peers, each in as few lines as do its work the way its users write it."""

import atexit
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.harness import SEED

Record = Callable[[float, float, int, int], object]


class Telemetry(NamedTuple):
    """What NIXL says of a transfer: microseconds, bytes, descriptors."""

    xferDuration: int  # noqa: N815 - NIXL's name
    postDuration: int  # noqa: N815 - NIXL's name
    totalBytes: int  # noqa: N815 - NIXL's name
    descCount: int  # noqa: N815 - NIXL's name


def telemetry(count: int, seed: int = SEED) -> list[Telemetry]:
    """Transfers like those of a service: 1 to 200 blocks of 64 KiB in about 10 ms, whole microseconds."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        blocks = rng.randint(1, 200)
        made.append(Telemetry(int(rng.lognormvariate(9.2, 1)), int(rng.lognormvariate(5, 0.5)), blocks << 16, blocks))
    return made


class VllmStats:
    """vLLM's way: four appends with the conversion of the unit, lists that are encoded as they are."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        names = ("transfer_duration", "post_duration", "bytes_transferred", "num_descriptors")
        failures = ("num_failed_transfers", "num_failed_notifications", "num_kv_expired_reqs")
        self.data: dict[str, list[Any]] = {name: [] for name in (*names, *failures)}

    def record_transfer(self, result: Telemetry) -> None:
        self.data["transfer_duration"].append(result.xferDuration / 1e6)
        self.data["post_duration"].append(result.postDuration / 1e6)
        self.data["bytes_transferred"].append(result.totalBytes)
        self.data["num_descriptors"].append(result.descCount)

    def encode(self) -> bytes:
        data = self.data
        self.reset()
        return msgspec.msgpack.encode(data)

    def aggregate(self, data: dict[str, list[Any]]) -> None:
        for name, values in data.items():
            self.data[name].extend(values)

    def reduce(self) -> dict[str, float]:
        durations, posts, sizes, descriptors = (np.asarray(values) for values in list(self.data.values())[:4])
        total = sizes.sum() / 2**20
        return {
            "Num successful transfers": len(durations),
            "Avg xfer time (ms)": round(durations.mean() * 1e3, 3),
            "P90 xfer time (ms)": round(np.percentile(durations, 90) * 1e3, 3),
            "Avg post time (ms)": round(posts.mean() * 1e3, 3),
            "P90 post time (ms)": round(np.percentile(posts, 90) * 1e3, 3),
            "Throughput (MB/s)": round(total / durations.sum(), 3),
            "Avg number of descriptors": round(descriptors.mean(), 1),
        }


def vllm_class() -> Any:  # noqa: ANN401 - an extra
    """vLLM's own class, where vLLM is installed: as `VllmStats`, with two more counters and checks of its own."""
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats  # noqa: PLC0415 - an extra

    return NixlKVConnectorStats()


def prometheus(*, multiprocess: bool, directory: str = "") -> Record:
    """Three histograms of prometheus_client, in memory or in the files of its multiprocess mode; default buckets."""
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # read by the package when it is imported
    if multiprocess:
        if not directory:
            directory = tempfile.mkdtemp()
            atexit.register(shutil.rmtree, directory, ignore_errors=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    from prometheus_client import Histogram  # noqa: PLC0415 - an extra

    duration, post, size = (Histogram(name, name) for name in ("duration", "post", "size"))

    def record(transfer: float, posted: float, num_bytes: int, _: int) -> None:
        duration.observe(transfer)
        post.observe(posted)
        size.observe(num_bytes)

    return record


def opentelemetry() -> Record:
    """Three histograms of the OpenTelemetry SDK with an in-memory reader; its default, explicit buckets."""
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415 - an extra

    meter = MeterProvider([InMemoryMetricReader()]).get_meter("bench")
    duration, post, size = (meter.create_histogram(name) for name in ("duration", "post", "size"))

    def record(transfer: float, posted: float, num_bytes: int, _: int) -> None:
        duration.record(transfer)
        post.record(posted)
        size.record(num_bytes)

    return record


def dogstatsd() -> Record:
    """Three histograms of DogStatsD's client, each a datagram to a port of this host where somebody listens."""
    from datadog.dogstatsd import DogStatsd  # noqa: PLC0415 - an extra

    agent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    agent.bind(("127.0.0.1", 0))
    atexit.register(agent.close)
    client = DogStatsd("127.0.0.1", agent.getsockname()[1], disable_buffering=True, disable_telemetry=True)

    def record(transfer: float, posted: float, num_bytes: int, _: int) -> None:
        client.histogram("duration", transfer)
        client.histogram("post", posted)
        client.histogram("size", num_bytes)

    return record
