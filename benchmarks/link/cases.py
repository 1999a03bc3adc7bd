"""The faults of a link, each with a client of its own: when is it DOWN, and is it ever wrongly?"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resilient_io import FlightRecorder, ResilientIOError, State
from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer
from resilient_io.redis import ResilientRedis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from resilient_io.health import Change, Dependency
    from resilient_io.testing import KafkaBroker

    from .network import Network, NetworkRedis

CALLERS = 50
_PAUSE = 0.01  # seconds after a failed call


@dataclass
class Outcome:
    """What a client reported during a fault."""

    down: float | None = None
    """Seconds from the fault to DOWN; None if it never was."""

    cause: str = ""
    detail: str = ""
    replies: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class _Watch:
    """Records when a dependency is DOWN."""

    def __init__(self, health: Dependency) -> None:
        self._loop = asyncio.get_running_loop()
        self.began = self._loop.time()
        self.first: Change | None = None
        self.down = asyncio.Event()
        health.on_change(self._changed)

    def _changed(self, change: Change) -> None:
        if change.state is State.DOWN and self.first is None:
            self.first = change
            self.down.set()

    def restart(self) -> None:
        self.began = self._loop.time()

    async def wait(self, longest: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest):
                await self.down.wait()

    def fill(self, outcome: Outcome) -> Outcome:
        if self.first is not None:
            outcome.down = self.first.at - self.began
            outcome.cause = self.first.cause or ""
            outcome.detail = self.first.detail
        return outcome


@contextlib.asynccontextmanager
async def _traffic(redis: ResilientRedis, outcome: Outcome, callers: int) -> AsyncIterator[None]:
    stop = False

    async def call(number: int) -> None:
        key = f"key:{number}"
        while not stop:
            try:
                await redis.set(key, number)
                await redis.get(key)
                outcome.replies += 2
            except ResilientIOError as error:
                name = type(error).__name__
                outcome.errors[name] = outcome.errors.get(name, 0) + 1
                await asyncio.sleep(_PAUSE)

    tasks = [asyncio.create_task(call(number)) for number in range(callers)]
    try:
        yield
    finally:
        stop = True
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def measure(
    server: NetworkRedis,
    fault: Callable[[ResilientRedis], Awaitable[None]],
    *,
    callers: int = CALLERS,
    before: float = 0.5,
    longest: float = 0.0,
) -> Outcome:
    """Run a client against a server while `fault` happens, and return what it reported.

    `fault` may last; after it, DOWN is awaited for `longest` seconds.
    """
    outcome = Outcome()
    async with ResilientRedis.from_url(server.url) as redis:
        await redis.health.until_up(10)
        watch = _Watch(redis.health)
        async with _traffic(redis, outcome, callers):
            await asyncio.sleep(before)
            watch.restart()
            await fault(redis)
            if longest:
                await watch.wait(longest)
    return watch.fill(outcome)


async def cut(
    network: Network, server: NetworkRedis, *, callers: int = CALLERS, before: float = 0.5
) -> Outcome:
    """Cut the network, `before` seconds after the client is up."""

    async def fault(_: ResilientRedis) -> None:
        network.cut()

    try:
        return await measure(server, fault, callers=callers, before=before, longest=6.0)
    finally:
        network.restore()


async def frozen(server: NetworkRedis, seconds: float, *, callers: int = CALLERS) -> Outcome:
    """Stop the server's process for a while."""

    async def fault(_: ResilientRedis) -> None:
        server.freeze()
        try:
            await asyncio.sleep(seconds)
        finally:
            server.thaw()
        await asyncio.sleep(0.5)

    return await measure(server, fault, callers=callers)


# TIME advances within a script only before Redis 7.2; `os` exists only since then.
_SCRIPT = """
local has_os, clock = pcall(function() return os.clock end)
local function now()
    if has_os then return clock() end
    local time = redis.call('TIME')
    return time[1] + time[2] / 1000000
end
local began = now()
while now() - began < tonumber(ARGV[1]) do end
return 1
"""


async def busy(server: NetworkRedis, seconds: float) -> Outcome:
    """Run a script on the server for a while."""

    async def fault(redis: ResilientRedis) -> None:
        await redis.eval(_SCRIPT, 0, str(seconds))
        await asyncio.sleep(0.5)

    return await measure(server, fault)


async def lossy(
    network: Network, server: NetworkRedis, share: float, seconds: float, *, callers: int = CALLERS
) -> Outcome:
    """Lose a share of the packets for a while, in each direction."""

    async def fault(_: ResilientRedis) -> None:
        network.lose(share)
        await asyncio.sleep(seconds)

    try:
        return await measure(server, fault, callers=callers)
    finally:
        network.lose(0.0)


async def distant(
    network: Network, server: NetworkRedis, rtt: float, jitter: float, seconds: float
) -> Outcome:
    """Delay every packet. The connections are opened over the slow link, too."""
    network.delay(rtt / 2, jitter / 2)

    async def fault(_: ResilientRedis) -> None:
        await asyncio.sleep(seconds)

    try:
        return await measure(server, fault)
    finally:
        network.delay(0.0)


async def closed_window(server: NetworkRedis, seconds: float) -> Outcome:
    """Stop the server's process while large values fill its receive buffer."""

    async def fault(redis: ResilientRedis) -> None:
        server.freeze()
        try:
            values = [asyncio.create_task(redis.set(f"big:{n}", bytes(4 << 20))) for n in range(8)]
            await asyncio.sleep(seconds)
        finally:
            server.thaw()
        await asyncio.gather(*values)
        await asyncio.sleep(0.5)

    return await measure(server, fault, callers=4)


async def blocked(network: Network, server: NetworkRedis) -> Outcome:
    """Lose the connection of a BLPOP without a limit; `down` is when the wait continues."""
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    recorder = FlightRecorder()
    async with ResilientRedis.from_url(server.url) as redis:
        redis.health.add_recorder(recorder)
        await redis.ping()
        call = asyncio.create_task(redis.blpop("queue", timeout=0))
        await asyncio.sleep(1.0)
        line = next(each for each in server.run("CLIENT", "LIST").splitlines() if "blpop" in each)
        network.forget(int(line.partition(" addr=")[2].partition(" ")[0].rpartition(":")[2]))
        began = loop.time()
        while loop.time() < began + 8 and outcome.down is None:
            await asyncio.sleep(0.01)
            if any(event["event"] == "blocking call resumed" for event in recorder.events()):
                outcome.down = loop.time() - began
        await asyncio.sleep(0.2)
        server.run("RPUSH", "queue", "job")
        async with asyncio.timeout(2):
            outcome.replies += await call == (b"queue", b"job")
    return outcome


_TOPIC = "records"


async def kafka_cut(network: Network, broker: KafkaBroker, *, role: str) -> Outcome:
    """Cut the network of a producer, of a consumer with traffic, or of one that waits."""
    outcome = Outcome()
    async with ResilientKafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, enable_idempotence=False
    ) as producer:
        stop = False

        async def produce() -> None:
            while not stop:
                try:
                    await producer.send_and_wait(_TOPIC, b"value")
                    outcome.replies += 1
                    await asyncio.sleep(0.001)
                except ResilientIOError as error:
                    name = type(error).__name__
                    outcome.errors[name] = outcome.errors.get(name, 0) + 1
                    await asyncio.sleep(_PAUSE)

        await producer.send_and_wait(_TOPIC, b"first")
        async with ResilientKafkaConsumer(
            _TOPIC,
            bootstrap_servers=broker.bootstrap_servers,
            group_id="group",
            auto_offset_reset="earliest",
        ) as consumer:

            async def consume() -> None:
                async for _ in consumer:
                    outcome.replies += 1

            tasks = [asyncio.create_task(consume())]
            if role != "idle":
                tasks.append(asyncio.create_task(produce()))
            await asyncio.sleep(4.0)
            watch = _Watch((producer if role == "producer" else consumer).health)
            network.cut()
            watch.restart()
            await watch.wait(8.0)
            network.restore()
            stop = True
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    return watch.fill(outcome)
