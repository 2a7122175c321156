"""vLLM's OffloadingConnector: KV moved between GPU, host and storage tiers. Its payload describes itself."""

from collections.abc import Mapping
from typing import Any, Final

from kvxfer.connectors.base import Connector
from kvxfer.connectors.described import DescribedStats
from kvxfer.contract import Moved
from kvxfer.states import as_number

_MOST: Final = 2.0**53


class OffloadingConnectorStats(DescribedStats):
    """Loads and stores, and whatever the tiers tell of themselves.

    A payload of vLLM 0.16 to 0.23, ``{"CPU_to_GPU": [{"op_size": bytes, "op_time": seconds}]}``, reads as what a newer
    one tells of the same transfers.
    """

    prefix = "vllm:kv_offload"

    def _load(self, payload: Mapping[str, Any]) -> None:
        super()._load(payload)
        told: dict[str, list[tuple[float, float]]] = {}
        for between, rows in payload.items():
            way = _way(str(between))
            if way is not None and isinstance(rows, list):
                # Of a hostile frame each byte may be a row, and each 30 a medium: a direction is loaded once.
                full = [row for row in rows if type(row) is dict and "op_size" in row]
                found = [each for each in map(_size_and_seconds, full) if each is not None]
                self._reject(len(rows) - len(found))
                told.setdefault(way, []).extend(found)
        for way, transfers in told.items():
            if transfers:
                self._load_transfers(f"{self.prefix}_{way}", *zip(*transfers, strict=True))

    def _load_transfers(self, name: str, sizes: tuple[float, ...], seconds: tuple[float, ...]) -> None:
        self._load_metric(f"{name}_bytes", "counter", {(): sum(sizes)})
        self._load_metric(f"{name}_time", "counter", {(): sum(seconds)})
        self._load_metric(f"{name}_size", "histogram", {(): list(sizes)})

    def moved(self) -> Moved | None:
        """Bytes and seconds of loads and stores, None before the first."""
        num_bytes, seconds = (
            sum(self._counted(f"{self.prefix}_{way}_{what}") for way in ("load", "store")) for what in ("bytes", "time")
        )
        return Moved(num_bytes, seconds) if num_bytes or seconds else None

    def _counted(self, name: str) -> float:
        state = self.data["data"].get(name)
        counters = state.children.values() if state is not None and self.data["types"][name] == "counter" else ()
        total: float = sum(counter.to_value() for counter in counters)
        return total


def _way(between: str) -> str | None:
    """Whether a transfer between two media loads or stores; None where neither is the GPU."""
    if between.endswith("_to_GPU"):
        return "load"
    return "store" if between.startswith("GPU_to_") else None


def _size_and_seconds(row: dict[str, object]) -> tuple[float, float] | None:
    """What is told of one transfer, None where that is not plausible."""
    size = as_number(row.get("op_size"))
    seconds = as_number(row.get("op_time"))
    if size is None or seconds is None or not (0 <= size < _MOST and 0 <= seconds < _MOST):
        return None
    return size, seconds


class OffloadingConnector(Connector):
    """The connector of these stats."""

    stats_class = OffloadingConnectorStats
