"""Ray's actors: those that leave by themselves deliver everything, those that are killed what they had flushed."""

import pytest
from rays import drive
from workers import FLUSHED, PENDING

from kvxfer.collector import Collector

pytestmark = [pytest.mark.extra, pytest.mark.timeout(340)]

# Most actors are killed before they leave, now and then one is not: no more than what was flushed is to be relied on.
AS_RAY_LIKES = (FLUSHED, FLUSHED + PENDING)


def delivered(collector: Collector) -> dict[str, int]:
    collector.stop()
    return {group.labels["role"]: group.stats.transfer_duration.count for group in collector.snapshot().groups}


def test_actors_that_leave_deliver_everything_and_those_that_are_killed_what_they_had_flushed(
    collector: Collector,
) -> None:
    pytest.importorskip("ray")
    drive("ray_actors", "end_actors", collector.endpoint)
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
    drive("ray_actors", "end_driver", collector.endpoint)
    assert delivered(collector)["driver exit"] in AS_RAY_LIKES
