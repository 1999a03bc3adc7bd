"""Runs the clients in turn on one server: one worker process each, one active at a time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Self

from redis.crc import key_slot

from benchmarks.statistics import turn
from benchmarks.worker import Worker
from resilient_io.testing import RedisServer, RedisServerCluster, SentinelSetup

from .clients import CLUSTER
from .plan import CLIENTS, CLUSTER_CLIENTS, FLOOR, FLOORS, KEYS, OURS, WITHOUT_SENTINEL, value_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from benchmarks.suite import Results, Rounds, Say

    from .plan import Work

_WARM_UP = 0.1
_IDLE_CLIENTS = 50
SCALES = ("construct", "trace", "crowd", "dependencies", "start_all")
"""Orders to a worker. redis-py's clients have no probes, so only the first two apply to it."""


class Arena:
    """A server and a worker for each client, on one kind of event loop."""

    clients: tuple[str, ...] = CLIENTS
    suffix = ""  # of the names of the clients' openers

    def __init__(self, loop: str, say: Say) -> None:
        self._loop = loop
        self._say = say
        self._stack = AsyncExitStack()
        self._workers: dict[str, Worker] = {}
        self._server: Any = RedisServer()

    async def __aenter__(self) -> Self:
        """Start the server, fill it, and start the workers."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._server)
            await self._fill()
            for client in self.clients:
                worker = _worker(client + self.suffix, self._url_for(client), self._loop)
                self._workers[client] = await stack.enter_async_context(worker)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the workers and the server."""
        await self._stack.aclose()

    def _url_for(self, _client: str) -> str:
        url: str = self._server.url
        return url

    async def _fill(self) -> None:
        await fill(self._server)

    async def compete(self, work: Work, rounds: int, seconds: float) -> Rounds:
        """Run a workload with its clients, `rounds` times each, in rotating order."""
        clients = work.clients
        results: Rounds = {client: [] for client in clients}
        for client in clients:
            self._say(f"{self._loop}: {work.title}, warming up {client}")
            await self._workers[client].do("open", callers=work.callers)
            await self._drive(client, work, _WARM_UP)
        for number in range(rounds):
            for client in turn(clients, number):
                self._say(f"{self._loop}: {work.title}, round {number + 1}, {client}")
                results[client].append(await self._drive(client, work, seconds * work.stretch))
        for client in clients:
            await self._workers[client].do("close")
        return results

    async def _drive(self, client: str, work: Work, seconds: float) -> dict[str, float]:
        return await self._workers[client].do(
            "drive", kind=work.kind, callers=work.callers, seconds=seconds
        )

    async def floors(self, rounds: int, seconds: float) -> Results:
        """Run some workloads also with the bare minimum of a client."""
        async with _worker(FLOOR, self._server.url, self._loop) as worker:
            self._workers[FLOOR] = worker
            results = {work.name: await self.compete(work, rounds, seconds) for work in FLOORS}
            del self._workers[FLOOR]
        return {f"floor of {name}": found for name, found in results.items()}

    async def overhead(self, rounds: int, seconds: float) -> Rounds:
        """Compare ResilientRedis with the bare connection, within one process."""
        worker = self._workers[OURS]
        await worker.do("open", callers=50)
        await worker.do("overhead", seconds=_WARM_UP)
        results = []
        for number in range(rounds):
            self._say(f"{self._loop}: overhead, round {number + 1}")
            results.append(await worker.do("overhead", seconds=seconds))
        await worker.do("close")
        return {OURS: results}

    async def idle(self) -> Rounds:
        """Measure the memory of an idle client, in a new process each. Linux only."""
        results: Rounds = {}
        for client in CLIENTS:
            self._say(f"{self._loop}: idle {client}")
            async with _worker(client, self._server.url, self._loop) as worker:
                before = await self._connections()
                result = await worker.do("gather", count=_IDLE_CLIENTS)
                connections = await self._connections() - before
                result["connections"] = connections / (_IDLE_CLIENTS + 1)
                await worker.do("scatter")
                results[client] = [result]
        return results

    async def scale(self) -> Rounds:
        """Measure what clients cost that do nothing, in a new process each: ours and redis-py's."""
        results: Rounds = {}
        for client in ("redis-py", OURS):
            measured: dict[str, float] = {}
            for order in SCALES if client == OURS else SCALES[:2]:
                self._say(f"{self._loop}: {order}, {client}")
                async with _worker(client, self._server.url, self._loop) as worker:
                    measured |= await worker.do(order)
            results[client] = [measured]
        return results

    async def _connections(self) -> int:
        said = await self._server.query("INFO", "clients")
        assert isinstance(said, bytes)
        return int(said.split(b"connected_clients:")[1].split()[0])

    async def down(self, rounds: int) -> Rounds:
        """Kill the server under connected clients, and measure the cost of a call. Comes last."""
        for worker in self._workers.values():
            await worker.do("open", callers=1)
            await worker.do("drive", kind="get", callers=1, seconds=_WARM_UP)
        self._server.kill()
        results: Rounds = {}
        for client, worker in self._workers.items():
            self._say(f"{self._loop}: {client} while the server is dead")
            times = rounds if client == OURS else 1
            results[client] = [await worker.do("down") for _ in range(times)]
        return results


class ClusterArena(Arena):
    """A cluster of three masters and a worker for each cluster client."""

    clients = CLUSTER_CLIENTS
    suffix = CLUSTER

    def __init__(self, loop: str, say: Say) -> None:
        super().__init__(loop, say)
        self._server = RedisServerCluster()

    async def _fill(self) -> None:
        shards = await self._server.shards()
        for index in range(KEYS):
            key = f"key:{index}"
            slot = key_slot(key.encode())
            owner = next(shard.master for shard in shards if shard.owns(slot))
            await owner.query("SET", key, value_of(index))


class SentinelArena(Arena):
    """A master and three Sentinels, which one of two workers asks for it."""

    clients = (WITHOUT_SENTINEL, OURS)

    def __init__(self, loop: str, say: Say) -> None:
        super().__init__(loop, say)
        self._server = SentinelSetup(replicas=1)

    def _url_for(self, client: str) -> str:
        if client == WITHOUT_SENTINEL:
            return self._server.nodes[0].url
        sentinels = ",".join(f"{host}:{port}" for host, port in self._server.addresses)
        return f"redis+sentinel://{sentinels}/{self._server.name}/0"

    async def _fill(self) -> None:
        await fill(self._server.nodes[0])


ARENAS: Final = {"cluster": ClusterArena, "sentinel": SentinelArena}
"""Where works run that need more than one server."""


def _worker(client: str, url: str, loop: str) -> Worker:
    return Worker("benchmarks.redis.worker", client, url, loop)


async def fill(server: RedisServer) -> None:
    """Write the keys that the workloads read."""
    for index in range(KEYS):
        await server.query("SET", f"key:{index}", value_of(index))
    for index in range(50):
        key = f"mixed:{index}"
        await server.query("SET", key, value_of(index))
        fields = [part for number in range(8) for part in (f"field:{number}", "x" * 16)]
        await server.query("HSET", f"hash:{key}", *fields)
        members = [part for number in range(8) for part in (number, f"member:{number}")]
        await server.query("ZADD", f"zset:{key}", *members)


async def tune(clients: Sequence[str], sizes: Sequence[int], say: Say) -> None:
    """Print the rates of the pools at several sizes."""
    async with RedisServer() as server:
        await fill(server)
        for client in clients:
            async with _worker(client, server.url, "asyncio") as worker:
                for callers in (50, 500, 5000):
                    rates: dict[int, list[float]] = {size: [] for size in sizes}
                    for size in [*sizes] * 3:
                        await worker.do("open", callers=callers, connections=size)
                        await worker.do("drive", kind="get", callers=callers, seconds=_WARM_UP)
                        result = await worker.do("drive", kind="get", callers=callers, seconds=0.5)
                        rates[size].append(result["rate"])
                    found = ", ".join(f"{size}: {sorted(r)[1]:,.0f}" for size, r in rates.items())
                    say(f"{client}, {callers} callers, GETs per second by connections: {found}")
