"""Arguments as the server will read them: callers give str, bytes and numbers for the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def text(value: object) -> str:
    """Spell an argument as it goes over the wire; equal bytes give equal text."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "surrogateescape")
    return str(value)


def token(value: object) -> str:
    """Spell an argument as an option's name."""
    return text(value).upper()


def integer(value: object) -> int | None:
    """Read an argument as a whole number; None where the server would refuse it."""
    if isinstance(value, int):
        return int(value)
    try:
        return int(text(value))
    except ValueError:
        return None


def seconds(value: object, *, per_second: int = 1) -> float | None:
    """Read a block time; 0 is for ever, and what the server refuses is answered at once.

    Args:
        value: The argument.
        per_second: 1000 for an argument in milliseconds.

    Returns:
        Seconds, or None for ever.
    """
    try:
        number = float(text(value))
    except ValueError:
        return 0.0
    if number == 0:
        return None
    return number / per_second if 0 < number < float("inf") else 0.0


def flat(args: Sequence[object]) -> list[object]:
    """Split the first argument at its spaces, as redis-py does, and list all arguments."""
    if not args:
        return []
    head = args[0]
    if isinstance(head, (str, bytes, bytearray, memoryview)):
        return [*text(head).split(), *args[1:]]
    return list(args)


def index_of(operands: Sequence[object], word: str, start: int = 0) -> int:
    """Find an option by its name; the length where it is absent."""
    for index in range(start, len(operands)):
        if token(operands[index]) == word:
            return index
    return len(operands)
