"""Commands on lists, also the blocking ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command import SYNTAX, Flag, Words, command, integer, not_negative, timeout_seconds
from .commands_strings import bounded
from .resp import NULL_ARRAY, OK, PENDING, Refused, Reply

if TYPE_CHECKING:
    from .database import Database
    from .node import Session

READ = Flag.READONLY
WRITE = Flag.WRITE
GROW = Flag.WRITE | Flag.DENYOOM
BLOCKING = Flag.WRITE | Flag.NOSCRIPT


def _side(word: bytes) -> bool:
    """Return whether the word is LEFT; False for RIGHT."""
    side = word.upper()
    if side not in (b"LEFT", b"RIGHT"):
        raise Refused(SYNTAX)
    return side == b"LEFT"


def _push(session: Session, words: Words, *, left: bool, create: bool = True) -> Reply:
    database = session.database
    key = words[1]
    values = database.find_list(key)
    if values is None:
        if not create:
            return 0
        values = database.make_kind(key, list)
    if left:
        values[:0] = words[:1:-1]
    else:
        values += words[2:]
    database.touch(key)
    return len(values)


@command("LPUSH", -3, GROW)
def lpush(session: Session, words: Words) -> Reply:
    return _push(session, words, left=True)


@command("RPUSH", -3, GROW)
def rpush(session: Session, words: Words) -> Reply:
    return _push(session, words, left=False)


@command("LPUSHX", -3, GROW)
def lpushx(session: Session, words: Words) -> Reply:
    return _push(session, words, left=True, create=False)


@command("RPUSHX", -3, GROW)
def rpushx(session: Session, words: Words) -> Reply:
    return _push(session, words, left=False, create=False)


def take(database: Database, key: bytes, values: list[bytes], *, left: bool) -> bytes:
    """Remove and return the first or last element of a list that is not empty."""
    element = values.pop(0 if left else -1)
    database.changed(key, values)
    return element


def take_many(
    database: Database, key: bytes, values: list[bytes], count: int, *, left: bool
) -> list[bytes]:
    """Remove and return up to `count` elements."""
    taken = values[:count] if left else values[: -count - 1 : -1]
    if left:
        del values[:count]
    else:
        del values[max(0, len(values) - count) :]
    if taken:
        database.changed(key, values)
    return taken


def _pop(session: Session, words: Words, *, left: bool) -> Reply:
    if len(words) > 3:
        name = words[0].decode().lower()
        raise Refused(f"ERR wrong number of arguments for '{name}' command")
    count = not_negative(words[2]) if len(words) == 3 else None
    values = session.database.find_list(words[1])
    if values is None:
        return None if count is None else NULL_ARRAY
    if count is None:
        return take(session.database, words[1], values, left=left)
    return take_many(session.database, words[1], values, count, left=left)


@command("LPOP", -2, WRITE)
def lpop(session: Session, words: Words) -> Reply:
    return _pop(session, words, left=True)


@command("RPOP", -2, WRITE)
def rpop(session: Session, words: Words) -> Reply:
    return _pop(session, words, left=False)


@command("LLEN", 2, READ)
def llen(session: Session, words: Words) -> Reply:
    return len(session.database.find_list(words[1]) or ())


@command("LRANGE", 4, READ)
def lrange(session: Session, words: Words) -> Reply:
    first, last = integer(words[2]), integer(words[3])
    return bounded(session.database.find_list(words[1]) or [], first, last)


@command("LINDEX", 3, READ)
def lindex(session: Session, words: Words) -> Reply:
    index = integer(words[2])
    values = session.database.find_list(words[1]) or []
    return values[index] if -len(values) <= index < len(values) else None


@command("LSET", 4, GROW)
def lset(session: Session, words: Words) -> Reply:
    values = session.database.find_list(words[1])
    if values is None:
        raise Refused("ERR no such key")
    index = integer(words[2])
    if not -len(values) <= index < len(values):
        raise Refused("ERR index out of range")
    values[index] = words[3]
    session.database.touch(words[1])
    return OK


@command("LREM", 4, WRITE)
def lrem(session: Session, words: Words) -> Reply:
    count = integer(words[2])
    values = session.database.find_list(words[1])
    if values is None:
        return 0
    places = [at for at, value in enumerate(values) if value == words[3]]
    if count > 0:
        places = places[:count]
    elif count < 0:
        places = places[count:]
    for at in reversed(places):
        del values[at]
    if places:
        session.database.changed(words[1], values)
    return len(places)


@command("LTRIM", 4, WRITE)
def ltrim(session: Session, words: Words) -> Reply:
    first, last = integer(words[2]), integer(words[3])
    values = session.database.find_list(words[1])
    if values is not None:
        kept = bounded(values, first, last)
        if len(kept) < len(values) or not session.node.valkey:
            values[:] = kept
            session.database.changed(words[1], values)
    return OK


@command("LINSERT", 5, GROW)
def linsert(session: Session, words: Words) -> Reply:
    where = words[2].upper()
    if where not in (b"BEFORE", b"AFTER"):
        raise Refused(SYNTAX)
    values = session.database.find_list(words[1])
    if values is None:
        return 0
    if words[3] not in values:
        return -1
    values.insert(values.index(words[3]) + (where == b"AFTER"), words[4])
    session.database.touch(words[1])
    return len(values)


@command("LPOS", -3, READ)
def lpos(session: Session, words: Words) -> Reply:
    rank, count, longest = 1, None, 0
    if len(words) % 2 == 0:
        raise Refused(SYNTAX)
    for at in range(3, len(words), 2):
        option = words[at].upper()
        if option == b"RANK":
            rank = integer(words[at + 1])
            if rank == 0:
                raise Refused(
                    "ERR RANK can't be zero: use 1 to start from the first match, "
                    "2 from the second ... or use negative to start from the end of the list"
                )
        elif option in (b"COUNT", b"MAXLEN"):
            amount = integer(words[at + 1])
            if amount < 0:
                raise Refused(f"ERR {option.decode()} can't be negative")
            if option == b"COUNT":
                count = amount
            else:
                longest = amount
        else:
            raise Refused(SYNTAX)
    values = session.database.find_list(words[1]) or []
    order = range(len(values)) if rank > 0 else range(len(values) - 1, -1, -1)
    compared = order[:longest] if longest else order
    found = [at for at in compared if values[at] == words[2]][abs(rank) - 1 :]
    if count is None:
        return found[0] if found else None
    return found[:count] if count else found


def move(
    database: Database, source: bytes, target: bytes, *, left: bool, to_left: bool
) -> bytes | None:
    """Move an element; return it, or None if the source does not exist."""
    values = database.find_list(source)
    if values is None:
        return None
    database.find_list(target)
    element = values.pop(0 if left else -1)
    others = values if source == target else database.make_kind(target, list)
    others.insert(0 if to_left else len(others), element)
    database.touch(target)
    if source != target:
        database.changed(source, values)
    return element


@command("LMOVE", 5, GROW)
def lmove(session: Session, words: Words) -> Reply:
    left, to_left = _side(words[3]), _side(words[4])
    return move(session.database, words[1], words[2], left=left, to_left=to_left)


@command("RPOPLPUSH", 3, GROW)
def rpoplpush(session: Session, words: Words) -> Reply:
    return move(session.database, words[1], words[2], left=False, to_left=True)


def _blocking_pop(session: Session, words: Words, *, left: bool) -> Reply:
    seconds = timeout_seconds(session, words[-1])
    database = session.database
    keys = words[1:-1]

    def attempt() -> Reply:
        for key in session.candidates(keys):
            values = database.find_list(key)
            if values is not None:
                return [key, take(database, key, values, left=left)]
        return PENDING

    return session.block(attempt, seconds, NULL_ARRAY, keys)


@command("BLPOP", -3, BLOCKING)
def blpop(session: Session, words: Words) -> Reply:
    return _blocking_pop(session, words, left=True)


@command("BRPOP", -3, BLOCKING)
def brpop(session: Session, words: Words) -> Reply:
    return _blocking_pop(session, words, left=False)


def _blocking_move(
    session: Session, words: Words, seconds: float, *, left: bool, to_left: bool
) -> Reply:
    database = session.database
    source, target = words[1], words[2]

    def attempt() -> Reply:
        # A source of another type does not concern a caller that waits already.
        if session.waiting is not None and type(database.find(source)) is not list:
            return PENDING
        element = move(database, source, target, left=left, to_left=to_left)
        return PENDING if element is None else element

    if session.executing:
        return move(database, source, target, left=left, to_left=to_left)
    return session.block(attempt, seconds, NULL_ARRAY, (source,), strict=True)


@command("BLMOVE", 6, BLOCKING | GROW)
def blmove(session: Session, words: Words) -> Reply:
    left, to_left = _side(words[3]), _side(words[4])
    seconds = timeout_seconds(session, words[5])
    return _blocking_move(session, words, seconds, left=left, to_left=to_left)


@command("BRPOPLPUSH", 4, BLOCKING | GROW)
def brpoplpush(session: Session, words: Words) -> Reply:
    seconds = timeout_seconds(session, words[3])
    return _blocking_move(session, words, seconds, left=False, to_left=True)


def _several(words: Words) -> tuple[Words, bool, int]:
    """Return keys, whether to pop on the left, and the count of [B]LMPOP after the timeout."""
    size = integer(words[0], "ERR numkeys should be greater than 0")
    if size <= 0:
        raise Refused("ERR numkeys should be greater than 0")
    rest = words[1 + size :]
    if not rest:
        raise Refused(SYNTAX)
    left = _side(rest[0])
    count = 1
    if len(rest) == 3 and rest[1].upper() == b"COUNT":
        count = integer(rest[2], "ERR count should be greater than 0")
        if count <= 0:
            raise Refused("ERR count should be greater than 0")
    elif len(rest) > 1:
        raise Refused(SYNTAX)
    return words[1 : 1 + size], left, count


def _pop_first(database: Database, keys: Words, count: int, *, left: bool) -> Reply:
    for key in keys:
        values = database.find_list(key)
        if values is not None:
            return [key, take_many(database, key, values, count, left=left)]
    return PENDING


@command("LMPOP", -4, WRITE)
def lmpop(session: Session, words: Words) -> Reply:
    keys, left, count = _several(words[1:])
    reply = _pop_first(session.database, keys, count, left=left)
    return NULL_ARRAY if reply is PENDING else reply


@command("BLMPOP", -5, WRITE)
def blmpop(session: Session, words: Words) -> Reply:
    seconds = timeout_seconds(session, words[1])
    keys, left, count = _several(words[2:])
    database = session.database

    def attempt() -> Reply:
        return _pop_first(database, session.candidates(keys), count, left=left)

    return session.block(attempt, seconds, NULL_ARRAY, keys)
