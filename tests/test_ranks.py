"""Labels out of what launchers put into the environment."""

import os
import subprocess
import sys

import pytest

from kvxfer.errors import ConfigError
from kvxfer.integrations.ranks import rank_labels
from kvxfer.publisher import StatsPublisher

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "GROUP_RANK": "2", "ROLE_RANK": "5"}
SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NODEID": "1", "SLURMD_NODENAME": "n1"}


@pytest.mark.parametrize(
    ("environ", "labels"),
    [
        ({}, {}),
        (TORCHRUN, {"rank": "5", "local_rank": "1", "world_size": "8", "group_rank": "2"}),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
            {"rank": "1", "local_rank": "1", "world_size": "2"},
        ),
        ({"PMIX_RANK": "4"}, {"rank": "4"}),
        (
            {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"},
            {"rank": "0", "local_rank": "0", "world_size": "2"},
        ),
        (SLURM, {"rank": "3", "local_rank": "0", "world_size": "4", "group_rank": "1", "node": "n1"}),
        (
            {"POD_NAME": "decode-0", "POD_NAMESPACE": "serving", "NODE_NAME": "gpu-7"},
            {"pod": "decode-0", "namespace": "serving", "node": "gpu-7"},
        ),
    ],
)
def test_each_launcher_gives_the_ranks_that_it_knows(environ: dict[str, str], labels: dict[str, str]) -> None:
    assert rank_labels(environ) == labels


def test_of_several_launchers_the_innermost_gives_all_ranks_and_nothing_is_mixed() -> None:
    assert rank_labels({**SLURM, **TORCHRUN, "NODE_NAME": "gpu-7"}) == {**rank_labels(TORCHRUN), "node": "gpu-7"}
    assert rank_labels({"RANK": "2", **SLURM}) == {"rank": "2", "node": "n1"}


def test_a_rank_that_is_no_number_is_none_and_the_next_launcher_is_asked() -> None:
    assert rank_labels({"RANK": "captain", "LOCAL_RANK": "0", "PMI_RANK": "1", "PMI_SIZE": ""}) == {"rank": "1"}


def test_labels_that_are_given_win_and_what_is_none_is_said() -> None:
    given = {"KVXFER_LABELS": "role=kv_consumer, engine = decode-0,rank=9,", "RANK": "5"}
    assert rank_labels(given) == {"rank": "9", "role": "kv_consumer", "engine": "decode-0"}
    with pytest.raises(ConfigError, match="KVXFER_LABELS: expected name=value,name=value, got 'decode'"):
        rank_labels({"KVXFER_LABELS": "role=kv_consumer,decode"})


def test_whatever_a_launcher_gives_fits_into_the_labels_of_a_publisher(ipc_endpoint: str) -> None:
    pod = "a" * 250 + "-7"
    labels = rank_labels({**TORCHRUN, "POD_NAME": pod, "POD_NAMESPACE": "n", "NODE_NAME": "x"})
    with StatsPublisher("NixlConnector", ipc_endpoint, labels, linger=0.0) as publisher:
        assert publisher.source.labels["pod"] == pod[-200:]


def test_processes_have_the_labels_of_their_own_ranks() -> None:
    code = "from kvxfer.integrations.ranks import rank_labels; print(rank_labels()['rank'])"
    ranks = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for rank in range(2)
    ]
    assert ranks == ["0", "1"]
