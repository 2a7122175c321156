"""The report over a range of intervals: one row per group, or per what the labels asked for tell apart. No I/O."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from kvxfer.errors import RecordError
from kvxfer.interval import Pipeline
from kvxfer.records.edges import Covered, Edges
from kvxfer.records.observed import OWN_LABELS, Durations, Observed, Part
from kvxfer.records.times import WHOLE, Range
from kvxfer.records.totals import Losses, Totals

CONNECTOR: Final = "connector"
DEFAULT_BY: Final = (CONNECTOR, "engine", "role")
"""What the collector groups by, unless it is told otherwise."""


class ReportRow(msgspec.Struct, frozen=True):
    """What those of some labels moved, in base units; None for what their connector does not know.

    ``bytes_per_second`` is over the seconds covered, ``bytes_per_busy_second`` over the summed durations of transfers
    that overlap, ``mean_in_flight`` the summed durations over the seconds covered. ``num_ranks``: sources that reported
    something.
    """

    labels: dict[str, str]
    num_transfers: int | None
    num_bytes: float | None
    bytes_per_second: float | None
    bytes_per_busy_second: float | None
    mean_in_flight: float | None
    mean_seconds: float | None
    durations: Durations | None
    failures: dict[str, float]
    num_ranks: int

    @property
    def num_failures(self) -> float:
        """Failures of all kinds."""
        return sum(self.failures.values())


class Report(msgspec.Struct, frozen=True):
    """What a file holds of a range: from ``start`` to ``end`` (Unix seconds) lie ``seconds`` that intervals cover.

    ``pipeline`` is what was counted in it; ``notes`` say in words what a number does not.
    """

    file: str
    start: float
    end: float
    seconds: float
    num_intervals: int
    num_idle_intervals: int
    connectors: tuple[str, ...]
    by: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    pipeline: Pipeline
    notes: tuple[str, ...]


def make_row(labels: dict[str, str], total: Totals, num_ranks: int, seconds: float) -> ReportRow:
    """The row of what was moved in so many seconds."""
    durations = total.durations()
    num_bytes, busy = total.num_bytes, total.busy_seconds
    return ReportRow(
        labels,
        None if durations is None else durations.count,
        num_bytes,
        _ratio(num_bytes, seconds),
        _ratio(num_bytes, busy),
        _ratio(busy, seconds),
        None if durations is None or not durations.count else durations.mean,
        durations,
        total.failures,
        num_ranks,
    )


class _Gathered:
    """The parts of one kind, groups or sources, added up per what the labels tell apart."""

    def __init__(self, by: Sequence[str]) -> None:
        self._by = by
        self.names: set[str] = set()
        self.totals: dict[tuple[str | None, ...], Totals] = {}
        self.sources: dict[tuple[str | None, ...], set[str]] = {}
        self.ranks: dict[tuple[str | None, ...], int] = {}

    def add(self, parts: Iterable[Part]) -> None:
        ranks: dict[tuple[str | None, ...], int] = {}
        for part in parts:
            self.names.update(part.labels)
            key = tuple(part.connector if name == CONNECTOR else part.labels.get(name) for name in self._by)
            self.totals.setdefault(key, Totals()).add(part)
            self.sources.setdefault(key, set()).add(part.source)
            ranks[key] = ranks.get(key, 0) + part.num_ranks
        for key, count in ranks.items():
            self.ranks[key] = max(count, self.ranks.get(key, 0))

    def num_transfers(self) -> int:
        durations = (total.durations() for total in self.totals.values())
        return sum(each.count for each in durations if each is not None)


class Reporting:
    """Takes the intervals of a range one by one and makes their report.

    Groups are added up where all labels asked for are theirs: nothing is missing there. Where one is a label of the
    sources alone (or is source, host or pid), sources are: a collector keeps the numbers of 1,024 by themselves, and
    what others moved is in a note. What the pipeline lost is counted over idle intervals at the ends too, since it is
    often known only when a source has left.
    """

    def __init__(self, file: object, by: Sequence[str], wanted: Range, before: Pipeline | None = None) -> None:
        """Take none yet; ``before`` is what had been counted before the range."""
        self._file = str(file)
        self._by = tuple(dict.fromkeys(by))
        self._groups, self._sources = _Gathered(self._by), _Gathered(self._by)
        self._losses = Losses(before)
        self._first_pipeline: Pipeline | None = None
        self._edges = Edges(wanted)
        self._connectors: set[str] = set()
        self._unread: set[str] = set()

    def add(self, observed: Observed) -> None:
        """Take the next interval."""
        if not self._edges.take(observed):
            self._losses = Losses(observed.pipeline)
            return
        self._first_pipeline = self._first_pipeline or observed.pipeline
        self._losses.add(observed.pipeline)
        self._connectors.update(part.connector for part in observed.groups)
        self._unread.update(observed.unread)
        self._groups.add(observed.groups)
        self._sources.add(observed.sources)

    def report(self) -> Report:
        """The report; raises `RecordError` where nothing was reported, or nobody has one of the labels."""
        covered = self._edges.covered()
        if self._unread and not self._connectors:
            message = (
                f"{self._file}: {_listed(self._unread)} is not registered here: register it, or install its package"
            )
            raise RecordError(message)
        if not self._connectors:
            message = f"{self._file}: nothing was reported in that range, the warm-up left out: name another one"
            raise RecordError(message)
        asked = set(self._by) - {CONNECTOR}
        self._check(asked)
        per_source = bool((asked - self._groups.names) & self._sources.names)
        gathered = self._sources if per_source else self._groups
        return Report(
            self._file,
            covered.start,
            covered.end,
            covered.seconds,
            covered.num_intervals,
            covered.num_idle,
            tuple(sorted(self._connectors)),
            self._by,
            self._rows(gathered, covered.seconds),
            self._losses.total(),
            tuple(self._notes(covered, per_source=per_source)),
        )

    def _check(self, asked: set[str]) -> None:
        default = set(DEFAULT_BY)  # asked for unless told otherwise: who has none of them is one group
        known = self._groups.names | self._sources.names
        unknown = sorted(asked - known - default)
        if unknown:
            names = ", ".join([CONNECTOR, *sorted(known - set(OWN_LABELS)), *OWN_LABELS])
            message = f"{self._file}: nobody has the label {unknown[0]!r} in that range: use {names}"
            raise RecordError(message)

    def _rows(self, gathered: _Gathered, seconds: float) -> tuple[ReportRow, ...]:
        keys = sorted(gathered.totals, key=lambda key: [_order(value) for value in key])
        return tuple(self._row(gathered, key, seconds) for key in keys)

    def _row(self, gathered: _Gathered, key: tuple[str | None, ...], seconds: float) -> ReportRow:
        labels = {name: value for name, value in zip(self._by, key, strict=True) if value is not None}
        num_ranks = max(gathered.ranks[key], len(self._sources.sources.get(key, ())))
        return make_row(labels, gathered.totals[key], num_ranks, seconds)

    def _notes(self, covered: Covered, *, per_source: bool) -> Iterable[str]:
        missing = self._groups.num_transfers() - self._sources.num_transfers() if per_source else 0
        if missing > 0:
            yield f"{missing:,} transfers of sources whose own numbers were not kept are in no row"
        if self._unread:
            yield f"what came of {_listed(self._unread)} is left out: it is not registered here"
        first = self._first_pipeline
        if first is not None and not self._losses.knows_beginning and has_losses(first):
            yield "the file begins here: what the pipeline counted before its first interval is counted too"
        gap = covered.end - covered.start - covered.seconds
        if gap > max(1.0, 0.01 * covered.seconds):
            yield f"no collector ran for {gap:,.1f} s of the range: they are not counted as seconds"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def has_losses(pipeline: Pipeline) -> bool:
    """Whether anything did not arrive, or was refused."""
    counts = (pipeline.reports_lost, pipeline.observations_rejected, pipeline.observations_cut)
    return any((*counts, *pipeline.reports_rejected.values()))


def _ratio(number: float | None, by: float | None) -> float | None:
    return None if number is None or by is None else number / by if by else 0.0


def _order(value: str | None) -> tuple[bool, int, float, str]:
    """Ranks by number, others by name, those without a value last."""
    digits = value is not None and value.isascii() and value.isdigit()
    return (value is None, not digits, float(value or 0) if digits else 0.0, value or "")


def make_report(
    file: object,
    observed: Iterable[Observed],
    by: Sequence[str],
    wanted: Range = WHOLE,
    before: Pipeline | None = None,
    on_progress: Callable[[int], object] = lambda _: None,
) -> Report:
    """The report over intervals in their order; see `Reporting`. ``on_progress`` gets the number taken so far."""
    reporting = Reporting(file, by, wanted, before)
    for number, each in enumerate(observed, 1):
        reporting.add(each)
        on_progress(number)
    return reporting.report()
