"""Tables as text: aligned for a terminal, or in Markdown. What peers named is shown escaped."""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from kvxfer.reporting import printable

_MARKS: Final = "\\|`*_~<[&@"

_SGR: Final = {"bold": "1", "red": "31", "green": "32", "dim": "2"}


class Painter:
    """Colours for a terminal, nothing elsewhere."""

    def __init__(self, *, is_on: bool) -> None:
        """Paint or not."""
        self._is_on = is_on

    def __call__(self, text: str, *styles: str) -> str:
        """The text in these styles."""
        codes = ";".join(_SGR[style] for style in styles)
        return f"\033[{codes}m{text}\033[0m" if self._is_on and styles else text


class Cell(NamedTuple):
    """Text of a cell; ``style`` is how it is painted, "" for not."""

    text: str
    style: str = ""


def aligned(header: Sequence[str], rows: Sequence[Sequence[Cell]], words: Collection[int], paint: Painter) -> str:
    """The table in columns: those whose numbers are in ``words`` to the left, the others to the right."""
    table = [[Cell(printable(cell.text), cell.style) for cell in row] for row in (_bold(header), *rows)]
    widths = [max(len(row[number].text) for row in table) for number in range(len(header))]
    lines = []
    for row in table:
        padded = (
            _padded(cell.text, width, is_word=number in words)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        painted = [paint(text, cell.style) if cell.style else text for text, cell in zip(padded, row, strict=True)]
        lines.append("  ".join(painted).rstrip())
    return "\n".join(lines)


def _bold(header: Sequence[str]) -> list[Cell]:
    return [Cell(title, "bold") for title in header]


def _padded(text: str, width: int, *, is_word: bool) -> str:
    return text.ljust(width) if is_word else text.rjust(width)


def markdown(header: Sequence[str], rows: Sequence[Sequence[Cell]], words: Collection[int]) -> str:
    """The table in Markdown, with its columns aligned in the source too."""
    table = [[marked(cell.text) for cell in row] for row in (_bold(header), *rows)]
    widths = [max(3, *(len(row[number]) for row in table)) for number in range(len(header))]
    rule = ["-" * width if number in words else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    lines = []
    for row in (table[0], rule, *table[1:]):
        padded = (
            _padded(text, width, is_word=number in words)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def marked(text: str) -> str:
    """Text that is text in Markdown, whatever a peer called itself."""
    return "".join(f"\\{character}" if character in _MARKS else character for character in printable(text))
