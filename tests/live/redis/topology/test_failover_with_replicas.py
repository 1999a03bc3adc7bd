"""Durable writes and reads from replicas while Sentinels fail over."""

import asyncio

import pytest

from resilient_io import NotReplicated, OutcomeUnknown, ResilientIOError
from resilient_io.redis import ResilientRedis
from resilient_io.redis.replicas import ReplicaSet
from resilient_io.testing import SentinelSetup


async def _until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", ["planned", "killed"])
async def test_failover_loses_no_durable_write(sentinel_setup, fault):
    client = ResilientRedis.from_sentinel(sentinel_setup.addresses, "mymaster", durability=1)
    acknowledged, applied, unknown, failed = [], [], [], []
    stop = asyncio.Event()

    async def write(redis, caller):
        number = 0
        while not stop.is_set():
            number += 1
            element = f"{caller}-{number}"
            try:
                await redis.rpush("list", element)
                acknowledged.append(element)
            except NotReplicated:
                applied.append(element)
            except OutcomeUnknown:
                unknown.append(element)
            except ResilientIOError:
                failed.append(element)
                await asyncio.sleep(0.01)

    async with client as redis:
        await redis.ping()
        writers = [asyncio.create_task(write(redis, caller)) for caller in range(10)]
        await _until(lambda: len(acknowledged) >= 20)
        old = await sentinel_setup.master_address()
        if fault == "planned":
            await sentinel_setup.begin_failover()
        else:
            sentinel_setup.node(old).kill()
        await sentinel_setup.until_switched(old)
        switched = len(acknowledged)
        await _until(lambda: len(acknowledged) >= switched + 20)
        stop.set()
        await asyncio.gather(*writers)
        found = await redis.lrange("list", 0, -1)
    elements = [element.decode() for element in found]
    assert len(elements) == len(set(elements)), "a write was applied twice"
    assert not set(acknowledged) - set(elements), "an acknowledged write was lost"
    assert not set(failed) & set(elements)
    assert len(unknown) <= 10  # one for each caller


@pytest.mark.soak  # the former master becomes a replica after ten seconds
async def test_reads_find_the_only_replica_after_a_failover():
    async with SentinelSetup(replicas=1) as setup:
        client = ResilientRedis.from_sentinel(setup.addresses, "mymaster", read_from="replica")
        async with client as redis:
            await redis.set("key", "value")
            replicas = ReplicaSet.of(redis._runtime)
            await _until_replica_answers(redis, replicas, setup.nodes[1].port)
            await setup.fail_over()
            await _until_replica_answers(redis, replicas, setup.nodes[0].port)


async def _until_replica_answers(redis, replicas, port):
    """Read until reads go to the replica at a port."""
    async with asyncio.timeout(20):
        while True:
            await redis.get("key")
            runtime = replicas.choose(redis._read_from)
            current = None if runtime is None else runtime.multiplexer.current
            if current is not None and current.peer[1] == port:
                return
            await asyncio.sleep(0.02)


async def test_reads_continue_during_a_failover(sentinel_setup):
    client = ResilientRedis.from_sentinel(
        sentinel_setup.addresses, "mymaster", read_from="replica", max_lag=None
    )
    async with client as redis:
        await redis.set("key", "value")
        await sentinel_setup.until_settled()
        async with asyncio.timeout(10):
            while await redis.get("key") != b"value":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        old = await sentinel_setup.master_address()
        await sentinel_setup.begin_failover()
        switched = asyncio.create_task(sentinel_setup.until_switched(old))
        while not switched.done():
            assert await redis.get("key") in {b"value", None}
            await asyncio.sleep(0.005)
        await switched
        async with asyncio.timeout(5):
            assert await redis.set("key", "new")
            while await redis.get("key") != b"new":  # noqa: ASYNC110 (until replicas follow)
                await asyncio.sleep(0.01)
        assert redis.stats().ended == {}
