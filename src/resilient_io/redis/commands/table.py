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
    """The reviewed properties of one or more commands, with the reason if they are surprising.

    Names are separated by spaces, with a bar before a subcommand: `CONFIG|GET`. The functions take
    the operands. If the effect depends on them, `worst` is the worst one. By default, a command
    that blocks is exclusive, unless `blocks_if` is false, and any other is multiplexed.
    """

    effect: Effect | ResolveEffect
    names: str
    reason: str = ""
    worst: Effect = NON_IDEMPOTENT
    route: Route | None = None
    blocks_if: Condition | None = None
    block: BlockTime | None = None
    advice: str = ""


_MIXED = "a destination among the sources gives another result the second time"
_STORES = "a read unless it stores; " + _MIXED
_POPS = "the reply is data that the server has deleted"
_MORE = "a repeat adds again"
_COUNTS = "the reply says what changed, and nothing changes the second time"
_UNCERTAIN_PAST = "a time in the past deletes the key, and only the server's clock decides"
_RUNS_CODE = "only its author knows what it does"
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
        effects.set_,
        "SET",
        "a plain SET overwrites; a repeated NX or IFEQ sees its own success as another's; "
        "GET returns a value that is then lost",
    ),
    Row(effects.msetex, "MSETEX", "as SET"),
    Row(IDEMPOTENT, "MSET"),
    Row(IDEMPOTENT, "SETEX PSETEX", "the expiry time moves by at most the deadline"),
    Row(IDEMPOTENT, "SETRANGE", "the same bytes at the same place, the same length"),
    Row(CONDITIONAL, "SETNX MSETNX", "our own success looks like a failure"),
    Row(CONDITIONAL, "SETBIT", "the bit stays the same, but the reply is the previous bit"),
    Row(NON_IDEMPOTENT, "GETSET GETDEL", "the old value is lost"),
    Row(
        effects.getex,
        "GETEX",
        "a write; a key that expires before the repeat makes the second reply empty",
    ),
    Row(NON_IDEMPOTENT, "APPEND INCR INCRBY INCRBYFLOAT INCREX DECR DECRBY", _MORE),
    Row(effects.bitfield, "BITFIELD", "SET returns the old value"),
    Row(effects.bitop, "BITOP", _MIXED),
    # Keys.
    Row(READ, "EXISTS TYPE TTL PTTL EXPIRETIME PEXPIRETIME KEYS SCAN RANDOMKEY DUMP"),
    Row(READ, "OBJECT|ENCODING OBJECT|FREQ OBJECT|IDLETIME OBJECT|REFCOUNT OBJECT|HELP"),
    Row(READ, "TOUCH", "only the eviction clock of the keys changes"),
    Row(READ, "SORT_RO"),
    Row(CONDITIONAL, "DEL UNLINK DELEX DELIFEQ PERSIST", _COUNTS),
    Row(
        effects.expire,
        "EXPIRE PEXPIRE",
        "the expiry time moves by at most the deadline; a condition is true only once",
    ),
    Row(CONDITIONAL, "EXPIREAT PEXPIREAT", _UNCERTAIN_PAST),
    Row(CONDITIONAL, "RENAME RENAMENX MOVE", "a repeat finds no source"),
    Row(effects.copy, "COPY", "without REPLACE a repeat is refused"),
    Row(effects.restore, "RESTORE RESTORE-ASKING", "as COPY"),
    Row(effects.sort, "SORT", _STORES),
    # Lists.
    Row(READ, "LRANGE LINDEX LLEN LPOS"),
    Row(IDEMPOTENT, "LSET"),
    Row(
        effects.ltrim,
        "LTRIM",
        "1 -1 removes one element each time; 0 n and -n -1 keep the same elements",
    ),
    Row(effects.lrem, "LREM", "with a count, a repeat removes the next elements"),
    Row(NON_IDEMPOTENT, "LPUSH LPUSHX RPUSH RPUSHX LINSERT", _MORE),
    Row(NON_IDEMPOTENT, "LPOP RPOP LMPOP", _POPS),
    Row(NON_IDEMPOTENT, "LMOVE LMOVEM RPOPLPUSH", "a repeat moves the next element"),
    Row(NON_IDEMPOTENT, "BLPOP BRPOP", _POPS, block=arguments.last),
    Row(NON_IDEMPOTENT, "BLMOVE BRPOPLPUSH", block=arguments.last),
    Row(NON_IDEMPOTENT, "BLMOVEM", block=arguments.fifth),
    Row(NON_IDEMPOTENT, "BLMPOP", _POPS, block=arguments.first),
    # Hashes.
    Row(READ, "HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN HRANDFIELD HSCAN"),
    Row(READ, "HTTL HPTTL HEXPIRETIME HPEXPIRETIME"),
    Row(IDEMPOTENT, "HMSET"),
    Row(CONDITIONAL, "HSET HDEL HSETNX HPERSIST", _COUNTS),
    Row(effects.hsetex, "HSETEX", "returns 1 or 0, as MSETEX"),
    Row(effects.hgetex, "HGETEX", "as GETEX"),
    Row(effects.hexpire, "HEXPIRE HPEXPIRE", "as EXPIRE"),
    Row(CONDITIONAL, "HEXPIREAT HPEXPIREAT", _UNCERTAIN_PAST),
    Row(NON_IDEMPOTENT, "HINCRBY HINCRBYFLOAT", _MORE),
    Row(NON_IDEMPOTENT, "HGETDEL", _POPS),
    Row(
        IDEMPOTENT,
        "HIMPORT|SET",
        "replaces the whole hash, with a field set that the connection remembers",
        route=EXCLUSIVE,
    ),
    Row(CONDITIONAL, "HIMPORT|PREPARE HIMPORT|DISCARD HIMPORT|DISCARDALL", route=EXCLUSIVE),
    # Sets.
    Row(READ, "SMEMBERS SISMEMBER SMISMEMBER SCARD SRANDMEMBER SSCAN"),
    Row(READ, "SDIFF SINTER SUNION SDIFFCARD SINTERCARD SUNIONCARD"),
    Row(CONDITIONAL, "SADD SREM SMOVE", _COUNTS),
    Row(NON_IDEMPOTENT, "SPOP", _POPS),
    Row(effects.store_of_keys, "SDIFFSTORE SINTERSTORE SUNIONSTORE", _MIXED),
    # Sorted and geo sets.
    Row(READ, "ZCARD ZCOUNT ZLEXCOUNT ZSCORE ZMSCORE ZRANK ZREVRANK ZRANDMEMBER ZSCAN"),
    Row(READ, "ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE"),
    Row(READ, "ZDIFF ZINTER ZUNION ZINTERCARD"),
    Row(effects.zadd, "ZADD", _COUNTS + "; INCR adds"),
    Row(CONDITIONAL, "ZREM ZREMRANGEBYSCORE ZREMRANGEBYLEX", _COUNTS),
    Row(NON_IDEMPOTENT, "ZREMRANGEBYRANK", "a repeat removes the elements that moved up in rank"),
    Row(NON_IDEMPOTENT, "ZINCRBY", _MORE),
    Row(NON_IDEMPOTENT, "ZPOPMIN ZPOPMAX ZMPOP", _POPS),
    Row(NON_IDEMPOTENT, "BZPOPMIN BZPOPMAX", _POPS, block=arguments.last),
    Row(NON_IDEMPOTENT, "BZMPOP", _POPS, block=arguments.first),
    Row(
        effects.counted_store,
        "ZDIFFSTORE ZINTERSTORE ZUNIONSTORE",
        _MIXED + ": a score went from 2 to 3",
    ),
    Row(effects.range_store, "ZRANGESTORE GEOSEARCHSTORE", _MIXED),
    Row(READ, "GEODIST GEOHASH GEOPOS GEOSEARCH GEORADIUS_RO GEORADIUSBYMEMBER_RO"),
    Row(CONDITIONAL, "GEOADD", _COUNTS),
    Row(effects.georadius, "GEORADIUS", _STORES),
    Row(effects.georadiusbymember, "GEORADIUSBYMEMBER", _STORES),
    # HyperLogLog.
    Row(READ, "PFCOUNT", "may refresh a cached count inside the value"),
    Row(CONDITIONAL, "PFADD", _COUNTS),
    Row(IDEMPOTENT, "PFMERGE", "a union with elements that are already contained changes nothing"),
    Row(NON_IDEMPOTENT, "PFDEBUG", "some of its subcommands convert the value"),
    Row(READ, "PFSELFTEST"),
    # Streams.
    Row(READ, "XLEN XRANGE XREVRANGE XPENDING"),
    Row(READ, "XINFO|STREAM XINFO|GROUPS XINFO|CONSUMERS XINFO|HELP XGROUP|HELP"),
    Row(
        READ,
        "XREAD",
        "with $, the position moves by at most the deadline",
        blocks_if=arguments.stream_read_blocks,
        block=arguments.stream_read,
    ),
    Row(
        effects.xreadgroup,
        "XREADGROUP",
        "with >, the records go to the pending list and the second reply lacks them; with "
        "IDs, the same pending records are returned, and only their delivery count rises",
        blocks_if=arguments.stream_read_blocks,
        block=arguments.stream_read,
    ),
    Row(
        effects.xadd,
        "XADD",
        "with an explicit ID, a repeat is refused, and the outcome can be queried",
    ),
    Row(
        effects.xtrim,
        "XTRIM",
        "an exact trim is idempotent; an approximate one continues where it stopped",
    ),
    Row(CONDITIONAL, "XDEL XDELEX XACK XACKDEL", _COUNTS),
    Row(NON_IDEMPOTENT, "XNACK", "the delivery counter decreases each time"),
    Row(NON_IDEMPOTENT, "XCLAIM XAUTOCLAIM", "idle time is reset, so a repeat claims nothing"),
    Row(CONDITIONAL, "XGROUP|CREATE XGROUP|CREATECONSUMER XGROUP|DELCONSUMER XGROUP|DESTROY"),
    Row(
        effects.xgroup_setid,
        "XGROUP|SETID",
        "with $, a repeat skips the records that were added in between",
    ),
    Row(IDEMPOTENT, "XSETID XCFGSET"),
    # Arrays.
    Row(READ, "ARCOUNT ARGET ARGETRANGE ARGREP ARINFO ARLASTITEMS ARLEN ARMGET ARNEXT AROP ARSCAN"),
    Row(CONDITIONAL, "ARSET ARMSET ARDEL ARDELRANGE", _COUNTS),
    Row(IDEMPOTENT, "ARSEEK"),
    Row(NON_IDEMPOTENT, "ARINSERT ARRING", _MORE),
)

_SERVER = (
    # Scripts and functions.
    Row(READ, "EVAL_RO EVALSHA_RO FCALL_RO"),
    Row(NON_IDEMPOTENT, "EVAL EVALSHA FCALL", _RUNS_CODE),
    Row(READ, "SCRIPT|EXISTS SCRIPT|SHOW SCRIPT|HELP"),
    Row(IDEMPOTENT, "SCRIPT|LOAD SCRIPT|FLUSH", "a cache: what is missing is loaded again"),
    Row(DANGEROUS, "SCRIPT|KILL FUNCTION|KILL", _HITS_ANOTHER),
    Row(
        NON_IDEMPOTENT,
        "SCRIPT|DEBUG",
        route=REFUSED,
        advice="It turns the connection into a debugger; use `redis-cli --ldb`.",
    ),
    Row(READ, "FUNCTION|LIST FUNCTION|STATS FUNCTION|DUMP FUNCTION|HELP"),
    Row(effects.function_load, "FUNCTION|LOAD", "REPLACE overwrites", worst=CONDITIONAL),
    Row(CONDITIONAL, "FUNCTION|DELETE"),
    Row(effects.function_restore, "FUNCTION|RESTORE", "FLUSH: " + _WIPES, worst=DANGEROUS),
    Row(DANGEROUS, "FUNCTION|FLUSH", _WIPES),
    # Messages.
    Row(NON_IDEMPOTENT, "PUBLISH SPUBLISH", "every subscriber would receive it twice"),
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
    Row(NON_IDEMPOTENT, "RESET", route=BOUND),
    Row(NON_IDEMPOTENT, "QUIT", route=BOUND, advice="Use `aclose()`."),
    Row(NON_IDEMPOTENT, "ASKING READONLY READWRITE", route=BOUND, advice=_CLUSTER_CLIENT),
    Row(
        READ,
        "WAIT WAITAOF",
        "on another connection, WAIT refers to writes of other callers",
        route=BOUND,
        block=arguments.last_in_milliseconds,
        advice="It refers to the writes of its own connection: use `client()` for the writes, too.",
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT",
        "an unknown subcommand may change the state of the connection",
        route=BOUND,
    ),
    # A shared client sends these four itself, on each connection; see `redis/session.py`.
    Row(
        NON_IDEMPOTENT,
        "CLIENT|SETNAME",
        route=BOUND,
        advice="Use the constructor's `client_name=`, or `client_setname()` outside of a pipeline.",
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT|SETINFO CLIENT|NO-EVICT CLIENT|NO-TOUCH",
        route=BOUND,
        advice="Send it outside of a `pipeline()`, for all connections of the client.",
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT|TRACKING CLIENT|CACHING CLIENT|CAPA CLIENT|IMPORT-SOURCE "
        "CLIENT|MAINT_NOTIFICATIONS",
        route=BOUND,
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
        "on a shared connection they describe that connection",
    ),
    Row(READ, "CLIENT|LIST CLIENT|HELP"),
    Row(DANGEROUS, "CLIENT|KILL", "IDs start again with the server, and addresses are reused"),
    Row(NON_IDEMPOTENT, "CLIENT|UNBLOCK", "by then the client may block in another call"),
    Row(IDEMPOTENT, "CLIENT|PAUSE", "the end of the pause moves by at most the deadline"),
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
    Row(NON_IDEMPOTENT, "MONITOR", route=REFUSED, advice="Use `monitor()`."),
    # Configuration, access, modules.
    Row(READ, "CONFIG|GET CONFIG|HELP"),
    Row(IDEMPOTENT, "CONFIG|SET CONFIG|REWRITE"),
    Row(READ, "ACL|CAT ACL|DRYRUN ACL|GENPASS ACL|GETUSER ACL|LIST ACL|USERS ACL|WHOAMI ACL|HELP"),
    Row(IDEMPOTENT, "ACL|LOAD ACL|SAVE"),
    Row(effects.acl_log, "ACL|LOG", "a read unless RESET", worst=IDEMPOTENT),
    Row(CONDITIONAL, "ACL|DELUSER"),
    Row(
        effects.acl_setuser,
        "ACL|SETUSER",
        "a repeat of contradictory rules is refused; a repeat of selectors adds more",
    ),
    Row(READ, "MODULE|LIST MODULE|HELP"),
    Row(CONDITIONAL, "MODULE|LOAD MODULE|LOADEX MODULE|UNLOAD"),
    # Persistence and the whole data set.
    Row(
        IDEMPOTENT,
        "SAVE",
        "the server is silent until everything is written",
        block=arguments.unlimited,
    ),
    Row(NON_IDEMPOTENT, "BGSAVE BGREWRITEAOF", "a repeat starts another"),
    Row(NON_IDEMPOTENT, "SWAPDB", "toggles"),
    Row(DANGEROUS, "FLUSHALL FLUSHDB", _WIPES),
    Row(
        DANGEROUS,
        "SHUTDOWN",
        "waits for replicas and a save; a repeat stops the restarted server",
        block=arguments.unlimited,
    ),
    Row(
        DANGEROUS,
        "MIGRATE",
        "its timeout limits each pause, not the whole transfer",
        block=arguments.unlimited,
    ),
    Row(READ, "DEBUG|OBJECT DEBUG|DIGEST DEBUG|DIGEST-VALUE DEBUG|SDSLEN DEBUG|HELP"),
    Row(READ, "DEBUG|LISTPACK DEBUG|ZIPLIST DEBUG|QUICKLIST DEBUG|HTSTATS DEBUG|HTSTATS-KEY"),
    Row(READ, "DEBUG|PROTOCOL DEBUG|STRUCTSIZE DEBUG|STRINGMATCH-LEN"),
    Row(DANGEROUS, "DEBUG", "can crash, reload and corrupt the server"),
    Row(
        DANGEROUS,
        "DEBUG|SLEEP",
        "a repeat blocks the server for all clients again",
        block=arguments.sleep,
    ),
    # Replication, Sentinel, cluster.
    Row(DANGEROUS, "FAILOVER REPLICAOF SLAVEOF", _HAND_OVER),
    Row(
        NON_IDEMPOTENT, "SYNC PSYNC REPLCONF CLUSTER|SYNCSLOTS", route=REFUSED, advice=_REPLICATION
    ),
    Row(READ, "SENTINEL|CKQUORUM SENTINEL|GET-MASTER-ADDR-BY-NAME SENTINEL|INFO-CACHE"),
    Row(READ, "SENTINEL|MASTER SENTINEL|MASTERS SENTINEL|MYID SENTINEL|PENDING-SCRIPTS"),
    Row(READ, "SENTINEL|REPLICAS SENTINEL|SENTINELS SENTINEL|SLAVES SENTINEL|HELP"),
    Row(
        effects.sentinel_is_down, "SENTINEL|IS-MASTER-DOWN-BY-ADDR", "with an ID it requests a vote"
    ),
    Row(IDEMPOTENT, "SENTINEL|FLUSHCONFIG SENTINEL|SET"),
    Row(effects.sentinel_config, "SENTINEL|CONFIG", "GET reads"),
    Row(CONDITIONAL, "SENTINEL|MONITOR SENTINEL|REMOVE"),
    Row(DANGEROUS, "SENTINEL|FAILOVER SENTINEL|RESET", _HAND_OVER),
    Row(DANGEROUS, "SENTINEL|DEBUG SENTINEL|SIMULATE-FAILURE", "meant to break a Sentinel"),
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
    Row(DANGEROUS, "CLUSTER|FAILOVER CLUSTER|RESET CLUSTER|REPLICATE", _HAND_OVER),
    Row(DANGEROUS, "CLUSTER|FLUSHSLOT", _WIPES),
    Row(DANGEROUS, "CLUSTER|MIGRATESLOTS CLUSTER|CANCELSLOTMIGRATIONS", _HAND_OVER),
)

_MODULES = (
    # JSON.
    Row(READ, "JSON.GET JSON.MGET JSON.ARRINDEX JSON.ARRLEN JSON.OBJKEYS JSON.OBJLEN JSON.RESP"),
    Row(READ, "JSON.STRLEN JSON.TYPE JSON.DEBUG"),
    Row(effects.json_set, "JSON.SET", _PATHS),
    Row(effects.json_mset, "JSON.MSET", _PATHS),
    Row(effects.json_merge, "JSON.MERGE", _PATHS),
    Row(
        effects.json_del,
        "JSON.DEL JSON.FORGET",
        "the next element of an array takes the place of the deleted one",
    ),
    Row(CONDITIONAL, "JSON.CLEAR", "returns how many values were not yet clear"),
    Row(effects.json_arrtrim, "JSON.ARRTRIM", "as LTRIM"),
    Row(NON_IDEMPOTENT, "JSON.ARRAPPEND JSON.ARRINSERT JSON.ARRPOP JSON.STRAPPEND JSON.TOGGLE"),
    Row(NON_IDEMPOTENT, "JSON.NUMINCRBY JSON.NUMMULTBY JSON.NUMPOWBY"),
    # Search.
    Row(READ, "FT._LIST FT.INFO FT.SEARCH FT.AGGREGATE FT.HYBRID FT.PROFILE FT.EXPLAIN"),
    Row(READ, "FT.EXPLAINCLI FT.SPELLCHECK FT.TAGVALS FT.MGET FT.GET FT.ALIASLIST FT.DICTDUMP"),
    Row(READ, "FT.SYNDUMP FT.SUGGET FT.SUGLEN FT.CONFIG|GET FT.CONFIG|HELP"),
    Row(IDEMPOTENT, "FT.CONFIG|SET FT.ALIASUPDATE FT.SYNUPDATE"),
    Row(CONDITIONAL, "FT.CREATE FT.ALTER FT.DROPINDEX FT.DROP FT.ALIASADD FT.ALIASDEL FT.DICTADD"),
    Row(CONDITIONAL, "FT.DICTDEL FT.SUGDEL FT.ADD FT.ADDHASH FT.DEL FT.CURSOR|DEL FT.CURSOR|GC"),
    Row(effects.sugadd, "FT.SUGADD", "INCR adds to the score"),
    Row(NON_IDEMPOTENT, "FT.SYNADD", "a repeat creates another group"),
    Row(NON_IDEMPOTENT, "FT.CURSOR|READ", "a repeat returns the next page"),
    # Time series.
    Row(READ, "TS.GET TS.MGET TS.INFO TS.QUERYINDEX TS.QUERYLABELS TS.RANGE TS.REVRANGE"),
    Row(READ, "TS.MRANGE TS.MREVRANGE TS.NRANGE TS.NREVRANGE"),
    Row(READ, "TS.READ", blocks_if=arguments.series_read_blocks, block=arguments.series_read),
    Row(IDEMPOTENT, "TS.ALTER"),
    Row(CONDITIONAL, "TS.CREATE TS.DEL TS.CREATERULE TS.DELETERULE"),
    Row(
        effects.ts_add,
        "TS.ADD",
        "* is another time on a repeat; the series' policy may be to sum duplicates",
    ),
    Row(NON_IDEMPOTENT, "TS.MADD TS.INCRBY TS.DECRBY", "as TS.ADD"),
    # Bloom and cuckoo filters, count-min sketch, top-k, t-digest.
    Row(READ, "BF.CARD BF.EXISTS BF.MEXISTS BF.INFO BF.SCANDUMP"),
    Row(CONDITIONAL, "BF.RESERVE BF.ADD BF.MADD BF.INSERT"),
    Row(READ, "CF.COUNT CF.EXISTS CF.MEXISTS CF.INFO CF.SCANDUMP"),
    Row(CONDITIONAL, "CF.RESERVE CF.ADDNX CF.INSERTNX"),
    Row(NON_IDEMPOTENT, "CF.ADD CF.INSERT CF.DEL", "an item may be contained several times"),
    Row(NON_IDEMPOTENT, "BF.LOADCHUNK CF.LOADCHUNK", "a repeat is not documented"),
    Row(READ, "CMS.INFO CMS.QUERY TOPK.COUNT TOPK.INFO TOPK.LIST TOPK.QUERY"),
    Row(CONDITIONAL, "CMS.INITBYDIM CMS.INITBYPROB TOPK.RESERVE TDIGEST.CREATE"),
    Row(NON_IDEMPOTENT, "CMS.INCRBY TOPK.ADD TOPK.INCRBY TDIGEST.ADD"),
    Row(effects.counted_store, "CMS.MERGE", "a destination among the sources is added to itself"),
    Row(effects.tdigest_merge, "TDIGEST.MERGE", "adds to the destination unless OVERRIDE"),
    Row(IDEMPOTENT, "TDIGEST.RESET"),
    Row(READ, "TDIGEST.BYRANK TDIGEST.BYREVRANK TDIGEST.CDF TDIGEST.INFO TDIGEST.MAX TDIGEST.MIN"),
    Row(READ, "TDIGEST.QUANTILE TDIGEST.RANK TDIGEST.REVRANK TDIGEST.TRIMMED_MEAN"),
    # Vector sets.
    Row(READ, "VCARD VDIM VEMB VGETATTR VINFO VISMEMBER VLINKS VRANDMEMBER VRANGE VSIM"),
    Row(CONDITIONAL, "VADD VREM", "the reply says whether the element was new"),
    Row(IDEMPOTENT, "VSETATTR"),
)

ROWS = (*_DATA, *_SERVER, *_MODULES)
