"""`KVConnectorStats`: vLLM's contract of what one interval of one connector holds. No I/O, no clock."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvxfer.distribution import DistributionState
from kvxfer.underway import InFlight


class Moved(NamedTuple):
    """What was moved, and the summed durations of the transfers: the base of all rates."""

    num_bytes: float
    busy_seconds: float


@dataclass
class KVConnectorStats:
    """What a connector observed in an interval (vLLM's contract): ``data`` is its payload, plain and serializable.

    A subclass written for vLLM works here: it implements `reset`, `aggregate`, `reduce` and `is_empty`.
    """

    data: dict[str, Any] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget everything observed."""
        raise NotImplementedError

    def aggregate(self, other: "KVConnectorStats") -> "KVConnectorStats":
        """Merge the other one in and return the result, which may be this object, changed."""
        raise NotImplementedError

    def follow(self, later: "KVConnectorStats") -> "KVConnectorStats":
        """As `aggregate`, for what the same sources observed later: a class that knows levels takes theirs."""
        return self.aggregate(later)

    def sign(self, source: str) -> None:
        """Say which source observed it, to a class whose levels add up over sources."""

    def reduce(self) -> dict[str, Any]:
        """The numbers that an operator reads: ``{key: int or float}``."""
        raise NotImplementedError

    def is_empty(self) -> bool:
        """Whether nothing was observed."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The payload, from which the connector's ``build_kv_connector_stats`` makes an equal object."""
        return self.data

    def to_packed(self) -> dict[str, Any]:
        """The payload as a report carries it; stats that can fold what is large do so here."""
        return self.to_dict()

    def copy(self) -> "KVConnectorStats":
        """An equal object that shares nothing with this one."""
        return deepcopy(self)

    def summary(self) -> dict[str, Any]:
        """Per field a number, or count, sum, extremes and quantiles: for records. Empty where the class has none."""
        return {}

    def drain(self, *, for_report: bool = False) -> "KVConnectorStats":
        """Take all observations into a new object and leave this one empty, in one step.

        ``for_report``: the new one is for a report, and may hold what a report carries. Here all that is held is in
        ``data``, as in vLLM's classes, which add to it without a lock: what a thread is adding at that very moment may
        be in neither. Who cannot bear that gives whole stats to `StatsPublisher.push`.
        """
        del for_report
        taken = type(self)()
        taken.data, self.data = self.data, taken.data
        return taken

    def drain_cut(self) -> int:
        """Take the number of observations that were dropped by a bound of its own."""
        return 0

    def fold_early(self) -> None:
        """Take in what waits, where it is much, before it is drained."""

    def exclusively(self) -> AbstractContextManager[Any]:
        """Within, no other thread drains."""
        return nullcontext()

    def stop(self) -> None:
        """Drop what is recorded from now on, as far as the class can: nobody will drain it."""

    def split(self) -> Sequence["KVConnectorStats"]:
        """Some that together hold the same, of about half the size; none where the class cannot. This one is done with.

        A report has at most 1 MiB: what is more travels in several.
        """
        return ()

    def renew(self) -> None:
        """In a forked child: begin with nothing, the observations so far are the parent's to report."""
        self.reset()

    def moved(self) -> Moved | None:
        """Bytes and busy seconds of the transfers, None where the connector does not know them."""
        return None

    def durations(self) -> DistributionState | None:
        """The seconds of each transfer, None where the connector does not know them one by one; not to be changed."""
        return None

    def failures(self) -> dict[str, float]:
        """What went wrong, by the name of the counter; those that stand at 0 too."""
        return {}

    def note_levels(self) -> None:
        """Read what changes while nothing is recorded; called about once a second."""

    def forget_under_way(self) -> None:
        """Hold no number of transfers under way any more, as totals do: it is that of one interval."""

    def in_flight(self) -> InFlight | None:
        """Transfers that are under way now, None where the class does not know."""
        return None

    def num_rejected(self) -> int:
        """Observations that were refused: not finite, negative, no number."""
        return 0

    def num_values(self) -> int:
        """The length of the longest list of values held one by one."""
        return _longest(self.data)

    def is_bounded(self) -> bool:
        """Whether merging keeps the size bounded; lists, as vLLM's classes keep them, only grow."""
        return False


def _longest(data: Any) -> int:  # noqa: ANN401 - a payload
    if isinstance(data, list):
        return len(data)
    return max(map(_longest, data.values()), default=0) if isinstance(data, dict) else 0
