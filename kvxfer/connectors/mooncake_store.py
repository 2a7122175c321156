"""vLLM's MooncakeStoreConnector: KV blocks kept in a Mooncake store."""

from collections.abc import Container, Mapping
from typing import Any, Final

from kvxfer.connectors.base import Connector
from kvxfer.contract import Moved
from kvxfer.distribution import DistributionState, merged
from kvxfer.fields import Counter, Distribution
from kvxfer.states import as_number
from kvxfer.stats import TransferStats
from kvxfer.units import ms

_LABELS: Final = ("operation", "status")
_COUNTS: Final = ("num_keys", "num_bytes", "num_failed_keys")
_MOVING: Final = ("load_get", "save_put")
"""The operations that move KV; the others ask whether it is there."""

_MOST: Final = 2.0**53


class MooncakeStoreConnectorStats(TransferStats):
    """Calls of the store per operation and status; the reduced keys are vLLM 0.33's.

    vLLM's payload is ``{operation: [row]}``, a row ``{"duration_seconds", "num_keys", "num_bytes", "status",
    "num_failed_keys"}``. A row with a number that is not plausible is refused whole.
    """

    operation_duration = Distribution("s", "From the call to its return.", labels=_LABELS)
    num_operations = Counter("{call}", "Calls of the store.", labels=_LABELS)
    num_keys = Counter("{key}", "Keys that calls were for.", labels=_LABELS)
    num_bytes = Counter("By", "Bytes that calls were for.", labels=_LABELS)
    num_failed_keys = Counter("{key}", "Keys of which calls failed.", labels=_LABELS, failure=True)

    def record_operation(
        self,
        operation: str,
        duration_seconds: float,
        num_keys: int,
        *,
        num_bytes: int = 0,
        status: str = "ok",
        num_failed_keys: int = 0,
    ) -> None:
        """Add a call: ``status`` is ok, partial_failure or error."""
        self.operation_duration.labels(operation, status).observe(duration_seconds)
        for name, count in zip(_COUNTS, (num_keys, num_bytes, num_failed_keys), strict=True):
            getattr(self, name).labels(operation, status).add(count)
        self.num_operations.labels(operation, status).add(1)

    def _load(self, payload: Mapping[str, Any]) -> None:
        operations = {name: rows for name, rows in payload.items() if isinstance(rows, list)}
        super()._load({name: value for name, value in payload.items() if name not in operations})
        for operation, rows in operations.items():
            for row in rows:
                self._load_row(operation, row)
        self.fold()

    def _load_row(self, operation: str, row: object) -> None:
        found = row if isinstance(row, dict) else {}
        numbers = {name: as_number(found.get(name)) for name in ("duration_seconds", *_COUNTS)}
        counted = {name: number for name, number in numbers.items() if number is not None and 0 <= number < _MOST}
        if len(counted) == len(numbers):
            self.record_operation(operation, **counted, status=str(found.get("status", "ok")))  # type: ignore[arg-type]
        else:
            self.rejected_observations.count(1)

    def reduce(self) -> dict[str, Any]:
        """vLLM's keys for each operation, operations by name; P90 is the nearest rank while values are exact."""
        self.fold()
        reduced: dict[str, Any] = {}
        for operation in sorted({operation for operation, _ in self.operation_duration.children}):
            durations = self._durations_of({operation})
            if durations.count:
                counts = {name: self._count(name, {operation}) for name in _COUNTS}
                reduced |= {
                    f"{operation}_count": durations.count,
                    f"{operation}_avg_ms": round(ms(durations.mean), 3),
                    f"{operation}_p90_ms": round(ms(_nearest_rank(durations, 0.9)), 3),
                    f"{operation}_total_keys": counts["num_keys"],
                    f"{operation}_total_bytes": counts["num_bytes"],
                    f"{operation}_failed_keys": counts["num_failed_keys"],
                    f"{operation}_error_count": self._count("num_operations", {operation}, "error"),
                }
        return reduced

    def moved(self) -> Moved:
        """Bytes and seconds of the calls that move KV."""
        return Moved(self._count("num_bytes", _MOVING), self._durations_of(_MOVING).sum)

    def durations(self) -> DistributionState:
        """The seconds of the calls that move KV; not to be changed."""
        return self._durations_of(_MOVING)

    def _durations_of(self, operations: Container[str]) -> DistributionState:
        children = self.operation_duration.children.items()
        return merged(child for (name, _), child in children if name in operations) or DistributionState()

    def _count(self, name: str, operations: Container[str], status: str | None = None) -> float:
        children = getattr(self, name).children.items()
        found = (child for (operation, said), child in children if operation in operations and status in (None, said))
        total: float = sum(child.value for child in found)
        return total


def _nearest_rank(durations: DistributionState, q: float) -> float:
    if not durations.is_exact:
        return durations.quantile(q)
    values = sorted(durations.to_value())
    # A product that is a whole number but for its last bits is that number's rank.
    return float(values[max(0, int(q * len(values) - 1e-12))])


class MooncakeStoreConnector(Connector):
    """The connector of these stats."""

    stats_class = MooncakeStoreConnectorStats
