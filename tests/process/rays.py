"""Programs that use Ray, each of its own, after which nothing of it is left; knows nothing of Ray itself."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

from workers import wait_until

# On this host alone, nothing told to anybody, no token of a user's.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_raylet_start_wait_time_s": "150",  # a busy machine takes more than the 30 s that Ray gives a node
}
MARK = "KVXFER_TEST_RUN"


def drive(module: str, function: str, argument: str) -> None:
    """Run a driver as a program of its own, after which no process of its Ray is left."""
    mark = uuid.uuid4().hex
    directory = str(Path(__file__).parent)
    code = f"from {module} import {function}; {function}({argument!r})"
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": directory, MARK: mark}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300, env=environment)
    wait_until(lambda: not left_behind(mark))


def left_behind(mark: str) -> list[str]:
    """The processes that have this mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:  # it has ended meanwhile
            continue
    return found
