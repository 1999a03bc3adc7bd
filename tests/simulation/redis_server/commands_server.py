"""Commands about the server: INFO, ROLE, CONFIG, COMMAND, TIME, WAIT, REPLICAOF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command import COMMANDS, Command, Flag, Words, command, glob, integer
from .resp import OK, PENDING, Refused, Reply, Status, Text

if TYPE_CHECKING:
    from .node import Node, Session

ANY_TIME = Flag.LOADING | Flag.STALE
WAIT_ON_REPLICA = (
    "ERR WAIT cannot be used with replica instances. Please also note that {since}if a "
    "replica is configured to be writable (which is not the default) writes to replicas are just "
    "local and are not propagated."
)


def _sections(node: Node) -> dict[str, dict[str, object]]:
    now = node.timers.time()
    sessions = node.sessions.values()
    port = node.address.rpartition(":")[2]
    server: dict[str, object] = {"redis_version": "7.2.4" if node.valkey else node.version}
    if node.valkey:
        server |= {"server_name": "valkey", "valkey_version": node.version}
    server |= {
        "redis_mode": node.mode,
        "process_id": 1,
        "run_id": node.run_id,
        "tcp_port": port,
        "uptime_in_seconds": int(now - node.started),
    }
    replication: dict[str, object] = {"role": "master" if node.master is None else "slave"}
    replication |= node.replication_info()
    keyspace = {}
    for database in node.databases:
        if database.values:
            keyspace[f"db{database.index}"] = (
                f"keys={len(database.values)},expires={len(database.expires)},avg_ttl=0"
            )
    return {
        "Server": server,
        "Clients": {
            "connected_clients": len(sessions),
            "maxclients": node.max_clients,
            "blocked_clients": sum([one.waiting is not None for one in sessions]),
        },
        "Memory": {"used_memory": 1_000_000, "maxmemory": 0, "maxmemory_policy": "noeviction"},
        "Persistence": {"loading": int(node.loading_until > 0), "rdb_bgsave_in_progress": 0},
        "Stats": {"total_connections_received": node.last_id, "evicted_keys": 0},
        "Replication": replication,
        "Cluster": {"cluster_enabled": int(node.mode == "cluster")},
        "Keyspace": keyspace,
    }


@command("INFO", -1, ANY_TIME)
def info(session: Session, words: Words) -> Reply:
    wanted = {word.lower().decode(errors="replace") for word in words[1:]}
    everything = not wanted or bool(wanted & {"all", "default", "everything"})
    lines: list[str] = []
    for title, facts in _sections(session.node).items():
        if everything or title.lower() in wanted:
            lines += [f"# {title}", *(f"{name}:{value}" for name, value in facts.items()), ""]
    return Text("\r\n".join(lines).encode())


@command("ROLE", 1, Flag.NOSCRIPT | ANY_TIME)
def role(session: Session, words: Words) -> Reply:
    return session.node.role()


@command("TIME", 1, ANY_TIME)
def time(session: Session, words: Words) -> Reply:
    now = session.node.unix_ms()
    return [b"%d" % (now // 1000), b"%d" % (now % 1000 * 1000)]


@command("WAIT", 3, Flag.NOSCRIPT)
def wait(session: Session, words: Words) -> Reply:
    node = session.node
    if node.master is not None:
        raise Refused(WAIT_ON_REPLICA.format(since="" if node.valkey else "since Redis 4.0 "))
    wanted = integer(words[1])
    milliseconds = integer(words[2], "ERR timeout is not an integer or out of range")
    if milliseconds < 0:
        raise Refused("ERR timeout is negative")
    offset = session.written_offset

    def count() -> int:
        return node.count_acknowledged(offset)

    def attempt() -> Reply:
        found = count()
        return found if found >= wanted else PENDING

    return session.block(attempt, milliseconds / 1000, count)


@command("REPLICAOF", 3, Flag.NOSCRIPT | Flag.STALE)
@command("SLAVEOF", 3, Flag.NOSCRIPT | Flag.STALE)
def replicaof(session: Session, words: Words) -> Reply:
    host, port = words[1].decode(errors="replace"), words[2].decode(errors="replace")
    if (host.upper(), port.upper()) == ("NO", "ONE"):
        session.node.replicate_address(None)
    elif not port.isdecimal() or int(port) > 65535:
        raise Refused("ERR Invalid master port")
    else:
        session.node.replicate_address(f"{host}:{port}")
    return OK


@command("CONFIG|GET", -3, Flag.NOSCRIPT | ANY_TIME)
def config_get(session: Session, words: Words) -> Reply:
    node = session.node
    known = {
        b"databases": b"%d" % len(node.databases),
        b"maxclients": b"%d" % node.max_clients,
        b"maxmemory": b"0",
        b"maxmemory-policy": b"noeviction",
        b"appendonly": b"no",
        b"save": b"",
        b"timeout": b"0",
        b"notify-keyspace-events": b"",
    }
    patterns = [glob(word.lower()) for word in words[2:]]
    return {
        name: value
        for name, value in known.items()
        if any(pattern.fullmatch(name) for pattern in patterns)
    }


def _describe(name: bytes, found: Command | None) -> Reply:
    if found is None:
        return None
    flags = [
        Status(flag.name.lower().encode())
        for flag in Flag
        if flag in found.flags and flag not in (Flag.OWN_LOG, Flag.MAY_REPLICATE, Flag.VALKEY_BUSY)
    ]
    return [name.lower(), found.arity, flags, 0, 0, 0, [], [], [], []]


@command("COMMAND", -1, ANY_TIME)
def command_(session: Session, words: Words) -> Reply:
    return [_describe(name, found) for name, found in COMMANDS.items()]


@command("COMMAND|INFO", -2, ANY_TIME)
def command_info(session: Session, words: Words) -> Reply:
    return [_describe(name, COMMANDS.get(name.upper())) for name in words[2:]]


@command("COMMAND|COUNT", 2, ANY_TIME)
def command_count(session: Session, words: Words) -> Reply:
    return len(COMMANDS)


@command("COMMAND|DOCS", -2, ANY_TIME)
def command_docs(session: Session, words: Words) -> Reply:
    return {}
