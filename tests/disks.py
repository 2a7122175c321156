"""A disk of its own for a test, as small as the test wants it, and read-only places that bind root too."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A file system of this size at a directory."""
    directory.mkdir()
    with _mounted(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)], directory):
        yield directory


@contextmanager
def read_only(path: Path) -> Iterator[Path]:
    """The file or directory, which nobody can write until the end of the block."""
    with _mounted(["mount", "--bind", str(path), str(path)], path):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        yield path


@contextmanager
def _mounted(command: list[str], path: Path) -> Iterator[None]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"this user cannot mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: a test that failed may have a file open there, and its failure is what is to be seen.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Fill the disk to the last byte with a file, which may be there already."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler
