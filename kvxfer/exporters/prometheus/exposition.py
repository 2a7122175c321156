"""From an interval to families: `Exposition`, which is asked again and again."""

from collections.abc import Iterator
from typing import Final

import msgspec

from kvxfer.exporters.prometheus.families import Counted, Families, Family, Kind, Labels, Measured, Value
from kvxfer.exporters.prometheus.health import add_health, add_pipeline, add_scrapes, settle_scrapes
from kvxfer.exporters.prometheus.measured import add_group, add_levels
from kvxfer.exporters.prometheus.measuring import Names, by_series
from kvxfer.exporters.prometheus.sources import add_source
from kvxfer.exporters.prometheus.unknown import Unknown
from kvxfer.exporting import Health
from kvxfer.interval import Interval

_DIGITS: Final = 12
"""Of a sum of floats. Its last bits depend on the order in which reports were merged, which a restart changes; a sum
that is lower by one of them is a counter reset to Prometheus, which then adds the whole sum once more."""

_NOISE: Final = 1e-9
"""By how much of itself a sum may fall without anything having been taken away."""


class Options(msgspec.Struct, frozen=True):
    """What is exposed: whose names, and of how many sources series of their own."""

    names: Names = "kvxfer"
    sources: int = 0


class Exposition:
    """Makes the families of one collector.

    Law: counts, buckets and sums of one series never fall from one call to the next, as long as those of the
    intervals do not.
    """

    def __init__(self, options: Options | None = None) -> None:
        """Begin with nothing exposed yet."""
        self.options = options or Options()
        self._sums: dict[tuple[str, Labels], float] = {}

    def families(
        self,
        interval: Interval,
        last: Interval | None = None,
        health: Health | None = None,
        made: Counted | None = None,
    ) -> list[tuple[Family, dict[Labels, Value]]]:
        """Families of an interval of totals, as `Collector.snapshot` gives it.

        ``last``: the interval that closed last, for gauges and stats that keep no totals; before the first one has
        closed what there is stands for it. ``made``: what the calls before took.
        """
        families, unknown, names = Families(), Unknown(), self.options.names
        add_scrapes(families, made or Counted(0, 0.0))
        add_pipeline(families, interval)
        if health is not None:
            add_health(families, health)
        groups = by_series(interval.groups, names)
        newest = groups if last is None else by_series(last.groups, names)
        read = [add_group(families, unknown, *each) for each in groups]
        read += [add_levels(families, unknown, *each) for each in newest]
        if self.options.sources:
            read += list(self._sources(families, interval))
        unknown.tell(families)
        settle_scrapes(families, read.count(False))
        return self._steadied(families)

    def _sources(self, families: Families, interval: Interval) -> Iterator[bool]:
        present = [view for view in interval.sources if view.state != "gone"]
        for view in present[: self.options.sources]:
            yield add_source(families, view)
        about = "Live and silent sources that have no series of their own, since they are more than was allowed."
        family = Family("kvxfer_collector_sources_without_series", Kind.GAUGE, about)
        known = sum(count for state, count in interval.pipeline.sources.items() if state != "gone")
        shown = {view.source.id for view in present[: self.options.sources]}
        families.add(family, (), max(0, known - len(shown)))

    def _steadied(self, families: Families) -> list[tuple[Family, dict[Labels, Value]]]:
        """The families with their sums as they are exposed."""
        before, self._sums = self._sums, {}
        found = []
        for family, series in families:
            if family.kind in (Kind.COUNTER, Kind.HISTOGRAM, Kind.SUMMARY):
                steady = {
                    labels: self._steady((family.name, labels), value, before) for labels, value in series.items()
                }
                found.append((family, steady))
            else:
                found.append((family, series))
        return found

    def _steady(self, key: tuple[str, Labels], value: Value, before: dict[tuple[str, Labels], float]) -> Value:
        total = value.sum if isinstance(value, Measured | Counted) else value
        if isinstance(total, int):
            return value
        total = float(f"{total:.{_DIGITS}g}")
        last = before.get(key, 0.0)
        if total < last <= total * (1 + _NOISE):
            total = last
        self._sums[key] = total
        return value._replace(sum=total) if isinstance(value, Measured | Counted) else total
