"""Real launchers: each of their processes publishes under its own rank."""

import os
import shutil
import subprocess
import sys

import pytest

from kvxfer.collector import Collector

WORK = """
import sys
from kvxfer import StatsPublisher
from kvxfer.integrations.ranks import rank_labels
with StatsPublisher("NixlConnector", sys.argv[1], rank_labels(), linger=20.0) as publisher:
    publisher.stats.record_failed_transfer()
"""
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
MORE_THAN_CPUS = {"OMPI_MCA_rmaps_base_oversubscribe": "1"}


@pytest.mark.parametrize("launcher", ["mpirun.openmpi", "mpirun.mpich"])
def test_processes_of_mpi_publish_under_their_ranks(launcher: str, collector: Collector) -> None:
    if shutil.which(launcher) is None:
        pytest.skip(f"no {launcher} here; .ci/run does without, since MPI takes a minute to install")
    command = [launcher, "-n", "3", sys.executable, "-c", WORK, collector.endpoint]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, **ROOT, **MORE_THAN_CPUS})
    sources = [view.source for view in collector.snapshot().sources]
    labels = [{"rank": str(rank), "local_rank": str(rank), "world_size": "3"} for rank in range(3)]
    assert sorted((source.labels for source in sources), key=lambda each: each["rank"]) == labels
