"""Areas of shared memory to which a worker appends rows, and what stands for the list that rows wait in elsewhere.

An area begins with a header and holds rows of float64. Where nothing is written all bits are set, which no number has:
of a process that is killed while it writes, the last row is known to be torn, in whatever order its words were stored.
Appending is one C call on one mmap, atomic under the GIL. Where an area's rows begin to count is said by the saved
state, as the number of rows that are in it already (a floor, counted since the worker began), and by the header, as the
number of those that were removed.
"""

import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from kvxfer.takeover import as_counts

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from numpy.typing import NDArray

AREA: Final = struct.Struct("<8sQQII200s")
"""Magic, bytes of the area, rows removed, values of a row, bytes of the name, the name."""

_ROWS_REMOVED_AT: Final = 16
_UNWRITTEN: Final = b"\xff"


class Area:
    """One area: rows are taken from it, and when it is crowded it is stopped, emptied and goes on."""

    __slots__ = ("_base", "_memory", "_read", "_row_bytes", "_stopped_at", "_taken", "_width", "name", "write")

    def __init__(self, name: str, width: int, memory: "mmap.mmap") -> None:
        """Append from the first row on, to a memory that is empty."""
        self.name = name
        self._width = width
        self._row_bytes = 8 * width
        self._memory = memory
        memory[AREA.size :] = _UNWRITTEN * (len(memory) - AREA.size)
        memory.seek(AREA.size)
        self.write: Callable[[bytes], object] = memory.write
        """Appends a row, or raises ValueError where there is no room."""
        self._base = self._taken = self._read = 0
        self._stopped_at: int | None = None

    @property
    def floor(self) -> int:
        """Rows taken since the worker began."""
        return self._base + self._taken

    @property
    def is_unused(self) -> bool:
        """Whether no row was appended since it was emptied."""
        return self._memory.tell() == AREA.size

    @property
    def is_crowded(self) -> bool:
        """Whether more than half is used."""
        return self._stopped_at is None and 2 * self._memory.tell() > len(self._memory)

    def end(self) -> int:
        """The number of rows, those taken included."""
        return (self._memory.tell() - AREA.size) // self._row_bytes if self._stopped_at is None else self._stopped_at

    @property
    def is_waiting(self) -> bool:
        """Whether there are rows to take."""
        return self.end() > self._taken

    def read(self) -> list[float]:
        """The values of all rows that wait, which `take` then takes."""
        self._read = self.end() - self._taken
        values: list[float] = rows_in(self._memory, self._width, self._taken, self._read).ravel().tolist()
        return values

    def take(self) -> int:
        """Take the rows that were read; the number of their values."""
        taken, self._read = self._read, 0
        self._taken += taken
        return taken * self._width

    def stop(self) -> None:
        """Take no more rows."""
        first = self.end()
        self._memory.seek(len(self._memory))  # no thread appends from now on; one may have until now
        self._stopped_at = first + len(whole(rows_in(self._memory, self._width, first)))

    def resume(self) -> None:
        """Empty a stopped area, whose rows are all in a saved state, and append to it again."""
        if self._stopped_at is None:
            return
        # In this order a kill in between leaves no row that counts twice: above the floor there are none.
        self._memory[AREA.size :] = _UNWRITTEN * (len(self._memory) - AREA.size)
        self._base += self._stopped_at
        self._memory[_ROWS_REMOVED_AT : _ROWS_REMOVED_AT + 8] = struct.pack("<Q", self._base)
        self._taken, self._stopped_at = 0, None
        self._memory.seek(AREA.size)


class SharedPending:
    """What waits to be folded, as the lists of `rows.RowBuffer` and `states.CounterState`, in two areas in turn.

    While one is emptied the other takes what comes. What fits into neither waits in ``spill``, in process memory.
    """

    __slots__ = ("_is_stopped", "_nudge", "areas", "name", "pack", "spill", "width", "write")

    def __init__(self, name: str, width: int, nudge: "Callable[[], object]") -> None:
        """Wait in process memory until there are areas; ``nudge`` asks to be folded soon."""
        self.name = name
        self.width = width
        self.pack = struct.Struct(f"<{width}d").pack
        self.areas: list[Area] = []
        self.spill: list[Any] = []
        self._nudge = nudge
        self._is_stopped = False
        self.write: Callable[[bytes], object] = _refuse

    def attach(self, areas: list[Area]) -> None:
        """Append to these areas from now on."""
        self.areas = areas
        self.write = areas[0].write

    def detach(self) -> None:
        """Leave the areas alone from now on: they are another process's, or about to be removed."""
        self.write = _refuse
        self.areas = []

    def stop(self) -> None:
        """Drop what comes from now on; what waits is there to be taken."""
        self._is_stopped = True
        self.write = _refuse

    def overflow(self, row: tuple[Any, ...]) -> None:
        """Add a row that `write` did not take: there is no room, or something is no number, which the fold refuses."""
        if self._is_stopped:
            return
        try:
            packed = self.pack(*row)
            self._nudge()
            for write in (self.write, *(area.write for area in self.areas if area.is_unused)):
                try:
                    write(packed)
                except ValueError:
                    continue
                self.write = write
                break
            else:
                self.spill.extend(row)
        except Exception:  # noqa: BLE001 - recording never raises
            self.spill.extend(row)

    # --- as a list

    def append(self, value: Any) -> None:  # noqa: ANN401 - whatever a host counts
        """Add one value."""
        self.extend((value,))

    def extend(self, row: tuple[Any, ...]) -> None:
        """Add one row."""
        try:
            self.write(self.pack(*row))
        except Exception:  # noqa: BLE001 - recording never raises
            self.overflow(row)

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self.spill) or any(area.is_waiting for area in self.areas)

    def __getitem__(self, everything: slice) -> list[Any]:
        """All that waits, ``[:]``."""
        del everything
        values = [value for area in self.areas for value in area.read()]
        return (as_counts(values) if self.width == 1 else values) + self.spill

    def __delitem__(self, read: slice) -> None:
        """Forget the first ones, ``[:n]``, which were read."""
        del self.spill[: read.stop - sum(area.take() for area in self.areas)]

    def clear(self) -> None:
        """Forget what waits."""
        del self[: len(self[:])]

    # --- emptying

    def stop_crowded(self) -> None:
        """Before all that waits is folded: let what comes wait in an unused area, where one is to be emptied."""
        for crowded in [area for area in self.areas if area.is_crowded]:
            if self.write is crowded.write:
                self.write = next((area.write for area in self.areas if area.is_unused), self.write)
            crowded.stop()

    def resume(self) -> None:
        """After what was folded is saved: empty what was stopped."""
        for area in self.areas:
            area.resume()


def _refuse(row: bytes) -> NoReturn:
    """What appends where there is no area."""
    raise ValueError(row)


def rows_in(area: "mmap.mmap | bytes", width: int, first: int, count: int | None = None) -> "NDArray[np.float64]":
    """The rows of an area from ``first`` on, by default all that there is room for."""
    room = (len(area) - AREA.size) // (8 * width) - first
    count = room if count is None else min(count, room)
    if count <= 0:
        return np.empty((0, width))
    return np.frombuffer(area, np.float64, count * width, AREA.size + 8 * width * first).reshape(count, width)


def whole(rows: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Those of the rows that were written: up to the last one, and without it where a part of it is missing."""
    unwritten = rows.view(np.uint64) == np.iinfo(np.uint64).max
    begun = np.flatnonzero(~unwritten.all(axis=1))
    last = int(begun[-1]) if begun.size else -1
    return rows[: last + (not unwritten[last].any())] if begun.size else rows[:0]
