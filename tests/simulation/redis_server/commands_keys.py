"""Commands on keys of any type, and on whole databases."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from .command import NOT_INTEGER, SYNTAX, Flag, Words, command, glob, integer
from .database import TYPE_NAMES, copy_value
from .resp import OK, Refused, Reply, Status

if TYPE_CHECKING:
    from .database import Database
    from .node import Session

READ = Flag.READONLY
WRITE = Flag.WRITE
GROW = Flag.WRITE | Flag.DENYOOM


@command("DEL", -2, WRITE)
@command("UNLINK", -2, WRITE)
def delete(session: Session, words: Words) -> Reply:
    return sum([session.database.remove(key) for key in words[1:]])


@command("EXISTS", -2, READ)
@command("TOUCH", -2, READ)
def exists(session: Session, words: Words) -> Reply:
    return sum([session.database.find(key) is not None for key in words[1:]])


def _expire(session: Session, words: Words, factor: int, *, absolute: bool) -> Reply:
    database = session.database
    key = words[1]
    amount = integer(words[2])
    options = {word.upper() for word in words[3:]}
    for word in words[3:]:
        if word.upper() not in (b"NX", b"XX", b"GT", b"LT"):
            raise Refused(f"ERR Unsupported option {word.decode(errors='replace')}")
    if b"NX" in options and len(options) > 1:
        raise Refused("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= options:
        raise Refused("ERR GT and LT options at the same time are not compatible")
    when = amount * factor + (0 if absolute else database.now())
    if not -(1 << 63) <= when < 1 << 63:
        name = words[0].decode().lower()
        raise Refused(f"ERR invalid expire time in '{name}' command")
    if database.find(key) is None:
        return 0
    old = database.expires.get(key)
    if (b"NX" in options and old is not None) or (b"XX" in options and old is None):
        return 0
    if b"GT" in options and (old is None or when <= old):
        return 0
    if b"LT" in options and old is not None and when >= old:
        return 0
    database.expire_at(key, when)
    return 1


@command("EXPIRE", -3, WRITE)
def expire(session: Session, words: Words) -> Reply:
    return _expire(session, words, 1000, absolute=False)


@command("PEXPIRE", -3, WRITE)
def pexpire(session: Session, words: Words) -> Reply:
    return _expire(session, words, 1, absolute=False)


@command("EXPIREAT", -3, WRITE)
def expireat(session: Session, words: Words) -> Reply:
    return _expire(session, words, 1000, absolute=True)


@command("PEXPIREAT", -3, WRITE)
def pexpireat(session: Session, words: Words) -> Reply:
    return _expire(session, words, 1, absolute=True)


def _left(session: Session, key: bytes, *, absolute: bool) -> int:
    database = session.database
    if database.find(key) is None:
        return -2
    when = database.expires.get(key)
    if when is None:
        return -1
    return when if absolute else when - database.now()


@command("PTTL", 2, READ)
def pttl(session: Session, words: Words) -> Reply:
    return _left(session, words[1], absolute=False)


@command("TTL", 2, READ)
def ttl(session: Session, words: Words) -> Reply:
    left = _left(session, words[1], absolute=False)
    return left if left < 0 else (left + 500) // 1000


@command("PEXPIRETIME", 2, READ)
def pexpiretime(session: Session, words: Words) -> Reply:
    return _left(session, words[1], absolute=True)


@command("EXPIRETIME", 2, READ)
def expiretime(session: Session, words: Words) -> Reply:
    when = _left(session, words[1], absolute=True)
    return when if when < 0 else (when + 500) // 1000


@command("PERSIST", 2, WRITE)
def persist(session: Session, words: Words) -> Reply:
    database = session.database
    if database.find(words[1]) is None or database.expires.pop(words[1], None) is None:
        return 0
    database.touch(words[1])
    return 1


@command("TYPE", 2, READ)
def type_(session: Session, words: Words) -> Reply:
    value = session.database.find(words[1])
    return Status(b"none" if value is None else TYPE_NAMES[type(value)])


def _rename(session: Session, words: Words, *, replace: bool) -> bool:
    database = session.database
    value = database.find(words[1])
    if value is None:
        raise Refused("ERR no such key")
    if not replace and database.find(words[2]) is not None:
        return False
    if words[1] != words[2]:
        when = database.expires.get(words[1])
        database.remove(words[1])
        database.put(words[2], value)
        if when is not None:
            database.expire_at(words[2], when)
    return True


@command("RENAME", 3, WRITE)
def rename(session: Session, words: Words) -> Reply:
    _rename(session, words, replace=True)
    return OK


@command("RENAMENX", 3, WRITE)
def renamenx(session: Session, words: Words) -> Reply:
    return int(_rename(session, words, replace=False))


@command("COPY", -3, GROW)
def copy(session: Session, words: Words) -> Reply:
    source = target = session.database
    replace = False
    at = 3
    while at < len(words):
        option = words[at].upper()
        if option == b"DB" and at + 1 < len(words):
            target = database_at(session, words[at + 1])
            at += 1
        elif option == b"REPLACE":
            replace = True
        else:
            raise Refused(SYNTAX)
        at += 1
    if source is target and words[1] == words[2]:
        raise Refused("ERR source and destination objects are the same")
    value = source.find(words[1])
    if value is None or (target.find(words[2]) is not None and not replace):
        return 0
    target.put(words[2], copy_value(value))
    if words[1] in source.expires:
        target.expire_at(words[2], source.expires[words[1]])
    return 1


def database_at(session: Session, word: bytes) -> Database:
    """Return the database with this index."""
    index = integer(word, NOT_INTEGER)
    if not 0 <= index < len(session.node.databases):
        raise Refused("ERR DB index is out of range")
    return session.node.databases[index]


@command("KEYS", 2, READ)
def keys(session: Session, words: Words) -> Reply:
    session.database.sweep()
    matches = glob(words[1]).fullmatch
    return [key for key in session.database.values if matches(key)]


@command("SCAN", -2, READ)
def scan(session: Session, words: Words) -> Reply:
    """Visit the keys in the order of their checksums: the cursor is the next checksum."""
    database = session.database
    try:
        cursor = int(words[1])
    except ValueError:
        raise Refused("ERR invalid cursor") from None
    options = scan_options(words[2:])
    database.sweep()
    order = sorted([(zlib.crc32(key), key) for key in database.values])
    found: list[bytes] = []
    count, following = 0, 0
    last = -1
    for checksum, key in order:
        if checksum < cursor:
            continue
        if count >= options.count and checksum != last:
            following = checksum
            break
        last = checksum
        count += 1
        name = TYPE_NAMES[type(database.values[key])]
        if options.accepts(key) and options.kind in (None, name):
            found.append(key)
    return [b"%d" % following, found]


class ScanOptions:
    """MATCH, COUNT and TYPE."""

    __slots__ = ("count", "kind", "pattern")

    def __init__(self) -> None:
        self.count = 10
        self.kind: bytes | None = None
        self.pattern: bytes | None = None

    def accepts(self, name: bytes) -> bool:
        """Return whether a name matches the pattern."""
        return self.pattern is None or glob(self.pattern).fullmatch(name) is not None


def scan_options(words: Words) -> ScanOptions:
    """Return the options of SCAN, HSCAN, SSCAN and ZSCAN."""
    options = ScanOptions()
    if len(words) % 2:
        raise Refused(SYNTAX)
    for at in range(0, len(words), 2):
        name = words[at].upper()
        if name == b"COUNT":
            options.count = integer(words[at + 1])
            if options.count < 1:
                raise Refused(SYNTAX)
        elif name == b"MATCH":
            options.pattern = words[at + 1]
        elif name == b"TYPE":
            options.kind = words[at + 1].lower()
        else:
            raise Refused(SYNTAX)
    return options


@command("DBSIZE", 1, READ)
def dbsize(session: Session, words: Words) -> Reply:
    session.database.sweep()
    return len(session.database.values)


@command("RANDOMKEY", 1, READ)
def randomkey(session: Session, words: Words) -> Reply:
    session.database.sweep()
    found = list(session.database.values)
    return session.node.random.choice(found) if found else None


def _check_flush(words: Words) -> None:
    if len(words) > 2 or (len(words) == 2 and words[1].upper() not in (b"ASYNC", b"SYNC")):
        raise Refused(SYNTAX)


@command("FLUSHDB", -1, WRITE)
def flushdb(session: Session, words: Words) -> Reply:
    _check_flush(words)
    count = session.database.clear()
    node = session.node
    node.history.event(node.name, "flushed", keys=count, database=session.database.index)
    return OK


@command("FLUSHALL", -1, WRITE)
def flushall(session: Session, words: Words) -> Reply:
    _check_flush(words)
    count = sum([database.clear() for database in session.node.databases])
    session.node.history.event(session.node.name, "flushed", keys=count)
    return OK
