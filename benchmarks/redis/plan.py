"""The workloads of the Redis benchmarks, and their targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from benchmarks.targets import Target

PEERS: Final = ("redis-py", "coredis", "valkey-glide")
OURS: Final = "resilient-io"
CLIENTS: Final = (*PEERS, OURS)
"""In the order of the first round; each further round begins with the next client."""

VALUE_BYTES: Final = 64
LARGE_BYTES: Final = 1024 * 1024
KEYS: Final = 1000
PIPELINE: Final = 100


def value_of(index: int) -> bytes:
    """Return the value of a key: 64 bytes that begin with its index."""
    return b"%d:" % index + b"x" * (VALUE_BYTES - len(b"%d:" % index))


Kind = Literal["get", "set", "mixed", "pipeline", "large", "latency", "lock", "evalsha"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A workload that every client runs in turn.

    Attributes:
        name: Its short name, for `--only`.
        title: Its title in the table.
        kind: What each caller repeats.
        callers: The number of concurrent tasks.
        stretch: Length of its rounds, as a multiple of the usual length.
        clients: The clients that can run it.
        server: What it runs on: one server, a cluster of three masters, or a master with a replica
            and three Sentinels.
    """

    name: str
    title: str
    kind: Kind
    callers: int
    stretch: float = 1.0
    clients: tuple[str, ...] = CLIENTS
    server: Literal["single", "cluster", "sentinel"] = "single"


WITHOUT_SENTINEL: Final = "resilient-io without Sentinel"
"""`ResilientRedis` on the same master, which knows nothing of the Sentinels."""

CLUSTER_CLIENTS: Final = ("redis-py", "valkey-glide", OURS)


def _on_cluster(name: str, title: str, kind: Kind, callers: int) -> Work:
    return Work(
        name=name,
        title=f"cluster of three masters: {title}",
        kind=kind,
        callers=callers,
        clients=CLUSTER_CLIENTS,
        server="cluster",
    )


def _with_sentinels(name: str, title: str, kind: Kind) -> Work:
    return Work(
        name=name,
        title=f"master known from Sentinels: {title}",
        kind=kind,
        callers=50,
        clients=(WITHOUT_SENTINEL, OURS),
        server="sentinel",
    )


WORKS: Final = (
    Work(name="get-1", title="GET, 1 caller", kind="get", callers=1),
    Work(name="get-50", title="GET, 50 callers", kind="get", callers=50),
    Work(name="set-50", title="SET, 50 callers", kind="set", callers=50),
    Work(name="get-500", title="GET, 500 callers", kind="get", callers=500),
    Work(name="get-10000", title="GET, 10,000 callers", kind="get", callers=10_000, stretch=2.0),
    Work(name="mixed-50", title="mixed commands, 50 callers", kind="mixed", callers=50),
    Work(name="pipeline", title="explicit pipeline of 100 GETs", kind="pipeline", callers=1),
    Work(name="large-8", title="1 MiB values, SET and GET, 8 callers", kind="large", callers=8),
    Work(
        name="evalsha-50",
        title="EVALSHA, 50 callers",
        kind="evalsha",
        callers=50,
        clients=("redis-py", OURS),
    ),
    Work(
        name="lock-1",
        title="acquire and release a lock, 1 caller",
        kind="lock",
        callers=1,
        clients=("redis-py", OURS),
    ),
    Work(
        name="lock-50",
        title="acquire and release a lock each, 50 callers",
        kind="lock",
        callers=50,
        clients=("redis-py", OURS),
    ),
    Work(name="latency-50", title="latency of GET, 50 callers", kind="latency", callers=50),
    _on_cluster("cluster-get-50", "GET, 50 callers", "get", 50),
    _on_cluster("cluster-set-50", "SET, 50 callers", "set", 50),
    _on_cluster("cluster-get-500", "GET, 500 callers", "get", 500),
    _on_cluster("cluster-set-500", "SET, 500 callers", "set", 500),
    _on_cluster("cluster-pipeline", "explicit pipeline of 100 GETs", "pipeline", 1),
    _with_sentinels("sentinel-get-50", "GET, 50 callers", "get"),
    _with_sentinels("sentinel-set-50", "SET, 50 callers", "set"),
)

FLOOR: Final = "bare minimum"
"""A client that only sends and receives: what it misses by far, none in Python reaches."""

FLOORS: Final = tuple(
    replace(work, clients=("redis-py", "valkey-glide", FLOOR, OURS))
    for work in WORKS
    if work.name in ("get-1", "get-50", "mixed-50", "pipeline", "large-8")
)
"""The works that it can do."""

EXTRAS: Final = ("floors", "overhead", "down", "idle", "scale", "refresh")
"""What is measured beside the works: ours alone, or once a client."""


_FAST = (
    Target(against="redis-py", least=20),
    Target(against="valkey-glide", least=5.5),
)
_FAST_CLUSTER = (
    Target(against="redis-py", least=8),
    Target(against="valkey-glide", least=3),
)
RATE_TARGETS: Final[dict[str, tuple[Target, ...]]] = {
    "get-1": (Target(against="redis-py", least=3),),
    "get-50": _FAST,
    "set-50": _FAST,
    "get-500": (Target(against="redis-py", least=27),),
    "mixed-50": (Target(against="redis-py", least=13),),
    "pipeline": (
        Target(against="redis-py", least=4.5),
        Target(against="valkey-glide", least=2.5),
    ),
    "large-8": (
        Target(against="redis-py", least=1.5),
        Target(against="valkey-glide", least=0.9),
    ),
    "evalsha-50": (Target(against="redis-py", least=8),),
    "lock-1": (Target(against="redis-py", least=1.0),),
    "lock-50": (Target(against="redis-py", least=1.0),),
    "cluster-get-50": _FAST_CLUSTER,
    "cluster-set-50": _FAST_CLUSTER,
    "cluster-get-500": (Target(against="redis-py", least=15),),
    "cluster-set-500": (Target(against="redis-py", least=15),),
    "cluster-pipeline": (Target(against="redis-py", least=1.5),),
    "sentinel-get-50": (Target(against=WITHOUT_SENTINEL, least=0.97),),
    "sentinel-set-50": (Target(against=WITHOUT_SENTINEL, least=0.97),),
}
COST_TARGET: Final = 1.3
"""A call at 10,000 callers may cost that much more than one at 500."""
TAIL_TARGET: Final = 1.0
"""Our p99 over redis-py's p50."""
DOWN_TARGET: Final = 4.0
"""µs of a call that is refused while the server is down, its `except` included."""
OVERHEAD_TARGET: Final = 0.10
"""What policy, health and statistics may add to a call."""
FUTURES_TARGET: Final = 2.1
"""CPU of a call, as a multiple of that of a future of the same loop."""
CONSTRUCT_TARGET: Final = 350.0
"""µs of CPU to construct a client."""
MEMORY_TARGET: Final = 28_000
"""Bytes that Python allocates for a client that is connected and idle."""
DEPENDENCIES_TARGET: Final = 0.01
"""Part of a core that 1,000 probed dependencies take."""
CROWD_TARGET: Final = 0.06
"""The same for 1,000 idle clients."""
START_TARGET: Final = 4.0
"""Seconds until 1,000 clients that are started at once are UP."""
CROWD: Final = 1000
"""Clients, or dependencies, in one process."""
REFRESH_TARGETS: Final = {100: 5.0, 1000: 50.0}
"""ms of the event loop that reading the slots of so many nodes may take."""
SLICE_TARGET: Final = 5.0
"""ms that it may take at once."""
