"""How long the server may hold back a reply because the command says so.

Each function takes the operands (the arguments after the command's name) and gives seconds, or
None for ever. What the server would refuse is answered at once: 0.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.redis.commands._arguments import index_of, seconds, token

if TYPE_CHECKING:
    from collections.abc import Sequence

_MILLISECONDS = 1000


def first(operands: Sequence[object]) -> float | None:
    """BLMPOP, BZMPOP: seconds come first."""
    return seconds(operands[0]) if operands else 0.0


def last(operands: Sequence[object]) -> float | None:
    """BLPOP, BLMOVE, BZPOPMIN and their like: seconds come last."""
    return seconds(operands[-1]) if operands else 0.0


def fifth(operands: Sequence[object]) -> float | None:
    """BLMOVEM: two keys, two ends, seconds."""
    return seconds(operands[4]) if len(operands) > 4 else 0.0  # noqa: PLR2004 -- said above


def last_in_milliseconds(operands: Sequence[object]) -> float | None:
    """WAIT, WAITAOF: milliseconds come last."""
    return seconds(operands[-1], per_second=_MILLISECONDS) if operands else 0.0


def stream_read(operands: Sequence[object]) -> float | None:
    """XREAD, XREADGROUP: milliseconds behind BLOCK, which stands before the keys."""
    at = _block_of_stream_read(operands)
    return 0.0 if at is None else _milliseconds_at(operands, at + 1)


def series_read(operands: Sequence[object]) -> float | None:
    """TS.READ: milliseconds behind BLOCK, which stands after key and timestamp."""
    return _milliseconds_at(operands, index_of(operands, "BLOCK", 2) + 1)


def for_ever(_operands: Sequence[object]) -> float | None:
    """Take as long as it takes: nobody can tell."""
    return None


def sleep(operands: Sequence[object]) -> float | None:
    """DEBUG SLEEP: seconds, and 0 does not sleep."""
    return (seconds(operands[0]) or 0.0) if operands else 0.0


def stream_read_blocks(operands: Sequence[object]) -> bool:
    """Tell whether an XREAD or XREADGROUP may wait."""
    return _block_of_stream_read(operands) is not None


def series_read_blocks(operands: Sequence[object]) -> bool:
    """Tell whether a TS.READ may wait."""
    return index_of(operands, "BLOCK", 2) < len(operands)


def _block_of_stream_read(operands: Sequence[object]) -> int | None:
    # A group or a consumer may be called "block" or "streams", and so may a key.
    start = 3 if operands and token(operands[0]) == "GROUP" else 0
    keys = index_of(operands, "STREAMS", start)
    at = index_of(operands[:keys], "BLOCK", start)
    return at if at < keys else None


def _milliseconds_at(operands: Sequence[object], at: int) -> float | None:
    return seconds(operands[at], per_second=_MILLISECONDS) if at < len(operands) else 0.0
