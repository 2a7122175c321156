"""Transfers that were begun and have not ended: how many, and for how long the oldest. State, merging and a clock.

What is recorded is told when a transfer ends, so one that hangs is told nowhere; this tells of it, of who wants to.
"""

import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final, NamedTuple

from kvxfer.errors import StatsError
from kvxfer.states import GaugeState

MAX_TRACKED: Final = 65_536
"""Transfers at once, 7 MB: those of a host that begins and never ends are that many, and no more."""

MOST_TRANSFERS: Final = 1 << 53
MOST_SECONDS: Final = 10 * 365 * 86_400.0  # no transfer is older than a machine


class InFlight(NamedTuple):
    """Transfers that are under way now, and how long the oldest of them has been."""

    num_transfers: int
    oldest_seconds: float


class UnderWayState:
    """``token = under_way.begin()``, and ``under_way.end(token)`` when the transfer is done or has failed.

    Both are safe from any thread, never block and never raise; a token that ended already, or never was, is none.
    ``note`` reads off how it stands. As with a gauge the last reading of each source counts; over sources numbers add
    up, and the oldest is the oldest of all.
    """

    __slots__ = (
        "_began",
        "_most",
        "_newest",
        "_next_token",
        "_now",
        "_num",
        "_oldest",
        "_told",
        "begin",
        "end",
        "pending",
        "settle",
    )

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Have begun nothing; ``now`` is in seconds."""
        self._now = now
        self._began: dict[int, float] = {}
        self._most = [MAX_TRACKED]
        self._newest = [0]
        self._next_token = count(1).__next__  # of all that threads make which ask for `begin` at once
        self._told = 0  # the newest token when it was last read that nothing is under way
        self._num, self._oldest = GaugeState("sum"), GaugeState("max")
        self.pending: tuple[()] = ()
        self.settle: Callable[[], None] = self.fold

    def __repr__(self) -> str:
        """Give what was read, and what is under way."""
        return f"<UnderWayState {self.value} begun={len(self._began)}>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both have read the same."""
        return self.value == other.value if isinstance(other, UnderWayState) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - `begin` or `end`
        """Make both when one is first asked for: most objects are parts that only travel."""
        if name not in ("begin", "end"):
            message = f"{type(self).__name__} has no {name}"
            raise AttributeError(message)
        self.begin, self.end = self._made()
        return self.begin if name == "begin" else self.end

    def _made(self) -> tuple[Callable[[], int], Callable[[int], None]]:
        # What they use is held by them alone: half of the time that looking it up here would take.
        began, newest, now, most = self._began, self._newest, self._now, self._most
        next_token = self._next_token

        def begin() -> int:
            token = next_token()
            if len(began) < most[0]:
                began[token] = now()
                newest[0] = token
            return token

        def end(token: int) -> None:
            try:  # noqa: SIM105 - a `suppress` takes as long as all the rest
                began.pop(token, None)
            except Exception:  # noqa: BLE001, S110 - what has no hash, or one that fails, is no token
                pass

        return begin, end

    def note(self) -> None:
        """Read how it stands; once more when nothing is under way any more, then not before another one begins."""
        newest = self._newest[0]
        began = list(self._began.values())  # in one call, and in their order
        if began or newest != self._told:
            self._told = -1 if began else newest
            self._num.set(len(began))
            self._oldest.set(max(0.0, self._now() - began[0]) if began else 0.0)

    def read(self, source: str, num: int, oldest: float) -> None:
        """Note what a source has read last."""
        self._num.read(source, num)
        self._oldest.read(source, oldest)

    @property
    def in_flight(self) -> InFlight | None:
        """What was read, None where nothing was."""
        num, oldest = self._num.value, self._oldest.value
        return None if num is None or oldest is None else InFlight(int(num), float(oldest))

    @property
    def value(self) -> list[float] | None:
        """The same, as plain data."""
        read = self.in_flight
        return None if read is None else list(read)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was read."""
        return self._num.is_empty

    def fold(self) -> None:
        """Do nothing: nothing waits."""

    def merge(self, other: "UnderWayState") -> None:
        """Add what others have read."""
        self._num.merge(other._num)
        self._oldest.merge(other._oldest)

    def sign(self, source: str) -> None:
        """Say who has read it."""
        self._num.sign(source)
        self._oldest.sign(source)

    def make_way(self, later: "UnderWayState") -> None:
        """Forget what the same sources have read later."""
        self._num.make_way(later._num)
        self._oldest.make_way(later._oldest)

    def drain(self) -> "UnderWayState":
        """Take what was read; what is under way goes on."""
        taken = UnderWayState(self._now)
        taken._num, taken._oldest = self._num.drain(), self._oldest.drain()
        return taken

    def drain_rejected(self) -> int:
        """0: what is read is a count and a time."""
        return self._num.drain_rejected() + self._oldest.drain_rejected()

    def forget_pending(self) -> None:
        """In a forked child: what is under way is the parent's."""
        self._began.clear()
        self._told = self._newest[0]

    def stop(self) -> None:
        """Begin nothing from now on; read once more that nothing is under way, if anything else was told."""
        self._most[0] = 0
        self._began.clear()

    def to_value(self) -> dict[str, Any]:
        """Number and age of the oldest in seconds, each by its source where they are signed."""
        return {"num": self._num.to_value(), "oldest": self._oldest.to_value()}

    def to_packed(self) -> dict[str, Any]:
        """Number, and age of the oldest in seconds."""
        return {"num": self._num.to_packed(), "oldest": self._oldest.to_packed()}

    def load(self, payload: Any) -> None:  # noqa: ANN401 - whatever a peer sent
        """Add a payload of either form; one that has none is an observation refused, and costs no other one."""
        num, oldest = GaugeState("sum"), GaugeState("max")
        try:
            num.load(payload["num"])
            oldest.load(payload["oldest"])
        except (StatsError, TypeError, LookupError):
            num.rejected += 1
        if num.rejected or oldest.rejected or not _are_plausible(num, oldest):
            self._num.rejected += 1
        else:
            self._num.merge(num)
            self._oldest.merge(oldest)


def _are_plausible(num: GaugeState, oldest: GaugeState) -> bool:
    """Whether there are both, and each of them can be."""
    are_counts = all(type(each) is int and 0 <= each <= MOST_TRANSFERS for each in num.readings)
    are_ages = all(0 <= each <= MOST_SECONDS for each in oldest.readings)
    return not (num.is_empty or oldest.is_empty) and are_counts and are_ages
