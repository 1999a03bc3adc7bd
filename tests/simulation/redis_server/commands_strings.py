"""Commands on strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command import SYNTAX, Flag, Words, command, integer, number, wrong_arity
from .resp import OK, Refused, Reply, format_double

if TYPE_CHECKING:
    from .database import Database
    from .node import Session

READ = Flag.READONLY
WRITE = Flag.WRITE
GROW = Flag.WRITE | Flag.DENYOOM
OVERFLOW = "ERR increment or decrement would overflow"
EXPIRY_UNITS = {b"EX": (1000, False), b"PX": (1, False), b"EXAT": (1000, True), b"PXAT": (1, True)}


def expiry(database: Database, unit: bytes, word: bytes, name: str) -> int:
    """Return the Unix time in milliseconds of an option such as EX 10."""
    factor, absolute = EXPIRY_UNITS[unit]
    amount = integer(word)
    when = amount * factor + (0 if absolute else database.now())
    if amount <= 0 or when >= 1 << 63:
        raise Refused(f"ERR invalid expire time in '{name}' command")
    return when


@command("GET", 2, READ)
def get(session: Session, words: Words) -> Reply:
    return session.database.find_bytes(words[1])


@command("SET", -3, GROW)
def set_(session: Session, words: Words) -> Reply:
    database = session.database
    key = words[1]
    if len(words) == 3:
        database.put(key, words[2])
        return OK
    when = 0
    seen: set[bytes] = set()
    at = 3
    while at < len(words):
        option = words[at].upper()
        if option in EXPIRY_UNITS and at + 1 < len(words):
            if "expiry" in seen or b"KEEPTTL" in seen:
                raise Refused(SYNTAX)
            unit, amount = option, words[at + 1]
            seen.add("expiry")
            at += 1
        elif option in (b"NX", b"XX", b"GET", b"KEEPTTL"):
            seen.add(option)
        else:
            raise Refused(SYNTAX)
        at += 1
    if {b"NX", b"XX"} <= seen or {"expiry", b"KEEPTTL"} <= seen:
        raise Refused(SYNTAX)
    if "expiry" in seen:
        when = expiry(database, unit, amount, "set")
    old = database.find_bytes(key) if b"GET" in seen else None
    exists = database.find(key) is not None
    if (b"NX" in seen and exists) or (b"XX" in seen and not exists):
        return old
    database.put(key, words[2], keep_expiry=b"KEEPTTL" in seen)
    if when:
        database.expire_at(key, when)
    return old if b"GET" in seen else OK


@command("SETNX", 3, GROW)
def setnx(session: Session, words: Words) -> Reply:
    if session.database.find(words[1]) is not None:
        return 0
    session.database.put(words[1], words[2])
    return 1


@command("SETEX", 4, GROW)
def setex(session: Session, words: Words) -> Reply:
    return _set_for(session, words, b"EX", "setex")


@command("PSETEX", 4, GROW)
def psetex(session: Session, words: Words) -> Reply:
    return _set_for(session, words, b"PX", "psetex")


def _set_for(session: Session, words: Words, unit: bytes, name: str) -> Reply:
    when = expiry(session.database, unit, words[2], name)
    session.database.put(words[1], words[3])
    session.database.expire_at(words[1], when)
    return OK


@command("GETSET", 3, GROW)
def getset(session: Session, words: Words) -> Reply:
    old = session.database.find_bytes(words[1])
    session.database.put(words[1], words[2])
    return old


@command("GETDEL", 2, WRITE)
def getdel(session: Session, words: Words) -> Reply:
    old = session.database.find_bytes(words[1])
    if old is not None:
        session.database.remove(words[1])
    return old


@command("GETEX", -2, WRITE)
def getex(session: Session, words: Words) -> Reply:
    database = session.database
    option = words[2].upper() if len(words) > 2 else b""
    when = 0
    if not session.node.valkey and database.find_bytes(words[1]) is None:
        return None
    if option in EXPIRY_UNITS and len(words) == 4:
        when = expiry(database, option, words[3], "getex")
    elif len(words) > 3 or option not in (b"", b"PERSIST"):
        raise Refused(SYNTAX)
    old = database.find_bytes(words[1])
    if old is not None:
        if when:
            database.expire_at(words[1], when)
        elif option and database.expires.pop(words[1], None) is not None:
            database.touch(words[1])
    return old


@command("MGET", -2, READ)
def mget(session: Session, words: Words) -> Reply:
    values = [session.database.find(key) for key in words[1:]]
    return [value if type(value) is bytes else None for value in values]


@command("MSET", -3, GROW)
def mset(session: Session, words: Words) -> Reply:
    if len(words) % 2 == 0:
        raise Refused(wrong_arity("mset"))
    for at in range(1, len(words), 2):
        session.database.put(words[at], words[at + 1])
    return OK


@command("MSETNX", -3, GROW)
def msetnx(session: Session, words: Words) -> Reply:
    if len(words) % 2 == 0:
        raise Refused(wrong_arity("msetnx"))
    if any(session.database.find(key) is not None for key in words[1::2]):
        return 0
    mset(session, words)
    return 1


def _add(session: Session, key: bytes, amount: int) -> int:
    database = session.database
    value = database.find_bytes(key)
    total = amount + (0 if value is None else integer(value))
    if not -(1 << 63) <= total < 1 << 63:
        raise Refused(OVERFLOW)
    database.put(key, b"%d" % total, keep_expiry=True)
    return total


@command("INCR", 2, GROW)
def incr(session: Session, words: Words) -> Reply:
    return _add(session, words[1], 1)


@command("DECR", 2, GROW)
def decr(session: Session, words: Words) -> Reply:
    return _add(session, words[1], -1)


@command("INCRBY", 3, GROW)
def incrby(session: Session, words: Words) -> Reply:
    return _add(session, words[1], integer(words[2]))


@command("DECRBY", 3, GROW)
def decrby(session: Session, words: Words) -> Reply:
    amount = integer(words[2])
    if amount == -(1 << 63):
        raise Refused("ERR decrement would overflow")
    return _add(session, words[1], -amount)


@command("INCRBYFLOAT", 3, GROW)
def incrbyfloat(session: Session, words: Words) -> Reply:
    database = session.database
    value = database.find_bytes(words[1])
    total = number(words[2]) + (0.0 if value is None else number(value))
    if total in (float("inf"), float("-inf")):
        raise Refused("ERR increment would produce NaN or Infinity")
    text = format_double(total)
    database.put(words[1], text, keep_expiry=True)
    return text


@command("APPEND", 3, GROW)
def append(session: Session, words: Words) -> Reply:
    value = (session.database.find_bytes(words[1]) or b"") + words[2]
    session.database.put(words[1], value, keep_expiry=True)
    return len(value)


@command("STRLEN", 2, READ)
def strlen(session: Session, words: Words) -> Reply:
    return len(session.database.find_bytes(words[1]) or b"")


@command("SETRANGE", 4, GROW)
def setrange(session: Session, words: Words) -> Reply:
    offset = integer(words[2])
    if offset < 0:
        raise Refused("ERR offset is out of range")
    old = session.database.find_bytes(words[1])
    new = words[3]
    if not new:
        return len(old or b"")
    value = (old or b"").ljust(offset, b"\0")
    value = value[:offset] + new + value[offset + len(new) :]
    session.database.put(words[1], value, keep_expiry=True)
    return len(value)


@command("GETRANGE", 4, READ)
def getrange(session: Session, words: Words) -> Reply:
    first, last = integer(words[2]), integer(words[3])
    return bounded(session.database.find_bytes(words[1]) or b"", first, last)


def bounded(value: Reply, first: int, last: int) -> Reply:
    """Return the elements from `first` to `last`, where negative numbers count from the end."""
    size = len(value)
    first = max(0, first + size) if first < 0 else first
    last = last + size if last < 0 else last
    return value[first : last + 1] if last >= first else value[:0]
