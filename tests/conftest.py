"""Fixtures that several tests share."""

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def ipc_endpoint() -> Iterator[str]:
    """An endpoint of its own, on a path short enough for a socket (pytest's directories are not)."""
    with tempfile.TemporaryDirectory(prefix="kvxfer-") as directory:
        yield f"ipc://{directory}/c.ipc"
