"""vLLM's UMBPStoreConnector: KV blocks kept in the pools of MORI's UMBP, on one node or several."""

from collections.abc import Mapping
from typing import Any, Final

from kvxfer.connectors.base import Connector
from kvxfer.fields import Counter
from kvxfer.stats import TransferStats

_LABELS: Final = ("operation",)


class UMBPStoreConnectorStats(TransferStats):
    """Objects per operation (``load``, ``store``); the reduced keys are vLLM 0.33's.

    vLLM's payload is ``{operation: {"submitted": n, "completed": n, "failed": n, "num_bytes": n}}``. Its bytes are
    counted when a transfer is submitted and again when it is complete, so no throughput is read off them.
    """

    submitted = Counter("{object}", "Objects submitted.", labels=_LABELS)
    completed = Counter("{object}", "Objects completed.", labels=_LABELS)
    failed = Counter("{object}", "Objects failed.", labels=_LABELS, failure=True)
    num_bytes = Counter("By", "Bytes of the objects, as the connector counts them.", labels=_LABELS)

    def record(
        self, operation: str, *, submitted: int = 0, completed: int = 0, failed: int = 0, num_bytes: int = 0
    ) -> None:
        """Add to the counts of an operation."""
        counts = {"submitted": submitted, "completed": completed, "failed": failed, "num_bytes": num_bytes}
        for name, count in counts.items():
            getattr(self, name).labels(operation).add(count)

    def _load(self, payload: Mapping[str, Any]) -> None:
        operations = {name: counts for name, counts in payload.items() if _is_operation(counts)}
        super()._load({name: value for name, value in payload.items() if name not in operations})
        for operation, counts in operations.items():
            unknown = len(counts.keys() - self.fields.keys())
            if unknown:  # of a newer vLLM
                self.rejected_observations.count(unknown)
            for name in self.fields:
                getattr(self, name).labels(operation).load(counts.get(name, 0))
        self._hoist_rejected()

    def reduce(self) -> dict[str, Any]:
        """vLLM's keys: the four counts of each operation that has any, in the order in which operations came."""
        self.fold()
        held = {name: getattr(self, name).to_value() for name in self.fields}
        operations = dict.fromkeys(values for counts in held.values() for values in counts)
        return {
            f"{operation}_{name}": counts.get((operation,), 0)
            for (operation,) in operations
            for name, counts in held.items()
        }


def _is_operation(counts: object) -> bool:
    """Whether these are the counts of an operation, and not those of a field by its labels, as reports carry them."""
    return isinstance(counts, dict) and all(isinstance(name, str) for name in counts)


class UMBPStoreConnector(Connector):
    """The connector of these stats."""

    stats_class = UMBPStoreConnectorStats
