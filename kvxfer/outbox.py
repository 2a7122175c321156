"""The worker's state machine: what is open, what is closed into numbered reports, what waits to be sent.

No socket, no clock, no thread: every step takes ``now`` (Unix seconds of this worker) and the owner does the I/O.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from kvxfer.distribution import PACK_ABOVE
from kvxfer.stats import KVConnectorStats
from kvxfer.wire import MAX_FRAME_BYTES, VERSION, Goodbye, Report, Source, encode, encode_payload

MAX_UNSENT: Final = 64
"""Reports that wait to be sent: at one a second they ride out a minute's restart without coalescing."""

MAX_UNSENT_BYTES: Final = 4 << 20
"""Bytes that wait to be sent."""

MAX_OPEN_BYTES: Final = MAX_FRAME_BYTES // 2
"""What stats that only grow (lists) may reach before the interval is closed, or, with no room left, cut."""

_ENVELOPE_BYTES: Final = 1 << 14
"""More than source, connector and numbers of a report take at their longest."""


class Outbox:
    """Merges observations into an open interval, closes it into reports, keeps those until they are sent.

    While ``MAX_UNSENT`` reports or ``MAX_UNSENT_BYTES`` wait, nothing is closed and the open interval goes on
    merging, so memory stays bounded and no count is lost however long the collector is away. Stats that cannot merge
    in bounded memory are cut at ``MAX_OPEN_BYTES``; what was cut is counted and told in the next report.
    """

    def __init__(self, source: Source, connector: str, now: float) -> None:
        """Begin with an open interval that starts now."""
        self._source = encode(source)
        self._connector = connector
        self._start = now
        self._open: KVConnectorStats | None = None
        self._num_open = 0
        self._open_bytes = 0
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._seq = 0
        self._cut = 0

    def __repr__(self) -> str:
        """Give the whole state."""
        waiting = len(self._unsent)
        numbers = f" ({self._seq - waiting + 1}..{self._seq})" if waiting else ""
        cut = f" cut={self._cut}" if self._cut else ""
        return f"<Outbox open={self._num_open} unsent={waiting}{numbers} sent={self._seq - waiting}{cut}>"

    @property
    def has_room(self) -> bool:
        """Whether another report may be closed."""
        return len(self._unsent) < MAX_UNSENT and self._unsent_bytes < MAX_UNSENT_BYTES

    def observe(self, stats: KVConnectorStats, now: float) -> None:
        """Merge stats into the open interval; they are the outbox's from here on.

        The interval is closed first where merging would fold values that a report still carries exactly.
        """
        size = 0 if stats.is_bounded() else len(bytes(encode_payload(stats.to_packed())))
        if self._open is not None and self._would_overflow(stats.num_values(), size):
            self.flush(now)
        if self._open_bytes + size > MAX_OPEN_BYTES:
            self._cut += _num_numbers(stats.to_packed())
            return
        self._open = stats if self._open is None else self._open.aggregate(stats)
        self._open_bytes += size
        self._num_open += 1

    def count_cut(self, number: int) -> None:
        """Count observations that could not be taken in; the next report tells."""
        self._cut += number

    def _would_overflow(self, num_values: int, size: int) -> bool:
        held = self._open.num_values() if self._open is not None else 0
        folds = 0 < held <= PACK_ABOVE < held + num_values
        return folds or self._open_bytes + size > MAX_OPEN_BYTES

    def flush(self, now: float) -> bool:
        """Close the open interval into a report, if there is anything in it and room; tell whether it was."""
        stats = self._open
        if not self.has_room or (not self._cut and (stats is None or stats.is_empty())):
            return False
        payload = encode_payload({} if stats is None else stats.to_packed())
        if len(bytes(payload)) > MAX_FRAME_BYTES - _ENVELOPE_BYTES and stats is not None:
            self._cut += _num_numbers(stats.to_packed())
            payload = encode_payload({})
        self._seq += 1
        report = Report(VERSION, self._source, self._connector, self._seq, self._start, now, payload, self._cut)
        self._keep(encode(report))
        self._start, self._open, self._num_open, self._open_bytes, self._cut = now, None, 0, 0, 0
        return True

    def _keep(self, frame: bytes) -> None:
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)

    @property
    def next_frame(self) -> bytes | None:
        """The oldest report that waits, None if none does."""
        return self._unsent[0] if self._unsent else None

    def sent(self) -> None:
        """Note that `next_frame` was handed to the socket."""
        self._unsent_bytes -= len(self._unsent.popleft())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is open and nothing waits."""
        return self._open is None and not self._unsent and not self._cut

    def goodbye(self) -> bytes:
        """The last message of this publisher, for when all reports are sent."""
        return encode(Goodbye(VERSION, self._source, self._seq))


def _num_numbers(payload: Any) -> int:  # noqa: ANN401 - a payload or a part of one
    """The numbers in a payload, which are what is lost with it."""
    if isinstance(payload, Mapping):
        return sum(map(_num_numbers, payload.values()))
    return len(payload) if isinstance(payload, list) else 1
