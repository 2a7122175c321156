"""The ZeroMQ sockets, and who may reach them: the only package that imports zmq.

`endpoints` says what may be bound; `publishing` and `collecting` are the two ends; `keys` reads and makes the files of
CURVE; `gate` decides who gets in, and counts who does not.
"""

from kvxfer.transport.collecting import CollectorSockets, check_private, lock_file, release_file
from kvxfer.transport.endpoints import (
    ACK_SUFFIX,
    IPC,
    MAX_IPC_PATH,
    ack_endpoint,
    check_endpoint,
    check_exposure,
)
from kvxfer.transport.frames import MAX_DRAIN
from kvxfer.transport.gate import CAUSES
from kvxfer.transport.keys import CollectorKeys, PublisherKeys, make_keys
from kvxfer.transport.publishing import PublisherSockets

__all__ = [
    "ACK_SUFFIX",
    "CAUSES",
    "IPC",
    "MAX_DRAIN",
    "MAX_IPC_PATH",
    "CollectorKeys",
    "CollectorSockets",
    "PublisherKeys",
    "PublisherSockets",
    "ack_endpoint",
    "check_endpoint",
    "check_exposure",
    "check_private",
    "lock_file",
    "make_keys",
    "release_file",
]
