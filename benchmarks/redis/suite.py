"""Joins what measures Redis clients."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.suite import Suite
from resilient_io.testing import find_redis

from . import refresh
from .arena import ARENAS, Arena, tune
from .plan import EXTRAS, WORKS
from .tables import floor_table, resource_table, scale_table, speed_table

if TYPE_CHECKING:
    from benchmarks.suite import Effort, Results, Say

_SIZES = (1, 2, 4, 8, 16, 32, 64)


async def _measure(loop: str, effort: Effort, say: Say) -> Results:
    wanted, rounds, seconds = effort.wanted, effort.rounds, effort.seconds
    results: Results = {}
    for server in ARENAS:
        results |= await _on_several_servers(server, loop, effort, say)
    if not set(wanted) - results.keys() - {"refresh"}:
        return results | await _refresh(loop, effort, say)
    async with Arena(loop, say) as arena:
        for work in WORKS:
            if work.name in wanted and work.server == "single":
                results[work.name] = await arena.compete(work, rounds, seconds)
        if "floors" in wanted:
            results |= await arena.floors(rounds, seconds)
        if "overhead" in wanted:
            results["overhead"] = await arena.overhead(rounds, seconds * 2)
        if "idle" in wanted and sys.platform == "linux":
            results["idle"] = await arena.idle()
        if "scale" in wanted:
            results["scale"] = await arena.scale()
        if "down" in wanted:
            results["down"] = await arena.down(rounds)
    return results | await _refresh(loop, effort, say)


async def _on_several_servers(server: str, loop: str, effort: Effort, say: Say) -> Results:
    works = [work for work in WORKS if work.server == server and work.name in effort.wanted]
    if not works:
        return {}
    async with ARENAS[server](loop, say) as arena:
        return {
            work.name: await arena.compete(work, effort.rounds, effort.seconds) for work in works
        }


async def _refresh(loop: str, effort: Effort, say: Say) -> Results:
    if "refresh" not in effort.wanted:
        return {}
    say(f"{loop}: reading the slots of a cluster")
    return {"refresh": await refresh.measure(effort.rounds)}


def _tables(results: Results) -> list[str]:
    tables = [*speed_table(results), "", *resource_table(results)]
    if any(name.startswith("floor") for name in results):
        tables += ["", *floor_table(results)]
    if "scale" in results:
        tables += ["", *scale_table(results)]
    if "refresh" in results:
        tables += ["", *refresh.refresh_table(results)]
    return tables


async def _tune(say: Say) -> None:
    await tune(("redis-py", "coredis"), _SIZES, say)


SUITE = Suite(
    name="redis",
    names=(*(work.name for work in WORKS), *EXTRAS),
    loops=("asyncio", "uvloop"),
    packages=("redis", "hiredis", "coredis", "valkey-glide", "uvloop"),
    seconds=0.5,
    server=lambda: find_redis().version,
    measure=_measure,
    tables=_tables,
    tune=_tune,
)
