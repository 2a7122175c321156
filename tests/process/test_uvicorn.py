"""A web server on a signal: what its lifespan closes is delivered, else, by SIGTERM, only what was flushed."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from asgi_app import FLUSHED_REQUESTS
from workers import transfers

from kvxfer.collector import Collector

pytestmark = pytest.mark.extra

REQUESTS = FLUSHED_REQUESTS + 4
COMMAND = (sys.executable, "-m", "uvicorn", "asgi_app:app", "--port", "0", "--lifespan", "on", "--no-access-log")


def serve_until(number: signal.Signals, endpoint: str, closes: str) -> int:
    """Answer requests and end by a signal; the exit code."""
    environment = os.environ | {"KVXFER_ENDPOINT": endpoint, "KVXFER_TEST_CLOSES": closes}
    with subprocess.Popen(
        COMMAND, cwd=Path(__file__).parent, env=environment, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        url = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
        for _ in range(REQUESTS):
            urllib.request.urlopen(url, timeout=20).close()  # noqa: S310 - our own server
        server.send_signal(number)
        server.communicate(timeout=30)
    return server.returncode


# uvicorn finishes, then lets the signal do what it does by itself: SIGTERM ends the process without its exit handlers,
# SIGINT raises KeyboardInterrupt, which uvicorn takes, and the process ends by itself.
@pytest.mark.parametrize(
    ("number", "closes", "lost"),
    [
        (signal.SIGTERM, "1", 0),
        (signal.SIGTERM, "0", REQUESTS - FLUSHED_REQUESTS),
        (signal.SIGINT, "0", 0),
    ],
)
def test_uvicorn_on_a_signal_delivers_what_its_lifespan_closes(
    collector: Collector, number: signal.Signals, closes: str, lost: int
) -> None:
    pytest.importorskip("uvicorn")
    code = serve_until(number, collector.endpoint, closes)
    assert code == (-signal.SIGTERM if number == signal.SIGTERM else 0)
    collector.stop()
    assert transfers(collector) == REQUESTS - lost
    assert collector.snapshot().pipeline.sources["gone"] == (0 if lost else 1)
