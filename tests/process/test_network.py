"""A network between workers and collector that is cut and loses packets: what was recorded is committed once."""

import threading
from pathlib import Path

import pytest
from namespaces import COLLECTOR, missing, two_hosts

from benchmarks.faults import Service, differences
from kvxfer.config import CollectorConfig

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


@pytest.mark.timeout(200)
def test_a_link_cut_for_4_s_that_loses_a_tenth_while_the_collector_is_replaced_loses_no_count(tmp_path: Path) -> None:
    config = CollectorConfig(
        endpoint=f"tcp://{COLLECTOR}:5570", journal=str(tmp_path / "journal.db"), interval_seconds=0.5, insecure=True
    )
    with two_hosts() as link:
        link.lose_a_tenth()
        with Service(config, workers=4, enter=link.enter) as service:
            wait(4)
            link.cut()
            wait(1)
            service.kill_collector()
            service.start_collector()
            wait(3)
            link.join()
            wait(2)
            recorded = service.stop_workers()
            assert service.stop_collector() == 0
            found = service.committed()
        assert link.dropped() > 0
    assert differences(service.expected(recorded), found) == []
    assert found.pipeline.reports_lost == 0
    assert found.pipeline.reports_rejected == {}
    assert sum(worker.resent for worker in recorded) > 0
