"""The exits and forks of a process: who is watched is closed at the one, and begins anew in the child of the other.

Knows nothing of what they do then. Nothing here runs where a process is killed, or leaves by ``os._exit``.
"""

import atexit
import os
import threading
import weakref
from multiprocessing.util import Finalize
from typing import Final, Protocol


class Ending(Protocol):
    """Who is to be closed; calls after the first do nothing, and none of them raises."""

    def ask_to_close(self) -> None:
        """Begin to end, without waiting."""

    def close(self) -> None:
        """End."""

    def _after_fork(self) -> None:
        """Begin anew in a forked child."""


_watched: "Final[weakref.WeakSet[Ending]]" = weakref.WeakSet()


def watch(ending: Ending) -> None:
    """Close it where Python's exit handlers run, and begin anew in forked children; it may go before."""
    _watched.add(ending)


def finalizer() -> Finalize:
    """Close all at the exit of a process of multiprocessing: forked ones leave without Python's exit handlers."""
    return Finalize(None, _close_at_exit, exitpriority=10)


def _close_at_exit() -> None:
    """Close at the end of a process of multiprocessing, which runs this before it waits for its threads.

    Those may record still, so one more thread, which is waited for like them, closes after the last of them.
    """
    here = (threading.main_thread(), threading.current_thread())
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread not in here]
    if others:
        threading.Thread(target=_close_after, args=(others,), name="kvxfer-closing").start()
    else:
        _close_all()


def _close_after(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
    _close_all()


def _close_all() -> None:
    # All at once, or each would take its time after the other.
    for ending in list(_watched):
        ending.ask_to_close()
    for ending in list(_watched):
        ending.close()


def _after_fork_in_child() -> None:
    for ending in list(_watched):
        ending._after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
