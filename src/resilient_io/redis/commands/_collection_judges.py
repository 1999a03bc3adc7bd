"""Effects that depend on the arguments: lists, sorted sets, geo sets, streams."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from resilient_io.redis.commands._arguments import index_of, integer, text, token
from resilient_io.redis.commands._judges import (
    CONDITIONAL,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    READ,
    overwriting,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.redis.commands._spec import Effect

_STREAM_ID = re.compile(r"\d+(-\d+)?", re.ASCII)


def ltrim(operands: Sequence[object]) -> Effect:
    """LTRIM key start stop: safe where what is kept is kept again."""
    if len(operands) != 3:  # noqa: PLR2004 -- key, start, stop
        return NON_IDEMPOTENT
    start, stop = integer(operands[1]), integer(operands[2])
    if start is None or stop is None:
        return NON_IDEMPOTENT
    from_the_head = start == 0 and stop >= -1
    from_the_tail = start < 0 and stop == -1
    nothing = start > stop and (start < 0) == (stop < 0)
    return IDEMPOTENT if from_the_head or from_the_tail or nothing else NON_IDEMPOTENT


def lrem(operands: Sequence[object]) -> Effect:
    """LREM key count element: with a count, a repeat removes the next ones."""
    count = integer(operands[1]) if len(operands) == 3 else None  # noqa: PLR2004 -- as above
    return CONDITIONAL if count == 0 else NON_IDEMPOTENT


def zadd(operands: Sequence[object]) -> Effect:
    """ZADD key [NX | XX] [GT | LT] [CH] [INCR] score member [...]."""
    for operand in operands[1:]:
        option = token(operand)
        if option == "INCR":
            return NON_IDEMPOTENT
        if option not in {"NX", "XX", "GT", "LT", "CH"}:
            break
    return CONDITIONAL


def counted_store(operands: Sequence[object]) -> Effect:
    """ZUNIONSTORE and its like: destination numkeys key [...] [options]."""
    count = integer(operands[1]) if len(operands) > 1 else None
    if count is None or count < 1:
        return NON_IDEMPOTENT
    return overwriting(operands[:1], operands[2 : 2 + count])


def range_store(operands: Sequence[object]) -> Effect:
    """ZRANGESTORE, GEOSEARCHSTORE: destination source [options]."""
    return overwriting(operands[:1], operands[1:2])


def georadius(operands: Sequence[object]) -> Effect:
    """GEORADIUS key longitude latitude radius unit [options]."""
    return _radius(operands[:1], operands[5:])


def georadiusbymember(operands: Sequence[object]) -> Effect:
    """GEORADIUSBYMEMBER key member radius unit [options]."""
    return _radius(operands[:1], operands[4:])


def _radius(source: Sequence[object], options: Sequence[object]) -> Effect:
    destinations: list[object] = []
    index = 0
    while index < len(options):
        option = token(options[index])
        index += 1
        if option in {"STORE", "STOREDIST"}:
            destinations += options[index : index + 1]
            index += 1
        elif option == "COUNT":
            index += 1
        elif option not in {"WITHCOORD", "WITHDIST", "WITHHASH", "ASC", "DESC", "ANY"}:
            return NON_IDEMPOTENT
    return overwriting(destinations, source) if destinations else READ


def sort(operands: Sequence[object]) -> Effect:
    """SORT key [BY pattern] [LIMIT offset count] [GET pattern ...] [ASC|DESC] [ALPHA] [STORE key].

    A read unless it stores.
    """
    destination: str | None = None
    patterns: list[str] = []
    index = 1
    while index < len(operands):
        option = token(operands[index])
        index += 1
        if option == "LIMIT":
            index += 2
        elif option in {"BY", "GET", "STORE"} and index < len(operands):
            if option == "STORE":
                destination = text(operands[index])
            else:
                patterns.append(text(operands[index]))
            index += 1
        elif option not in {"ASC", "DESC", "ALPHA"}:
            return NON_IDEMPOTENT
    if destination is None:
        return READ
    if any(_may_name(pattern, destination) for pattern in patterns):
        return NON_IDEMPOTENT
    return overwriting([destination], operands[:1])


def _may_name(pattern: str, key: str) -> bool:
    head, star, _ = pattern.partition("*")
    return bool(star) and key.startswith(head)


def xadd(operands: Sequence[object]) -> Effect:
    """XADD key [NOMKSTREAM] [trimming] [IDMP producer id | IDMPAUTO producer] id field value."""
    index = 1
    recognised = False
    while index < len(operands):
        option = token(operands[index])
        index += 1
        if option in {"MAXLEN", "MINID"}:
            exact = index < len(operands) and text(operands[index]) in {"=", "~"}
            index += 2 if exact else 1
        elif option == "LIMIT":
            index += 1
        elif option == "IDMP":
            recognised = True
            index += 2
        elif option == "IDMPAUTO":
            recognised = True
            index += 1
        elif option not in {"NOMKSTREAM", "KEEPREF", "DELREF", "ACKED"}:
            # The server knows a repeated IDMP for a bounded number of records only.
            return CONDITIONAL if recognised or _STREAM_ID.fullmatch(option) else NON_IDEMPOTENT
    return NON_IDEMPOTENT


def xtrim(operands: Sequence[object]) -> Effect:
    """XTRIM key MAXLEN | MINID [= | ~] threshold [LIMIT count] [policy]."""
    options = operands[2:]
    if not options or text(options[0]) != "~":
        return CONDITIONAL
    limit = index_of(options, "LIMIT") + 1
    unlimited = limit < len(options) and integer(options[limit]) == 0
    return CONDITIONAL if unlimited else NON_IDEMPOTENT


def xreadgroup(operands: Sequence[object]) -> Effect:
    """XREADGROUP GROUP group consumer [options] STREAMS key [...] id [...]."""
    streams = index_of(operands, "STREAMS", 3)
    options = {token(option) for option in operands[3:streams]}
    rest = operands[streams + 1 :]
    ids = rest[len(rest) // 2 :]
    if not ids or len(rest) % 2 or "CLAIM" in options:
        return NON_IDEMPOTENT
    return NON_IDEMPOTENT if any(text(each) == ">" for each in ids) else IDEMPOTENT


def xgroup_setid(operands: Sequence[object]) -> Effect:
    """XGROUP SETID key group id: `$` is another place the second time."""
    constant = len(operands) > 2 and text(operands[2]) != "$"  # noqa: PLR2004 -- as above
    return IDEMPOTENT if constant else NON_IDEMPOTENT
