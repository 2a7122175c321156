"""Collectors that are killed, links that are cut: what was recorded is committed once, in count, bytes and bucket."""

import pytest

from benchmarks.faults import run


@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_collectors_killed_twenty_times_under_eight_workers_at_full_rate_count_everything_once(transport: str) -> None:
    outcome = run(transport, 20)
    assert outcome.differences == []
    assert outcome.kills == 20
    assert outcome.found.pipeline.reports_received > outcome.kills
