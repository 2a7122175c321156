"""A live collector that is sent twenty thousand mutants, and loses nothing of those who behave."""

import itertools

import pytest

from benchmarks import fuzz
from benchmarks.mutants import Mutants


@pytest.fixture(scope="module")
def outcome() -> fuzz.Outcome:
    return fuzz.run(20_000, seed=2)


def test_the_well_behaved_are_counted_once_among_twenty_thousand_mutants(outcome: fuzz.Outcome) -> None:
    assert outcome.wrong == []
    assert outcome.behaved_reports >= 200
    assert outcome.counted.behaved["transfer_duration"]["count"] == outcome.behaved_transfers
    assert "each counted once, also after a restart from the journal" in fuzz.text(outcome, 2)


def test_mutants_get_everywhere(outcome: fuzz.Outcome) -> None:
    pipeline = outcome.counted.pipeline
    causes = {"undecodable", "version", "unknown_connector", "implausible", "too_many_sources"}
    assert pipeline.reports_rejected.keys() >= causes - {"too_many_sources"}
    # Our own classes refuse with our own errors.
    assert pipeline.reports_rejected.keys() <= causes
    assert pipeline.reports_received > 2000
    assert pipeline.reports_duplicate > 100
    assert pipeline.observations_rejected > 100
    assert outcome.goodbyes > 1000


def test_the_same_seed_gives_the_same_mutants_and_another_one_others() -> None:
    one, same, other = (list(itertools.islice(iter(Mutants(seed)), 500)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_count_that_differs_is_seen(outcome: fuzz.Outcome) -> None:
    class Sender:
        sent, goodbyes = 10, 1
        recorded = fuzz.NixlConnectorStats()

    wrong = list(fuzz._wrong(Sender(), outcome.counted, outcome.counted))  # type: ignore[arg-type]
    assert [line.partition(" ")[0] for line in wrong] == ["recorded", "recorded", "10"]
    assert fuzz._grown(100.0, 150.1) == ["memory grew by 50.1 MiB after the warm-up"]
    assert fuzz._grown(100.0, 149.9) == []
