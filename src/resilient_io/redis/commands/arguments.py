"""How the server reads the arguments of a command, and how long a command may block.

Block times take the operands (the arguments after the name) and return seconds, or None for no
limit. What the server would refuse is answered immediately: 0.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MILLISECONDS = 1000


def text(value: object) -> str:
    """Return an argument as it is sent. Equal bytes give equal text."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "surrogateescape")
    return str(value)


def token(value: object) -> str:
    """Return an argument as the name of an option."""
    return text(value).upper()


def integer(value: object) -> int | None:
    """Return an argument as an integer, or None if the server would refuse it."""
    if isinstance(value, int):
        return int(value)
    try:
        return int(text(value))
    except ValueError:
        return None


def seconds(value: object, *, per_second: int = 1) -> float | None:
    """Return a block time in seconds; None for no limit, 0.0 if the server would refuse it."""
    try:
        number = float(text(value))
    except ValueError:
        return 0.0
    if number == 0:
        return None
    return number / per_second if 0 < number < float("inf") else 0.0


def flat(args: Sequence[object]) -> list[object]:
    """Return all arguments, the first split at its spaces, as redis-py does."""
    if not args:
        return []
    head = args[0]
    if isinstance(head, (str, bytes, bytearray, memoryview)):
        return [*text(head).split(), *args[1:]]
    return list(args)


def index_of(operands: Sequence[object], word: str, start: int = 0) -> int:
    """Return the index of an option, or the number of operands if it is missing."""
    for index in range(start, len(operands)):
        if token(operands[index]) == word:
            return index
    return len(operands)


def block_time_at(index: int, *, per_second: int = 1) -> Callable[[Sequence[object]], float | None]:
    """Return the function for a command whose block time is the operand at `index`."""

    def block_time(operands: Sequence[object]) -> float | None:
        present = -len(operands) <= index < len(operands)
        return seconds(operands[index], per_second=per_second) if present else 0.0

    return block_time


first, last, fifth = block_time_at(0), block_time_at(-1), block_time_at(4)
last_in_milliseconds = block_time_at(-1, per_second=_MILLISECONDS)


def stream_read(operands: Sequence[object]) -> float | None:
    """XREAD, XREADGROUP: milliseconds after BLOCK, which precedes the keys."""
    at = _block_of_stream_read(operands)
    return 0.0 if at is None else _milliseconds_at(operands, at + 1)


def series_read(operands: Sequence[object]) -> float | None:
    """TS.READ: milliseconds after BLOCK, which follows key and timestamp."""
    return _milliseconds_at(operands, index_of(operands, "BLOCK", 2) + 1)


def unlimited(_operands: Sequence[object]) -> None:
    """Commands whose duration is unknown."""


def sleep(operands: Sequence[object]) -> float | None:
    """DEBUG SLEEP: seconds, of which 0 does not sleep."""
    return (seconds(operands[0]) or 0.0) if operands else 0.0


def stream_read_blocks(operands: Sequence[object]) -> bool:
    """Return whether an XREAD or XREADGROUP may block."""
    return _block_of_stream_read(operands) is not None


def series_read_blocks(operands: Sequence[object]) -> bool:
    """Return whether a TS.READ may block."""
    return index_of(operands, "BLOCK", 2) < len(operands)


def _block_of_stream_read(operands: Sequence[object]) -> int | None:
    # A group, a consumer or a key may be called "block" or "streams".
    start = 3 if operands and token(operands[0]) == "GROUP" else 0
    keys = index_of(operands, "STREAMS", start)
    at = index_of(operands[:keys], "BLOCK", start)
    return at if at < keys else None


def _milliseconds_at(operands: Sequence[object], at: int) -> float | None:
    return seconds(operands[at], per_second=_MILLISECONDS) if at < len(operands) else 0.0
