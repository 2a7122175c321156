"""Stats of a connector as somebody writes them for vLLM: for the tests of what is not declared."""

from dataclasses import dataclass
from typing import Any

from kvxfer.contract import KVConnectorStats


@dataclass
class ListStats(KVConnectorStats):
    """Lists that only grow, as vLLM's connectors keep them."""

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> "ListStats":
        for name, values in other.data.items():
            self.data[name] = self.data.get(name, []) + values
        return self

    def reduce(self) -> dict[str, Any]:
        return {f"Sum of {name}": sum(values) for name, values in self.data.items()}

    def is_empty(self) -> bool:
        return not self.data
