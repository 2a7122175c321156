"""The sockets: what may be bound, and what arrives."""

import contextlib
import os
import random
import socket
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq
from sending import send_all

from kvxfer.errors import ConfigError, EndpointError
from kvxfer.outbox import MAX_KEPT
from kvxfer.transport import MAX_IPC_PATH, CollectorSockets, PublisherSockets, check_endpoint, check_exposure


def path_of(endpoint: str) -> Path:
    return Path(endpoint.removeprefix("ipc://"))


def receive(pull: CollectorSockets, count: int) -> list[bytes]:
    frames: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(frames) < count and time.monotonic() < deadline:
        frames += pull.drain(0.1)
        pull.subscriptions()  # or the drain returns at once
    return frames


def test_as_many_frames_as_a_publisher_keeps_arrive_in_order_from_a_sender_that_closes(ipc_endpoint: str) -> None:
    with contextlib.closing(CollectorSockets(ipc_endpoint)) as pull:
        push = PublisherSockets(ipc_endpoint)
        sent = [str(number).encode() for number in range(2 * MAX_KEPT)]
        send_all(push, *sent)
        push.close(5)
        assert receive(pull, len(sent)) == sent


def test_what_comes_one_by_one_is_taken_together_and_who_does_not_wait_gets_it_at_once(
    ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering: list[float] = []

    def gather(seconds: float) -> None:
        gathering.append(seconds)
        if seconds > 0:
            come(b"third")

    def come(frame: bytes) -> None:
        send_all(push, frame)
        assert pull._pull.poll(60_000)

    monkeypatch.setattr("kvxfer.transport.collecting._GATHER_SECONDS", 600.0)
    monkeypatch.setattr("kvxfer.transport.collecting.time", SimpleNamespace(sleep=gather, monotonic=time.monotonic))
    with contextlib.closing(CollectorSockets(ipc_endpoint)) as pull:
        pull._last_drain = -600.0  # nothing came before the first one
        push = PublisherSockets(ipc_endpoint)
        come(b"first")
        assert pull.drain(60.0) == [b"first"]
        assert gathering == [0.0]
        come(b"second")
        assert pull.drain(60.0) == [b"second", b"third"]
        assert 0 < gathering[1] <= 60
        come(b"fourth")
        assert pull.drain(0.0) == [b"fourth"]
        assert gathering[2:] == [0.0]
        push.close(1)


def test_a_send_with_no_collector_is_refused_at_once_and_closing_does_not_hang(ipc_endpoint: str) -> None:
    push = PublisherSockets(ipc_endpoint)
    assert not push.send(b"x")
    push.close(0)


def test_a_context_that_takes_long_to_end_holds_up_nobody_and_ends_by_itself(
    ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, ended = threading.Event(), threading.Event()
    term = zmq.Context.term

    def end_late(context: "zmq.Context[zmq.Socket[bytes]]") -> None:  # as while the host of an endpoint is looked for
        released.wait(60)
        term(context)
        ended.set()

    monkeypatch.setattr(zmq.Context, "term", end_late)
    push = PublisherSockets(ipc_endpoint)
    began = time.monotonic()
    push.close(0)
    assert time.monotonic() - began < 30
    assert not ended.is_set()
    released.set()
    assert ended.wait(10)


def test_where_no_thread_can_start_closing_waits_for_nothing(
    ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    push = PublisherSockets(ipc_endpoint)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    push.close(5)


def test_a_second_collector_on_a_live_path_is_refused(ipc_endpoint: str) -> None:
    with contextlib.closing(CollectorSockets(ipc_endpoint)) as pull:
        with pytest.raises(EndpointError, match="a collector listens there; stop it or choose another endpoint"):
            CollectorSockets(ipc_endpoint)
        push = PublisherSockets(ipc_endpoint)
        send_all(push, b"still here")
        assert receive(pull, 1) == [b"still here"]
        push.close(1)
    CollectorSockets(ipc_endpoint).close()


def test_somebody_elses_live_socket_is_refused(ipc_endpoint: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path_of(ipc_endpoint)))
        other.listen()
        with pytest.raises(EndpointError, match="another process listens there"):
            CollectorSockets(ipc_endpoint)
    assert path_of(ipc_endpoint).exists()


def test_nobody_else_may_reach_a_socket_for_a_moment(ipc_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    chmod = Path.chmod

    def seen_before(path: Path, mode: int) -> None:
        seen[path.name] = stat.S_IMODE(path.stat().st_mode)
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", seen_before)
    before = os.umask(0)
    try:
        with contextlib.closing(CollectorSockets(ipc_endpoint)):
            assert os.umask(0) == 0
            assert seen == {"c.ipc": 0o700, "c.ipc.ack": 0o700}
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path_of(ipc_endpoint).parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"c.ipc": 0o600, "c.ipc.ack": 0o600, "c.ipc.lock": 0o600}


def test_a_socket_file_that_nobody_listens_on_is_replaced(ipc_endpoint: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path_of(ipc_endpoint)))
    with contextlib.closing(CollectorSockets(ipc_endpoint)):
        assert stat.S_IMODE(path_of(ipc_endpoint).stat().st_mode) == 0o600


def test_a_file_that_is_no_socket_is_left_alone(ipc_endpoint: str) -> None:
    path_of(ipc_endpoint).write_text("precious")
    with pytest.raises(EndpointError, match="it is a file and no socket"):
        CollectorSockets(ipc_endpoint)
    assert path_of(ipc_endpoint).read_text() == "precious"


def test_a_directory_that_is_missing_is_made_for_its_owner_alone(ipc_endpoint: str) -> None:
    endpoint = ipc_endpoint.replace("c.ipc", "new/c.ipc")
    with contextlib.closing(CollectorSockets(endpoint)):
        assert stat.S_IMODE(path_of(endpoint).parent.stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made_is_said() -> None:
    with pytest.raises(EndpointError, match=r"cannot use /proc/nowhere/c\.ipc: No such file or directory"):
        CollectorSockets("ipc:///proc/nowhere/c.ipc")


def test_a_path_holds_as_many_bytes_as_a_socket_address() -> None:
    check_endpoint("ipc://" + "x" * MAX_IPC_PATH)
    for path in ("x" * (MAX_IPC_PATH + 1), "é" * 52):
        with pytest.raises(EndpointError, match="has 104 bytes, it may have 1 to 103"):
            check_endpoint(f"ipc://{path}")


@pytest.mark.parametrize("endpoint", ["", "ipc", "udp://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:", "ipc://"])
def test_an_endpoint_that_is_none_is_said(endpoint: str) -> None:
    with pytest.raises(EndpointError, match=r"expected ipc://PATH or tcp://HOST:PORT|has 0 bytes"):
        PublisherSockets(endpoint)


def test_a_port_that_is_taken_is_said() -> None:
    with contextlib.closing(CollectorSockets("tcp://127.0.0.1:*")) as pull:
        assert pull.endpoint.startswith("tcp://127.0.0.1:")
        with pytest.raises(EndpointError, match="another process listens there"):
            CollectorSockets(pull.endpoint)


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:5555", "tcp://127.1.2.3:*", "tcp://[::1]:5555", "tcp://localhost:5555", "ipc:///tmp/x"],
)
def test_what_stays_on_this_host_needs_no_keys(endpoint: str) -> None:
    check_exposure(endpoint)


@pytest.mark.parametrize(
    "host",
    [
        "*",
        "0.0.0.0",  # noqa: S104 - what is refused
        "10.0.0.1",
        "[::]",
        "[fe80::1]",
        "eth0",
        "lo",
        "example.org",
        "127.1",
        "127.0.0.1.evil.org",
        "localhost.",
    ],
)
def test_what_reaches_further_asks_for_keys(host: str) -> None:
    with pytest.raises(ConfigError, match=r"can be reached from beyond this host, .* use --curve DIR, or --insecure"):
        check_exposure(f"tcp://{host}:5555")


def test_over_ipv6_it_is_the_same() -> None:
    with contextlib.closing(CollectorSockets("tcp://[::1]:*")) as pull:
        assert pull.endpoint.startswith("tcp://[::1]:")
        push = PublisherSockets(pull.endpoint)
        send_all(push, b"six")
        assert receive(pull, 1) == [b"six"]
        push.close(1)


def test_a_worker_sends_nothing_into_a_private_directory_that_somebody_else_made(ipc_endpoint: str) -> None:
    directory = path_of(ipc_endpoint).parent
    directory.chmod(0o755)
    with pytest.raises(EndpointError, match="is not a directory of this user alone"):
        PublisherSockets(ipc_endpoint, private=True)
    directory.chmod(0o700)
    PublisherSockets(ipc_endpoint, private=True).close(0)


def test_the_bytes_of_a_port_scan_are_no_messages() -> None:
    rng = random.Random(5)
    scans = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)]
    scans += [b"\x01\x00" + b"\x05\x00junk" * 3]  # ZMTP 1.0
    scans += [rng.randbytes(200) for _ in range(50)]
    with contextlib.closing(CollectorSockets("tcp://127.0.0.1:*")) as pull:
        host, _, port = pull.endpoint.removeprefix("tcp://").rpartition(":")
        for scan in scans:
            with socket.create_connection((host, int(port))) as peer:
                peer.sendall(scan)
        push = PublisherSockets(pull.endpoint)
        send_all(push, b"a real one")
        assert receive(pull, 1) == [b"a real one"]
        push.close(1)
        assert pull.drain(0.2) == []


def test_a_frame_over_the_limit_is_dropped_with_its_connection(ipc_endpoint: str) -> None:
    with contextlib.closing(CollectorSockets(ipc_endpoint)) as pull:
        liar, honest = PublisherSockets(ipc_endpoint), PublisherSockets(ipc_endpoint)
        send_all(liar, os.urandom(2 << 20))
        send_all(honest, b"fine")
        assert receive(pull, 1) == [b"fine"]
        assert pull.drain(0.2) == []
        liar.close(0)
        honest.close(1)


def test_a_private_directory_that_others_may_enter_is_refused(ipc_endpoint: str) -> None:
    directory = path_of(ipc_endpoint).parent
    directory.chmod(0o777)
    with pytest.raises(EndpointError, match="is not a directory of this user alone"):
        CollectorSockets(ipc_endpoint, private=True)
    directory.chmod(0o700)
    CollectorSockets(ipc_endpoint, private=True).close()
