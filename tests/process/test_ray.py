"""Ray's actors: those that leave by themselves deliver everything, those that are killed what they had flushed."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from workers import FLUSHED, PENDING, wait_until

from kvxfer.collector import Collector

pytestmark = [pytest.mark.extra, pytest.mark.timeout(110)]

# On this host alone, nothing told to anybody, no token of a user's.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
# Most actors are killed before they leave, now and then one is not: no more than what was flushed is to be relied on.
AS_RAY_LIKES = (FLUSHED, FLUSHED + PENDING)
MARK = "KVXFER_TEST_RUN"


def drive(function: str, endpoint: str) -> None:
    """Run a driver as a program of its own, after which no process of its Ray is left."""
    mark = uuid.uuid4().hex
    directory = str(Path(__file__).parent)
    code = f"from ray_actors import {function}; {function}({endpoint!r})"
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": directory, MARK: mark}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=90, env=environment)
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


def delivered(collector: Collector) -> dict[str, int]:
    collector.stop()
    return {group.labels["role"]: group.stats.transfer_duration.count for group in collector.snapshot().groups}


def test_actors_that_leave_deliver_everything_and_those_that_are_killed_what_they_had_flushed(
    collector: Collector,
) -> None:
    pytest.importorskip("ray")
    drive("end_actors", collector.endpoint)
    found = delivered(collector)
    assert found.pop("ray.shutdown") in AS_RAY_LIKES
    assert found == {
        "exit_actor": FLUSHED + PENDING,
        "out of scope": FLUSHED + PENDING,
        "ray.kill": FLUSHED,
        "flush and ray.shutdown": FLUSHED + PENDING,
    }


def test_a_driver_that_ends_leaves_of_its_actors_what_they_had_flushed(collector: Collector) -> None:
    pytest.importorskip("ray")
    drive("end_driver", collector.endpoint)
    assert delivered(collector)["driver exit"] in AS_RAY_LIKES
