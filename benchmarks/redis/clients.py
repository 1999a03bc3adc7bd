"""How each client is set up: with the best settings that its documentation names."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import urlsplit

from .plan import FLOOR, KEYS, OURS, WITHOUT_SENTINEL, value_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

REDIS_PY_CONNECTIONS = 16
"""Size of its blocking pool. `python -m benchmarks --tune` tries others, which are slower."""

COREDIS_CONNECTIONS = 2
"""Size of its pool, whose connections its callers share (multiplexing), as intended."""


GLIDE_IN_FLIGHT = 1000
"""Its default limit."""


class Client(Protocol):
    """The interface of a client. Its calls are the client's own bound methods where possible."""

    get: Callable[[str], Awaitable[Any]]
    set: Callable[[str, bytes], Awaitable[Any]]
    mixed: Sequence[Callable[[str], Awaitable[Any]]]
    """GET, SET, HGETALL, ZRANGE and INCR, each on a key of its own type."""

    async def pipeline(self, keys: Sequence[str]) -> Sequence[Any]:
        """GET all keys in one explicit pipeline without a transaction."""

    async def aclose(self) -> None:
        """Close it."""


def own_key(call: Callable[..., Awaitable[Any]], prefix: str, *args: Any) -> Any:
    """Return a call on the key with a prefix, which costs every client the same."""

    def on(key: str) -> Awaitable[Any]:
        return call(prefix + key, *args)

    return on


def _mixed(client: Any, value: bytes, zrange: Callable[[str], Awaitable[Any]]) -> list[Any]:
    return [
        own_key(client.get, ""),
        own_key(client.set, "", value),
        own_key(client.hgetall, "hash:"),
        own_key(zrange, "zset:"),
        own_key(client.incr, "count:"),
    ]


class _RedisLike:
    """The interface of redis-py and of ResilientRedis."""

    def __init__(self, client: Any, value: bytes) -> None:
        self.client = client
        self.get = client.get
        self.set = client.set
        self.mixed = _mixed(client, value, partial(client.zrange, start=0, end=-1))
        self.evalsha = client.evalsha
        self.lock = client.lock

    async def pipeline(self, keys: Sequence[str]) -> Sequence[Any]:
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.get(key)
        result: Sequence[Any] = await pipe.execute()
        return result

    async def aclose(self) -> None:
        await self.client.aclose()


class RedisPy(_RedisLike):
    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:
        import redis.asyncio as redis  # noqa: PLC0415 (a worker imports its own client only)

        limit = connections or min(callers, REDIS_PY_CONNECTIONS)
        pool = redis.BlockingConnectionPool.from_url(url, max_connections=limit, timeout=None)
        client = cls(redis.Redis.from_pool(pool), value)
        await client.client.ping()
        return client


class Ours(_RedisLike):
    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:  # noqa: ARG003
        from resilient_io.redis import ResilientRedis  # noqa: PLC0415 (as above)

        client = ResilientRedis.from_url(url)
        await client.initialize()
        await client.health.until_up(5)
        return cls(client, value)


class Coredis:
    def __init__(self, client: Any, value: bytes, stack: AsyncExitStack) -> None:
        self.client = client
        self.get = client.get
        self.set = client.set
        self.mixed = _mixed(client, value, partial(client.zrange, min_=0, max_=-1))
        self._stack = stack

    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:
        import coredis  # noqa: PLC0415 (as above)

        stack = AsyncExitStack()
        limit = connections or min(callers, COREDIS_CONNECTIONS)
        opened = await stack.enter_async_context(coredis.Redis.from_url(url, max_connections=limit))
        await opened.ping()
        return cls(opened, value, stack)

    async def pipeline(self, keys: Sequence[str]) -> Sequence[Any]:
        async with self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.get(key)
        result: Sequence[Any] = pipe.results
        return result

    async def aclose(self) -> None:
        await self._stack.aclose()


class Glide:
    def __init__(self, client: Any, value: bytes) -> None:
        from glide import Batch, RangeByIndex  # noqa: PLC0415 (as above)

        self.client = client
        self.get = client.get
        self.set = client.set
        self.mixed = _mixed(client, value, partial(client.zrange, range_query=RangeByIndex(0, -1)))
        self._batch = Batch

    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:  # noqa: ARG003 (the openers are called alike)
        from glide import (  # noqa: PLC0415 (as above)
            GlideClient,
            GlideClientConfiguration,
            Logger,
            LogLevel,
            NodeAddress,
        )

        Logger.init(LogLevel.OFF)
        parts = urlsplit(url)
        # By default it refuses more than 1,000 calls in flight, and times out after 250 ms.
        crowd = callers > GLIDE_IN_FLIGHT
        configuration = GlideClientConfiguration(
            [NodeAddress(parts.hostname or "", parts.port or 0)],
            request_timeout=60_000 if crowd else None,
            inflight_requests_limit=2 * callers if crowd else None,
        )
        return cls(await GlideClient.create(configuration), value)

    async def pipeline(self, keys: Sequence[str]) -> Sequence[Any]:
        batch = self._batch(is_atomic=False)
        for key in keys:
            batch.get(key)
        result: Sequence[Any] = await self.client.exec(batch, raise_on_error=True)
        return result

    async def aclose(self) -> None:
        await self.client.close()


CLUSTER = " cluster"
"""Ends the names of the openers for a cluster."""


class RedisPyCluster(_RedisLike):
    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:
        import redis.asyncio as redis  # noqa: PLC0415 (as above)

        # It has no pool that waits: with fewer connections than callers, calls fail.
        client = redis.RedisCluster.from_url(url, max_connections=connections or callers)
        await client.initialize()
        return cls(client, value)


class OurCluster(_RedisLike):
    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:  # noqa: ARG003
        from resilient_io.redis import ResilientRedisCluster  # noqa: PLC0415 (as above)

        client = ResilientRedisCluster.from_url(url)
        await client.initialize()
        await client.health.until_up(5)
        return cls(client, value)


class GlideCluster(Glide):
    def __init__(self, client: Any, value: bytes) -> None:
        from glide import ClusterBatch  # noqa: PLC0415 (as above)

        super().__init__(client, value)
        self._batch = ClusterBatch

    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:  # noqa: ARG003
        from glide import (  # noqa: PLC0415 (as above)
            GlideClusterClient,
            GlideClusterClientConfiguration,
            Logger,
            LogLevel,
            NodeAddress,
        )

        Logger.init(LogLevel.OFF)
        parts = urlsplit(url)
        crowd = callers > GLIDE_IN_FLIGHT
        configuration = GlideClusterClientConfiguration(
            [NodeAddress(parts.hostname or "", parts.port or 0)],
            request_timeout=60_000,  # 250 ms by default, which a busy machine exceeds
            inflight_requests_limit=2 * callers if crowd else None,
        )
        return cls(await GlideClusterClient.create(configuration), value)


class Bare(_RedisLike):
    """A connection without policy, health and statistics, under redis-py's commands."""

    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:  # noqa: ARG003
        from .bare import BareRedis  # noqa: PLC0415 (as above)

        client = BareRedis.from_url(url)
        await client.initialize()
        return cls(client, value)

    async def aclose(self) -> None:
        self.client.bare.connection_lost(None)
        await asyncio.sleep(0)


class Futures:
    """Awaits a future of the same event loop for every GET: the least that a call can cost."""

    def __init__(self) -> None:
        self._values = {f"key:{index}": value_of(index) for index in range(KEYS)}
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []

    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:  # noqa: ARG003
        return cls()

    async def get(self, key: str) -> bytes:
        if not self._waiting:
            self._loop.call_soon(self._answer)
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        await future
        return self._values[key]

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.set_result(None)


async def _open_floor(*args: Any) -> Client:
    from .floor import Floor  # noqa: PLC0415 (as above)

    return await Floor.open(*args)


OPENERS: dict[str, Any] = {
    "redis-py": RedisPy.open,
    "coredis": Coredis.open,
    "valkey-glide": Glide.open,
    OURS: Ours.open,
    WITHOUT_SENTINEL: Ours.open,
    "bare connection": Bare.open,
    "futures": Futures.open,
    FLOOR: _open_floor,
    "redis-py" + CLUSTER: RedisPyCluster.open,
    "valkey-glide" + CLUSTER: GlideCluster.open,
    OURS + CLUSTER: OurCluster.open,
}
