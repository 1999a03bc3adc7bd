"""A client that is collected without `aclose()`: it closes in the background, with a warning."""

import asyncio
import gc
import warnings
import weakref

import pytest
import redis.asyncio as driver

from resilient_io import RetryPolicy
from resilient_io.health import Dependency
from resilient_io.redis import ResilientRedis
from resilient_io.redis import runtime as runtime_module
from resilient_io.testing import free_port

BRIEF = RetryPolicy(deadline=0.1, response_timeout=0.1, connect_timeout=0.1)

pytestmark = pytest.mark.filterwarnings("always::ResourceWarning")


async def use(client):
    """Make calls of each kind, one of which fails."""
    await client.set("dropped", 1)
    pipe = client.pipeline()
    await pipe.get("dropped").execute()
    await client.rpush("list", 1)
    await client.blpop("list", timeout=1)
    with pytest.raises(driver.ResponseError):
        await client.execute_command("GET")


async def collect():
    await asyncio.sleep(0)  # the loop holds the frame that it runs
    gc.collect()


async def make(clients, **options):
    client = ResilientRedis(**options)
    clients.append(weakref.ref(client))
    await use(client)


async def count(server):
    """Return the number of connections of a server."""
    return (await server.query("CLIENT", "LIST")).count(b"\n")


async def until_nothing_is_left(clients, server, before, tasks):
    await collect()
    assert [client() for client in clients if client() is not None] == []
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > tasks or await count(server) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def warned(caught):
    found = sum(issubclass(each.category, ResourceWarning) for each in caught)
    messages = [str(each.message) for each in caught]
    assert [text for text in messages if "unclosed client <ResilientRedis" not in text] == []
    caught.clear()  # a warning refers to its source
    return found


@pytest.mark.parametrize("how", ["alone", "shared health", "view", "bound"])
async def test_dropped_clients_leave_no_connection_and_no_task(redis_server, how):
    before, tasks = await count(redis_server), len(asyncio.all_tasks())
    clients, number = [], 20
    health = Dependency("shared") if how == "shared health" else None

    async def one():
        client = ResilientRedis(
            port=redis_server.port, health=health, single_connection_client=how == "bound"
        )
        clients.append(weakref.ref(client))
        await use(client)
        if how == "view":
            view = client.with_policy(attempts=1)
            del client
            gc.collect()
            assert clients[-1]() is not None
            assert await view.get("dropped") == b"1"

    with warnings.catch_warnings(record=True) as caught:
        for _ in range(number):
            await one()
        await collect()
        assert warned(caught) == number
    await until_nothing_is_left(clients, redis_server, before, tasks)


async def test_clients_dropped_after_errors_leave_no_task(redis_server):
    tasks, clients = len(asyncio.all_tasks()), []

    async def one():
        client = ResilientRedis(port=free_port(), policy=BRIEF)
        clients.append(weakref.ref(client))
        with pytest.raises((driver.ConnectionError, driver.TimeoutError)):
            await client.ping()

    with warnings.catch_warnings(record=True) as caught:
        for _ in range(3):
            await one()
        await collect()
        assert warned(caught) == 3
    await until_nothing_is_left(clients, redis_server, 10, tasks)


async def test_objects_of_a_client_keep_it_open(redis_server):
    lock = ResilientRedis(port=redis_server.port).lock("held", timeout=5)
    script = ResilientRedis(port=redis_server.port).register_script("return 1")
    pubsub = ResilientRedis(port=redis_server.port).pubsub()
    pipe = ResilientRedis(port=redis_server.port).pipeline()
    gc.collect()
    assert await lock.acquire()
    assert await script() == 1
    await pubsub.subscribe("c")
    assert await pipe.echo("x").execute() == [b"x"]
    gc.collect()
    assert (await pubsub.get_message(timeout=1))["type"] == "subscribe"
    await lock.release()
    await pubsub.aclose()
    for client in (lock.redis, script.registered_client, pubsub._client, pipe._client):
        await client.aclose()


async def test_a_client_that_was_never_used_or_was_closed_is_dropped_without_a_warning(
    shared_redis,
):
    with warnings.catch_warnings(record=True) as caught:
        ResilientRedis(port=shared_redis.port)
        client = ResilientRedis(port=shared_redis.port)
        await client.ping()
        await client.aclose()
        del client
        gc.collect()
        assert warned(caught) == 0


def test_the_end_of_the_loop_is_quiet_although_a_client_was_dropped(_server_of_session, caplog):
    async def main():
        client = ResilientRedis(port=_server_of_session.port)
        await client.ping()

    with warnings.catch_warnings(record=True) as caught:
        asyncio.run(main(), debug=True)
        gc.collect()
        assert any("unclosed client" in str(each.message) for each in caught)
        caught.clear()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_clients_on_a_pool_leave_nothing_when_they_are_no_longer_used(
    redis_server, monkeypatch
):
    monkeypatch.setattr(runtime_module, "_KEPT_UNUSED", 0.1)
    before, tasks = await count(redis_server), len(asyncio.all_tasks())
    clients = []
    with warnings.catch_warnings(record=True) as caught:
        pool = driver.ConnectionPool(port=redis_server.port)
        for _ in range(20):
            await make(clients, connection_pool=pool)
        await until_nothing_is_left(clients, redis_server, before, tasks)
        assert warned(caught) == 0  # the pool is not theirs
    known = weakref.ref(pool)
    del pool
    gc.collect()
    assert known() is None
