"""Where intervals go, one target a file. An exporter gets the `Interval` and nothing else."""

from typing import Protocol

from kvxfer.interval import Interval


class Exporter(Protocol):
    """What the collector asks of an exporter. One that raises is counted, and gets the next interval all the same."""

    def export(self, interval: Interval) -> None:
        """Write the interval; it is not to be changed."""

    def close(self) -> None:
        """Finish."""
