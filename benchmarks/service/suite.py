"""Joins what measures the cost of seeing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.redis.arena import fill
from benchmarks.suite import Suite
from benchmarks.worker import Worker
from resilient_io.testing import RedisServer, find_redis

from .plan import WORKS
from .tables import OURS, cost_table

if TYPE_CHECKING:
    from benchmarks.suite import Effort, Results, Say

_ORDERS = {"probe": "probe", "import": "imports", "drivers": "drivers"}


async def _measure(loop: str, effort: Effort, say: Say) -> Results:
    results: Results = {}
    async with RedisServer() as server:
        await fill(server)
        async with Worker("benchmarks.service.worker", OURS, server.url, loop) as worker:
            if "metrics-50" in effort.wanted:
                say(f"{loop}: metrics, warming up")
                await worker.do("metrics", seconds=effort.seconds / 2, first="with")
                results["metrics-50"] = {OURS: []}
            for number in range(effort.rounds):
                for name in effort.wanted:
                    say(f"{loop}: {name}, round {number + 1}")
                    if name == "metrics-50":
                        first = ("with", "without")[number % 2]
                        measured = await worker.do("metrics", seconds=effort.seconds, first=first)
                    else:
                        measured = await worker.do(_ORDERS[name])
                    results.setdefault(name, {OURS: []})[OURS].append(measured)
    return results


async def _tune(say: Say) -> None:
    say("service: there is nothing to tune")


SUITE = Suite(
    name="service",
    names=tuple(work.name for work in WORKS),
    loops=("asyncio",),
    packages=("prometheus-client", "opentelemetry-sdk"),
    seconds=2.0,
    server=lambda: find_redis().version,
    measure=_measure,
    tables=cost_table,
    tune=_tune,
)
