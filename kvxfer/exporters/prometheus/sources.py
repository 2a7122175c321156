"""What each source measured, as series: counters, and count and sum of each distribution.

Their names begin with ``kvxfer_source_``, so that a sum over those of the groups counts nothing of them. Gauges of
sources are not told: what is known of a source is its total, and a level has none.
"""

from functools import lru_cache

from kvxfer.distribution import DistributionState
from kvxfer.exporters.prometheus.common import add_common_of_source
from kvxfer.exporters.prometheus.families import Counted, Families, Family, Kind
from kvxfer.exporters.prometheus.measuring import Measuring, parts
from kvxfer.exporters.prometheus.naming import unit_word
from kvxfer.fields import Field
from kvxfer.interval import SourceView
from kvxfer.stats import TransferStats


def add_source(families: Families, view: SourceView) -> bool:
    """Add all of one source; whether its stats could be read."""
    ours = {"source": view.source.id, "host": view.source.host}
    measuring = Measuring(view.connector, ours, view.source.labels, "kvxfer")
    seen = Family("kvxfer_source_last_seen_timestamp_seconds", Kind.GAUGE, "When it was last heard of.", "seconds")
    live = Family("kvxfer_source_live", Kind.GAUGE, "1 where it reports, 0 where it is silent.")
    families.add(seen, measuring.own_labels, view.last_seen)
    families.add(live, measuring.own_labels, int(view.state == "live"))
    try:
        for each, stats in parts(measuring, view.stats):
            if stats.is_bounded():
                add_common_of_source(families, each, stats)
            if isinstance(stats, TransferStats):
                _add_fields(families, each, stats)
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return False
    return True


def _add_fields(families: Families, measuring: Measuring, stats: TransferStats) -> None:
    for name, field in stats.fields.items():
        if field.labels or field.kind == "gauge":
            continue
        state, family = stats.data.get(name), _family(field, measuring.stem)
        if field.kind == "counter":
            families.add(family, measuring.own_labels, 0 if state is None else state.value)
        else:
            summed = Counted(state.count, state.sum) if isinstance(state, DistributionState) else Counted(0, 0)
            families.add(family, measuring.own_labels, summed)


@lru_cache(maxsize=1024)
def _family(field: Field, stem: str) -> Family:
    kind = Kind.SUMMARY if field.kind == "distribution" else Kind.COUNTER
    return Family(f"kvxfer_source_{stem}_{field.full_name}", kind, field.help, unit_word(field.unit))
