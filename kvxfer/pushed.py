"""`Pushed`: what was pushed and waits for the publisher's thread. Nobody waits here, neither who puts nor who takes.

No lock either, which a signal handler that pushes would find held for ever: who merges has taken out what he merges,
so each part is in one pair of hands, and is put back.
"""

from collections import deque
from typing import Any, Final

from kvxfer.contract import KVConnectorStats
from kvxfer.outbox import num_observations

MAX_PUSHED: Final = 64
"""Stats that wait one by one; what comes while the thread is held up longer is merged into the last of them."""


class Pushed:
    """Parts in the order in which they were put, at most `MAX_PUSHED` and one more for each thread that puts.

    What cannot merge in bounded memory is cut then, and counted. Law: what was put is taken once, or counted as cut.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self._waiting: deque[KVConnectorStats] = deque()
        self._cut: deque[int] = deque()

    def __len__(self) -> int:
        """How many parts wait."""
        return len(self._waiting)

    def __bool__(self) -> bool:
        """Whether there is something to take, numbers of what was cut among it."""
        return bool(self._waiting or self._cut)

    def put(self, part: KVConnectorStats) -> None:
        """Add stats, which nobody else changes; raises nothing."""
        if len(self._waiting) < MAX_PUSHED:
            self._waiting.append(part)
            return
        try:
            last = self._waiting.pop()
        except IndexError:  # the thread has taken all meanwhile
            self._waiting.append(part)
            return
        try:
            if _is_bounded(last) and _is_bounded(part):
                last = last.follow(part)
            else:
                self.count_cut(num_lost(part))
        except Exception:  # noqa: BLE001 - a class of somebody else that cannot merge
            self.count_cut(num_lost(part))
        finally:
            self._waiting.append(last)

    def count_cut(self, number: int) -> None:
        """Count observations that could not be read or kept."""
        try:
            number += self._cut.pop()
        except IndexError:
            pass
        finally:
            self._cut.append(number)

    def take(self) -> KVConnectorStats | None:
        """The oldest part, None if there is none just now."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def take_cut(self) -> int:
        """How many were cut since the last call."""
        try:
            return self._cut.popleft()
        except IndexError:
            return 0


def _is_bounded(stats: Any) -> bool:  # noqa: ANN401 - stats of somebody else's class
    return isinstance(stats, KVConnectorStats) and stats.is_bounded()


def num_lost(stats: Any) -> int:  # noqa: ANN401 - stats of somebody else's class
    """How many observations are lost with stats, at least one."""
    try:
        return max(1, num_observations(stats.to_packed() if isinstance(stats, KVConnectorStats) else stats.data))
    except Exception:  # noqa: BLE001 - then nobody knows
        return 1
