"""What ships beside the code: a Grafana dashboard and Prometheus alert rules. Files, read and given as they are."""

from importlib.resources import files
from typing import Final

SHIPPED: Final = {"grafana": "grafana.json", "alerts": "alerts.yml"}
"""The file by what it is for."""


def shipped(name: str) -> str:
    """The text of a file of `SHIPPED`."""
    return files(__name__).joinpath(SHIPPED[name]).read_text("utf-8")
