"""What executing a command twice does. Small and fixed: independent of the library's own table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Words = Sequence[str]

READ, IDEMPOTENT, CONDITIONAL, NON_IDEMPOTENT = range(4)

PERMITTED = {
    "read": READ,
    "idempotent": IDEMPOTENT,
    "conditional": CONDITIONAL,
    "any": NON_IDEMPOTENT,
}
"""The worst effect that each `repeat` of a policy permits to repeat."""

READS = frozenset((
    "DBSIZE", "ECHO", "EVALSHA_RO", "EVAL_RO", "EXISTS", "GET", "GETRANGE", "HEXISTS", "HGET",
    "HGETALL", "HKEYS", "HLEN", "HMGET", "HVALS", "LINDEX", "LLEN", "LPOS", "LRANGE", "MGET",
    "PING", "PTTL", "SCARD", "SISMEMBER", "SMEMBERS", "STRLEN", "TIME", "TTL", "TYPE",
    "UNWATCH", "WATCH", "XLEN", "XRANGE", "XREAD", "XREVRANGE", "ZCARD", "ZRANGE", "ZSCORE",
))  # fmt: skip
OVERWRITES = frozenset((
    "SET", "MSET", "SETEX", "PSETEX", "LSET", "SETRANGE",
))  # fmt: skip
_CONDITIONAL = frozenset((
    "DEL", "UNLINK", "SADD", "SREM", "HSET", "HDEL", "HSETNX", "SETNX", "MSETNX", "ZADD",
    "ZREM", "XACK", "PERSIST", "RENAME", "SMOVE",
))  # fmt: skip
SCRIPTS = frozenset((
    "EVAL", "EVALSHA", "FCALL",
))  # fmt: skip
"""Commands whose error reply proves nothing: a part of the script may have been applied."""

BLOCKING = frozenset((
    "BLPOP", "BRPOP", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "XREAD", "XREADGROUP",
))  # fmt: skip
POPS = frozenset((
    "BLPOP", "BRPOP", "LPOP", "RPOP", "BZPOPMIN", "BZPOPMAX", "ZPOPMIN", "ZPOPMAX",
))  # fmt: skip
PUSHES = frozenset((
    "LPUSH", "RPUSH", "ZADD",
))  # fmt: skip
UNDO = {"BLPOP": "LPUSH", "BRPOP": "RPUSH", "BZPOPMIN": "ZADD", "BZPOPMAX": "ZADD"}
"""The pops whose element is put back after a cancellation, and the command that does it."""


def effect_of(words: Words) -> int:
    """Return what a second execution of one command would do."""
    name = words[0]
    if name in READS:
        return READ
    if name == "SET":
        options = {word.upper() for word in words[3:]}
        if options & {"GET", "IFEQ"}:
            return NON_IDEMPOTENT
        return CONDITIONAL if options & {"NX", "XX"} else IDEMPOTENT
    if name == "ZADD" and "INCR" in words:
        return NON_IDEMPOTENT
    if name in OVERWRITES:
        return IDEMPOTENT
    return CONDITIONAL if name in _CONDITIONAL else NON_IDEMPOTENT


def effect_of_batch(commands: Sequence[Words]) -> int:
    """Return what a second execution of several commands would do. Mixtures are the worst."""
    if len(commands) == 1:
        return effect_of(commands[0])
    effects = {effect_of(words) for words in commands}
    if effects <= {READ}:
        return READ
    if effects == {IDEMPOTENT}:
        return IDEMPOTENT
    return NON_IDEMPOTENT
