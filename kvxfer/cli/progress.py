"""Progress of long work: a bar on a terminal, a plain line at every tenth otherwise."""

import sys
from typing import Final, TextIO

_WIDTH: Final = 30
_CLEAR: Final = "\r\033[K"


class Progress:
    """How far ``total`` units of work have come; lines printed through it do not tear the bar."""

    def __init__(self, total: float, unit: str, stream: TextIO | None = None) -> None:
        """Begin at 0."""
        self._total = total
        self._unit = unit
        self._stream = stream or sys.stderr
        self._on_terminal = self._stream.isatty()
        self._shown = 0

    def update(self, done: float) -> None:
        """Show how much is done, where that changes what is seen."""
        steps = 100 if self._on_terminal else 10
        step = int(steps * min(1.0, done / self._total))
        if step != self._shown:
            self._shown = step
            self._show(done, step / steps)

    def _show(self, done: float, part: float) -> None:
        text = f"{part:4.0%} {done:,.0f} of {self._total:,.0f} {self._unit}"
        if self._on_terminal:
            filled = int(_WIDTH * part)
            self._stream.write(f"{_CLEAR}[{'#' * filled}{'.' * (_WIDTH - filled)}] {text}")
        else:
            self._stream.write(f"{text.strip()}\n")
        self._stream.flush()

    def print(self, line: str) -> None:
        """Print a line of output above the bar."""
        self.clear()
        print(line, flush=True)
        if self._on_terminal:
            self._shown = -1

    def clear(self) -> None:
        """Remove the bar."""
        if self._on_terminal:
            self._stream.write(_CLEAR)
            self._stream.flush()
