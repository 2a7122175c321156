"""Who may be at a collector's endpoint in its place, changed under publishers that run.

Each is a process of its own. It counts what it hears, so that who uses it knows that publishers have met it.
"""

import itertools
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import TYPE_CHECKING, Final

import zmq

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.transport import ack_endpoint
from kvxfer.wire import VERSION, Ack, encode

if TYPE_CHECKING:
    from ctypes import c_uint64
    from multiprocessing.context import SpawnProcess
    from multiprocessing.synchronize import Event

    from typing_extensions import Self

PATIENCE_SECONDS: Final = 60.0
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
_READY: Final = b"\x05READY\x0bSocket-Type\x00\x00\x00\x04PULL"
GREETED: Final = _GREETING + b"\x04" + bytes([len(_READY)]) + _READY
"""What a PULL says first."""

TICK_SECONDS: Final = 0.01
ACKS_A_TICK: Final = 16


class Endpoint:
    """A tcp endpoint on loopback, and who is there: nobody at first, and after the block."""

    def __init__(self, port: int) -> None:
        """Take this port and the next."""
        self.name = f"tcp://127.0.0.1:{port}"
        self._context = get_context("spawn")
        self._heard: c_uint64 = self._context.RawValue("Q", 0)
        self._process: SpawnProcess | None = None

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def be(self, who: str) -> None:
        """Put one of `WHO` in the place of who was there, and wait until it listens."""
        self.clear()
        if who != "absent":
            self._heard.value = 0
            is_there = self._context.Event()
            arguments = (self.name, self._heard, is_there)
            self._process = self._context.Process(target=_IMPOSTORS[who], args=arguments, daemon=True)
            self._process.start()
            self._wait(is_there.is_set, f"{who} does not listen at {self.name}")

    def wait_until_heard(self, times: int = 1) -> None:
        """Wait until publishers have come to it, or reported, so often; RuntimeError where they do not."""
        self._wait(lambda: self._heard.value >= times, f"no publisher came to {self.name}")

    def freeze(self) -> None:
        """Let it keep its connections and do nothing any more."""
        if self._process is not None:
            os.kill(self._process.pid or 0, signal.SIGSTOP)

    def clear(self) -> None:
        """Kill who is there."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(otherwise)
            time.sleep(TICK_SECONDS)


def _live(endpoint: str, heard: "c_uint64", is_there: "Event") -> None:
    """A collector."""
    with Collector(CollectorConfig(endpoint=endpoint)) as collector:
        is_there.set()
        while True:
            time.sleep(TICK_SECONDS)
            heard.value = collector.pipeline().reports_received


def _garbage(endpoint: str, heard: "c_uint64", is_there: "Event") -> None:
    """A service that knows nothing of ZeroMQ, or too much: random bytes on both ports, to whoever connects."""
    port = int(endpoint.rpartition(":")[2])
    listening = [socket.create_server(("127.0.0.1", each), reuse_port=False) for each in (port, port + 1)]
    is_there.set()
    for server in listening[1:]:
        threading.Thread(target=_answer, args=(server, heard), daemon=True).start()
    _answer(listening[0], heard)


def _answer(server: socket.socket, heard: "c_uint64") -> None:
    rng = random.Random(server.getsockname()[1])
    for beginning in itertools.cycle(_beginnings()):
        peer, _ = server.accept()
        heard.value += 1
        with peer:
            try:
                peer.sendall(beginning + rng.randbytes(rng.choice((1, 300, 70_000))))
            except OSError:  # it has heard enough
                continue


def _beginnings() -> Iterator[bytes]:
    """Nothing, a greeting of ZeroMQ's, one of its first version, one with a frame of 3 GiB to come."""
    yield from (b"", _GREETING, b"\x01\x00", GREETED, GREETED + b"\x02" + (3 << 30).to_bytes(8, "big"))


def _malformed(endpoint: str, heard: "c_uint64", is_there: "Event") -> None:
    """What takes reports as a collector does, and acknowledges none: what it says behind their topics is nonsense."""
    rng = random.Random(2)
    topics: set[bytes] = set()
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.XPUB) as acks:
        pull.bind(endpoint)
        acks.bind(ack_endpoint(endpoint))
        is_there.set()
        while True:
            if pull.poll(int(TICK_SECONDS * 1000)):
                pull.recv()
                heard.value += 1
            while acks.poll(0):
                change = acks.recv()
                (topics.add if change[:1] == b"\x01" else topics.discard)(change[1:])
            for topic in topics:
                for _ in range(ACKS_A_TICK):
                    acks.send(topic + _nonsense(rng))


def _nonsense(rng: random.Random) -> bytes:
    ack = encode(Ack(VERSION, "another", 1 << 40))
    return rng.choice(
        (
            rng.randbytes(rng.randrange(200)),
            ack[: rng.randrange(len(ack))],
            encode(Ack(VERSION + 1, "of another version", 1)),
            encode(Ack(VERSION, f"a new one each time {rng.random()}", 0)),  # whereupon all is sent again
            b"\x91" * 3000,
            b"\x94\x02\x01\xa1x\xd3" + b"\xff" * 8,  # the number -1
        )
    )


_IMPOSTORS: Final = {"live": _live, "garbage": _garbage, "malformed": _malformed}
WHO: Final = ("absent", *_IMPOSTORS)
