"""How the story is told: numbered steps and facts on stderr, coloured on a terminal."""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Final

__all__ = ["Teller"]

BOLD: Final = "\x1b[1m"
DIM: Final = "\x1b[2m"
GREEN: Final = "\x1b[32m"
RED: Final = "\x1b[31m"
RESET: Final = "\x1b[0m"
INDENT: Final = 16  # of a line's text, behind time and mark
MAX_WIDTH: Final = 140


class Teller:
    """Tells what happens, with the seconds since the start before each line."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._width = min(shutil.get_terminal_size((120, 24)).columns, MAX_WIDTH)
        self._colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ

    @property
    def seconds(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._start

    def step(self, number: int, title: str) -> None:
        """Open one of the six steps."""
        self._print(f"\n{self._paint(f'{number}. {title}', BOLD)}")

    def say(self, text: str) -> None:
        """Tell a fact."""
        self._line("", text)

    def good(self, text: str) -> None:
        """Tell what came out as it should."""
        self._line(self._paint("ok", GREEN), text)

    def bad(self, text: str) -> None:
        """Tell what did not."""
        self._line(self._paint("no", RED), text)

    def _line(self, mark: str, text: str) -> None:
        stamp = self._paint(f"{self.seconds:6.1f} s", DIM)
        first, *rest = textwrap.wrap(text, self._width - INDENT, break_long_words=False) or [""]
        self._print(f"  {stamp}  {mark or '  '}  {first}")
        for line in rest:
            self._print(" " * INDENT + line)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Tell a small table; numbers stand right, words left."""
        widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
        for index, row in enumerate((head, *rows)):
            cells = [
                cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
                for cell, width in zip(row, widths, strict=True)
            ]
            line = "  ".join(cells).rstrip()
            self._print(" " * INDENT + (self._paint(line, DIM) if index == 0 else line))

    def _paint(self, text: str, code: str) -> str:
        return f"{code}{text}{RESET}" if self._colour else text

    def _print(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
