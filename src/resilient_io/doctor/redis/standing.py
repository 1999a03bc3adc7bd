"""What a Redis server says of itself: version, role, memory, clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_io.doctor.looking import Finding, blind, merged, note, ok, problem

from .account import Unanswered, number, read_info, span, text_of

if TYPE_CHECKING:
    from .account import Account

__all__ = [
    "look_at_clients",
    "look_at_memory",
    "look_at_role",
    "look_at_server",
]

_OLD: Final = 6
"""Before this major version there are neither RESP3 nor ACLs."""

_JUST_STARTED: Final = 600
_NEARLY: Final = 0.9
_FILLING: Final = 0.75
_MIB: Final = 1 << 20
_FRAGMENTED: Final = 1.5
_MUCH: Final = 256 * _MIB
_LAGGING: Final = 10
_SLOTS: Final = 16384


async def look_at_server(account: Account) -> Finding:
    """Look at version, mode, and how long it has been running."""
    info = await account.info()
    version = info.get("valkey_version") or info.get("redis_version", "?")
    name = "Valkey" if "valkey_version" in info else "Redis"
    mode = info.get("redis_mode") or info.get("server_mode", "standalone")  # Valkey 9: the latter
    uptime = int(number(info, "uptime_in_seconds"))
    data = {"product": name, "version": version, "mode": mode, "uptime": uptime}
    if mode == "sentinel":
        return problem(
            f"this is a Sentinel, not the server with the data{await _masters(account)}",
            "Use redis.asyncio.Sentinel(...).master_for(name, redis_class=ResilientRedis), which "
            "asks it for the master.",
            **data,
        )
    findings = [ok(f"{name} {version}, {mode}, up for {span(uptime)}")]
    if uptime < _JUST_STARTED:
        findings = [
            note(
                f"{name} {version}, {mode}, started {span(uptime)} ago",
                "If nobody restarted it on purpose, look why it ended: its log, and OOMKilled in "
                "the pod's last state.",
            )
        ]
    major = version.partition(".")[0]
    if name == "Redis" and major.isdecimal() and int(major) < _OLD:
        findings.append(
            note("older than Redis 6", "It knows neither RESP3 nor users: plan an update.")
        )
    if mode == "cluster":
        findings.append(await _look_at_cluster(account))
    return merged(findings, **data)


async def _masters(account: Account) -> str:
    try:
        reply = await account.ask("SENTINEL", "MASTERS")
    except Unanswered:
        return ""
    told = [_pairs(master) for master in reply]
    named = [f"{m.get('name')} at {m.get('ip')}:{m.get('port')}" for m in told]
    return f" (it watches {', '.join(named)})" if named else ""


def _pairs(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):
        return {text_of(name): text_of(value) for name, value in reply.items()}
    words = [text_of(word) for word in reply]
    return dict(zip(words[::2], words[1::2], strict=False))


async def _look_at_cluster(account: Account) -> Finding:
    try:
        said = text_of(await account.ask("CLUSTER", "INFO"))
    except Unanswered as unanswered:
        return unanswered.finding
    told = read_info(said)
    state, nodes = told.get("cluster_state"), int(number(told, "cluster_known_nodes", 1))
    data = {"cluster_state": state, "cluster_nodes": nodes}
    if state != "ok":
        held = int(number(told, "cluster_slots_ok"))
        return problem(
            f"the cluster does not serve ({held} of {_SLOTS} slots are held)",
            "Bring back the nodes that are gone, or give their slots to others: redis-cli "
            "--cluster check, then fix.",
            **data,
        )
    if nodes > 1:
        return problem(
            f"one of the {nodes} nodes of a cluster, which holds only a part of the keys",
            "Use redis.asyncio.RedisCluster: for the keys of other nodes a client of one node "
            "gets MOVED.",
            **data,
        )
    return ok("a cluster of one node", **data)


async def look_at_role(account: Account) -> Finding:
    """Look whether it is the master, and how its replicas or its master are."""
    try:
        info = await account.info()
    except Unanswered:
        info = await _role(account)
    if info.get("role") == "slave":
        return _judge_replica(info)
    replicas = [
        _fields(value)
        for name, value in info.items()
        if name.startswith("slave") and name[5:].isdecimal()
    ]
    data = {"role": "master", "replicas": len(replicas)}
    late = [
        replica
        for replica in replicas
        if replica.get("state") != "online" or number(replica, "lag") > _LAGGING
    ]
    if late:
        return note(
            f"master, {len(late)} of {len(replicas)} replicas is not up to date",
            "If the master dies now, that replica takes over with old data: look at its log and "
            "at the network between them.",
            **data,
        )
    if not replicas:
        return ok("master, without replicas", **data)
    count = "1 replica" if len(replicas) == 1 else f"{len(replicas)} replicas"
    return ok(f"master, {count} up to date", **data)


async def _role(account: Account) -> dict[str, str]:
    """Ask in another way, as INFO says it."""
    reply = await account.ask("ROLE")
    kind = text_of(reply[0])
    if kind != "slave":
        return {"role": kind}
    return {
        "role": kind,
        "master_host": text_of(reply[1]),
        "master_port": text_of(reply[2]),
        "master_link_status": "up" if text_of(reply[3]) == "connected" else "down",
    }


def _judge_replica(info: dict[str, str]) -> Finding:
    master = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
    up = info.get("master_link_status") == "up"
    read_only = info.get("slave_read_only", "1") == "1"
    data = {"role": "replica", "master": master, "link": "up" if up else "down"}
    if not up:
        since = int(number(info, "master_link_down_since_seconds", -1))
        ago = f" for {span(since)}" if since >= 0 else ""
        syncing = info.get("master_sync_in_progress") == "1"
        return problem(
            f"a replica that has lost its master {master}{ago}"
            + (", and is syncing now" if syncing else "")
            + ": its data are old, or it serves none",
            "Bring the master back, or promote a replica (Sentinel, your operator, or REPLICAOF NO "
            "ONE), and point the URL at the new master.",
            **data,
        )
    if not read_only:
        return problem(
            f"a replica of {master} that takes writes, which the next sync throws away",
            f"Point the URL at {master}, and set replica-read-only yes.",
            **data,
        )
    return problem(
        f"a replica of {master}: it refuses writes (READONLY)",
        f"Point the URL at {master}, or let Sentinel or a Service that follows the master say "
        f"where that is. For a client that only reads, all is well.",
        **data,
    )


async def look_at_memory(account: Account) -> Finding:
    """Look at the memory limit, and at what happens when it is reached."""
    info = await account.info()
    used, limit = number(info, "used_memory"), number(info, "maxmemory")
    policy = info.get("maxmemory_policy", "?")
    data = {"used": int(used), "limit": int(limit), "policy": policy}
    findings = [_judge_memory(used, limit, policy)]
    evicted = int(number(info, "evicted_keys"))
    if evicted:
        data["evicted"] = evicted
        findings.append(
            note(
                f"{evicted} keys were evicted since its start",
                "Right for a cache; for locks, queues and sessions it is loss: give those a server "
                "of their own with noeviction.",
            )
        )
    fragmented = number(info, "mem_fragmentation_ratio")
    if fragmented > _FRAGMENTED and number(info, "used_memory_rss") > _MUCH:
        data["fragmentation"] = fragmented
        findings.append(
            note(
                f"it takes {fragmented:.1f} times as much from the system",
                "Set activedefrag yes, or restart it: the container's limit counts all of it.",
            )
        )
    return merged(findings, **data)


def _judge_memory(used: float, limit: float, policy: str) -> Finding:
    if not limit:
        return note(
            f"{_mib(used)} used, without a limit",
            "Set maxmemory to some three quarters of what the container may use: else the kernel "
            "kills the server when it is reached.",
        )
    share = used / limit
    found = f"{_mib(used)} of {_mib(limit)} used ({share:.0%}), {policy}"
    if policy == "noeviction" and share >= 1:
        return problem(
            f"{found}: it refuses writes now (OOM)",
            "Raise maxmemory, delete what is not needed (redis-cli --bigkeys shows the largest), "
            "or let keys expire.",
        )
    if policy == "noeviction" and share > _NEARLY:
        return problem(
            f"{found}: soon it will refuse writes (OOM)",
            "Raise maxmemory, delete what is not needed, or let keys expire.",
        )
    if policy == "noeviction" and share > _FILLING:
        return note(found, "At 100% it refuses writes (OOM): watch it.")
    return ok(found)


async def look_at_clients(account: Account) -> Finding:
    """Look how many connections it has, and how many it may have."""
    info = await account.info()
    connected = int(number(info, "connected_clients"))
    limit = int(number(info, "maxclients"))
    rejected = int(number(info, "rejected_connections"))
    data = {"connected": connected, "limit": limit, "rejected": rejected}
    if not limit:
        setting = await account.config("maxclients")
        limit = data["limit"] = int(setting) if setting and setting.isdecimal() else 0
    found = f"{connected} of {limit or '?'} connections used"
    advice = (
        "Raise maxclients, or find who holds the connections: CLIENT LIST on the server, and "
        "clients that are made per request."
    )
    if limit and connected > limit * _NEARLY:
        return problem(f"{found}: soon it turns new ones away", advice, **data)
    if rejected:
        return note(f"{found}; it turned {rejected} away since its start", advice, **data)
    if "connected_clients" not in info:
        return blind("the server does not say how many clients it has")
    return ok(found, **data)


def _fields(value: str) -> dict[str, str]:
    parts = (part.partition("=") for part in value.split(","))
    return {name: said for name, _, said in parts}


def _mib(size: float) -> str:
    return f"{size / _MIB:.1f} MiB"
