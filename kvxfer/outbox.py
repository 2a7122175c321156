"""The worker's state machine: what is open, what is closed into numbered reports, what waits to be acknowledged.

No socket, no clock, no thread: every step takes ``now`` (Unix seconds of this worker, from a clock that nobody turns
back) and the owner does the I/O.
"""

from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Final

import msgspec

from kvxfer.contract import KVConnectorStats
from kvxfer.distribution import PACK_ABOVE
from kvxfer.errors import ImplausibleError
from kvxfer.packing import num_values
from kvxfer.saved import load_stats
from kvxfer.wire import (
    MAX_FRAME_BYTES,
    VERSION,
    Ack,
    Goodbye,
    Report,
    Source,
    decode,
    decode_payload,
    decode_source,
    encode,
    encode_payload,
)

MAX_KEPT: Final = 64
"""Reports that are not acknowledged: at one a second they ride out a minute's restart without coalescing."""

MAX_KEPT_BYTES: Final = 4 << 20
"""Bytes that are not acknowledged."""

MAX_OPEN_BYTES: Final = MAX_FRAME_BYTES // 2
"""What stats that only grow (lists) may reach before the interval is closed, or, with no room left, cut."""

RESEND_SECONDS: Final = 3.0
"""Without an acknowledgement for so long, what is kept is sent again: a collector commits every second."""

RESEND_MAX_SECONDS: Final = 30.0
"""How long that becomes, doubled each time in vain: a minute of reports again twice a minute burdens nobody."""

BEAT_SECONDS: Final = 10.0
"""How often a publisher that has nothing to tell sends an empty report; a collector misses three."""

MAX_PAYLOAD_BYTES: Final = MAX_FRAME_BYTES - (1 << 14)
"""Source, connector and numbers of a report take less than the rest at their longest."""


class Delivery(msgspec.Struct, frozen=True):
    """How far a publisher has come: reports closed, sent once more, kept; how often ZeroMQ would not take one."""

    reports: int
    resent: int
    unacknowledged: int
    refused: int


class SavedOutbox(msgspec.Struct, array_like=True, frozen=True):
    """What an outbox holds: the frames that are kept, up to number ``seq``, and the payload of the open interval."""

    source: bytes
    connector: str
    seq: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
    frames: list[bytes]
    payload: msgspec.Raw
    start: float
    cut: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    oldest: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    """The lowest number that is kept, also where its frame is not here; 0: that of the first frame."""


class Outbox:
    """Merges observations into an open interval, closes it into reports, keeps those until they are acknowledged.

    While ``MAX_KEPT`` reports or ``max_kept_bytes`` are kept, nothing is closed and the open interval goes on
    merging, so memory stays bounded and no count is lost however long the collector is away. Stats that cannot merge
    in bounded memory are cut at ``MAX_OPEN_BYTES``; what was cut is counted and told in the next report.
    Law: what was flushed is in exactly one report, and that is sent until a collector acknowledges it.
    """

    def __init__(self, source: Source, connector: str, now: float) -> None:
        """Begin with an open interval that starts now."""
        self._source = encode(source)
        self._connector = connector
        self._start = now
        self._open: KVConnectorStats | None = None
        self._num_open = 0
        self._open_bytes = 0
        self._cut = 0
        self._kept: deque[Report] = deque()
        self._kept_bytes = 0
        self._seq = 0
        self._num_sent = 0  # of those kept, from the oldest on
        self.num_resent = 0
        """Reports that were to be sent once more."""
        self.max_kept_bytes = MAX_KEPT_BYTES
        self.num_ranks = 1
        """How many publishers its reports speak for."""
        self._goodbye = _Goodbye.NOT_YET
        self._collector: str | None = None
        self._patience = RESEND_SECONDS
        self._resend_at = 0.0

    def __repr__(self) -> str:
        """Give the whole state."""
        kept = len(self._kept)
        numbers = f" ({self._seq - kept + 1}..{self._seq})" if kept else ""
        cut = f" cut={self._cut}" if self._cut else ""
        sent = self._seq - kept + self._num_sent
        return f"<Outbox open={self._num_open} unacked={kept}{numbers} sent={sent}{cut}>"

    @property
    def num_reports(self) -> int:
        """Reports closed so far."""
        return self._seq

    @property
    def num_unacknowledged(self) -> int:
        """Reports that are kept."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """Their bytes."""
        return self._kept_bytes

    @property
    def has_room(self) -> bool:
        """Whether another report may be closed."""
        return len(self._kept) < MAX_KEPT and self._kept_bytes < self.max_kept_bytes

    def observe(self, stats: KVConnectorStats, now: float) -> None:
        """Merge stats into the open interval; they are the outbox's from here on.

        The interval is closed first where merging would fold values that a report still carries exactly.
        """
        size = 0 if stats.is_bounded() else len(bytes(encode_payload(stats.to_packed())))
        if self._open is not None and self._would_overflow(stats.num_values(), size):
            self.flush(now)
        if self._open_bytes + size > MAX_OPEN_BYTES:
            self._cut += num_observations(stats.to_packed())
            return
        self._open = stats if self._open is None else self._open.follow(stats)
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
        """Close the open interval into a report, if there is anything in it and room; tell whether it was.

        Of a publisher that had nothing to tell for `BEAT_SECONDS` an empty one is made, so that it is known to live.
        """
        stats = self._open
        if stats is not None and stats.is_empty():
            stats = None
        if not self.has_room or (stats is None and not self._cut and not self._beats(now)):
            return False
        payloads = [encode_payload({})] if stats is None else self._payloads(stats)
        start, cut = self._start, self._cut
        self._start, self._open, self._num_open, self._open_bytes, self._cut = now, None, 0, 0, 0
        for payload in payloads:
            self._seq += 1
            of = (VERSION, self._source, self._connector, self._seq, start, now)
            self._keep(Report(*of, payload, cut, ranks=self.num_ranks))
            cut = 0
        return True

    def _payloads(self, stats: KVConnectorStats) -> list[msgspec.Raw]:
        """The payloads of reports, several where one would be too large; of what cannot be told the numbers are cut."""
        packed: dict[str, Any] = {}
        try:
            packed = stats.to_packed()
            payload = encode_payload(packed)
            if len(bytes(payload)) <= MAX_PAYLOAD_BYTES:
                return [payload]
            parts = stats.split()
        except Exception:  # noqa: BLE001 - a class of somebody else, which would fail again and again
            parts = ()
        if not parts:
            self._cut += max(1, num_observations(packed))
            return [encode_payload({})]
        return [payload for part in parts for payload in self._payloads(part)]

    def _beats(self, now: float) -> bool:
        return not self._kept and now - self._start >= BEAT_SECONDS

    def _keep(self, report: Report) -> None:
        self._kept.append(report)
        self._kept_bytes += len(bytes(report.payload)) + len(self._source)

    def save(self, *, brief: bool = False) -> SavedOutbox:
        """What is held now; ``brief``: without reports, which are lost then, and open interval, which is cut."""
        frames = [] if brief else [encode(report) for report in self._kept]
        packed = {} if self._open is None else _packed(self._open)
        cut = self._cut + num_observations(packed) if brief else self._cut
        payload = encode_payload({} if brief else packed)
        oldest = self._kept[0].seq if self._kept else self._seq + 1
        return SavedOutbox(self._source, self._connector, self._seq, frames, payload, self._start, cut, oldest)

    @classmethod
    def restored(cls, saved: SavedOutbox, now: float) -> "Outbox":
        """Go on from what was saved; raises `PeerError` for what is none."""
        outbox = cls(decode_source(saved.source), saved.connector, now)
        outbox._source, outbox._seq, outbox._start, outbox._cut = saved.source, saved.seq, saved.start, saved.cut
        for frame in saved.frames:
            report = decode(frame)
            if isinstance(report, Report):
                outbox._keep(report)
                outbox.num_ranks = report.ranks
        payload = decode_payload(saved.payload)
        stats = load_stats(saved.connector, saved.payload) if payload else None
        if stats is not None:
            outbox.observe(stats, now)
        else:  # of a connector that is not registered here (any more)
            outbox.count_cut(num_observations(payload))
        return outbox

    # --- delivery

    @property
    def has_frame(self) -> bool:
        """Whether there is a `next_frame`."""
        return self._num_sent < len(self._kept) or self._goodbye is _Goodbye.TO_BE_SAID

    @property
    def next_frame(self) -> bytes | None:
        """What is to be sent next, None if nothing is: the oldest report not sent, at the end the goodbye."""
        if self._num_sent < len(self._kept):
            report = self._kept[self._num_sent]
            report.oldest = self._kept[0].seq
            return encode(report)
        return encode(self._farewell()) if self._goodbye is _Goodbye.TO_BE_SAID else None

    def _farewell(self) -> Goodbye:
        return Goodbye(VERSION, self._source, self._seq, self._kept[0].seq if self._kept else self._seq + 1)

    def sent(self, now: float) -> None:
        """Note that `next_frame` was handed to the socket."""
        if self._num_sent < len(self._kept):
            if not self._num_sent:
                self._resend_at = now + self._patience
            self._num_sent += 1
        else:
            self._goodbye = _Goodbye.SAID

    def acknowledge(self, ack: Ack, now: float) -> None:
        """Forget what a collector has committed; one that was not heard before gets the rest again at once."""
        num_acked = 0
        while self._kept and self._kept[0].seq <= ack.seq:
            report = self._kept.popleft()
            self._kept_bytes -= len(bytes(report.payload)) + len(self._source)
            num_acked += 1
        # What an earlier collector acknowledges late was sent to this one again, hence not below 0.
        self._num_sent = max(0, self._num_sent - num_acked)
        if self._collector not in (None, ack.collector):
            self.send_again()
        if num_acked or self._collector != ack.collector:
            self._patience = RESEND_SECONDS
            self._resend_at = now + self._patience
        self._collector = ack.collector

    def tick(self, now: float) -> bool:
        """Send again what is kept, if no acknowledgement came in time; tell whether it was so."""
        if not self._num_sent or now < self._resend_at:
            return False
        self.send_again()
        self._patience = min(2 * self._patience, RESEND_MAX_SECONDS)
        return True

    def send_again(self) -> None:
        """Hold nothing of what is kept for sent: it goes to a collector that may not have it."""
        self.num_resent += self._num_sent
        self._num_sent = 0
        if self._goodbye is _Goodbye.SAID:
            self._goodbye = _Goodbye.TO_BE_SAID

    @property
    def is_idle(self) -> bool:
        """Whether nothing is open, and all that was closed is acknowledged."""
        return self._open is None and not self._kept and not self._cut

    # --- the end

    def part(self) -> None:
        """Say goodbye once everything is sent, if there was anything."""
        if self._seq and self._goodbye is _Goodbye.NOT_YET:
            self._goodbye = _Goodbye.TO_BE_SAID

    @property
    def has_parted(self) -> bool:
        """Whether all is acknowledged and goodbye was said; a publisher that sent nothing owes none."""
        return self.is_idle and (not self._seq or self._goodbye is _Goodbye.SAID)


class _Goodbye(Enum):
    NOT_YET = 0
    TO_BE_SAID = 1
    SAID = 2


def _packed(stats: KVConnectorStats) -> Mapping[str, Any]:
    """The payload of stats, one that holds nothing where their own class cannot give it: the flush counts that."""
    try:
        return stats.to_packed()
    except Exception:  # noqa: BLE001 - a class of somebody else
        return {}


def num_observations(payload: Any) -> int:  # noqa: ANN401 - a payload or a part of one
    """What is lost with a payload: values of distributions, and one for each other number."""
    if isinstance(payload, Mapping):
        return sum(map(num_observations, payload.values()))
    if isinstance(payload, bytes):
        try:
            return num_values(payload)
        except ImplausibleError:
            return 1
    return len(payload) if isinstance(payload, list) else int(not isinstance(payload, str))
