"""The process that runs one Redis client."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.statistics import quantile
from benchmarks.worker import run

from .clients import OPENERS
from .plan import CROWD, KEYS, LARGE_BYTES, OURS, PIPELINE, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .clients import Client

_SCRIPT = "return redis.call('get', KEYS[1])"
_SLICES = 10
_REFUSALS = 20_000
_TIMEOUT = 5.0
_SETTLING = 0.3
_CONSTRUCTED = 200
_TRACED = 50
_OBSERVED = 5.0
_LONGEST_START = 40.0


class Drive:
    """Callers that repeat one step until the time is over."""

    def __init__(self, client: Client, kind: str, callers: int) -> None:
        self._client = client
        self._kind = kind
        self._callers = callers
        self._running = True
        self._begin = asyncio.Event()
        self._latencies: list[float] = []
        self._large_value = os.urandom(LARGE_BYTES) if kind == "large" else b""

    async def run(self, seconds: float) -> dict[str, float]:
        """Run the callers for `seconds`. The calls that are then in flight still count."""
        step: Callable[[int], Coroutine[Any, Any, int]] = getattr(self, f"_{self._kind}")
        callers = [asyncio.create_task(step(index)) for index in range(self._callers)]
        await asyncio.sleep(0)
        gc.collect()
        cpu, start = time.process_time(), time.perf_counter()
        self._begin.set()
        await asyncio.sleep(0)  # every caller begins, however slowly: none is without a call
        asyncio.get_running_loop().call_later(seconds, self._stop)
        calls = sum(await asyncio.gather(*callers))
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
        result = {"rate": calls / elapsed, "cpu": cpu / calls * 1e6, "calls": calls}
        if self._latencies:
            result["p50"] = quantile(self._latencies, 0.50) * 1e6
            result["p99"] = quantile(self._latencies, 0.99) * 1e6
        return result

    def _stop(self) -> None:
        self._running = False

    async def _get(self, index: int) -> int:
        get, count = self._client.get, 0
        key, expected = f"key:{index % KEYS}", value_of(index % KEYS)
        await self._begin.wait()
        while self._running:
            assert await get(key) == expected
            count += 1
        return count

    async def _set(self, index: int) -> int:
        set_, count = self._client.set, 0
        key, value = f"key:{index % KEYS}", value_of(index % KEYS)
        await self._begin.wait()
        while self._running:
            await set_(key, value)
            count += 1
        return count

    async def _mixed(self, index: int) -> int:
        calls, count = self._client.mixed, index
        key = f"mixed:{index % KEYS}"
        await self._begin.wait()
        while self._running:
            await calls[count % 5](key)
            count += 1
        return count - index

    async def _pipeline(self, index: int) -> int:
        pipeline, count = self._client.pipeline, 0
        keys = [f"key:{index + number}" for number in range(PIPELINE)]
        expected = [value_of(index + number) for number in range(PIPELINE)]
        await self._begin.wait()
        while self._running:
            assert list(await pipeline(keys)) == expected
            count += PIPELINE
        return count

    async def _large(self, index: int) -> int:
        get, set_, value, count = self._client.get, self._client.set, self._large_value, 0
        key = f"large:{index}"
        await self._begin.wait()
        while self._running:
            await set_(key, value)
            assert len(await get(key)) == LARGE_BYTES
            count += 2
        return count

    async def _evalsha(self, index: int) -> int:
        client: Any = self._client
        evalsha, count = client.evalsha, 0
        key, expected = f"key:{index % KEYS}", value_of(index % KEYS)
        sha = await client.client.script_load(_SCRIPT)
        await self._begin.wait()
        while self._running:
            assert await evalsha(sha, 1, key) == expected
            count += 1
        return count

    async def _lock(self, index: int) -> int:
        client: Any = self._client
        lock, name, count = client.lock, f"lock:{index}", 0
        async with lock(name, timeout=10):
            pass  # loads the script that releases it
        await self._begin.wait()
        while self._running:
            async with lock(name, timeout=10):
                count += 1
        return count

    async def _latency(self, index: int) -> int:
        get, clock, note, count = self._client.get, time.perf_counter, self._latencies.append, 0
        key = f"key:{index % KEYS}"
        await self._begin.wait()
        while self._running:
            start = clock()
            await get(key)
            note(clock() - start)
            count += 1
        return count


class RedisServant:
    """One client, and the requests that it serves."""

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._url = url
        self._client: Any = None
        self._idle: list[Any] = []

    async def open(self, callers: int, connections: int = 0) -> None:
        """Create the client again, with the best settings for the number of callers."""
        await self.close()
        self._client = await OPENERS[self._name](self._url, callers, value_of(0), connections)

    async def close(self) -> None:
        """Close the client, if there is one."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def drive(self, kind: str, callers: int, seconds: float) -> dict[str, float]:
        """Run one round of a workload."""
        return await Drive(self._client, kind, callers).run(seconds)

    async def overhead(self, seconds: float) -> dict[str, float]:
        """Compare with a bare connection and with futures alone.

        They take turns that are so short that the load is the same.
        """
        bare, futures = [
            await OPENERS[name](self._url, 50, value_of(0))
            for name in ("bare connection", "futures")
        ]
        sides = (("ours", self._client), ("bare", bare), ("futures", futures))
        cost = {name: 0.0 for name, _ in sides}
        cpu = dict(cost)
        for _ in range(_SLICES):
            for name, client in sides:
                result = await Drive(client, "get", 50).run(seconds / _SLICES)
                cost[name] += 1e6 / result["rate"] / _SLICES
                cpu[name] += result["cpu"] / _SLICES
        await bare.aclose()
        return {
            "ours": cost["ours"],
            "bare": cost["bare"],
            "overhead": cost["ours"] / cost["bare"] - 1,
            "ours CPU": cpu["ours"],
            "futures CPU": cpu["futures"],
            "CPU multiple": cpu["ours"] / cpu["futures"],
        }

    async def down(self) -> dict[str, float]:
        """Return the cost of a call while the server is dead: µs until its error was caught."""
        if self._name == OURS:
            health = self._client.client.health
            async with asyncio.timeout(_TIMEOUT):
                async for _ in health.watch():
                    if not health.available:
                        break
            await self._refusals(1)  # waits until the outage is longer than a restart
            return {"refused": await self._refusals(_REFUSALS)}
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._refusals(1)  # discovers that its connections are dead
            async with asyncio.timeout(_TIMEOUT):
                return {"refused": await self._refusals(1)}
        except TimeoutError:
            return {"refused": _TIMEOUT * 1e6}

    async def _refusals(self, count: int) -> float:
        get, refused = self._client.get, 0
        start = time.perf_counter()
        for _ in range(count):
            try:
                await get("key:1")
            except Exception:  # noqa: BLE001 (each client has its own errors)
                refused += 1
        elapsed = time.perf_counter() - start
        assert refused == count
        return elapsed / count * 1e6

    async def gather(self, count: int) -> dict[str, float]:
        """Open idle clients. Return how many bytes each adds to the process, with connections."""
        await self.open(1)
        await self._client.get("key:1")
        gc.collect()
        before = _resident()
        for _ in range(count):
            client = await OPENERS[self._name](self._url, 1, value_of(0), 0)
            await client.get("key:1")
            self._idle.append(client)
        await asyncio.sleep(_SETTLING)
        gc.collect()
        return {"bytes": (_resident() - before) / count}

    async def scatter(self) -> None:
        """Close the idle clients."""
        while self._idle:
            await (
                self._idle.pop().aclose()
            )  # in reverse order, because coredis nests its cancel scopes

    def _make(self) -> Any:
        if self._name == OURS:
            from resilient_io.redis import ResilientRedis as Client  # noqa: PLC0415
        else:
            from redis.asyncio import Redis as Client  # noqa: PLC0415 (a worker imports its own)
        return Client.from_url(self._url)

    async def construct(self) -> dict[str, float]:
        """Return the µs of CPU that constructing a client takes."""
        self._make()
        gc.collect()
        start = time.process_time()
        clients = [self._make() for _ in range(_CONSTRUCTED)]
        return {"construct": (time.process_time() - start) / len(clients) * 1e6}

    async def trace(self) -> dict[str, float]:
        """Return the bytes that Python allocates for a client that is connected and idle."""
        await (await self._open_idle(1))[0].get("key:1")
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        clients = await self._open_idle(_TRACED)
        await asyncio.sleep(_SETTLING)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        for client in clients:
            await client.aclose()
        return {"traced": traced / len(clients)}

    async def _open_idle(self, count: int) -> list[Any]:
        clients = []
        for _ in range(count):
            client = self._make()
            await client.get("key:1")
            clients.append(client)
        return clients

    async def crowd(self) -> dict[str, float]:
        """Return the part of a core that idle clients take."""
        clients = await self._open_idle(CROWD)
        await asyncio.sleep(1.0)
        share = await _share_of_a_core()
        for client in clients:
            await client.aclose()
        return {"crowd": share}

    async def dependencies(self) -> dict[str, float]:
        """Return the part of a core that dependencies take whose probes cost nothing."""
        from resilient_io.health import Dependency  # noqa: PLC0415 (only in this worker)

        async def probe(_suspicious: object) -> float:
            return 0.0

        attachments = []
        for number in range(CROWD):
            dependency = Dependency(f"dependency {number}")
            attachments.append(dependency.start(probe, last_reply=lambda: -math.inf))
            await asyncio.sleep(0.001)
        share = await _share_of_a_core()
        for attachment in attachments:
            await attachment.detach()
        return {"dependencies": share}

    async def start_all(self) -> dict[str, float]:
        """Return the seconds until clients that are started at once are UP; how many were DOWN."""
        clients = [self._make() for _ in range(CROWD)]
        start = time.perf_counter()
        for client in clients:
            await client.initialize()
        down: dict[int, None] = {}
        while time.perf_counter() - start < _LONGEST_START:
            await asyncio.sleep(0.02)
            down |= {n: None for n, each in enumerate(clients) if not each.health.available}
            if all(client.health.state == "up" for client in clients):
                break
        elapsed = time.perf_counter() - start
        for client in clients:
            await client.aclose()
        return {"up": elapsed, "down": len(down)}


async def _share_of_a_core() -> float:
    cpu, start = time.process_time(), time.perf_counter()
    await asyncio.sleep(_OBSERVED)
    return (time.process_time() - cpu) / (time.perf_counter() - start)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run as `python -m benchmarks.redis.worker CLIENT URL LOOP`."""
    name, url, loop = sys.argv[1:]
    run(lambda: RedisServant(name, url), loop)


if __name__ == "__main__":
    main()
