"""The command table: one row for each command of Redis, Valkey and redis-py, with reasons.

Names are in the order of the server's groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import arguments, effects
from .effects import CONDITIONAL, DANGEROUS, IDEMPOTENT, NON_IDEMPOTENT, READ
from .spec import Effect, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    ResolveEffect = Callable[[Sequence[object]], Effect]
    BlockTime = Callable[[Sequence[object]], float | None]
    Condition = Callable[[Sequence[object]], bool]

BOUND, EXCLUSIVE, REFUSED = Route.BOUND, Route.EXCLUSIVE, Route.REFUSED


@dataclass(frozen=True, slots=True)
class Row:
    """The reviewed properties of one or more commands.

    Attributes:
        effect: Their effect, or the worst result of `resolve`.
        names: The commands, separated by spaces, with a bar before a subcommand: `CONFIG|GET`.
        resolve: Returns the effect from the operands.
        route: The kind of connection that carries them.
        blocks_if: If set, `route` and `block` apply only if it is true for the operands. Otherwise
            the command is multiplexed.
        block: Returns the block time from the operands.
        advice: What to use instead of a refused command.
        reason: Why, if the row is surprising.
    """

    effect: Effect
    names: str
    resolve: ResolveEffect | None = None
    route: Route = Route.MULTIPLEXED
    blocks_if: Condition | None = None
    block: BlockTime | None = None
    advice: str = ""
    reason: str = ""


_MIXED = "a destination among the sources gives another result the second time"
_STORES = "a read unless it stores; " + _MIXED
_POPS = "the reply is data that the server has deleted"
_MORE = "a repeat adds again"
_COUNTS = "the reply says what changed, and nothing changes the second time"
_UNCERTAIN_PAST = "a time in the past deletes the key, and only the server's clock decides"
_RUNS_CODE = "only its author knows what it does"
_OWN_CONNECTION = "Use `client()` to get a separate connection."
_TRANSACTION = "Use `pipeline(transaction=True)`, or `transaction()`."
_CREDENTIALS = "Use the constructor's `username=`, `password=` or `credential_provider=`."
_PUBSUB = "Use `pubsub()`."
_REPLICATION = "It starts the replication protocol; use a replication tool on a plain socket."
_CLUSTER_CLIENT = "Use a cluster client, or `client()` to get a separate connection."
_HAND_OVER = "a repeat reverts decisions that were made since"
_WIPES = "a repeat hits a server that was refilled"
_HITS_ANOTHER = "a repeat hits another script or function than the first"
_PATHS = "a path with wildcards or filters may match more or other places the second time"

_DATA = (
    # Strings and bits.
    Row(READ, "GET MGET GETRANGE SUBSTR STRLEN LCS STRALGO DIGEST"),
    Row(READ, "GETBIT BITCOUNT BITPOS BITFIELD_RO"),
    Row(
        NON_IDEMPOTENT,
        "SET",
        resolve=effects.set_,
        reason="a plain SET overwrites; a repeated NX or IFEQ sees its own success as another's; "
        "GET returns a value that is then lost",
    ),
    Row(NON_IDEMPOTENT, "MSETEX", resolve=effects.msetex, reason="as SET"),
    Row(IDEMPOTENT, "MSET"),
    Row(IDEMPOTENT, "SETEX PSETEX", reason="the expiry time moves by at most the deadline"),
    Row(IDEMPOTENT, "SETRANGE", reason="the same bytes at the same place, the same length"),
    Row(CONDITIONAL, "SETNX MSETNX", reason="our own success looks like a failure"),
    Row(CONDITIONAL, "SETBIT", reason="the bit stays the same, but the reply is the previous bit"),
    Row(NON_IDEMPOTENT, "GETSET GETDEL", reason="the old value is lost"),
    Row(
        NON_IDEMPOTENT,
        "GETEX",
        resolve=effects.getex,
        reason="a write; a key that expires before the repeat makes the second reply empty",
    ),
    Row(NON_IDEMPOTENT, "APPEND INCR INCRBY INCRBYFLOAT INCREX DECR DECRBY", reason=_MORE),
    Row(NON_IDEMPOTENT, "BITFIELD", resolve=effects.bitfield, reason="SET returns the old value"),
    Row(NON_IDEMPOTENT, "BITOP", resolve=effects.bitop, reason=_MIXED),
    # Keys.
    Row(READ, "EXISTS TYPE TTL PTTL EXPIRETIME PEXPIRETIME KEYS SCAN RANDOMKEY DUMP"),
    Row(READ, "OBJECT|ENCODING OBJECT|FREQ OBJECT|IDLETIME OBJECT|REFCOUNT OBJECT|HELP"),
    Row(READ, "TOUCH", reason="only the eviction clock of the keys changes"),
    Row(READ, "SORT_RO"),
    Row(CONDITIONAL, "DEL UNLINK DELEX DELIFEQ PERSIST", reason=_COUNTS),
    Row(
        NON_IDEMPOTENT,
        "EXPIRE PEXPIRE",
        resolve=effects.expire,
        reason="the expiry time moves by at most the deadline; a condition is true only once",
    ),
    Row(CONDITIONAL, "EXPIREAT PEXPIREAT", reason=_UNCERTAIN_PAST),
    Row(CONDITIONAL, "RENAME RENAMENX MOVE", reason="a repeat finds no source"),
    Row(NON_IDEMPOTENT, "COPY", resolve=effects.copy, reason="without REPLACE a repeat is refused"),
    Row(NON_IDEMPOTENT, "RESTORE RESTORE-ASKING", resolve=effects.restore, reason="as COPY"),
    Row(
        NON_IDEMPOTENT,
        "SORT",
        resolve=effects.sort,
        reason=_STORES,
    ),
    # Lists.
    Row(READ, "LRANGE LINDEX LLEN LPOS"),
    Row(IDEMPOTENT, "LSET"),
    Row(
        NON_IDEMPOTENT,
        "LTRIM",
        resolve=effects.ltrim,
        reason="1 -1 removes one element each time; 0 n and -n -1 keep the same elements",
    ),
    Row(
        NON_IDEMPOTENT,
        "LREM",
        resolve=effects.lrem,
        reason="with a count, a repeat removes the next elements",
    ),
    Row(NON_IDEMPOTENT, "LPUSH LPUSHX RPUSH RPUSHX LINSERT", reason=_MORE),
    Row(NON_IDEMPOTENT, "LPOP RPOP LMPOP", reason=_POPS),
    Row(NON_IDEMPOTENT, "LMOVE LMOVEM RPOPLPUSH", reason="a repeat moves the next element"),
    Row(NON_IDEMPOTENT, "BLPOP BRPOP", route=EXCLUSIVE, block=arguments.last, reason=_POPS),
    Row(NON_IDEMPOTENT, "BLMOVE BRPOPLPUSH", route=EXCLUSIVE, block=arguments.last),
    Row(NON_IDEMPOTENT, "BLMOVEM", route=EXCLUSIVE, block=arguments.fifth),
    Row(NON_IDEMPOTENT, "BLMPOP", route=EXCLUSIVE, block=arguments.first, reason=_POPS),
    # Hashes.
    Row(READ, "HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN HRANDFIELD HSCAN"),
    Row(READ, "HTTL HPTTL HEXPIRETIME HPEXPIRETIME"),
    Row(IDEMPOTENT, "HMSET"),
    Row(CONDITIONAL, "HSET HDEL HSETNX HPERSIST", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "HSETEX", resolve=effects.hsetex, reason="returns 1 or 0, as MSETEX"),
    Row(NON_IDEMPOTENT, "HGETEX", resolve=effects.hgetex, reason="as GETEX"),
    Row(NON_IDEMPOTENT, "HEXPIRE HPEXPIRE", resolve=effects.hexpire, reason="as EXPIRE"),
    Row(CONDITIONAL, "HEXPIREAT HPEXPIREAT", reason=_UNCERTAIN_PAST),
    Row(NON_IDEMPOTENT, "HINCRBY HINCRBYFLOAT", reason=_MORE),
    Row(NON_IDEMPOTENT, "HGETDEL", reason=_POPS),
    Row(
        IDEMPOTENT,
        "HIMPORT|SET",
        route=EXCLUSIVE,
        reason="replaces the whole hash, with a field set that the connection remembers",
    ),
    Row(CONDITIONAL, "HIMPORT|PREPARE HIMPORT|DISCARD HIMPORT|DISCARDALL", route=EXCLUSIVE),
    # Sets.
    Row(READ, "SMEMBERS SISMEMBER SMISMEMBER SCARD SRANDMEMBER SSCAN"),
    Row(READ, "SDIFF SINTER SUNION SDIFFCARD SINTERCARD SUNIONCARD"),
    Row(CONDITIONAL, "SADD SREM SMOVE", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "SPOP", reason=_POPS),
    Row(
        NON_IDEMPOTENT,
        "SDIFFSTORE SINTERSTORE SUNIONSTORE",
        resolve=effects.store_of_keys,
        reason=_MIXED,
    ),
    # Sorted and geo sets.
    Row(READ, "ZCARD ZCOUNT ZLEXCOUNT ZSCORE ZMSCORE ZRANK ZREVRANK ZRANDMEMBER ZSCAN"),
    Row(READ, "ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE"),
    Row(READ, "ZDIFF ZINTER ZUNION ZINTERCARD"),
    Row(NON_IDEMPOTENT, "ZADD", resolve=effects.zadd, reason=_COUNTS + "; INCR adds"),
    Row(CONDITIONAL, "ZREM ZREMRANGEBYSCORE ZREMRANGEBYLEX", reason=_COUNTS),
    Row(
        NON_IDEMPOTENT,
        "ZREMRANGEBYRANK",
        reason="a repeat removes the elements that moved up in rank",
    ),
    Row(NON_IDEMPOTENT, "ZINCRBY", reason=_MORE),
    Row(NON_IDEMPOTENT, "ZPOPMIN ZPOPMAX ZMPOP", reason=_POPS),
    Row(NON_IDEMPOTENT, "BZPOPMIN BZPOPMAX", route=EXCLUSIVE, block=arguments.last, reason=_POPS),
    Row(NON_IDEMPOTENT, "BZMPOP", route=EXCLUSIVE, block=arguments.first, reason=_POPS),
    Row(
        NON_IDEMPOTENT,
        "ZDIFFSTORE ZINTERSTORE ZUNIONSTORE",
        resolve=effects.counted_store,
        reason=_MIXED + ": a score went from 2 to 3",
    ),
    Row(
        NON_IDEMPOTENT,
        "ZRANGESTORE GEOSEARCHSTORE",
        resolve=effects.range_store,
        reason=_MIXED,
    ),
    Row(READ, "GEODIST GEOHASH GEOPOS GEOSEARCH GEORADIUS_RO GEORADIUSBYMEMBER_RO"),
    Row(CONDITIONAL, "GEOADD", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "GEORADIUS", resolve=effects.georadius, reason=_STORES),
    Row(NON_IDEMPOTENT, "GEORADIUSBYMEMBER", resolve=effects.georadiusbymember, reason=_STORES),
    # HyperLogLog.
    Row(READ, "PFCOUNT", reason="may refresh a cached count inside the value"),
    Row(CONDITIONAL, "PFADD", reason=_COUNTS),
    Row(
        IDEMPOTENT,
        "PFMERGE",
        reason="a union with elements that are already contained changes nothing",
    ),
    Row(NON_IDEMPOTENT, "PFDEBUG", reason="some of its subcommands convert the value"),
    Row(READ, "PFSELFTEST"),
    # Streams.
    Row(READ, "XLEN XRANGE XREVRANGE XPENDING"),
    Row(READ, "XINFO|STREAM XINFO|GROUPS XINFO|CONSUMERS XINFO|HELP XGROUP|HELP"),
    Row(
        READ,
        "XREAD",
        route=EXCLUSIVE,
        blocks_if=arguments.stream_read_blocks,
        block=arguments.stream_read,
        reason="with $, the position moves by at most the deadline",
    ),
    Row(
        NON_IDEMPOTENT,
        "XREADGROUP",
        resolve=effects.xreadgroup,
        route=EXCLUSIVE,
        blocks_if=arguments.stream_read_blocks,
        block=arguments.stream_read,
        reason="with >, the records go to the pending list and the second reply lacks them; with "
        "IDs, the same pending records are returned, and only their delivery count rises",
    ),
    Row(
        NON_IDEMPOTENT,
        "XADD",
        resolve=effects.xadd,
        reason="with an explicit ID, a repeat is refused, and the outcome can be queried",
    ),
    Row(
        NON_IDEMPOTENT,
        "XTRIM",
        resolve=effects.xtrim,
        reason="an exact trim is idempotent; an approximate one continues where it stopped",
    ),
    Row(CONDITIONAL, "XDEL XDELEX XACK XACKDEL", reason=_COUNTS),
    Row(NON_IDEMPOTENT, "XNACK", reason="the delivery counter decreases each time"),
    Row(
        NON_IDEMPOTENT, "XCLAIM XAUTOCLAIM", reason="idle time is reset, so a repeat claims nothing"
    ),
    Row(CONDITIONAL, "XGROUP|CREATE XGROUP|CREATECONSUMER XGROUP|DELCONSUMER XGROUP|DESTROY"),
    Row(
        NON_IDEMPOTENT,
        "XGROUP|SETID",
        resolve=effects.xgroup_setid,
        reason="with $, a repeat skips the records that were added in between",
    ),
    Row(IDEMPOTENT, "XSETID XCFGSET"),
    # Arrays.
    Row(READ, "ARCOUNT ARGET ARGETRANGE ARGREP ARINFO ARLASTITEMS ARLEN ARMGET ARNEXT AROP ARSCAN"),
    Row(CONDITIONAL, "ARSET ARMSET ARDEL ARDELRANGE", reason=_COUNTS),
    Row(IDEMPOTENT, "ARSEEK"),
    Row(NON_IDEMPOTENT, "ARINSERT ARRING", reason=_MORE),
)

_SERVER = (
    # Scripts and functions.
    Row(READ, "EVAL_RO EVALSHA_RO FCALL_RO"),
    Row(NON_IDEMPOTENT, "EVAL EVALSHA FCALL", reason=_RUNS_CODE),
    Row(READ, "SCRIPT|EXISTS SCRIPT|SHOW SCRIPT|HELP"),
    Row(IDEMPOTENT, "SCRIPT|LOAD SCRIPT|FLUSH", reason="a cache: what is missing is loaded again"),
    Row(DANGEROUS, "SCRIPT|KILL FUNCTION|KILL", reason=_HITS_ANOTHER),
    Row(
        NON_IDEMPOTENT,
        "SCRIPT|DEBUG",
        route=REFUSED,
        advice="It turns the connection into a debugger; use `redis-cli --ldb`.",
    ),
    Row(READ, "FUNCTION|LIST FUNCTION|STATS FUNCTION|DUMP FUNCTION|HELP"),
    Row(CONDITIONAL, "FUNCTION|LOAD", resolve=effects.function_load, reason="REPLACE overwrites"),
    Row(CONDITIONAL, "FUNCTION|DELETE"),
    Row(DANGEROUS, "FUNCTION|RESTORE", resolve=effects.function_restore, reason="FLUSH: " + _WIPES),
    Row(DANGEROUS, "FUNCTION|FLUSH", reason=_WIPES),
    # Messages.
    Row(NON_IDEMPOTENT, "PUBLISH SPUBLISH", reason="every subscriber would receive it twice"),
    Row(READ, "PUBSUB|CHANNELS PUBSUB|NUMPAT PUBSUB|NUMSUB PUBSUB|HELP"),
    Row(READ, "PUBSUB|SHARDCHANNELS PUBSUB|SHARDNUMSUB"),
    Row(NON_IDEMPOTENT, "SUBSCRIBE PSUBSCRIBE SSUBSCRIBE", route=REFUSED, advice=_PUBSUB),
    Row(NON_IDEMPOTENT, "UNSUBSCRIBE PUNSUBSCRIBE SUNSUBSCRIBE", route=REFUSED, advice=_PUBSUB),
    # State of a connection. It is lost with the connection, so a repeat would be meaningless.
    Row(READ, "PING ECHO"),
    Row(NON_IDEMPOTENT, "WATCH UNWATCH MULTI EXEC DISCARD", route=BOUND, advice=_TRANSACTION),
    Row(
        NON_IDEMPOTENT,
        "SELECT",
        route=BOUND,
        advice="Use the constructor's `db=`, one client for each database.",
    ),
    Row(NON_IDEMPOTENT, "AUTH", route=BOUND, advice=_CREDENTIALS),
    Row(
        NON_IDEMPOTENT,
        "HELLO",
        route=BOUND,
        advice="Use the constructor's `protocol=`, `username=`, `password=`, `client_name=`.",
    ),
    Row(NON_IDEMPOTENT, "RESET", route=BOUND, advice=_OWN_CONNECTION),
    Row(NON_IDEMPOTENT, "QUIT", route=BOUND, advice="Use `aclose()`."),
    Row(NON_IDEMPOTENT, "ASKING READONLY READWRITE", route=BOUND, advice=_CLUSTER_CLIENT),
    Row(
        READ,
        "WAIT WAITAOF",
        route=BOUND,
        block=arguments.last_in_milliseconds,
        advice="It refers to the writes of its own connection: use `client()` for the writes, too.",
        reason="on another connection, WAIT refers to writes of other callers",
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT",
        route=BOUND,
        advice=_OWN_CONNECTION,
        reason="an unknown subcommand may change the state of the connection",
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT|SETNAME",
        route=BOUND,
        advice="Use the constructor's `client_name=`.",
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT|SETINFO",
        route=BOUND,
        advice="Use the constructor's `driver_info=`.",
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT|TRACKING CLIENT|CACHING CLIENT|NO-EVICT CLIENT|NO-TOUCH CLIENT|CAPA "
        "CLIENT|IMPORT-SOURCE CLIENT|MAINT_NOTIFICATIONS",
        route=BOUND,
        advice=_OWN_CONNECTION,
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT|REPLY",
        route=REFUSED,
        advice="Replies cannot be matched without it; use `pipeline()` instead.",
    ),
    Row(
        READ,
        "CLIENT|ID CLIENT|INFO CLIENT|GETNAME CLIENT|GETREDIR CLIENT|TRACKINGINFO",
        reason="on a shared connection they describe that connection",
    ),
    Row(READ, "CLIENT|LIST CLIENT|HELP"),
    Row(
        DANGEROUS, "CLIENT|KILL", reason="IDs start again with the server, and addresses are reused"
    ),
    Row(NON_IDEMPOTENT, "CLIENT|UNBLOCK", reason="by then the client may block in another call"),
    Row(IDEMPOTENT, "CLIENT|PAUSE", reason="the end of the pause moves by at most the deadline"),
    Row(IDEMPOTENT, "CLIENT|UNPAUSE"),
    # Observation.
    Row(READ, "TIME INFO DBSIZE LASTSAVE ROLE LOLWUT"),
    Row(READ, "COMMAND COMMAND|COUNT COMMAND|DOCS COMMAND|GETKEYS COMMAND|GETKEYSANDFLAGS"),
    Row(READ, "COMMAND|INFO COMMAND|LIST COMMAND|HELP"),
    Row(READ, "MEMORY|USAGE MEMORY|STATS MEMORY|DOCTOR MEMORY|MALLOC-STATS MEMORY|HELP"),
    Row(IDEMPOTENT, "MEMORY|PURGE"),
    Row(READ, "LATENCY|DOCTOR LATENCY|GRAPH LATENCY|HISTOGRAM LATENCY|HISTORY LATENCY|LATEST"),
    Row(READ, "LATENCY|HELP SLOWLOG|GET SLOWLOG|LEN SLOWLOG|HELP"),
    Row(READ, "COMMANDLOG|GET COMMANDLOG|LEN COMMANDLOG|HELP HOTKEYS|GET"),
    Row(CONDITIONAL, "LATENCY|RESET HOTKEYS|START HOTKEYS|STOP HOTKEYS|RESET"),
    Row(IDEMPOTENT, "SLOWLOG|RESET COMMANDLOG|RESET CONFIG|RESETSTAT"),
    Row(
        NON_IDEMPOTENT,
        "MONITOR",
        route=REFUSED,
        advice="Use `monitor()`.",
    ),
    # Configuration, access, modules.
    Row(READ, "CONFIG|GET CONFIG|HELP"),
    Row(IDEMPOTENT, "CONFIG|SET CONFIG|REWRITE"),
    Row(READ, "ACL|CAT ACL|DRYRUN ACL|GENPASS ACL|GETUSER ACL|LIST ACL|USERS ACL|WHOAMI ACL|HELP"),
    Row(IDEMPOTENT, "ACL|LOAD ACL|SAVE"),
    Row(IDEMPOTENT, "ACL|LOG", resolve=effects.acl_log, reason="a read unless RESET"),
    Row(CONDITIONAL, "ACL|DELUSER"),
    Row(
        NON_IDEMPOTENT,
        "ACL|SETUSER",
        resolve=effects.acl_setuser,
        reason="a repeat of contradictory rules is refused; a repeat of selectors adds more",
    ),
    Row(READ, "MODULE|LIST MODULE|HELP"),
    Row(CONDITIONAL, "MODULE|LOAD MODULE|LOADEX MODULE|UNLOAD"),
    # Persistence and the whole data set.
    Row(
        IDEMPOTENT,
        "SAVE",
        route=EXCLUSIVE,
        block=arguments.unlimited,
        reason="the server is silent until everything is written",
    ),
    Row(NON_IDEMPOTENT, "BGSAVE BGREWRITEAOF", reason="a repeat starts another"),
    Row(NON_IDEMPOTENT, "SWAPDB", reason="toggles"),
    Row(DANGEROUS, "FLUSHALL FLUSHDB", reason=_WIPES),
    Row(
        DANGEROUS,
        "SHUTDOWN",
        route=EXCLUSIVE,
        block=arguments.unlimited,
        reason="waits for replicas and a save; a repeat stops the restarted server",
    ),
    Row(
        DANGEROUS,
        "MIGRATE",
        route=EXCLUSIVE,
        block=arguments.unlimited,
        reason="its timeout limits each pause, not the whole transfer",
    ),
    Row(READ, "DEBUG|OBJECT DEBUG|DIGEST DEBUG|DIGEST-VALUE DEBUG|SDSLEN DEBUG|HELP"),
    Row(READ, "DEBUG|LISTPACK DEBUG|ZIPLIST DEBUG|QUICKLIST DEBUG|HTSTATS DEBUG|HTSTATS-KEY"),
    Row(READ, "DEBUG|PROTOCOL DEBUG|STRUCTSIZE DEBUG|STRINGMATCH-LEN"),
    Row(DANGEROUS, "DEBUG", reason="can crash, reload and corrupt the server"),
    Row(
        DANGEROUS,
        "DEBUG|SLEEP",
        route=EXCLUSIVE,
        block=arguments.sleep,
        reason="a repeat blocks the server for all clients again",
    ),
    # Replication, Sentinel, cluster.
    Row(DANGEROUS, "FAILOVER REPLICAOF SLAVEOF", reason=_HAND_OVER),
    Row(
        NON_IDEMPOTENT, "SYNC PSYNC REPLCONF CLUSTER|SYNCSLOTS", route=REFUSED, advice=_REPLICATION
    ),
    Row(READ, "SENTINEL|CKQUORUM SENTINEL|GET-MASTER-ADDR-BY-NAME SENTINEL|INFO-CACHE"),
    Row(READ, "SENTINEL|MASTER SENTINEL|MASTERS SENTINEL|MYID SENTINEL|PENDING-SCRIPTS"),
    Row(READ, "SENTINEL|REPLICAS SENTINEL|SENTINELS SENTINEL|SLAVES SENTINEL|HELP"),
    Row(
        NON_IDEMPOTENT,
        "SENTINEL|IS-MASTER-DOWN-BY-ADDR",
        resolve=effects.sentinel_is_down,
        reason="with an ID it requests a vote",
    ),
    Row(IDEMPOTENT, "SENTINEL|FLUSHCONFIG SENTINEL|SET"),
    Row(NON_IDEMPOTENT, "SENTINEL|CONFIG", resolve=effects.sentinel_config, reason="GET reads"),
    Row(CONDITIONAL, "SENTINEL|MONITOR SENTINEL|REMOVE"),
    Row(DANGEROUS, "SENTINEL|FAILOVER SENTINEL|RESET", reason=_HAND_OVER),
    Row(DANGEROUS, "SENTINEL|DEBUG SENTINEL|SIMULATE-FAILURE", reason="meant to break a Sentinel"),
    Row(READ, "CLUSTER|COUNT-FAILURE-REPORTS CLUSTER|COUNTKEYSINSLOT CLUSTER|GETKEYSINSLOT"),
    Row(READ, "CLUSTER|INFO CLUSTER|KEYSLOT CLUSTER|LINKS CLUSTER|MYID CLUSTER|MYSHARDID"),
    Row(READ, "CLUSTER|NODES CLUSTER|REPLICAS CLUSTER|SLAVES CLUSTER|SHARDS CLUSTER|SLOTS"),
    Row(READ, "CLUSTER|SLOT-STATS CLUSTER|GETSLOTMIGRATIONS CLUSTER|HELP CLUSTERSCAN"),
    Row(IDEMPOTENT, "CLUSTER|MEET CLUSTER|SAVECONFIG CLUSTER|FLUSHSLOTS"),
    Row(
        CONDITIONAL, "CLUSTER|ADDSLOTS CLUSTER|ADDSLOTSRANGE CLUSTER|DELSLOTS CLUSTER|DELSLOTSRANGE"
    ),
    Row(CONDITIONAL, "CLUSTER|FORGET CLUSTER|SET-CONFIG-EPOCH CLUSTER|SETSLOT"),
    Row(NON_IDEMPOTENT, "CLUSTER|BUMPEPOCH"),
    Row(DANGEROUS, "CLUSTER|FAILOVER CLUSTER|RESET CLUSTER|REPLICATE", reason=_HAND_OVER),
    Row(DANGEROUS, "CLUSTER|FLUSHSLOT", reason=_WIPES),
    Row(DANGEROUS, "CLUSTER|MIGRATESLOTS CLUSTER|CANCELSLOTMIGRATIONS", reason=_HAND_OVER),
)

_MODULES = (
    # JSON.
    Row(READ, "JSON.GET JSON.MGET JSON.ARRINDEX JSON.ARRLEN JSON.OBJKEYS JSON.OBJLEN JSON.RESP"),
    Row(READ, "JSON.STRLEN JSON.TYPE JSON.DEBUG"),
    Row(NON_IDEMPOTENT, "JSON.SET", resolve=effects.json_set, reason=_PATHS),
    Row(NON_IDEMPOTENT, "JSON.MSET", resolve=effects.json_mset, reason=_PATHS),
    Row(NON_IDEMPOTENT, "JSON.MERGE", resolve=effects.json_merge, reason=_PATHS),
    Row(
        NON_IDEMPOTENT,
        "JSON.DEL JSON.FORGET",
        resolve=effects.json_del,
        reason="the next element of an array takes the place of the deleted one",
    ),
    Row(CONDITIONAL, "JSON.CLEAR", reason="returns how many values were not yet clear"),
    Row(NON_IDEMPOTENT, "JSON.ARRTRIM", resolve=effects.json_arrtrim, reason="as LTRIM"),
    Row(NON_IDEMPOTENT, "JSON.ARRAPPEND JSON.ARRINSERT JSON.ARRPOP JSON.STRAPPEND JSON.TOGGLE"),
    Row(NON_IDEMPOTENT, "JSON.NUMINCRBY JSON.NUMMULTBY JSON.NUMPOWBY"),
    # Search.
    Row(READ, "FT._LIST FT.INFO FT.SEARCH FT.AGGREGATE FT.HYBRID FT.PROFILE FT.EXPLAIN"),
    Row(READ, "FT.EXPLAINCLI FT.SPELLCHECK FT.TAGVALS FT.MGET FT.GET FT.ALIASLIST FT.DICTDUMP"),
    Row(READ, "FT.SYNDUMP FT.SUGGET FT.SUGLEN FT.CONFIG|GET FT.CONFIG|HELP"),
    Row(IDEMPOTENT, "FT.CONFIG|SET FT.ALIASUPDATE FT.SYNUPDATE"),
    Row(CONDITIONAL, "FT.CREATE FT.ALTER FT.DROPINDEX FT.DROP FT.ALIASADD FT.ALIASDEL FT.DICTADD"),
    Row(CONDITIONAL, "FT.DICTDEL FT.SUGDEL FT.ADD FT.ADDHASH FT.DEL FT.CURSOR|DEL FT.CURSOR|GC"),
    Row(NON_IDEMPOTENT, "FT.SUGADD", resolve=effects.sugadd, reason="INCR adds to the score"),
    Row(NON_IDEMPOTENT, "FT.SYNADD", reason="a repeat creates another group"),
    Row(NON_IDEMPOTENT, "FT.CURSOR|READ", reason="a repeat returns the next page"),
    # Time series.
    Row(READ, "TS.GET TS.MGET TS.INFO TS.QUERYINDEX TS.QUERYLABELS TS.RANGE TS.REVRANGE"),
    Row(READ, "TS.MRANGE TS.MREVRANGE TS.NRANGE TS.NREVRANGE"),
    Row(
        READ,
        "TS.READ",
        route=Route.EXCLUSIVE,
        blocks_if=arguments.series_read_blocks,
        block=arguments.series_read,
    ),
    Row(IDEMPOTENT, "TS.ALTER"),
    Row(CONDITIONAL, "TS.CREATE TS.DEL TS.CREATERULE TS.DELETERULE"),
    Row(
        NON_IDEMPOTENT,
        "TS.ADD",
        resolve=effects.ts_add,
        reason="* is another time on a repeat; the series' policy may be to sum duplicates",
    ),
    Row(NON_IDEMPOTENT, "TS.MADD TS.INCRBY TS.DECRBY", reason="as TS.ADD"),
    # Bloom and cuckoo filters, count-min sketch, top-k, t-digest.
    Row(READ, "BF.CARD BF.EXISTS BF.MEXISTS BF.INFO BF.SCANDUMP"),
    Row(CONDITIONAL, "BF.RESERVE BF.ADD BF.MADD BF.INSERT"),
    Row(READ, "CF.COUNT CF.EXISTS CF.MEXISTS CF.INFO CF.SCANDUMP"),
    Row(CONDITIONAL, "CF.RESERVE CF.ADDNX CF.INSERTNX"),
    Row(NON_IDEMPOTENT, "CF.ADD CF.INSERT CF.DEL", reason="an item may be contained several times"),
    Row(NON_IDEMPOTENT, "BF.LOADCHUNK CF.LOADCHUNK", reason="a repeat is not documented"),
    Row(READ, "CMS.INFO CMS.QUERY TOPK.COUNT TOPK.INFO TOPK.LIST TOPK.QUERY"),
    Row(CONDITIONAL, "CMS.INITBYDIM CMS.INITBYPROB TOPK.RESERVE TDIGEST.CREATE"),
    Row(NON_IDEMPOTENT, "CMS.INCRBY TOPK.ADD TOPK.INCRBY TDIGEST.ADD"),
    Row(
        NON_IDEMPOTENT,
        "CMS.MERGE",
        resolve=effects.counted_store,
        reason="a destination among the sources is added to itself",
    ),
    Row(
        NON_IDEMPOTENT,
        "TDIGEST.MERGE",
        resolve=effects.tdigest_merge,
        reason="adds to the destination unless OVERRIDE",
    ),
    Row(IDEMPOTENT, "TDIGEST.RESET"),
    Row(READ, "TDIGEST.BYRANK TDIGEST.BYREVRANK TDIGEST.CDF TDIGEST.INFO TDIGEST.MAX TDIGEST.MIN"),
    Row(READ, "TDIGEST.QUANTILE TDIGEST.RANK TDIGEST.REVRANK TDIGEST.TRIMMED_MEAN"),
    # Vector sets.
    Row(READ, "VCARD VDIM VEMB VGETATTR VINFO VISMEMBER VLINKS VRANDMEMBER VRANGE VSIM"),
    Row(CONDITIONAL, "VADD VREM", reason="the reply says whether the element was new"),
    Row(IDEMPOTENT, "VSETATTR"),
)

ROWS = (*_DATA, *_SERVER, *_MODULES)
