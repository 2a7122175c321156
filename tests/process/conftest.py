"""Fixtures of the tests with real processes."""

from collections.abc import Iterator

import pytest

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig


@pytest.fixture
def collector(ipc_endpoint: str) -> Iterator[Collector]:
    """A collector that runs on a thread of this process."""
    with Collector(CollectorConfig(endpoint=ipc_endpoint)) as running:
        yield running
