"""How much of the event loop's time it takes to refresh the slots of a large cluster.

The reply to CLUSTER SLOTS is simulated. Its bytes are parsed in pieces, as they would arrive; then
the table is read, and used by the router of a client, in slices. One shard has failed over since
the refresh before. The time is that of the CPU, so that other processes do not count.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import hiredis

from benchmarks.markdown import table
from benchmarks.statistics import spread
from benchmarks.targets import verdict
from resilient_io.redis.cluster import ResilientRedisCluster
from resilient_io.redis.cluster.slots import SLOTS, read_table

from .plan import OURS, REFRESH_TARGETS, SLICE_TARGET

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from benchmarks.suite import Results, Rounds
    from resilient_io.redis.cluster.router import Router

_HOST = "10.0.0.1"
_PIECE = 64 * 1024
_REPLICAS = 2
_MS = 1000.0


async def measure(rounds: int) -> Rounds:
    """Return the milliseconds of each size of cluster: all, and the longest slice."""
    return {OURS: [_round() for _ in range(rounds)]}


def refresh_table(results: Results) -> list[str]:
    """Return the table of what a refresh of the slots costs."""
    measured = results["refresh"][OURS]
    rows: list[Sequence[str]] = []
    for nodes, most in REFRESH_TARGETS.items():
        for key, title, target in (
            (f"all-{nodes}", f"slots of {nodes:,} nodes, ms of the event loop", most),
            (f"slice-{nodes}", "longest slice of it", SLICE_TARGET),
        ):
            found = spread([each[key] for each in measured])
            shown = f"{found.median:.1f} ({found.low:.1f}-{found.high:.1f})"
            rows.append((title, shown, f"≤{target:g}", verdict(found.median <= target)))
    return table(("", OURS, "must reach", ""), rows)


def _round() -> dict[str, float]:
    measured: dict[str, float] = {}
    for nodes in REFRESH_TARGETS:
        router = ResilientRedisCluster(_HOST, 6379)._router
        before, after = (_encoded(_slots_of(nodes, failed_over)) for failed_over in (False, True))
        _refresh(router, before)
        slices = _refresh(router, after)
        measured[f"all-{nodes}"] = sum(slices) * _MS
        measured[f"slice-{nodes}"] = max(slices) * _MS
    return measured


def _refresh(router: Router, reply: bytes) -> list[float]:
    """Have a router use a reply. Return the seconds of each slice."""
    slices: list[float] = []
    reader = hiredis.Reader()
    parsed: Any = False
    for at in range(0, len(reply), _PIECE):
        reader.feed(reply[at : at + _PIECE])
        parsed = _timed(reader.gets, slices)
    found = _run(read_table(parsed, asked=_HOST, known=router.table), slices)
    _run(router._use(found, asyncio.get_running_loop().time()), slices)
    return slices


def _run(work: Coroutine[Any, Any, Any], slices: list[float]) -> Any:
    """Return the result of work that waits for nothing but the next iteration of the loop."""
    while True:
        try:
            _timed(lambda: work.send(None), slices)
        except StopIteration as stop:
            return stop.value


def _timed(step: Callable[[], Any], slices: list[float]) -> Any:
    began = time.thread_time()
    try:
        return step()
    finally:
        slices.append(time.thread_time() - began)


def _slots_of(nodes: int, failed_over: bool) -> list[Any]:  # noqa: FBT001 (one fact)
    """Return a reply to CLUSTER SLOTS. A replica may have taken over the first slots."""
    count = nodes // (1 + _REPLICAS)
    bounds = [SLOTS * at // count for at in range(count + 1)]
    shards = [
        [_node(at * (1 + _REPLICAS) + number) for number in range(1 + _REPLICAS)]
        for at in range(count)
    ]
    if failed_over:
        shards[0].reverse()
    return [[bounds[at], bounds[at + 1] - 1, *shard] for at, shard in enumerate(shards)]


def _node(identity: int) -> list[Any]:
    host = f"10.0.{identity // 250}.{identity % 250}"
    metadata = ["hostname", f"node-{identity}.example.org"]
    return [host, 6379, f"{identity:040x}", metadata]


def _encoded(value: Any) -> bytes:
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(_encoded, value))
    if isinstance(value, int):
        return b":%d\r\n" % value
    return b"$%d\r\n%s\r\n" % (len(value), value.encode())
