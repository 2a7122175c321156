"""What both ends share: taking frames off a socket. One frame is one message; nothing here knows what is in it."""

import contextlib
from typing import Final

import zmq

MAX_DRAIN: Final = 256
"""Messages of one drain: larger batches do not merge faster and hold the caller longer."""

MAX_ACK_BYTES: Final = 4096
"""More than a topic of 201 characters, a collector's id of 200 and two numbers take."""


def received(socket: "zmq.Socket[bytes]") -> list[bytes]:
    """Up to `MAX_DRAIN` frames that have arrived."""
    frames: list[bytes] = []
    receive = socket.recv
    with contextlib.suppress(zmq.Again):
        while len(frames) < MAX_DRAIN:
            frames.append(receive(zmq.NOBLOCK))
    return frames


def is_ipv6(endpoint: str) -> bool:
    """Whether it is an address of IPv6; a name that stands for both is taken for its IPv4 address."""
    return "[" in endpoint
