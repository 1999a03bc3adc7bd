"""The reviewed list, first part: commands on data. Names in the order of the server's groups."""

from __future__ import annotations

from resilient_io.redis.commands import _blocking as blocking
from resilient_io.redis.commands import _collection_judges as collections
from resilient_io.redis.commands import _judges as judges
from resilient_io.redis.commands._judges import CONDITIONAL, IDEMPOTENT, NON_IDEMPOTENT, READ
from resilient_io.redis.commands._rows import Row
from resilient_io.redis.commands._spec import Route

DEDICATED = Route.DEDICATED

_MIXED = "computed from itself, it comes out differently the second time"
_STORES = "a read unless it stores; " + _MIXED
_POPS = "its reply is data that is gone from the server"
_MORE = "adds once more"
_COUNTS = "the reply tells what changed, and nothing changes the second time"
_UNCERTAIN_PAST = "in the past it deletes, and only the server's clock knows what is past"

ROWS = (
    # Strings and bits.
    Row(READ, "GET MGET GETRANGE SUBSTR STRLEN LCS STRALGO DIGEST"),
    Row(READ, "GETBIT BITCOUNT BITPOS BITFIELD_RO"),
    Row(
        NON_IDEMPOTENT,
        "SET",
        judge=judges.set_,
        reason="plain it overwrites; NX and IFEQ take our own success for another's; "
        "GET tells a value that is then lost",
    ),
    Row(NON_IDEMPOTENT, "MSETEX", judge=judges.msetex, reason="as SET"),
    Row(IDEMPOTENT, "MSET"),
    Row(IDEMPOTENT, "SETEX PSETEX", reason="the end of life moves by at most the deadline"),
    Row(IDEMPOTENT, "SETRANGE", reason="the same bytes at the same place, the same length"),
    Row(CONDITIONAL, "SETNX MSETNX", reason="our own success looks like a failure"),
    Row(CONDITIONAL, "SETBIT", reason="the bit stays, but the reply is the bit before"),
    Row(NON_IDEMPOTENT, "GETSET GETDEL", reason="the old value is lost"),
    Row(
        NON_IDEMPOTENT,
        "GETEX",
        judge=judges.getex,
        reason="a write; an end that may come before the repeat empties the second reply",
    ),
    Row(NON_IDEMPOTENT, "APPEND INCR INCRBY INCRBYFLOAT INCREX DECR DECRBY", reason=_MORE),
    Row(NON_IDEMPOTENT, "BITFIELD", judge=judges.bitfield, reason="SET replies the old value"),
    Row(NON_IDEMPOTENT, "BITOP", judge=judges.bitop, reason=_MIXED),
    # Keys.
    Row(READ, "EXISTS TYPE TTL PTTL EXPIRETIME PEXPIRETIME KEYS SCAN RANDOMKEY DUMP"),
    Row(READ, "OBJECT|ENCODING OBJECT|FREQ OBJECT|IDLETIME OBJECT|REFCOUNT OBJECT|HELP"),
    Row(READ, "TOUCH", reason="only the eviction clock of the keys moves"),
    Row(READ, "SORT_RO"),
    Row(CONDITIONAL, "DEL UNLINK DELEX DELIFEQ PERSIST", reason=_COUNTS),
    Row(
        NON_IDEMPOTENT,
        "EXPIRE PEXPIRE",
        judge=judges.expire,
        reason="the end moves by at most the deadline; a condition, or an end at once, holds once",
    ),
    Row(CONDITIONAL, "EXPIREAT PEXPIREAT", reason=_UNCERTAIN_PAST),
    Row(CONDITIONAL, "RENAME RENAMENX MOVE", reason="the second finds no source"),
    Row(NON_IDEMPOTENT, "COPY", judge=judges.copy, reason="without REPLACE the second is refused"),
    Row(NON_IDEMPOTENT, "RESTORE RESTORE-ASKING", judge=judges.restore, reason="as COPY"),
    Row(
        NON_IDEMPOTENT,
        "SORT",
        judge=collections.sort,
        reason=_STORES,
    ),
    # Lists.
    Row(READ, "LRANGE LINDEX LLEN LPOS"),
    Row(IDEMPOTENT, "LSET"),
    Row(
        NON_IDEMPOTENT,
        "LTRIM",
        judge=collections.ltrim,
        reason="1 -1 takes one off each time; 0 n and -n -1 keep what they kept",
    ),
    Row(
        NON_IDEMPOTENT,
        "LREM",
        judge=collections.lrem,
        reason="with a count it removes the next ones",
    ),
    Row(NON_IDEMPOTENT, "LPUSH LPUSHX RPUSH RPUSHX LINSERT", reason=_MORE),
    Row(NON_IDEMPOTENT, "LPOP RPOP LMPOP", reason=_POPS),
    Row(NON_IDEMPOTENT, "LMOVE LMOVEM RPOPLPUSH", reason="moves the next one"),
    Row(NON_IDEMPOTENT, "BLPOP BRPOP", route=DEDICATED, block=blocking.last, reason=_POPS),
    Row(NON_IDEMPOTENT, "BLMOVE BRPOPLPUSH", route=DEDICATED, block=blocking.last),
    Row(NON_IDEMPOTENT, "BLMOVEM", route=DEDICATED, block=blocking.fifth),
    Row(NON_IDEMPOTENT, "BLMPOP", route=DEDICATED, block=blocking.first, reason=_POPS),
    # Hashes.
    Row(READ, "HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN HRANDFIELD HSCAN"),
    Row(READ, "HTTL HPTTL HEXPIRETIME HPEXPIRETIME"),
    Row(IDEMPOTENT, "HMSET"),
    Row(CONDITIONAL, "HSET HDEL HSETNX HPERSIST", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "HSETEX", judge=judges.hsetex, reason="replies 1 or 0, as MSETEX"),
    Row(NON_IDEMPOTENT, "HGETEX", judge=judges.hgetex, reason="as GETEX"),
    Row(NON_IDEMPOTENT, "HEXPIRE HPEXPIRE", judge=judges.hexpire, reason="as EXPIRE"),
    Row(CONDITIONAL, "HEXPIREAT HPEXPIREAT", reason=_UNCERTAIN_PAST),
    Row(NON_IDEMPOTENT, "HINCRBY HINCRBYFLOAT", reason=_MORE),
    Row(NON_IDEMPOTENT, "HGETDEL", reason=_POPS),
    Row(
        IDEMPOTENT,
        "HIMPORT|SET",
        route=DEDICATED,
        reason="replaces the whole hash, by a field set that the connection has to know",
    ),
    Row(CONDITIONAL, "HIMPORT|PREPARE HIMPORT|DISCARD HIMPORT|DISCARDALL", route=DEDICATED),
    # Sets.
    Row(READ, "SMEMBERS SISMEMBER SMISMEMBER SCARD SRANDMEMBER SSCAN"),
    Row(READ, "SDIFF SINTER SUNION SDIFFCARD SINTERCARD SUNIONCARD"),
    Row(CONDITIONAL, "SADD SREM SMOVE", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "SPOP", reason=_POPS),
    Row(
        NON_IDEMPOTENT,
        "SDIFFSTORE SINTERSTORE SUNIONSTORE",
        judge=judges.into_one,
        reason=_MIXED,
    ),
    # Sorted and geo sets.
    Row(READ, "ZCARD ZCOUNT ZLEXCOUNT ZSCORE ZMSCORE ZRANK ZREVRANK ZRANDMEMBER ZSCAN"),
    Row(READ, "ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE"),
    Row(READ, "ZDIFF ZINTER ZUNION ZINTERCARD"),
    Row(NON_IDEMPOTENT, "ZADD", judge=collections.zadd, reason=_COUNTS + "; INCR adds"),
    Row(CONDITIONAL, "ZREM ZREMRANGEBYSCORE ZREMRANGEBYLEX", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "ZREMRANGEBYRANK", reason="the next ones have moved into the ranks"),
    Row(NON_IDEMPOTENT, "ZINCRBY", reason=_MORE),
    Row(NON_IDEMPOTENT, "ZPOPMIN ZPOPMAX ZMPOP", reason=_POPS),
    Row(NON_IDEMPOTENT, "BZPOPMIN BZPOPMAX", route=DEDICATED, block=blocking.last, reason=_POPS),
    Row(NON_IDEMPOTENT, "BZMPOP", route=DEDICATED, block=blocking.first, reason=_POPS),
    Row(
        NON_IDEMPOTENT,
        "ZDIFFSTORE ZINTERSTORE ZUNIONSTORE",
        judge=collections.counted_store,
        reason=_MIXED + ": a score went from 2 to 3",
    ),
    Row(
        NON_IDEMPOTENT,
        "ZRANGESTORE GEOSEARCHSTORE",
        judge=collections.range_store,
        reason=_MIXED,
    ),
    Row(READ, "GEODIST GEOHASH GEOPOS GEOSEARCH GEORADIUS_RO GEORADIUSBYMEMBER_RO"),
    Row(CONDITIONAL, "GEOADD", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "GEORADIUS", judge=collections.georadius, reason=_STORES),
    Row(NON_IDEMPOTENT, "GEORADIUSBYMEMBER", judge=collections.georadiusbymember, reason=_STORES),
    # HyperLogLog.
    Row(READ, "PFCOUNT", reason="it may refresh a cached count inside the value"),
    Row(CONDITIONAL, "PFADD", reason=_COUNTS),
    Row(IDEMPOTENT, "PFMERGE", reason="a union with what it already contains changes nothing"),
    Row(NON_IDEMPOTENT, "PFDEBUG", reason="some of its subcommands convert the value"),
    Row(READ, "PFSELFTEST"),
    # Streams.
    Row(READ, "XLEN XRANGE XREVRANGE XPENDING"),
    Row(READ, "XINFO|STREAM XINFO|GROUPS XINFO|CONSUMERS XINFO|HELP XGROUP|HELP"),
    Row(
        READ,
        "XREAD",
        route=DEDICATED,
        blocks_if=blocking.stream_read_blocks,
        block=blocking.stream_read,
        reason="with $ the place it waits at moves by at most the deadline",
    ),
    Row(
        NON_IDEMPOTENT,
        "XREADGROUP",
        judge=collections.xreadgroup,
        route=DEDICATED,
        blocks_if=blocking.stream_read_blocks,
        block=blocking.stream_read,
        reason="with > the records go to the pending list and the second reply is without them; "
        "with ids the same pending records are told again, and only their delivery count rises",
    ),
    Row(
        NON_IDEMPOTENT,
        "XADD",
        judge=collections.xadd,
        reason="with an id of its own the second is refused, and the truth can be asked for",
    ),
    Row(
        NON_IDEMPOTENT,
        "XTRIM",
        judge=collections.xtrim,
        reason="an exact trim ends where it ended; an approximate one goes on where it stopped",
    ),
    Row(CONDITIONAL, "XDEL XDELEX XACK XACKDEL", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "XNACK", reason="the delivery counter goes down each time"),
    Row(
        NON_IDEMPOTENT, "XCLAIM XAUTOCLAIM", reason="idle time is reset, the claimed not told again"
    ),
    Row(CONDITIONAL, "XGROUP|CREATE XGROUP|CREATECONSUMER XGROUP|DELCONSUMER XGROUP|DESTROY"),
    Row(
        NON_IDEMPOTENT,
        "XGROUP|SETID",
        judge=collections.xgroup_setid,
        reason="$ skips the records that came in between",
    ),
    Row(IDEMPOTENT, "XSETID XCFGSET"),
    # Arrays.
    Row(READ, "ARCOUNT ARGET ARGETRANGE ARGREP ARINFO ARLASTITEMS ARLEN ARMGET ARNEXT AROP ARSCAN"),
    Row(CONDITIONAL, "ARSET ARMSET ARDEL ARDELRANGE", reason=_COUNTS),
    Row(IDEMPOTENT, "ARSEEK"),
    Row(NON_IDEMPOTENT, "ARINSERT ARRING", reason=_MORE),
)
