"""Commands on hashes, sets and sorted sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command import (
    SYNTAX,
    Flag,
    Words,
    command,
    integer,
    not_negative,
    number,
    timeout_seconds,
    wrong_arity,
)
from .commands_keys import scan_options
from .commands_strings import bounded
from .database import ScoreValue, SetValue
from .resp import NULL_ARRAY, OK, PENDING, Members, Refused, Reply, format_double

if TYPE_CHECKING:
    from .database import Database
    from .node import Session

READ = Flag.READONLY
WRITE = Flag.WRITE
GROW = Flag.WRITE | Flag.DENYOOM


@command("HSET", -4, GROW)
def hset(session: Session, words: Words) -> Reply:
    if len(words) % 2:
        raise Refused(wrong_arity(words[0].decode()))
    fields = session.database.make_kind(words[1], dict)
    before = len(fields)
    for at in range(2, len(words), 2):
        fields[words[at]] = words[at + 1]
    session.database.touch(words[1])
    return len(fields) - before


@command("HMSET", -4, GROW)
def hmset(session: Session, words: Words) -> Reply:
    hset(session, words)
    return OK


@command("HSETNX", 4, GROW)
def hsetnx(session: Session, words: Words) -> Reply:
    fields = session.database.find_kind(words[1], dict)
    if fields is not None and words[2] in fields:
        return 0
    return hset(session, words)


def _fields(session: Session, key: bytes) -> dict[bytes, bytes]:
    return session.database.find_kind(key, dict) or {}


@command("HGET", 3, READ)
def hget(session: Session, words: Words) -> Reply:
    return _fields(session, words[1]).get(words[2])


@command("HMGET", -3, READ)
def hmget(session: Session, words: Words) -> Reply:
    fields = _fields(session, words[1])
    return [fields.get(name) for name in words[2:]]


@command("HGETALL", 2, READ)
def hgetall(session: Session, words: Words) -> Reply:
    return dict(_fields(session, words[1]))


@command("HDEL", -3, WRITE)
def hdel(session: Session, words: Words) -> Reply:
    fields = session.database.find_kind(words[1], dict)
    if fields is None:
        return 0
    count = sum([fields.pop(name, None) is not None for name in words[2:]])
    if count:
        session.database.changed(words[1], fields)
    return count


@command("HEXISTS", 3, READ)
def hexists(session: Session, words: Words) -> Reply:
    return int(words[2] in _fields(session, words[1]))


@command("HINCRBY", 4, GROW)
def hincrby(session: Session, words: Words) -> Reply:
    amount = integer(words[3])
    fields = _fields(session, words[1])
    total = integer(fields.get(words[2], b"0"), "ERR hash value is not an integer") + amount
    if not -(1 << 63) <= total < 1 << 63:
        raise Refused("ERR increment or decrement would overflow")
    session.database.make_kind(words[1], dict)[words[2]] = b"%d" % total
    session.database.touch(words[1])
    return total


@command("HLEN", 2, READ)
def hlen(session: Session, words: Words) -> Reply:
    return len(_fields(session, words[1]))


@command("HKEYS", 2, READ)
def hkeys(session: Session, words: Words) -> Reply:
    return list(_fields(session, words[1]))


@command("HVALS", 2, READ)
def hvals(session: Session, words: Words) -> Reply:
    return list(_fields(session, words[1]).values())


@command("HSCAN", -3, READ)
def hscan(session: Session, words: Words) -> Reply:
    options = scan_options(words[3:])
    found = _fields(session, words[1]).items()
    return [b"0", [part for pair in found if options.accepts(pair[0]) for part in pair]]


# Sets.


@command("SADD", -3, GROW)
def sadd(session: Session, words: Words) -> Reply:
    members = session.database.make_kind(words[1], SetValue)
    before = len(members)
    for member in words[2:]:
        members.setdefault(member)
    added = len(members) - before
    if added:
        session.database.touch(words[1])
    return added


@command("SREM", -3, WRITE)
def srem(session: Session, words: Words) -> Reply:
    return _remove(session, words, SetValue)


def _remove(session: Session, words: Words, kind: type) -> int:
    members = session.database.find_kind(words[1], kind)
    if members is None:
        return 0
    before = len(members)
    for member in words[2:]:
        members.pop(member, None)
    removed = before - len(members)
    if removed:
        session.database.changed(words[1], members)
    return removed


def _members(session: Session, key: bytes) -> SetValue:
    return session.database.find_kind(key, SetValue) or SetValue()


@command("SMEMBERS", 2, READ)
def smembers(session: Session, words: Words) -> Reply:
    return Members(_members(session, words[1]))


@command("SISMEMBER", 3, READ)
def sismember(session: Session, words: Words) -> Reply:
    return int(words[2] in _members(session, words[1]))


@command("SMISMEMBER", -3, READ)
def smismember(session: Session, words: Words) -> Reply:
    members = _members(session, words[1])
    return [int(member in members) for member in words[2:]]


@command("SCARD", 2, READ)
def scard(session: Session, words: Words) -> Reply:
    return len(_members(session, words[1]))


@command("SPOP", -2, WRITE)
def spop(session: Session, words: Words) -> Reply:
    if len(words) > 3:
        raise Refused(SYNTAX)
    count = not_negative(words[2]) if len(words) == 3 else None
    members = session.database.find_kind(words[1], SetValue)
    if members is None:
        return None if count is None else Members()
    chosen = session.node.random.sample(
        list(members), min(len(members), count or 0 if count is not None else 1)
    )
    for member in chosen:
        del members[member]
    if chosen:
        session.database.changed(words[1], members)
    return chosen[0] if count is None else Members(chosen)


@command("SSCAN", -3, READ)
def sscan(session: Session, words: Words) -> Reply:
    options = scan_options(words[3:])
    return [b"0", [member for member in _members(session, words[1]) if options.accepts(member)]]


# Sorted sets.


def _scores(session: Session, key: bytes) -> ScoreValue:
    return session.database.find_kind(key, ScoreValue) or ScoreValue()


@command("ZADD", -4, GROW)
def zadd(session: Session, words: Words) -> Reply:
    options: set[bytes] = set()
    at = 2
    while at < len(words) and words[at].upper() in (b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR"):
        options.add(words[at].upper())
        at += 1
    pairs = words[at:]
    if not pairs or len(pairs) % 2:
        raise Refused(SYNTAX)
    if {b"NX", b"XX"} <= options:
        raise Refused("ERR XX and NX options at the same time are not compatible")
    if len(options & {b"NX", b"GT", b"LT"}) > 1:
        raise Refused("ERR GT, LT, and/or NX options at the same time are not compatible")
    if b"INCR" in options and len(pairs) > 2:
        raise Refused("ERR INCR option supports a single increment-element pair")
    new = [(pairs[i + 1], number(pairs[i])) for i in range(0, len(pairs), 2)]
    scores = _scores(session, words[1])
    added = changed = 0
    result: float | None = None
    for member, given in new:
        old = scores.get(member)
        score = given + (old or 0.0) if b"INCR" in options else given
        if (b"NX" in options and old is not None) or (b"XX" in options and old is None):
            continue
        if old is not None and (
            (b"GT" in options and score <= old) or (b"LT" in options and score >= old)
        ):
            continue
        result = score
        if old != score:
            scores = session.database.make_kind(words[1], ScoreValue)
            scores[member] = score
            added += old is None
            changed += 1
    if changed:
        session.database.touch(words[1])
    if b"INCR" in options:
        return result
    return changed if b"CH" in options else added


@command("ZINCRBY", 4, GROW)
def zincrby(session: Session, words: Words) -> Reply:
    return zadd(session, (b"ZADD", words[1], b"INCR", words[2], words[3]))


def _pairs(session: Session, found: list[tuple[bytes, float]]) -> Reply:
    if session.protocol == 3:
        return [[member, score] for member, score in found]
    return [part for pair in found for part in pair]


@command("ZRANGE", -4, READ)
def zrange(session: Session, words: Words) -> Reply:
    options = {word.upper() for word in words[4:]}
    if not options <= {b"WITHSCORES", b"REV"}:
        raise Refused("ERR BYSCORE, BYLEX and LIMIT of ZRANGE are not simulated")
    found = _scores(session, words[1]).ordered()
    if b"REV" in options:
        found.reverse()
    found = bounded(found, integer(words[2]), integer(words[3]))
    if b"WITHSCORES" in options:
        return _pairs(session, found)
    return [member for member, _ in found]


@command("ZSCORE", 3, READ)
def zscore(session: Session, words: Words) -> Reply:
    return _scores(session, words[1]).get(words[2])


@command("ZREM", -3, WRITE)
def zrem(session: Session, words: Words) -> Reply:
    return _remove(session, words, ScoreValue)


@command("ZCARD", 2, READ)
def zcard(session: Session, words: Words) -> Reply:
    return len(_scores(session, words[1]))


def _pop_lowest(database: Database, key: bytes, count: int) -> list[tuple[bytes, float]]:
    scores = database.find_kind(key, ScoreValue)
    if scores is None:
        return []
    found = scores.ordered()[:count]
    for member, _ in found:
        del scores[member]
    if found:
        database.changed(key, scores)
    return found


@command("ZPOPMIN", -2, WRITE)
def zpopmin(session: Session, words: Words) -> Reply:
    if len(words) > 3:
        raise Refused(wrong_arity("zpopmin"))
    count = not_negative(words[2]) if len(words) == 3 else None
    found = _pop_lowest(session.database, words[1], 1 if count is None else count)
    if count is None:
        return [part for pair in found for part in pair]
    return _pairs(session, found)


@command("BZPOPMIN", -3, WRITE | Flag.NOSCRIPT)
def bzpopmin(session: Session, words: Words) -> Reply:
    seconds = timeout_seconds(session, words[-1])
    database = session.database
    keys = words[1:-1]

    def attempt() -> Reply:
        for key in session.candidates(keys):
            for member, score in _pop_lowest(database, key, 1):
                return [key, member, score]
        return PENDING

    return session.block(attempt, seconds, NULL_ARRAY, keys)


@command("ZSCAN", -3, READ)
def zscan(session: Session, words: Words) -> Reply:
    options = scan_options(words[3:])
    found = [pair for pair in _scores(session, words[1]).ordered() if options.accepts(pair[0])]
    return [b"0", [part for member, score in found for part in (member, format_double(score))]]
