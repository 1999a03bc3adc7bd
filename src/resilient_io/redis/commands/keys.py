"""Which operands of a command are keys.

A rule takes the operands (the arguments after the name) and returns the keys among them. It never
raises: operands that the server would refuse have no keys. Commands that are not listed here have
one key, their first operand. If that is wrong for an unknown command, the server says so (MOVED).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from .arguments import index_of, integer, text, token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    KeyRule: TypeAlias = "Callable[[Sequence[object]], Sequence[object]]"


def no_keys(_operands: Sequence[object]) -> Sequence[object]:
    """Return nothing: the command has no keys."""
    return ()


def first(operands: Sequence[object]) -> Sequence[object]:
    """Return the first operand, the only key of most commands."""
    return operands[:1]


def _at(*indexes: int) -> KeyRule:
    def keys(operands: Sequence[object]) -> Sequence[object]:
        return [operands[index] for index in indexes if index < len(operands)]

    return keys


def _from(start: int, *, without: int = 0, step: int = 1) -> KeyRule:
    """Return the rule for keys up to the end, without so many last operands."""

    def keys(operands: Sequence[object]) -> Sequence[object]:
        return operands[start : len(operands) - without : step]

    return keys


def _counted(at: int, *, also: tuple[int, ...] = (), step: int = 1) -> KeyRule:
    """Return the rule for keys after their number, and others at fixed places before it."""

    def keys(operands: Sequence[object]) -> Sequence[object]:
        number = integer(operands[at]) if at < len(operands) else None
        if number is None or number < 0:
            return ()
        end = at + 2 + (number - 1) * step  # after the last key, which may lack its value
        if end > len(operands):
            return ()
        return [*(operands[each] for each in also), *operands[at + 1 : end : step]]

    return keys


def _streams(operands: Sequence[object]) -> Sequence[object]:
    # A group, a consumer or a key may be called "streams".
    start = 3 if operands and token(operands[0]) == "GROUP" else 0
    names = operands[index_of(operands, "STREAMS", start) + 1 :]
    return names[: len(names) // 2]


def _sort(operands: Sequence[object]) -> Sequence[object]:
    keys = list(operands[:1])
    at = 1
    while at < len(operands):
        option = token(operands[at])
        if option == "STORE":
            keys = [*keys[:1], *operands[at + 1 : at + 2]]  # the last one counts
        at += {"LIMIT": 3, "STORE": 2, "GET": 2, "BY": 2}.get(option, 1)
    return keys


def _geo_store(start: int) -> KeyRule:
    def keys(operands: Sequence[object]) -> Sequence[object]:
        stored: Sequence[object] = ()
        for at in range(start, len(operands) - 1):
            if token(operands[at]) in ("STORE", "STOREDIST"):
                stored = operands[at + 1 : at + 2]
        return [*operands[:1], *stored]

    return keys


def _migrate(operands: Sequence[object]) -> Sequence[object]:
    if len(operands) > 2 and text(operands[2]):  # noqa: PLR2004 (host, port, key)
        return [operands[2]]
    return operands[index_of(operands, "KEYS", 5) + 1 :]


def _stralgo(operands: Sequence[object]) -> Sequence[object]:
    at = index_of(operands, "KEYS")
    return operands[at + 1 : at + 3]


_all, _second, _both = _from(0), _at(1), _at(0, 1)
_with_destination = _counted(1, also=(0,))

_RULES: tuple[tuple[KeyRule, str], ...] = (
    (_all, "DEL EXISTS MGET PFCOUNT PFMERGE TOUCH UNLINK WATCH SSUBSCRIBE SUNSUBSCRIBE"),
    (_all, "SDIFF SINTER SUNION SDIFFSTORE SINTERSTORE SUNIONSTORE"),
    (_from(0, step=2), "MSET MSETNX"),
    (_from(0, step=3), "JSON.MSET TS.MADD"),
    (_from(0, without=1), "BLPOP BRPOP BZPOPMAX BZPOPMIN JSON.MGET"),
    (_from(1), "BITOP"),
    (_both, "BLMOVE BLMOVEM BRPOPLPUSH COPY GEOSEARCHSTORE LCS LMOVE LMOVEM RENAME RENAMENX"),
    (_both, "RPOPLPUSH SMOVE TS.CREATERULE TS.DELETERULE ZRANGESTORE"),
    (_second, "JSON.DEBUG PFDEBUG"),
    (_counted(0), "LMPOP SDIFFCARD SINTERCARD SUNIONCARD TS.NRANGE TS.NREVRANGE"),
    (_counted(0), "ZDIFF ZINTER ZINTERCARD ZMPOP ZUNION"),
    (_counted(0, step=2), "MSETEX"),
    (_counted(1), "BLMPOP BZMPOP EVAL EVAL_RO EVALSHA EVALSHA_RO FCALL FCALL_RO"),
    (_with_destination, "CMS.MERGE TDIGEST.MERGE ZDIFFSTORE ZINTERSTORE ZUNIONSTORE"),
    (_streams, "XREAD XREADGROUP"),
    (_sort, "SORT"),
    (_geo_store(5), "GEORADIUS"),
    (_geo_store(4), "GEORADIUSBYMEMBER"),
    (_migrate, "MIGRATE"),
    (_stralgo, "STRALGO"),
    (first, "MEMORY|USAGE HIMPORT|SET FT.SUGADD FT.SUGDEL FT.SUGGET FT.SUGLEN"),
    (first, "OBJECT|ENCODING OBJECT|FREQ OBJECT|IDLETIME OBJECT|REFCOUNT"),
    (no_keys, "OBJECT|HELP XGROUP|HELP XINFO|HELP"),
    # Of a container, all subcommands that are not listed.
    (
        no_keys,
        "ACL ASKING AUTH BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND COMMANDLOG CONFIG DBSIZE",
    ),
    (no_keys, "DEBUG DISCARD ECHO EXEC FAILOVER FLUSHALL FLUSHDB FUNCTION HELLO HIMPORT HOTKEYS"),
    (no_keys, "INFO KEYS LASTSAVE LATENCY LOLWUT MEMORY MODULE MONITOR MULTI PFSELFTEST PING"),
    (no_keys, "PSUBSCRIBE PSYNC PUBLISH PUBSUB PUNSUBSCRIBE QUIT RANDOMKEY READONLY READWRITE"),
    (no_keys, "REPLCONF REPLICAOF RESET ROLE SAVE SCAN SCRIPT SELECT SENTINEL SHUTDOWN SLAVEOF"),
    (no_keys, "SLOWLOG SUBSCRIBE SWAPDB SYNC TIME UNSUBSCRIBE UNWATCH WAIT WAITAOF"),
    # An index, an alias or a dictionary does not count as a key.
    (no_keys, "FT.ADD FT.ADDHASH FT.AGGREGATE FT.ALIASADD FT.ALIASDEL FT.ALIASLIST FT.ALIASUPDATE"),
    (no_keys, "FT.ALTER FT.CONFIG FT.CREATE FT.CURSOR FT.DEL FT.DICTADD FT.DICTDEL FT.DICTDUMP"),
    (no_keys, "FT.DROP FT.DROPINDEX FT.EXPLAIN FT.EXPLAINCLI FT.GET FT.HYBRID FT.INFO FT.MGET"),
    (no_keys, "FT.PROFILE FT.SEARCH FT.SPELLCHECK FT.SYNADD FT.SYNDUMP FT.SYNUPDATE FT.TAGVALS"),
    (no_keys, "FT._LIST TS.MGET TS.MRANGE TS.MREVRANGE TS.QUERYINDEX TS.QUERYLABELS"),
)

_RULE_OF = {name.replace("|", " "): rule for rule, names in _RULES for name in names.split()}


def rule_of(name: str) -> KeyRule:
    """Return the rule of a command, in capitals: `"GET"`, `"MEMORY USAGE"`."""
    rule = _RULE_OF.get(name) or _RULE_OF.get(name.partition(" ")[0])
    return first if rule is None else rule
