"""Effects that depend on the arguments: strings, bits, keys and their ends of life.

Each judge takes the operands (the arguments after the command's name) and never raises. An option
that it does not know makes the command accumulating: a newer server may mean anything by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.redis.commands._arguments import integer, text, token
from resilient_io.redis.commands._spec import Effect

if TYPE_CHECKING:
    from collections.abc import Sequence

READ, IDEMPOTENT, CONDITIONAL, NON_IDEMPOTENT, DANGEROUS = Effect

_RELATIVE_ENDS = {"EX": 1, "PX": 1000}
_ABSOLUTE_ENDS = {"EXAT", "PXAT"}
# A value that ends sooner than this may be gone when the call is repeated: deadlines are seconds.
_LONGER_THAN_ANY_CALL = 60


def set_(operands: Sequence[object]) -> Effect:
    """SET key value [NX | XX | IFEQ value | ...] [GET] [EX seconds | ... | KEEPTTL]."""
    return _conditional_write(operands[2:]) if len(operands) >= 2 else NON_IDEMPOTENT  # noqa: PLR2004


def msetex(operands: Sequence[object]) -> Effect:
    """MSETEX numkeys key value [key value ...] [NX | XX] [EX seconds | ... | KEEPTTL]."""
    count = integer(operands[0]) if operands else None
    if count is None or count < 1:
        return NON_IDEMPOTENT
    return _conditional_write(operands[1 + 2 * count :])


def hsetex(operands: Sequence[object]) -> Effect:
    """HSETEX key [FNX | FXX] [EX seconds | ... | KEEPTTL] FIELDS n field value [...]."""
    options = list(operands[1:])
    for index, option in enumerate(options):
        if token(option) == "FIELDS":
            return _conditional_write(options[:index])
    return NON_IDEMPOTENT


def _conditional_write(options: Sequence[object]) -> Effect:
    effect = IDEMPOTENT
    ends = exists_only = False
    index = 0
    while index < len(options):
        option = token(options[index])
        index += 1
        if option in {"NX", "FNX"}:
            effect = max(effect, CONDITIONAL)
        elif option in {"XX", "FXX"}:
            exists_only = True
        elif option in {"IFEQ", "IFNE", "IFDEQ", "IFDNE"}:
            effect = max(effect, CONDITIONAL)
            index += 1
        elif option in _RELATIVE_ENDS or option in _ABSOLUTE_ENDS:
            ends = True
            index += 1
        elif option != "KEEPTTL":
            # GET among them: the old value is told once, then it is lost.
            return NON_IDEMPOTENT
    # What we wrote may have ended before the repeat, which would then find nothing.
    return max(effect, CONDITIONAL) if ends and exists_only else effect


def getex(operands: Sequence[object]) -> Effect:
    """GETEX key [EX seconds | PX milliseconds | EXAT time | PXAT time | PERSIST]."""
    return _read_and_end(operands[1:])


def hgetex(operands: Sequence[object]) -> Effect:
    """HGETEX key [EX seconds | ... | PERSIST] FIELDS n field [...]."""
    options = operands[1:]
    for index, option in enumerate(options):
        if token(option) == "FIELDS":
            return _read_and_end(options[:index])
    return NON_IDEMPOTENT


def _read_and_end(options: Sequence[object]) -> Effect:
    if not options or [token(each) for each in options] == ["PERSIST"]:
        return IDEMPOTENT
    if len(options) != 2:  # noqa: PLR2004 -- a name and a time
        return NON_IDEMPOTENT
    name, time = token(options[0]), integer(options[1])
    if name in _ABSOLUTE_ENDS:
        return CONDITIONAL  # whether it is past is for the server's clock to say
    if name not in _RELATIVE_ENDS or time is None:
        return NON_IDEMPOTENT
    return IDEMPOTENT if time >= _LONGER_THAN_ANY_CALL * _RELATIVE_ENDS[name] else CONDITIONAL


def expire(operands: Sequence[object]) -> Effect:
    """EXPIRE key seconds [NX | XX | GT | LT], and PEXPIRE."""
    return _ends_in(operands[1:2], operands[2:])


def hexpire(operands: Sequence[object]) -> Effect:
    """HEXPIRE key seconds [NX | XX | GT | LT] FIELDS n field [...], and HPEXPIRE."""
    conditions: list[object] = []
    for option in operands[2:]:
        if token(option) == "FIELDS":
            return _ends_in(operands[1:2], conditions)
        conditions.append(option)
    return NON_IDEMPOTENT


def _ends_in(time: Sequence[object], conditions: Sequence[object]) -> Effect:
    lasting = integer(time[0]) if time else None
    if lasting is None or not {token(each) for each in conditions} <= {"NX", "XX", "GT", "LT"}:
        return NON_IDEMPOTENT
    return CONDITIONAL if conditions or lasting <= 0 else IDEMPOTENT


def copy(operands: Sequence[object]) -> Effect:
    """COPY source destination [DB number] [REPLACE]."""
    return _replacing(operands[2:], valued={"DB"}, bare=set())


def restore(operands: Sequence[object]) -> Effect:
    """RESTORE key ttl value [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]."""
    return _replacing(operands[3:], valued={"IDLETIME", "FREQ"}, bare={"ABSTTL"})


def _replacing(options: Sequence[object], *, valued: set[str], bare: set[str]) -> Effect:
    effect = CONDITIONAL
    index = 0
    while index < len(options):
        option = token(options[index])
        index += 2 if option in valued else 1
        if option == "REPLACE":
            effect = IDEMPOTENT
        elif option not in valued and option not in bare:
            return NON_IDEMPOTENT
    return effect


def bitfield(operands: Sequence[object]) -> Effect:
    """BITFIELD key [GET type offset | OVERFLOW how | SET ... | INCRBY ...] [...]."""
    index = 1
    while index < len(operands):
        operation = token(operands[index])
        if operation == "GET":
            index += 3
        elif operation == "OVERFLOW":
            index += 2
        else:
            return NON_IDEMPOTENT  # its reply is the old value
    return READ


def bitop(operands: Sequence[object]) -> Effect:
    """BITOP operation destination key [...]."""
    return into_one(operands[1:])


def into_one(operands: Sequence[object]) -> Effect:
    """SUNIONSTORE and its like: destination key [...]."""
    return overwriting(operands[:1], operands[1:])


def overwriting(destinations: Sequence[object], sources: Sequence[object]) -> Effect:
    """Judge a command that stores what it computes from its sources."""
    if not destinations or not sources:
        return NON_IDEMPOTENT
    read = {text(source) for source in sources}
    mixed = any(text(destination) in read for destination in destinations)
    return NON_IDEMPOTENT if mixed else IDEMPOTENT
