"""Steps that a signal handler cannot break off."""

import threading
from collections.abc import Callable


def unbroken(step: Callable[[], object]) -> None:
    """Run a step to its end, whatever a signal handler raises meanwhile.

    Handlers run on the main thread, between any two of its instructions: there another thread runs the step, and what
    a handler raises (``sys.exit``, KeyboardInterrupt) breaks off no more than the wait for it.
    """
    if threading.current_thread() is not threading.main_thread():
        step()
        return
    failures: list[Exception] = []

    def run() -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - raised again, where it was called
            failures.append(error)

    thread = threading.Thread(target=run, name="kvxfer-fold")
    try:
        thread.start()
    except RuntimeError:  # there is no room for a thread, or the interpreter ends
        step()
    else:
        thread.join()
    if failures:
        raise failures[0]
