"""How fast both clients are while nothing is wrong."""

from __future__ import annotations

import asyncio
import statistics
from typing import TYPE_CHECKING, Final

from resilient_io.demo.redis.sides import SIDES

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from resilient_io.demo.redis.script import Script
    from resilient_io.testing import RedisServer

CALLERS: Final = 50
_ROUNDS: Final = 3
_KEY: Final = "demo:speed"


async def measure(script: Script, server: RedisServer) -> tuple[float, float]:
    """Return reads a second of plain redis-py and of ours: 50 callers, straight at the server.

    The rounds of the two alternate, and the median of each counts.

    Args:
        script: Says how long a round is.
        server: Is used without the proxy.
    """
    await server.query("SET", _KEY, "x" * 64)
    sides = [kind(server.port, script.socket_timeout) for kind in SIDES]
    rates: list[list[float]] = [[] for _ in sides]
    try:
        for side in sides:
            await _reads_per_second(side.client, script.speed_round / 2)  # connects
        for _ in range(_ROUNDS):
            for side, found in zip(sides, rates, strict=True):
                found.append(await _reads_per_second(side.client, script.speed_round))
    finally:
        for side in sides:
            await side.client.aclose()
    plain, ours = (statistics.median(found) for found in rates)
    return plain, ours


async def _reads_per_second(client: Redis, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    until = began + seconds

    async def call() -> int:
        calls = 0
        while loop.time() < until:
            await client.get(_KEY)
            calls += 1
        return calls

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(call()) for _ in range(CALLERS)]
    return sum(caller.result() for caller in callers) / (loop.time() - began)
