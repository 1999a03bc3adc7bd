"""Pipelines and transactions with unique pushes, while masters change or are killed."""

import asyncio
import random
from collections import Counter

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from resilient_io import OutcomeUnknown
from resilient_io.redis import ResilientRedisCluster

_CALLERS = 8
_LISTS = 12  # in each pipeline: about four for each shard
_KILLED = 1


class _Ledger:
    """Callers whose pipelines push a unique item to lists on all shards."""

    def __init__(self, client):
        self.client = client
        self.pushed = Counter()
        self.maybe = Counter()
        self.errors = []
        self.replies = 0
        self._tasks = []
        self._stopping = False

    def start(self):
        for caller in range(_CALLERS):
            call = self._transaction if caller % 4 == 3 else self._pipeline
            self._tasks.append(asyncio.create_task(self._repeat(call, caller)))

    async def stop(self):
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _repeat(self, call, caller):
        turn = 0
        while not self._stopping:
            turn += 1
            await call(caller, f"{caller}:{turn}")
            await asyncio.sleep(0.002)

    async def _pipeline(self, caller, item):
        pipe = self.client.pipeline()
        for number in range(_LISTS):
            pipe.rpush(f"list{caller}:{number}", f"{item}:{number}").llen(f"list{caller}:{number}")
        replies = await pipe.execute(raise_on_error=False)
        assert len(replies) == 2 * _LISTS
        for number, reply in enumerate(replies[::2]):
            self._note(f"list{caller}:{number}", f"{item}:{number}", reply)

    async def _transaction(self, caller, item):
        pipe = self.client.pipeline(transaction=True)
        pipe.rpush(f"{{list{caller}}}:0", item).llen(f"{{list{caller}}}:0")
        try:
            reply, _ = await pipe.execute()
        except RedisError as error:
            reply = error
        self._note(f"{{list{caller}}}:0", item, reply)

    def _note(self, key, item, reply):
        self.replies += 1
        if isinstance(reply, OutcomeUnknown):
            self.maybe[item] += 1
        if isinstance(reply, Exception):
            self.errors.append((key_slot(key.encode()), reply))
        else:
            self.pushed[item] += 1

    async def check(self):
        stored = Counter()
        async for key in self.client.scan_iter("*list*"):
            stored.update(item.decode() for item in await self.client.lrange(key, 0, -1))
        assert [item for item, count in stored.items() if count > 1] == []  # duplicates
        assert self.pushed - stored == Counter()  # lost
        assert stored - self.pushed - self.maybe == Counter()  # applied, and reported as failed


@pytest.fixture
async def ledger(cluster):
    async with ResilientRedisCluster("127.0.0.1", cluster.ports[0]) as client:
        yield _Ledger(client)


async def test_planned_failover_of_each_shard_in_turn_fails_no_command(cluster, ledger):
    ledger.start()
    for shard in await cluster.shards():
        before = ledger.replies
        await cluster.failover(shard.replicas[0])
        await asyncio.sleep(0.5)
        assert ledger.replies > before
    await ledger.stop()
    assert ledger.errors == []
    await ledger.check()


@pytest.mark.soak
async def test_killed_master_fails_only_commands_of_its_own_shard(cluster, ledger):
    ledger.start()
    await asyncio.sleep(0.5)
    shards = await cluster.shards()
    shards[_KILLED].master.kill()
    await asyncio.sleep(6)
    await ledger.stop()
    unknown = [error for _, error in ledger.errors if isinstance(error, OutcomeUnknown)]
    # Each caller had one pipeline in flight, with at most all of its commands on that shard.
    assert len(unknown) <= _CALLERS * _LISTS
    assert {type(error).__name__ for _, error in ledger.errors} <= {
        "RedisOutcomeUnknown",
        "RedisUnavailable",
    }
    assert [slot for slot, _ in ledger.errors if not shards[_KILLED].owns(slot)] == []
    await cluster.wait_until_ok()
    await ledger.check()


async def test_iteration_over_all_keys_continues_after_a_failover(cluster):
    async with ResilientRedisCluster("127.0.0.1", cluster.ports[0]) as client:
        await client.mset_nonatomic({f"key{number}": number for number in range(300)})
        for shard in await cluster.shards():
            await shard.master.query("WAIT", 1, 1000)
        found, replicas = set(), [shard.replicas[0] for shard in await cluster.shards()]
        async for key in client.scan_iter(count=10):
            found.add(key)
            if replicas and len(found) in (30, 130, 230):
                await cluster.failover(replicas.pop(0))
        assert found >= {f"key{number}".encode() for number in range(300)}


async def test_cancelled_pipelines_leak_nothing_while_a_master_changes(cluster, ledger):
    rng = random.Random(7)
    client = ledger.client
    ledger.start()

    async def cancelled():
        pipe = client.pipeline()
        for number in range(_LISTS):
            pipe.set(f"cancelled{number}", number).get(f"cancelled{number}")
        await pipe.execute(raise_on_error=False)

    async def cancel():
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(rng.random() * 0.02)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    shard = (await cluster.shards())[0]
    failover = asyncio.create_task(cluster.failover(shard.replicas[0]))
    results = [await cancel() for _ in range(200)]
    await failover
    await ledger.stop()
    assert any(results)
    await ledger.check()
    members = [member for member in client._router.members if member.opened]
    async with asyncio.timeout(5):
        while not all(member.idle for member in members):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
