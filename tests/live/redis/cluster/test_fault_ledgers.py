"""Three masters and replicas, a node timeout of 2 s, 24 callers: what the servers have is compared.

Each test prints its figures; `make soak ARGS="-rP"` shows them.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import RedisServerCluster

from .ledger import Comparison, Ledger, keys_of_shard
from .test_restarts import restart_each

pytestmark = pytest.mark.soak

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
    """Move the slots of some lists."""
    for shard in range(3):
        for key in keys_of_shard(shard, 4):
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


@pytest.mark.parametrize("fault", [kill, freeze, hand_over, migrate, restart, stop_all])
async def test_cancelled_calls_leave_nothing_behind(fault, no_leaks):
    rng = random.Random(1)
    async with (
        RedisServerCluster(replicas=1, node_timeout=2.0, persist=True) as cluster,
        ResilientRedisCluster.from_url(cluster.url) as client,
    ):
        keys = [key for shard in range(3) for key in keys_of_shard(shard, 4)]
        await asyncio.gather(*(client.set(f"{{{key}}}value", key) for key in keys))
        cancelled = wrong = 0

        async def call(key: str) -> object:
            kind = rng.randrange(4)
            if kind == 0:
                return await client.rpush(key, "item")
            if kind == 1:
                return await client.blpop([f"{{{key}}}empty"], timeout=0.2)
            if kind == 2:
                pipe = client.pipeline()
                return (await pipe.get(f"{{{key}}}value").get("other").execute())[0]
            return await client.get(f"{{{key}}}value")

        async def cancel_some() -> None:
            nonlocal cancelled, wrong
            while cancelled < 200 or not done.is_set():
                key = rng.choice(keys)
                task = asyncio.ensure_future(call(key))
                await asyncio.sleep(rng.random() * 0.03)
                was_done = task.done()
                task.cancel()
                try:
                    reply = await task
                    wrong += isinstance(reply, bytes) and reply != key.encode()
                except asyncio.CancelledError:
                    cancelled += not was_done
                except (RedisError, OSError):
                    pass

        done = asyncio.Event()
        workers = [asyncio.create_task(cancel_some()) for _ in range(8)]
        await asyncio.sleep(0.3)
        await fault(cluster)
        done.set()
        await asyncio.gather(*workers)
        assert cancelled >= 200
        assert not wrong
        await cluster.start()
        async with asyncio.timeout(20):
            for key in keys:
                while True:
                    try:
                        assert await client.get(f"{{{key}}}value") == key.encode()
                        break
                    except (RedisError, OSError):
                        await asyncio.sleep(0.1)
        stats = [member.runtime for member in client._router.members if member.opened]
        assert not any(runtime.multiplexer.waiting for runtime in stats)
