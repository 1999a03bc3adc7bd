"""Where the demo is shown: redrawn in place on a terminal, as plain lines anywhere else."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Colour = Literal["plain", "bold", "dim", "red", "green", "yellow"]

_CODES: Final[Mapping[Colour, str]] = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
}
_WIDEST: Final = 100
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS: Final = " .:-=+*#@"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text and its colour."""

    text: str = ""
    colour: Colour = "plain"


class Screen:
    """Writes to a stream.

    Args:
        stream: Usually standard output.
        environment: Where NO_COLOR, TERM and the size are looked up.
    """

    def __init__(self, stream: TextIO, environment: Mapping[str, str] = os.environ) -> None:
        self._stream = stream
        self._drawn = 0
        self.live = stream.isatty() and environment.get("TERM", "") not in ("", "dumb")
        """Whether it is a terminal that can be redrawn."""
        self._coloured = self.live and not environment.get("NO_COLOR")
        encoding = (stream.encoding or "ascii").lower().replace("-", "")
        self.blocks = _BLOCKS if encoding == "utf8" else _ASCII_BLOCKS
        """Characters for a curve, from nothing to the most."""

    def say(self, *lines: Line) -> None:
        """Write lines that stay, in the place of what `draw` has drawn."""
        self._write(lines, keep=True)

    def draw(self, lines: Sequence[Line]) -> None:
        """Show lines in the place of those drawn before; nothing if this is no terminal."""
        if self.live:
            height = max(shutil.get_terminal_size().lines - 1, 1)
            self._write(lines[:height], keep=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.live:
            self._stream.write("\x1b[?25h")
        self._stream.flush()

    def _write(self, lines: Sequence[Line], *, keep: bool) -> None:
        out = []
        if self.live:
            out.append("\x1b[?25l")
            if self._drawn:
                out.append(f"\x1b[{self._drawn}F")
            out.append("\x1b[J" if keep else "")
        width = min(shutil.get_terminal_size().columns, _WIDEST) if self.live else None
        out += [self._dress(line, width) for line in lines]
        if self.live and not keep:
            out.append("\x1b[J")
        self._drawn = 0 if keep else len(lines)
        self._stream.write("".join(out))
        self._stream.flush()

    def _dress(self, line: Line, width: int | None) -> str:
        text = line.text[:width]
        code = _CODES.get(line.colour) if self._coloured else None
        if code is not None and text:
            text = f"\x1b[{code}m{text}\x1b[0m"
        return text + ("\x1b[K\n" if self.live else "\n")
