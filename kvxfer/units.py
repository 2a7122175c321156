"""Display units. The only place where MiB and milliseconds exist; code, wire and exporters use bytes and seconds."""

from typing import Final

MIB: Final = 2**20
"""vLLM's "MB"."""


def mib(num_bytes: float) -> float:
    """Bytes in MiB."""
    return num_bytes / MIB


def ms(seconds: float) -> float:
    """Seconds in milliseconds."""
    return seconds * 1e3
