"""States as an operator reads them: numbers, quantiles, the keys of a reduced line."""

from typing import Any, Final

from kvxfer.distribution import DistributionState
from kvxfer.labelled import LabelledState

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def exact_values(state: Any) -> int:  # noqa: ANN401 - any state
    """The values that a state holds one by one."""
    if isinstance(state, LabelledState):
        return max(map(exact_values, state.children.values()), default=0)
    return state.count if isinstance(state, DistributionState) and state.is_exact else 0


def counted(state: Any) -> float:  # noqa: ANN401 - of a counter
    """The count of a counter, over all its label sets."""
    if isinstance(state, LabelledState):
        return sum(map(counted, state.children.values()))
    value: float = state.to_value()
    return value


def describe(state: Any) -> Any:  # noqa: ANN401 - any state, any plain data
    r"""A state as plain data of JSON: a number, or count, sum, extremes and quantiles; labels joined by commas.

    A comma within a label is ``\,`` there, so that no two label sets have one key.
    """
    if isinstance(state, LabelledState):
        return {_joined(labels): describe(child) for labels, child in state.children.items() if not child.is_empty}
    if isinstance(state, DistributionState):
        quantiles = {name: state.quantile(q) for name, q in QUANTILES.items()}
        return {"count": state.count, "sum": state.sum, "min": state.min, "max": state.max, **quantiles}
    return state.value


def _joined(labels: tuple[str, ...]) -> str:
    return ",".join(label.replace("\\", "\\\\").replace(",", "\\,") for label in labels)


def reduce_field(name: str, state: Any) -> dict[str, Any]:  # noqa: ANN401 - any state, any number
    """Count, mean and quantiles of a distribution, the value of another, each under a key that begins with the name."""
    if isinstance(state, LabelledState):
        children = ((f"{name}:{labels}", child) for labels, child in state.children.items())
        return {key: value for label, child in children for key, value in reduce_field(label, child).items()}
    if isinstance(state, DistributionState):
        quantiles = {f"{name}_{q}": state.quantile(value) for q, value in QUANTILES.items()}
        return {f"{name}_count": state.count, f"{name}_mean": state.mean, **quantiles}
    value = state.value
    return {} if value is None else {name: value}
