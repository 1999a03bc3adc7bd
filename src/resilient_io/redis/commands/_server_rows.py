"""The reviewed list, second part: scripts, messages, connections and administration."""

from __future__ import annotations

from resilient_io.redis.commands import _blocking as blocking
from resilient_io.redis.commands import _server_judges as judges
from resilient_io.redis.commands._judges import (
    CONDITIONAL,
    DANGEROUS,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    READ,
)
from resilient_io.redis.commands._rows import Row
from resilient_io.redis.commands._spec import Route

BOUND, DEDICATED, REFUSED = Route.BOUND, Route.DEDICATED, Route.REFUSED

_RUNS_CODE = "only its author knows what it does"
_OWN_CONNECTION = "Use `client()` for a connection of your own."
_TRANSACTION = "Use `pipeline(transaction=True)`, or `transaction()`."
_CREDENTIALS = "Use the constructor's `username=`, `password=` or `credential_provider=`."
_PUBSUB = "Use `pubsub()`."
_REPLICATION = "It speaks the replication protocol; use a replication tool on a plain socket."
_CLUSTER_CLIENT = "Use a cluster client; `client()` gives a connection of your own."
_HAND_OVER = "a repeat undoes what was decided since"
_WIPES = "a repeat hits a server that was filled again"
_HITS_ANOTHER = "a repeat hits another one than the first did"

ROWS = (
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
    Row(CONDITIONAL, "FUNCTION|LOAD", judge=judges.function_load, reason="REPLACE overwrites"),
    Row(CONDITIONAL, "FUNCTION|DELETE"),
    Row(DANGEROUS, "FUNCTION|RESTORE", judge=judges.function_restore, reason="FLUSH: " + _WIPES),
    Row(DANGEROUS, "FUNCTION|FLUSH", reason=_WIPES),
    # Messages.
    Row(NON_IDEMPOTENT, "PUBLISH SPUBLISH", reason="every subscriber would hear it twice"),
    Row(READ, "PUBSUB|CHANNELS PUBSUB|NUMPAT PUBSUB|NUMSUB PUBSUB|HELP"),
    Row(READ, "PUBSUB|SHARDCHANNELS PUBSUB|SHARDNUMSUB"),
    Row(NON_IDEMPOTENT, "SUBSCRIBE PSUBSCRIBE SSUBSCRIBE", route=REFUSED, advice=_PUBSUB),
    Row(NON_IDEMPOTENT, "UNSUBSCRIBE PUNSUBSCRIBE SUNSUBSCRIBE", route=REFUSED, advice=_PUBSUB),
    # What a connection remembers. Lost with it, so a repeat would hold on a bare connection.
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
        block=blocking.last_in_milliseconds,
        advice="It asks about the writes of its own connection: "
        "use `client()` for the writes and for it.",
        reason="on another connection WAIT answers for writes that are not ours",
    ),
    Row(
        NON_IDEMPOTENT,
        "CLIENT",
        route=BOUND,
        advice=_OWN_CONNECTION,
        reason="an unknown subcommand may set what the connection remembers",
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
        advice="Without replies nothing can be told apart; await `pipeline()` instead.",
    ),
    Row(
        READ,
        "CLIENT|ID CLIENT|INFO CLIENT|GETNAME CLIENT|GETREDIR CLIENT|TRACKINGINFO",
        reason="on a lane they tell about the lane",
    ),
    Row(READ, "CLIENT|LIST CLIENT|HELP"),
    Row(DANGEROUS, "CLIENT|KILL", reason="ids start again with the server, addresses come back"),
    Row(
        NON_IDEMPOTENT, "CLIENT|UNBLOCK", reason="by then the client may be blocked in another call"
    ),
    Row(IDEMPOTENT, "CLIENT|PAUSE", reason="the end moves by at most the deadline"),
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
    Row(IDEMPOTENT, "ACL|LOG", judge=judges.acl_log, reason="a read unless RESET"),
    Row(CONDITIONAL, "ACL|DELUSER"),
    Row(
        NON_IDEMPOTENT,
        "ACL|SETUSER",
        judge=judges.acl_setuser,
        reason="rules that contradict each other are refused the second time; selectors add up",
    ),
    Row(READ, "MODULE|LIST MODULE|HELP"),
    Row(CONDITIONAL, "MODULE|LOAD MODULE|LOADEX MODULE|UNLOAD"),
    # Persistence and the whole data set.
    Row(
        IDEMPOTENT,
        "SAVE",
        route=DEDICATED,
        block=blocking.for_ever,
        reason="the server is silent until all is written",
    ),
    Row(NON_IDEMPOTENT, "BGSAVE BGREWRITEAOF", reason="starts one more"),
    Row(NON_IDEMPOTENT, "SWAPDB", reason="toggles"),
    Row(DANGEROUS, "FLUSHALL FLUSHDB", reason=_WIPES),
    Row(
        DANGEROUS,
        "SHUTDOWN",
        route=DEDICATED,
        block=blocking.for_ever,
        reason="waits for replicas and a save; a repeat stops the restarted server",
    ),
    Row(
        DANGEROUS,
        "MIGRATE",
        route=DEDICATED,
        block=blocking.for_ever,
        reason="its timeout bounds each pause on the way, not the whole",
    ),
    Row(READ, "DEBUG|OBJECT DEBUG|DIGEST DEBUG|DIGEST-VALUE DEBUG|SDSLEN DEBUG|HELP"),
    Row(READ, "DEBUG|LISTPACK DEBUG|ZIPLIST DEBUG|QUICKLIST DEBUG|HTSTATS DEBUG|HTSTATS-KEY"),
    Row(READ, "DEBUG|PROTOCOL DEBUG|STRUCTSIZE DEBUG|STRINGMATCH-LEN"),
    Row(DANGEROUS, "DEBUG", reason="it can crash, reload and corrupt"),
    Row(
        DANGEROUS,
        "DEBUG|SLEEP",
        route=DEDICATED,
        block=blocking.sleep,
        reason="silences the server for everybody once more",
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
        judge=judges.sentinel_is_down,
        reason="with an id it asks for a vote",
    ),
    Row(IDEMPOTENT, "SENTINEL|FLUSHCONFIG SENTINEL|SET"),
    Row(NON_IDEMPOTENT, "SENTINEL|CONFIG", judge=judges.sentinel_config, reason="GET reads"),
    Row(CONDITIONAL, "SENTINEL|MONITOR SENTINEL|REMOVE"),
    Row(DANGEROUS, "SENTINEL|FAILOVER SENTINEL|RESET", reason=_HAND_OVER),
    Row(DANGEROUS, "SENTINEL|DEBUG SENTINEL|SIMULATE-FAILURE", reason="made to break a Sentinel"),
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
