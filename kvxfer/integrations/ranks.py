"""Ranks: the labels of a process out of the environment that its launcher gave it. Pure: nothing else is asked."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from kvxfer.errors import ConfigError

_MAX_VALUE: Final = 200
# What a label may have; of a pod's name, of up to 253 characters, the end tells it from its siblings.

# By launcher, the innermost first: torchrun under srun, or in a pod, has the ranks of both.
_LAUNCHERS: Final = (
    {"rank": "RANK", "local_rank": "LOCAL_RANK", "world_size": "WORLD_SIZE", "group_rank": "GROUP_RANK"},  # torchrun
    {
        "rank": "OMPI_COMM_WORLD_RANK",
        "local_rank": "OMPI_COMM_WORLD_LOCAL_RANK",
        "world_size": "OMPI_COMM_WORLD_SIZE",
    },
    {"rank": "PMIX_RANK"},
    {"rank": "PMI_RANK", "local_rank": "MPI_LOCALRANKID", "world_size": "PMI_SIZE"},  # MPICH, Intel MPI
    {
        "rank": "SLURM_PROCID",
        "local_rank": "SLURM_LOCALID",
        "world_size": "SLURM_NTASKS",
        "group_rank": "SLURM_NODEID",
    },
)

_PLACES: Final = MappingProxyType(
    {
        "node": ("NODE_NAME", "SLURMD_NODENAME"),
        "pod": ("POD_NAME",),
        "namespace": ("POD_NAMESPACE",),
    }
)
# Those of Kubernetes are none of its own: a manifest gives them by the downward API, under the names everybody uses.


def rank_labels(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Labels for `StatsPublisher`: rank, local_rank, world_size, group_rank, node, pod, namespace, as far as known.

    Ranks are those of one launcher: torchrun, Open MPI, PMIx, PMI (MPICH, Intel MPI), Slurm, the first that gives a
    rank. ``KVXFER_LABELS="role=kv_consumer,engine=decode-0"`` adds labels and wins over them; raises `ConfigError` for
    one that is not of this form.
    """
    found: dict[str, str] = {}
    for names in _LAUNCHERS:
        if environ.get(names["rank"], "").isdecimal():
            found = {label: environ[name] for label, name in names.items() if environ.get(name, "").isdecimal()}
            break
    return found | place_labels(environ)


def place_labels(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those of `rank_labels` that are no launcher's: node, pod, namespace, and all of ``KVXFER_LABELS``."""
    found: dict[str, str] = {}
    for label, names_of_place in _PLACES.items():
        values = [environ[name] for name in names_of_place if environ.get(name)]
        found |= {label: values[0][-_MAX_VALUE:]} if values else {}
    return found | _given(environ.get("KVXFER_LABELS", ""))


def _given(text: str) -> dict[str, str]:
    labels = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = map(str.strip, part.partition("="))
        if not (name and equals):
            message = f"KVXFER_LABELS: expected name=value,name=value, got {part!r}"
            raise ConfigError(message)
        labels[name] = value
    return labels
