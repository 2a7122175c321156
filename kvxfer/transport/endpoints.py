"""What an endpoint may be, and how far it reaches. Pure: nothing is opened.

An endpoint is two: reports go to it by PUSH and PULL, acknowledgements come back by PUB and SUB at the same path plus
``.ack``, for tcp at the next port.
"""

import os
import re
from ipaddress import ip_address
from typing import Final

from kvxfer.errors import ConfigError, EndpointError

IPC: Final = "ipc://"
ACK_SUFFIX: Final = ".ack"
_TCP: Final = re.compile(r"tcp://.+:(\d{1,5}|\*)")
_LAST_PORT: Final = 65_534

MAX_IPC_PATH: Final = 107 - len(ACK_SUFFIX)
"""Bytes of a path that fit, with the suffix, into a ``sockaddr_un`` of Linux."""


def check_endpoint(endpoint: str, *, to_bind: bool = False) -> None:
    """Raise `EndpointError` unless it is ``ipc://PATH`` (of at most 107 bytes) or ``tcp://HOST:PORT``.

    ``to_bind``: the port may be ``*``, for any that is free.
    """
    if endpoint.startswith(IPC):
        _check_path(endpoint.removeprefix(IPC))
        return
    match = _TCP.fullmatch(endpoint)
    port = match.group(1) if match else ""
    if not (port == "*" and to_bind) and not (port.isdigit() and int(port) <= _LAST_PORT):
        message = f"expected ipc://PATH or tcp://HOST:PORT, got {endpoint!r}"
        raise EndpointError(message)


def _check_path(path: str) -> None:
    size = len(os.fsencode(path))
    if path == "*" or path.startswith("@") or "\0" in path:
        message = f"{IPC}{path!r} names no file: give a path"
        raise EndpointError(message)
    if not 0 < size <= MAX_IPC_PATH:
        message = f"the path of {IPC}{path} has {size} bytes, it may have 1 to {MAX_IPC_PATH}: choose another"
        raise EndpointError(message)


def ack_endpoint(endpoint: str) -> str:
    """Where the acknowledgements of an endpoint are published."""
    if endpoint.startswith(IPC):
        return endpoint + ACK_SUFFIX
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + 1}"


def check_exposure(endpoint: str) -> None:
    """Raise `ConfigError` for tcp beyond loopback, where whoever reaches the port could send: it takes CURVE."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if not endpoint.startswith("tcp://") or host == "localhost":
        return
    try:
        is_loopback = ip_address(host).is_loopback
    except ValueError:  # *, a name, an interface: we do not know what it reaches
        is_loopback = False
    if not is_loopback:
        message = (
            f"{endpoint} can be reached from beyond this host, and whoever reaches it can send: use --curve DIR,"
            " or --insecure where the network itself keeps others out"
        )
        raise ConfigError(message)
