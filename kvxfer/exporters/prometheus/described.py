"""What stats describe themselves, as series: their names and labels come with the payload."""

from typing import Any, Final

from kvxfer.connectors.described import DescribedStats
from kvxfer.connectors.generic import GenericConnectorStats
from kvxfer.distribution import DistributionState
from kvxfer.exporters.prometheus.classic import BOUNDARIES, UNKNOWN
from kvxfer.exporters.prometheus.families import Family, Kind, Measured
from kvxfer.exporters.prometheus.measuring import Measuring
from kvxfer.exporters.prometheus.naming import labels_of, unit_word, valid_name, with_unit
from kvxfer.exporters.prometheus.unknown import Unknown
from kvxfer.exporters.prometheus.vllm_names import DEFAULT_BOUNDARIES, OFFLOAD_BOUNDARIES

_KINDS: Final = {"counter": Kind.COUNTER, "gauge": Kind.GAUGE, "histogram": Kind.HISTOGRAM}

# Of vLLM's names only these say their unit; sizes that are none of bytes have names of their own.
_UNITS: Final = {"_time": "s", "_seconds": "s", "_bytes": "By", "load_size": "By", "store_size": "By"}

# vLLM writes a part of one (0 to 1) as "perc".
_PARTS: Final = "_perc"

_LABEL_NAMES: Final = {
    "vllm:kv_offload_size": ("transfer_type",),
    "vllm:kv_offload_total_bytes": ("transfer_type",),
    "vllm:kv_offload_total_time": ("transfer_type",),
    "vllm:simple_kv_offload_save_outcomes_total": ("outcome",),
    "vllm:simple_kv_offload_info": ("backend", "page_cache", "lazy_offload", "capacity_blocks"),
}
"""The payload has the values alone; names that we do not know are ``label_0`` and so on."""


def add_described(unknown: Unknown, told: Measuring, stats: DescribedStats, *, gauges: bool) -> None:
    """Add the gauges that the stats hold, or all else."""
    for name, state in stats.data["data"].items():
        kind = _KINDS[stats.data["types"][name]]
        if (kind is Kind.GAUGE) is not gauges:
            continue
        # A worker chooses the name: none but vLLM's may stand without our prefix.
        is_theirs = told.names == "vllm" and name.startswith("vllm:")
        family = _vllm_family(name, kind) if is_theirs else _family(told.prefix, stats, name, kind)
        for values, child in list(state.children.items()):
            value = child.to_value() if not isinstance(child, DistributionState) else child
            if value is not None:
                labels = labels_of({**told.ours, **_named(name, values)}, told.theirs)
                unknown.add(family, labels, _measured(value))
    if not gauges:
        _add_facts(unknown, told, stats)


def _add_facts(unknown: Unknown, told: Measuring, stats: DescribedStats) -> None:
    for name, facts in stats.data["info"].items():
        if isinstance(facts, dict):
            known = {str(fact): str(value) for fact, value in facts.items() if isinstance(value, str | int | float)}
            bare = valid_name(name.removeprefix(f"{stats.prefix}_")).removesuffix("_info")
            prefix = stats.prefix if told.names == "vllm" and stats.prefix else told.prefix
            family = Family(f"{prefix}_{bare}", Kind.INFO, "Facts that workers told of themselves.")
            unknown.add(family, labels_of(told.ours, {**told.theirs, **known}), 1)


def _measured(value: Any) -> Any:  # noqa: ANN401 - of any kind
    return Measured(value.histogram(), value.sum) if isinstance(value, DistributionState) else value


def _named(name: str, values: tuple[str, ...]) -> dict[str, str]:
    known = _LABEL_NAMES.get(name, ())
    names = known if len(known) == len(values) else tuple(f"label_{number}" for number in range(len(values)))
    return dict(zip(names, values, strict=True))


def _family(prefix: str, stats: DescribedStats, name: str, kind: Kind) -> Family:
    bare = valid_name(name.removeprefix(f"{stats.prefix}_").removeprefix("vllm:")).removesuffix("_total")
    if bare.endswith(_PARTS) and kind is Kind.GAUGE:
        bare = bare.removesuffix(_PARTS) + "_ratio"
        word = "ratio"
    else:
        word = unit_word(next((unit for end, unit in _UNITS.items() if bare.endswith(end)), ""))
        if isinstance(stats, GenericConnectorStats) and not bare.endswith(word):
            word = ""  # a time of theirs may be milliseconds
    boundaries = BOUNDARIES.get(word, UNKNOWN) if kind is Kind.HISTOGRAM else ()
    return Family(f"{prefix}_{with_unit(bare, word)}", kind, f"{name} as workers report it.", word, boundaries)


def _vllm_family(name: str, kind: Kind) -> Family:
    part, _, bare = name.rpartition(":")
    valid = (f"{valid_name(part)}:" if part else "") + valid_name(bare)
    boundaries = OFFLOAD_BOUNDARIES.get(name, DEFAULT_BOUNDARIES) if kind is Kind.HISTOGRAM else ()
    if kind is Kind.COUNTER:
        valid = valid.removesuffix("_total")
    return Family(valid, kind, "As vLLM exports it.", "", boundaries, is_native=False)
