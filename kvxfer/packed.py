"""Reports of declared stats as they come, packed: opened, checked and added up many at a time. No I/O.

Law: what is added up here equals the stats that their class builds of each report, merged one by one. What has another
form than the usual one, or a class that does a part of this in its own way, is left to `opening.open_stats`.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from kvxfer.bulk import ROWS, Column
from kvxfer.connectors.base import Connector
from kvxfer.factory import KVConnectorFactory
from kvxfer.fields import Counter, Distribution
from kvxfer.states import CounterState, State
from kvxfer.stats import TransferStats
from kvxfer.underway import MOST_SECONDS, MOST_TRANSFERS
from kvxfer.wire import UNREADABLE, Report

Payload: TypeAlias = Any
"""An opened payload: a struct with the packed distributions of its class as bytes, and its counters."""

MAX_BYTES_AT_ONCE: Final = 4 << 20
"""Bytes of frames that are opened together: a full drain of reports of 16 kB."""

_REJECTED: Final = TransferStats.rejected_observations.name
_UNDER_WAY: Final = TransferStats.under_way.name
_Part: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=1)]  # no bytes say that a payload has none of a field
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_OUR_METHODS: Final = ("__init__", "_load", "aggregate", "is_empty", "num_rejected", "is_bounded", "copy")


class _UnderWay(msgspec.Struct, frozen=True, gc=False):
    num: Annotated[int, msgspec.Meta(ge=0, le=MOST_TRANSFERS)]
    oldest: Annotated[float, msgspec.Meta(ge=0, le=MOST_SECONDS)]


class Form:
    """What payloads of a class look like that hold packed distributions and counters, without labels, and no gauge.

    They may tell of transfers under way.
    """

    def __init__(self, stats_class: type[TransferStats]) -> None:
        """Read the declaration."""
        # Rows first, as stats have their states: what is added up is then saved in the same bytes.
        rows = {field.name: field for row in stats_class.rows.values() for field in (*row.columns, row.rate) if field}
        plain = {name: declared for name, declared in (rows | stats_class.fields).items() if not declared.labels}
        self.stats_class = stats_class
        self.distributions = tuple(name for name, declared in plain.items() if isinstance(declared, Distribution))
        self.counters = (*(name for name, declared in plain.items() if isinstance(declared, Counter)), _REJECTED)
        fields: list[Any] = [(name, _Part, b"") for name in self.distributions]
        fields += [(name, _Count, 0) for name in self.counters]
        fields.append((_UNDER_WAY, _UnderWay | msgspec.UnsetType, msgspec.UNSET))
        struct = msgspec.defstruct(stats_class.__name__, fields, forbid_unknown_fields=True, frozen=True, gc=False)
        self.nothing = struct()
        self._decoder = msgspec.msgpack.Decoder(struct)

    def open(self, payload: msgspec.Raw) -> Payload | None:
        """The payload, opened but not checked; None where it has another form."""
        try:
            return self._decoder.decode(payload)
        except UNREADABLE:
            return None


def form_of(connector: str) -> Form | None:
    """The form of a connector's payloads; None where there is none that its class does not know alone."""
    try:
        found: Any = KVConnectorFactory.get_connector_class_by_name(connector)
        return _form_of_class(found)
    except Exception:  # noqa: BLE001 - somebody else's class: `open_stats` tells what is wrong with it
        return None


@lru_cache(maxsize=256)
def _form_of_class(connector: Any) -> Form | None:  # noqa: ANN401 - a connector's class
    build, stats_class = getattr(connector.build_kv_connector_stats, "__func__", None), connector.stats_class
    if build is not Connector.build_kv_connector_stats.__func__ or not issubclass(stats_class, TransferStats):  # type: ignore[attr-defined]
        return None
    is_plain = all(getattr(stats_class, name) is getattr(TransferStats, name) for name in _OUR_METHODS)
    return Form(stats_class) if is_plain else None


class Batch:
    """Up to `bulk.ROWS` payloads of one form; ``plausible`` tells of each whether its class would take it."""

    def __init__(self, form: Form, payloads: Sequence[Payload]) -> None:
        """Check the payloads."""
        self.form = form
        self.payloads = payloads
        fields = list(zip(*map(msgspec.structs.astuple, payloads), strict=True))
        distributions, counters = fields[: len(form.distributions)], fields[len(form.distributions) : -1]
        self._columns = [
            (name, Column(parts)) for name, parts in zip(form.distributions, distributions, strict=True) if any(parts)
        ]
        self._counters = [
            (name, np.array(counts, object))
            for name, counts in zip(form.counters, counters, strict=True)
            if any(counts)
        ]
        self.plausible = np.ones(len(payloads), np.bool_)
        self.sizes = np.zeros(len(payloads), np.int64)
        """Bytes of each payload, about."""
        for _, column in self._columns:
            self.plausible &= column.plausible
            self.sizes += column.sizes
        self.runs: defaultdict[Any, list[int]] = defaultdict(list)
        """Which payloads are to be added to what: see `sums.add_batch`."""
        self.signed: dict[int, str] = {}
        """By whom the payloads are that tell of transfers under way."""

    def sums(self, runs: Sequence[Sequence[int]]) -> list[TransferStats]:
        """The sum of the payloads of each run: their numbers, plausible ones, at least one."""
        if not runs:
            return []
        order = np.array([row for rows in runs for row in rows], np.intp)
        starts = [0, *accumulate(map(len, runs))][:-1]
        found: list[dict[str, State]] = [{} for _ in runs]
        for name, column in self._columns:
            for states, state in zip(found, column.sums(order, starts), strict=True):
                if state is not None:
                    states[name] = state
        for name, counts in self._counters:
            for states, count in zip(found, np.add.reduceat(counts[order], starts), strict=True):
                counter = CounterState()
                counter.count(count)
                states[name] = counter
        return [self.form.stats_class.of(states) for states in found]


class PackedReport(NamedTuple):
    """One report of a batch."""

    batch: Batch
    row: int

    def sign(self, source: str) -> None:
        """Say whose it is."""
        if self.batch.payloads[self.row].under_way is not msgspec.UNSET:
            self.batch.signed[self.row] = source

    def num_rejected(self) -> int:
        """Observations that were refused."""
        return int(self.batch.payloads[self.row].rejected_observations)

    def is_empty(self) -> bool:
        """Whether it says nothing but that its publisher lives."""
        return bool(self.batch.payloads[self.row] == self.batch.form.nothing)


def in_parts(frames: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """The frames, so many at a time as are cheap to take: large ones, which a hostile peer sends, fewer."""
    start = size = 0
    for number, frame in enumerate(frames):
        if number - start == ROWS or size > MAX_BYTES_AT_ONCE:
            yield frames[start:number]
            start, size = number, 0
        size += len(frame)
    yield frames[start:]


def open_all(messages: Sequence[object]) -> list[PackedReport | None]:
    """Of each of up to `bulk.ROWS` messages, the report where it is packed and plausible."""
    found: list[PackedReport | None] = [None] * len(messages)
    forms: dict[str, Form | None] = {}
    opened: defaultdict[Form, list[tuple[int, Payload]]] = defaultdict(list)
    for number, message in enumerate(messages):
        if isinstance(message, Report):
            if message.connector not in forms:
                forms[message.connector] = form_of(message.connector)
            form = forms[message.connector]
            payload = None if form is None else form.open(message.payload)
            if payload is not None and form is not None:
                opened[form].append((number, payload))
    for form, numbered in opened.items():
        batch = Batch(form, [payload for _, payload in numbered])
        for row, (number, _) in enumerate(numbered):
            if batch.plausible[row]:
                found[number] = PackedReport(batch, row)
    return found
