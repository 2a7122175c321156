"""Where a web server binds, out of what a person writes. Pure: nothing is opened or resolved."""

import re
from ipaddress import ip_address
from typing import Final

from kvxfer.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"
DEFAULT_ADDRESS: Final = f"{LOOPBACK}:9464"
"""The port that OpenTelemetry gives to Prometheus exporters."""

_ADDRESS: Final = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)?:)?(?P<port>\d{1,5})", re.ASCII)
_LAST_PORT: Final = 65_535


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[IPV6]:PORT``, or of a port alone, which is on loopback; port 0 is any free.

    Raises `ConfigError` for anything else.
    """
    found = _ADDRESS.fullmatch(address)
    port = int(found["port"]) if found else _LAST_PORT + 1
    if found is None or port > _LAST_PORT:
        message = (
            f"expected HOST:PORT, got {address!r}: {DEFAULT_ADDRESS} is this host alone, 0.0.0.0:9464 all networks"
        )
        raise ConfigError(message)
    return (found["host"] or LOOPBACK).strip("[]"), port


def is_loopback(host: str) -> bool:
    """Whether a host reaches this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def host_of(header: str) -> str:
    """The host in a Host header, without its port."""
    bare = header.strip()
    if bare.startswith("["):
        return bare[1:].partition("]")[0]
    return bare.rpartition(":")[0] if bare.count(":") == 1 else bare
