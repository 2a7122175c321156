"""Fixtures that several tests share."""

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_journal_in_the_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands that a test runs write their journals to a directory of the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def ipc_endpoint() -> Iterator[str]:
    """An endpoint of its own, on a path short enough for a socket (pytest's directories are not)."""
    with tempfile.TemporaryDirectory(prefix="kvxfer-") as directory:
        yield f"ipc://{directory}/c.ipc"
