"""Three masters and replicas, a node timeout of 2 s, 24 callers: what the servers have is compared.

Each test prints its figures; `make soak ARGS="-rP"` shows them.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import FaultProxy, RedisServerCluster
from tests.live.redis.cancelling import cancelled_at_random
from tests.live.redis.subscribers import CancelledReader, Publisher

from .ledger import Comparison, Ledger, keys_of_shard
from .test_restarts import restart_each

pytestmark = pytest.mark.soak

T = TypeVar("T")

Fault = Callable[[RedisServerCluster], Awaitable[None]]


async def run(fault: Fault, seconds: float) -> tuple[Ledger, float, Comparison]:
    """Return what callers saw who push while a fault happens, from its beginning on."""
    async with (
        RedisServerCluster(replicas=1, node_timeout=2.0) as cluster,
        ResilientRedisCluster.from_url(cluster.url) as client,
    ):
        ledger = Ledger(client)
        ledger.start()
        await asyncio.sleep(1.0)
        began = asyncio.get_running_loop().time()
        await fault(cluster)
        await asyncio.sleep(max(0.0, began + seconds - asyncio.get_running_loop().time()))
        await ledger.stop()
        await cluster.start()
        result = await ledger.compare(cluster, since=began)
        gaps = [f"{ledger.gap(shard, began):.2f}" for shard in range(3)]
        failed = [len(ledger.failures(shard)) for shard in range(3)]
        print(  # noqa: T201 (the figures, which `-rP` shows)
            f"longest time without a success {gaps} s, failed {failed} {result.failed}, "
            f"{result.pushed} pushed, {len(result.lost)} lost, {len(result.duplicates)} twice, "
            f"{result.unknown} unknown, longest call {ledger.longest:.2f} s"
        )
        assert not result.duplicates
        assert not result.lost
        assert ledger.longest < 6.0
        return ledger, began, result


async def test_killed_master():
    over: list[float] = []

    async def fault(cluster):
        master = (await cluster.shards())[0].master
        master.kill()
        while (await cluster.shards())[0].master is master:  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.02)
        over.append(asyncio.get_running_loop().time())

    ledger, began, _ = await run(fault, 8.0)
    assert ledger.gap(0, began) <= over[0] - began + 0.5
    for shard in (1, 2):
        assert not ledger.failures(shard)


async def test_frozen_master():
    async def fault(cluster):
        master = (await cluster.shards())[0].master
        master.freeze()
        await asyncio.sleep(12)
        master.thaw()

    ledger, began, _ = await run(fault, 15.0)
    assert ledger.gap(0, began) <= 6.0
    for shard in (1, 2):
        assert ledger.gap(shard, began) <= 1.3
        assert not ledger.failures(shard)


async def test_planned_failover_of_each_shard():
    async def fault(cluster):
        for _ in range(2):
            for number in range(3):
                await cluster.failover((await cluster.shards())[number].replicas[0])
                await asyncio.sleep(1.0)

    ledger, began, _ = await run(fault, 6.0)
    assert not ledger.errors
    assert max(ledger.gap(shard, began) for shard in range(3)) < 1.0


async def kill(cluster: RedisServerCluster) -> None:
    """Kill a master, and start it again."""
    master = (await cluster.shards())[0].master
    master.kill()
    await asyncio.sleep(5)
    await master.start()


async def freeze(cluster: RedisServerCluster) -> None:
    """Freeze a master for 6 s."""
    master = (await cluster.shards())[1].master
    master.freeze()
    await asyncio.sleep(6)
    master.thaw()


async def hand_over(cluster: RedisServerCluster) -> None:
    """Fail over each shard."""
    for number in range(3):
        await cluster.failover((await cluster.shards())[number].replicas[0])
        await asyncio.sleep(0.5)


async def migrate(cluster: RedisServerCluster) -> None:
    """Move the slots of some lists, and of the channel of readers."""
    for key in ["c", *(key for shard in range(3) for key in keys_of_shard(shard, 4))]:
        slot = key_slot(key.encode())
        owner = (await cluster.shard_of(slot)).master
        target = next(node for node in await cluster.masters() if node is not owner)
        await cluster.migrate(slot, target, pause=0.01)


async def restart(cluster: RedisServerCluster) -> None:
    """Restart every node, one after the other."""
    await restart_each(cluster)


async def stop_all(cluster: RedisServerCluster) -> None:
    """Kill the whole cluster, and start it again."""
    cluster.kill()
    await asyncio.sleep(1)
    await cluster.start()


async def change_addresses(cluster: RedisServerCluster) -> None:
    """Kill every node, and start all of them on other ports."""
    await cluster.change_addresses()


FAULTS = [kill, freeze, hand_over, migrate, restart, stop_all, change_addresses]


@contextlib.asynccontextmanager
async def reachable(fault: Fault) -> AsyncIterator[tuple[RedisServerCluster, str]]:
    """Start a cluster. Yield it with a URL that finds it in spite of a fault."""
    async with RedisServerCluster(replicas=1, node_timeout=2.0, persist=True) as cluster:
        if fault is not change_addresses:
            yield cluster, cluster.url
            return
        async with FaultProxy(cluster.nodes[0].port, allow_unused_faults=True) as proxy:

            async def follow() -> None:
                while True:
                    proxy.target = ("127.0.0.1", cluster.nodes[0].port)
                    await asyncio.sleep(0.05)

            following = asyncio.ensure_future(follow())
            yield cluster, f"redis://127.0.0.1:{proxy.port}"
            following.cancel()


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """Return the reply to a call, which is repeated while the servers fail."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await call()
            except (RedisError, OSError):
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("fault", FAULTS)
async def test_cancelled_calls_leave_nothing_behind(fault, no_leaks):
    rng = random.Random(1)
    async with (
        reachable(fault) as (cluster, url),
        ResilientRedisCluster.from_url(url) as client,
    ):
        keys = [key for shard in range(3) for key in keys_of_shard(shard, 4)]
        await asyncio.gather(*(client.set(f"{{{key}}}value", key) for key in keys))

        async def call() -> None:
            key, kind = rng.choice(keys), rng.randrange(4)
            if kind == 0:
                await client.rpush(key, "item")
            elif kind == 1:
                await client.blpop([f"{{{key}}}empty"], timeout=0.2)
            elif kind == 2:
                pipe = client.pipeline()
                replies = await pipe.get(f"{{{key}}}value").get("other").execute()
                assert replies == [key.encode(), None]
            else:
                assert await client.get(f"{{{key}}}value") == key.encode()

        async with cancelled_at_random(*[call] * 8, longest=0.03):
            await asyncio.sleep(0.3)
            await fault(cluster)
        await cluster.start()
        for key in keys:
            reply = await until_answered(partial(client.get, f"{{{key}}}value"))
            assert reply == key.encode()
        stats = [member.runtime for member in client._router.members if member.opened]
        assert not any(runtime.multiplexer.waiting for runtime in stats)


@pytest.mark.parametrize("fault", FAULTS)
async def test_cancelled_readers_leave_nothing_behind(fault, no_leaks):
    async with (
        reachable(fault) as (cluster, url),
        ResilientRedisCluster.from_url(url) as client,
        client.pubsub() as pubsub,
    ):
        plain = CancelledReader(pubsub, "plain")
        sharded = CancelledReader(pubsub, "sharded", pubsub.get_sharded_message)
        calls = []
        for each in (plain, sharded):
            await each.start()
            calls += [each.read, each.use_others]
        async with (
            Publisher(*cluster.nodes),
            Publisher(*cluster.nodes, kind="sharded"),
        ):
            async with cancelled_at_random(*calls):
                await asyncio.sleep(0.3)
                await fault(cluster)
            await cluster.start()
            await until_answered(partial(client.set, "c", "served"))
            await asyncio.gather(plain.check(ordered=False), sharded.check(ordered=False))
        await pubsub.aclose()
        await asyncio.sleep(0.05)
        counts = [await node.query("PUBSUB", "NUMSUB", "c") for node in cluster.nodes]
        counts += [await node.query("PUBSUB", "SHARDNUMSUB", "c") for node in cluster.nodes]
        assert counts == [[b"c", 0]] * 12
