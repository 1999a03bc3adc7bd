"""Effects that depend on the arguments of a command.

Each function takes the operands (the arguments after the command's name) and never raises. An
unknown option makes the command non-idempotent, because a newer server may give it any meaning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .arguments import index_of, integer, text, token
from .spec import Effect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

READ, IDEMPOTENT, CONDITIONAL, NON_IDEMPOTENT, DANGEROUS = Effect


def _options(
    operands: Sequence[object], sizes: Mapping[str, int]
) -> Iterator[tuple[str, Sequence[object]]]:
    """Yield each option and its values. `sizes` is the number of values of those that have any."""
    index = 0
    while index < len(operands):
        option = token(operands[index])
        after = index + 1 + sizes.get(option, 0)
        yield option, operands[index + 1 : after]
        index = after


# -- strings, bits, keys and expiry times --------------------------------------------------

_RELATIVE_EXPIRY = {"EX": 1, "PX": 1000}
_ABSOLUTE_EXPIRY = {"EXAT", "PXAT"}
# A value that expires sooner than this may be gone when the call is repeated.
_LONGER_THAN_A_CALL = 60


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
    fields = index_of(operands, "FIELDS", 1)
    return _conditional_write(operands[1:fields]) if fields < len(operands) else NON_IDEMPOTENT


_COMPARISONS = {"IFEQ", "IFNE", "IFDEQ", "IFDNE"}
_EXPIRIES = {*_RELATIVE_EXPIRY, *_ABSOLUTE_EXPIRY}


def _conditional_write(options: Sequence[object]) -> Effect:
    effect = IDEMPOTENT
    expires = exists_only = False
    for option, _ in _options(options, dict.fromkeys(_COMPARISONS | _EXPIRIES, 1)):
        if option in {"NX", "FNX"} or option in _COMPARISONS:
            effect = CONDITIONAL
        elif option in {"XX", "FXX"}:
            exists_only = True
        elif option in _EXPIRIES:
            expires = True
        elif option != "KEEPTTL":
            # GET, for example: the old value is returned once and then lost.
            return NON_IDEMPOTENT
    # The value may expire before the repeat, which would then find nothing.
    return CONDITIONAL if expires and exists_only else effect


def getex(operands: Sequence[object]) -> Effect:
    """GETEX key [EX seconds | PX milliseconds | EXAT time | PXAT time | PERSIST]."""
    return _read_and_expire(operands[1:])


def hgetex(operands: Sequence[object]) -> Effect:
    """HGETEX key [EX seconds | ... | PERSIST] FIELDS n field [...]."""
    fields = index_of(operands, "FIELDS", 1)
    return _read_and_expire(operands[1:fields]) if fields < len(operands) else NON_IDEMPOTENT


def _read_and_expire(options: Sequence[object]) -> Effect:
    if not options or [token(each) for each in options] == ["PERSIST"]:
        return IDEMPOTENT
    if len(options) != 2:  # noqa: PLR2004 (a name and a time)
        return NON_IDEMPOTENT
    name, time = token(options[0]), integer(options[1])
    if name in _ABSOLUTE_EXPIRY:
        return CONDITIONAL  # only the server's clock decides whether the time is past
    if name not in _RELATIVE_EXPIRY or time is None:
        return NON_IDEMPOTENT
    return IDEMPOTENT if time >= _LONGER_THAN_A_CALL * _RELATIVE_EXPIRY[name] else CONDITIONAL


def expire(operands: Sequence[object]) -> Effect:
    """EXPIRE key seconds [NX | XX | GT | LT], and PEXPIRE."""
    duration = integer(operands[1]) if len(operands) > 1 else None
    conditions = {token(each) for each in operands[2:]}
    if duration is None or not conditions <= {"NX", "XX", "GT", "LT"}:
        return NON_IDEMPOTENT
    return CONDITIONAL if conditions or duration <= 0 else IDEMPOTENT


def hexpire(operands: Sequence[object]) -> Effect:
    """HEXPIRE key seconds [NX | XX | GT | LT] FIELDS n field [...], and HPEXPIRE."""
    fields = index_of(operands, "FIELDS", 2)
    return expire(operands[:fields]) if fields < len(operands) else NON_IDEMPOTENT


def copy(operands: Sequence[object]) -> Effect:
    """COPY source destination [DB number] [REPLACE]."""
    return _replacing(operands[2:], {"DB": 1})


def restore(operands: Sequence[object]) -> Effect:
    """RESTORE key ttl value [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]."""
    return _replacing(operands[3:], {"IDLETIME": 1, "FREQ": 1, "ABSTTL": 0})


def _replacing(operands: Sequence[object], harmless: Mapping[str, int]) -> Effect:
    options = {option for option, _ in _options(operands, harmless)}
    if not options <= {"REPLACE", *harmless}:
        return NON_IDEMPOTENT
    return IDEMPOTENT if "REPLACE" in options else CONDITIONAL


def bitfield(operands: Sequence[object]) -> Effect:
    """BITFIELD key [GET type offset | OVERFLOW how | SET ... | INCRBY ...] [...]."""
    sizes = {"GET": 2, "OVERFLOW": 1}
    reads = all(operation in sizes for operation, _ in _options(operands[1:], sizes))
    return READ if reads else NON_IDEMPOTENT  # the reply to SET is the old value


def bitop(operands: Sequence[object]) -> Effect:
    """BITOP operation destination key [...]."""
    return store_of_keys(operands[1:])


def store_of_keys(operands: Sequence[object]) -> Effect:
    """SUNIONSTORE and similar commands: destination key [...]."""
    return overwriting(operands[:1], operands[1:])


def overwriting(destinations: Sequence[object], sources: Sequence[object]) -> Effect:
    """Return the effect of a command that stores a result computed from its sources."""
    if not destinations or not sources:
        return NON_IDEMPOTENT
    read = {text(source) for source in sources}
    mixed = any(text(destination) in read for destination in destinations)
    return NON_IDEMPOTENT if mixed else IDEMPOTENT


# -- lists, sorted sets, geo sets and streams ----------------------------------------------

_STREAM_ID = re.compile(r"\d+(-\d+)?", re.ASCII)


def ltrim(operands: Sequence[object]) -> Effect:
    """LTRIM key start stop: idempotent if a repeat keeps the same elements."""
    if len(operands) != 3:  # noqa: PLR2004 (key, start, stop)
        return NON_IDEMPOTENT
    start, stop = integer(operands[1]), integer(operands[2])
    if start is None or stop is None:
        return NON_IDEMPOTENT
    from_the_head = start == 0 and stop >= -1
    from_the_tail = start < 0 and stop == -1
    nothing = start > stop and (start < 0) == (stop < 0)
    return IDEMPOTENT if from_the_head or from_the_tail or nothing else NON_IDEMPOTENT


def lrem(operands: Sequence[object]) -> Effect:
    """LREM key count element: with a count, a repeat removes the next elements."""
    count = integer(operands[1]) if len(operands) == 3 else None  # noqa: PLR2004 (as above)
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
    """ZUNIONSTORE, CMS.MERGE and others: destination numkeys key [...] [options]."""
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
    known = {"COUNT", "WITHCOORD", "WITHDIST", "WITHHASH", "ASC", "DESC", "ANY"}
    for option, values in _options(options, {"STORE": 1, "STOREDIST": 1, "COUNT": 1}):
        if option in {"STORE", "STOREDIST"}:
            destinations += values
        elif option not in known:
            return NON_IDEMPOTENT
    return overwriting(destinations, source) if destinations else READ


def sort(operands: Sequence[object]) -> Effect:
    """SORT key [BY pattern] [LIMIT offset count] [GET pattern ...] [ASC|DESC|ALPHA] [STORE key]."""
    destination: str | None = None
    patterns: list[str] = []
    for option, values in _options(operands[1:], {"LIMIT": 2, "BY": 1, "GET": 1, "STORE": 1}):
        if option == "STORE" and values:
            destination = text(values[0])
        elif option in {"BY", "GET"} and values:
            patterns.append(text(values[0]))
        elif option not in {"LIMIT", "ASC", "DESC", "ALPHA"}:
            return NON_IDEMPOTENT
    if destination is None:
        return READ
    for pattern in patterns:
        head, star, _ = pattern.partition("*")
        if star and destination.startswith(head):
            return NON_IDEMPOTENT  # the pattern may name the destination
    return overwriting([destination], operands[:1])


def xadd(operands: Sequence[object]) -> Effect:
    """XADD key [NOMKSTREAM] [trimming] [IDMP producer id | IDMPAUTO producer] id field value."""
    index = 1
    recognized = False
    while index < len(operands):
        option = token(operands[index])
        index += 1
        if option in {"MAXLEN", "MINID"}:
            exact = index < len(operands) and text(operands[index]) in {"=", "~"}
            index += 2 if exact else 1
        elif option == "LIMIT":
            index += 1
        elif option == "IDMP":
            recognized = True
            index += 2
        elif option == "IDMPAUTO":
            recognized = True
            index += 1
        elif option not in {"NOMKSTREAM", "KEEPREF", "DELREF", "ACKED"}:
            # The server recognizes a repeated IDMP only for a limited number of records.
            return CONDITIONAL if recognized or _STREAM_ID.fullmatch(option) else NON_IDEMPOTENT
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
    """XGROUP SETID key group id: `$` is another position the second time."""
    constant = len(operands) > 2 and text(operands[2]) != "$"  # noqa: PLR2004 (as above)
    return IDEMPOTENT if constant else NON_IDEMPOTENT


# -- administration ------------------------------------------------------------------------


def function_load(operands: Sequence[object]) -> Effect:
    """FUNCTION LOAD [REPLACE] code."""
    replaces = len(operands) > 1 and token(operands[0]) == "REPLACE"
    return IDEMPOTENT if replaces else CONDITIONAL


def function_restore(operands: Sequence[object]) -> Effect:
    """FUNCTION RESTORE payload [APPEND | REPLACE | FLUSH]."""
    policy = token(operands[1]) if len(operands) > 1 else "APPEND"
    if policy == "REPLACE":
        return IDEMPOTENT
    return CONDITIONAL if policy == "APPEND" else DANGEROUS


def acl_setuser(operands: Sequence[object]) -> Effect:
    """ACL SETUSER name rule [...]: a rule in parentheses adds another selector."""
    adds = any(text(rule).startswith("(") for rule in operands[1:])
    return NON_IDEMPOTENT if adds else CONDITIONAL


def acl_log(operands: Sequence[object]) -> Effect:
    """ACL LOG [count | RESET]."""
    return IDEMPOTENT if operands and token(operands[0]) == "RESET" else READ


def sentinel_config(operands: Sequence[object]) -> Effect:
    """SENTINEL CONFIG GET | SET."""
    operation = token(operands[0]) if operands else ""
    if operation == "SET":
        return IDEMPOTENT
    return READ if operation == "GET" else NON_IDEMPOTENT


def sentinel_is_down(operands: Sequence[object]) -> Effect:
    """SENTINEL IS-MASTER-DOWN-BY-ADDR ip port epoch id: an ID other than * requests a vote."""
    return READ if operands and text(operands[-1]) == "*" else NON_IDEMPOTENT


# -- modules: JSON, search, time series, sketches ------------------------------------------

_KEEPS_ONE_VALUE = {"FIRST", "LAST", "MIN", "MAX"}


def _one_place(path: object) -> bool:
    """Return whether a path names one place. Wildcards and filters may match more afterwards."""
    written = text(path)
    return not any(mark in written for mark in ("*", "?", "..", ":", ","))


def json_set(operands: Sequence[object]) -> Effect:
    """JSON.SET key path value [NX | XX] [FPHA type]."""
    if len(operands) < 3 or not _one_place(operands[1]):  # noqa: PLR2004 (as above)
        return NON_IDEMPOTENT
    options = {option for option, _ in _options(operands[3:], {"FPHA": 1})}
    if not options <= {"NX", "XX", "FPHA", "FORMAT"}:
        return NON_IDEMPOTENT
    return CONDITIONAL if "NX" in options else IDEMPOTENT


def json_mset(operands: Sequence[object]) -> Effect:
    """JSON.MSET key path value [key path value ...]."""
    plain = bool(operands) and len(operands) % 3 == 0 and all(map(_one_place, operands[1::3]))
    return IDEMPOTENT if plain else NON_IDEMPOTENT


def json_merge(operands: Sequence[object]) -> Effect:
    """JSON.MERGE key path value: a merge patch changes nothing the second time (RFC 7396)."""
    plain = len(operands) == 3 and _one_place(operands[1])  # noqa: PLR2004 (as above)
    return IDEMPOTENT if plain else NON_IDEMPOTENT


def json_del(operands: Sequence[object]) -> Effect:
    """JSON.DEL key [path]: after deleting an array element, its index names the next one."""
    path = text(operands[1]) if len(operands) > 1 else "$"
    names = path.replace("['", ".").replace('["', ".")
    return NON_IDEMPOTENT if "[" in names else CONDITIONAL


def json_arrtrim(operands: Sequence[object]) -> Effect:
    """JSON.ARRTRIM key path start stop: as LTRIM."""
    if len(operands) != 4 or not _one_place(operands[1]):  # noqa: PLR2004 (as above)
        return NON_IDEMPOTENT
    return ltrim([operands[0], *operands[2:]])


def sugadd(operands: Sequence[object]) -> Effect:
    """FT.SUGADD key text score [INCR] [PAYLOAD payload]."""
    options = operands[3:]
    payload = index_of(options, "PAYLOAD")
    added = "INCR" in {token(each) for each in (*options[:payload], *options[payload + 2 :])}
    return NON_IDEMPOTENT if added else IDEMPOTENT


def ts_add(operands: Sequence[object]) -> Effect:
    """TS.ADD key timestamp value [options]: the series' policy may be to sum duplicates."""
    if len(operands) < 3 or integer(operands[1]) is None:  # noqa: PLR2004 (as above)
        return NON_IDEMPOTENT
    at = index_of(operands, "ON_DUPLICATE", 3) + 1
    policy = token(operands[at]) if at < len(operands) else ""
    if policy in _KEEPS_ONE_VALUE:
        return IDEMPOTENT
    return CONDITIONAL if policy == "BLOCK" else NON_IDEMPOTENT


def tdigest_merge(operands: Sequence[object]) -> Effect:
    """TDIGEST.MERGE destination numkeys source [...] [COMPRESSION n] [OVERRIDE]."""
    count = integer(operands[1]) if len(operands) > 1 else None
    overrides = count is not None and "OVERRIDE" in map(token, operands[2 + count :])
    return counted_store(operands) if overrides else NON_IDEMPOTENT  # it adds to the destination
