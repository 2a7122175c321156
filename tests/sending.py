"""Frames sent by hand, as a publisher would send them or never would."""

import threading
import time

from kvxfer.transport import PublisherSockets


def send_all(sockets: PublisherSockets, *frames: bytes) -> None:
    """Hand the frames over, waiting for a collector."""
    deadline = time.monotonic() + 10
    for frame in frames:
        while not sockets.send(frame):
            assert time.monotonic() < deadline, "no collector takes it"
            threading.Event().wait(0.001)
