"""What several parts hold together: of several intervals, of several sources. No I/O."""

from typing import Any, Final

import msgspec

from kvxfer.distribution import DistributionState
from kvxfer.interval import Pipeline
from kvxfer.records.observed import Durations, Part, durations_of

_NOTHING: Final = Pipeline(0, 0, 0, {}, 0, 0)


class Totals:
    """The sum of parts. Bytes, seconds, counts and extremes add up exactly; for quantiles see `observed`."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.num_bytes: float | None = None
        self.busy_seconds: float | None = None
        self.failures: dict[str, float] = {}
        self._distribution: DistributionState | None = None
        self._durations: Durations | None = None

    def __repr__(self) -> str:
        """Give what was moved."""
        return f"<Totals bytes={self.num_bytes} busy={self.busy_seconds} failures={self.failures}>"

    def add(self, part: Part) -> None:
        """Add what a part moved; it is left as it was."""
        self.num_bytes = _added(self.num_bytes, part.num_bytes)
        self.busy_seconds = _added(self.busy_seconds, part.busy_seconds)
        for name, count in part.failures.items():
            self.failures[name] = self.failures.get(name, 0) + count
        if isinstance(part.durations, DistributionState):
            if self._distribution is None:
                self._distribution = DistributionState()
            self._distribution.merge(part.durations)
        elif part.durations is not None:
            held = self._durations
            self._durations = part.durations if held is None else held.with_added(part.durations)

    def durations(self) -> Durations | None:
        """The seconds of all transfers, None where no part knew them."""
        return self._durations if self._distribution is None else durations_of(self._distribution)


def _added(one: float | None, other: float | None) -> float | None:
    return one if other is None else other + (one or 0)


class Losses:
    """What the pipeline counted over intervals that follow each other, out of counts since its start.

    A count that falls says that a collector without a journal was started again: all of it is new.
    """

    def __init__(self, before: Pipeline | None) -> None:
        """Begin after an interval that counted this; where there is none, with the first one's counts."""
        self.knows_beginning = before is not None
        self._last = before or _NOTHING
        self._total = _NOTHING

    def add(self, pipeline: Pipeline) -> None:
        """Add the next interval's counts."""
        new = _difference(pipeline, self._last)
        self._total = _combined(self._total, new)
        self._last = pipeline

    def total(self) -> Pipeline:
        """What was counted; the states of the sources are those at the end."""
        return msgspec.structs.replace(self._total, sources=self._last.sources)


_COUNTS: Final = (
    "reports_received",
    "reports_duplicate",
    "reports_lost",
    "observations_rejected",
    "observations_cut",
    "exports_failed",
    "commits_failed",
)


def _difference(later: Pipeline, earlier: Pipeline) -> Pipeline:
    if any(getattr(later, name) < getattr(earlier, name) for name in _COUNTS[:3]):
        return later
    counts: dict[str, Any] = {name: _since(getattr(later, name), getattr(earlier, name)) for name in _COUNTS}
    before = earlier.reports_rejected
    rejected = {cause: _since(count, before.get(cause, 0)) for cause, count in later.reports_rejected.items()}
    return Pipeline(**counts, reports_rejected=rejected)


def _since(later: int, earlier: int) -> int:
    """What came between two counts; one that fell began anew."""
    return later - earlier if later >= earlier else later


def _combined(one: Pipeline, other: Pipeline) -> Pipeline:
    counts = {name: getattr(one, name) + getattr(other, name) for name in _COUNTS}
    causes = dict.fromkeys([*one.reports_rejected, *other.reports_rejected])
    rejected = {cause: one.reports_rejected.get(cause, 0) + other.reports_rejected.get(cause, 0) for cause in causes}
    return Pipeline(**counts, reports_rejected={cause: count for cause, count in rejected.items() if count})
