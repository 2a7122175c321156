"""Collectors that are actors of Ray: whoever is killed, what was flushed is counted once, and workers find them."""

from pathlib import Path

import pytest
from rays import drive
from workers import transfers

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig

pytestmark = [pytest.mark.extra, pytest.mark.timeout(340)]


@pytest.fixture(autouse=True)
def _ray() -> None:
    pytest.importorskip("ray")


def test_twelve_workers_on_three_nodes_lose_nothing_to_a_collector_that_is_killed_three_times(tmp_path: Path) -> None:
    drive("ray_workers", "kill_three_times", str(tmp_path / "j.db"))


def test_collectors_of_nodes_find_the_one_above_and_lose_nothing_when_either_is_killed(tmp_path: Path) -> None:
    drive("ray_workers", "kill_on_both_levels", str(tmp_path))


def test_a_collector_whose_node_is_gone_is_started_elsewhere_and_goes_on_with_its_journal(tmp_path: Path) -> None:
    drive("ray_workers", "lose_the_node", str(tmp_path / "j.db"))


def test_a_shutdown_after_a_flush_loses_nothing(tmp_path: Path, ipc_endpoint: str) -> None:
    journal = tmp_path / "j.db"
    drive("ray_workers", "shut_down_after_a_flush", str(journal))
    recorded = int(journal.with_suffix(".recorded").read_text())
    with Collector(CollectorConfig(endpoint=ipc_endpoint, journal=str(journal))) as collector:
        assert transfers(collector) == recorded > 0


def test_workers_that_the_hook_set_up_are_heard_by_a_collector_that_comes_after_them(tmp_path: Path) -> None:
    drive("ray_workers", "set_up_by_the_hook", str(tmp_path))


def test_prometheus_is_told_where_the_metrics_are_also_when_they_move(tmp_path: Path) -> None:
    drive("ray_workers", "serve_metrics", str(tmp_path))


def test_a_collector_that_cannot_start_says_why(tmp_path: Path) -> None:
    drive("ray_workers", "say_what_is_wrong", str(tmp_path))


def test_a_worker_that_finds_no_collector_ends_all_the_same(tmp_path: Path) -> None:
    drive("ray_workers", "leave_without_a_collector", str(tmp_path))
