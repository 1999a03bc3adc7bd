"""Reading the small files in which Linux tells about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["fields_of", "number_in", "text_of"]


def text_of(path: Path) -> str | None:
    """Give the text of a file; None where there is none that may be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def number_in(path: Path) -> int | None:
    """Give the number in a file; None where there is none ("max", say)."""
    text = text_of(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def fields_of(path: Path) -> dict[str, int]:
    """Give the lines "name number" of a file; nothing where there is none."""
    fields = {}
    for line in (text_of(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdecimal():
            fields[name.rstrip(":")] = int(value)
    return fields
