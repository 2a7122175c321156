"""Two hosts on this machine: network namespaces that are joined by a link, which can be cut and loses packets."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from benchmarks.faults import Enter

NEEDED = ("ip", "nft")
COLLECTOR = "10.213.77.2"
WORKERS = "10.213.77.1"


def missing() -> str:
    """Why there can be none here; empty where there can."""
    if os.geteuid():
        return "network namespaces are root's to make"
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


def enter(name: str) -> None:
    """Move this process's thread, and those that it starts, into a namespace."""
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter {name}")
    finally:
        os.close(descriptor)


class Link(NamedTuple):
    """Both ends by the names of their namespaces."""

    workers: str
    collector: str

    @property
    def enter(self) -> tuple[Enter, Enter]:
        """What processes of either end do first."""
        return partial(enter, self.workers), partial(enter, self.collector)

    def cut(self) -> None:
        run("ip", "-n", self.workers, "link", "set", "end", "down")

    def join(self) -> None:
        run("ip", "-n", self.workers, "link", "set", "end", "up")

    def lose_a_tenth(self) -> None:
        """From now on one packet of ten that arrives at either end is dropped."""
        for name in self:
            rules = "add table ip kvxfer; add chain ip kvxfer arriving { type filter hook input priority 0; };"
            rules += "add rule ip kvxfer arriving iif end numgen random mod 10 == 0 counter drop"
            run("ip", "netns", "exec", name, "nft", rules)

    def dropped(self) -> int:
        """Packets dropped so far at both ends."""
        total = 0
        for name in self:
            command = ("ip", "netns", "exec", name, "nft", "list", "chain", "ip", "kvxfer", "arriving")
            listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
            total += int(listed.split("counter packets ")[1].split()[0])
        return total


@contextmanager
def two_hosts() -> Iterator[Link]:
    """Make both, join them, and remove both at the end."""
    link = Link(f"kvxfer-w-{os.getpid()}", f"kvxfer-c-{os.getpid()}")
    try:
        for name in link:
            run("ip", "netns", "add", name)
        peer = ("type", "veth", "peer", "name", "end", "netns", link.collector)
        run("ip", "link", "add", "end", "netns", link.workers, *peer)
        for name, address in zip(link, (WORKERS, COLLECTOR), strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "end")
            run("ip", "-n", name, "link", "set", "end", "up")
        yield link
    finally:
        for name in link:
            subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True, timeout=20)
