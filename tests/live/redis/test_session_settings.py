"""CLIENT SETNAME, SETINFO, NO-EVICT and NO-TOUCH apply to every connection of a client."""

import asyncio

import pytest
import redis.asyncio as driver

from resilient_io import RetryPolicy
from resilient_io.redis import ResilientRedis, RouteRefused


async def connections(server):
    """Return the connections of resilient-io in CLIENT LIST, as dictionaries."""
    lines = (await server.query("CLIENT", "LIST")).decode().splitlines()
    found = [dict(pair.partition("=")[::2] for pair in line.split()) for line in lines]
    return [each for each in found if ":" in each["name"]]


async def until_all(server, count, expected):
    """Wait until there are so many connections, and all are as expected."""
    async with asyncio.timeout(5):
        while True:
            found = await connections(server)
            if len(found) >= count and all(expected.items() <= each.items() for each in found):
                return found
            await asyncio.sleep(0.02)


@pytest.fixture
async def named(redis_server, until_complete):
    async with ResilientRedis(port=redis_server.port) as client:
        await client.ping()
        await until_complete(client)
        yield client


async def version_of(server):
    text = (await server.query("INFO", "server")).decode()
    return tuple(map(int, text.partition("redis_version:")[2].split()[0].split(".")))


async def test_a_name_applies_to_present_and_future_connections(redis_server, named):
    assert await named.client_getname() is None
    blocked = asyncio.create_task(named.blpop("list", 5))
    await asyncio.sleep(0.05)
    assert await named.client_setname("orders") is True
    assert await named.client_getname() == "orders"
    assert await named.pipeline().client_getname().execute() == ["orders"]
    await redis_server.query("RPUSH", "list", "x")
    assert await blocked == (b"list", b"x")
    await named.blpop("list", 0.01)
    names = [each["name"] for each in await until_all(redis_server, 3, {})]
    assert all(name.startswith("orders:") for name in names)
    assert len(set(names)) == len(names)
    await redis_server.query("CLIENT", "KILL", "TYPE", "normal")
    assert await named.ping()
    names = [each["name"] for each in await until_all(redis_server, 2, {})]
    assert all(name.startswith("orders:") for name in names)
    await named.aclose()
    assert await named.client_getname() == "orders"
    assert await named.client_setname("") is True
    assert await named.client_getname() is None
    await named.aclose()


@pytest.mark.parametrize("single", [False, True])
async def test_a_lost_write_is_fenced_after_a_change_of_the_name(redis_server, fault_proxy, single):
    policy = RetryPolicy(response_timeout=0.3)
    async with ResilientRedis(
        port=fault_proxy.port, policy=policy, single_connection_client=single
    ) as client:
        await client.ping()
        await client.client_setname("renamed")
        held = fault_proxy.hold(lambda request: b"first" in request.arguments)
        with pytest.raises((driver.TimeoutError, driver.ConnectionError)):
            await client.with_policy(repeat="read", attempts=1).set("key", "first")
        assert await client.set("key", "later")
        held.release()
        await asyncio.sleep(0.1)
        assert await client.get("key") == b"later"


async def test_the_name_of_a_single_connection_is_that_of_the_next_one(redis_server):
    async with ResilientRedis(port=redis_server.port, single_connection_client=True) as client:
        assert await client.client_setname("orders") is True
        assert await client.client_getname() == "orders"
        await redis_server.query("CLIENT", "KILL", "TYPE", "normal")
        assert await client.ping()
        assert await client.client_getname() == "orders"
        await client.execute_command("MULTI")
        await client.execute_command("CLIENT SETNAME", "queued")
        assert len(await client.execute_command("EXEC")) == 1
        assert await client.client_getname() == "queued"


async def test_library_info_applies_to_all_connections(redis_server, named):
    if await version_of(redis_server) < (7, 2):
        with pytest.raises(driver.ResponseError):  # as with redis-py
            await named.client_setinfo("LIB-NAME", "redisvl")
        return
    assert await named.client_setinfo("LIB-NAME", "redisvl") is True
    await named.execute_command("CLIENT", "SETINFO", "lib-ver", "1.2")
    await named.blpop("nothing", 0.01)
    await until_all(redis_server, 3, {"lib-name": "redisvl", "lib-ver": "1.2"})


async def test_no_evict_applies_to_all_connections(redis_server, named):
    assert await named.client_no_evict("ON")
    await named.blpop("nothing", 0.01)
    await redis_server.query("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await named.ping()
    found = await until_all(redis_server, 2, {})
    assert all("e" in each["flags"] for each in found)
    await named.client_no_evict("OFF")
    assert not any("e" in each["flags"] for each in await until_all(redis_server, 2, {}))


@pytest.mark.parametrize("name", ["two words", "línea", "a\nb"])
async def test_an_invalid_name_is_refused_as_by_the_server(shared_redis, name):
    async with driver.Redis(port=shared_redis.port) as theirs:
        with pytest.raises(driver.ResponseError) as expected:
            await theirs.client_setname(name)
    async with ResilientRedis(port=shared_redis.port) as client:
        with pytest.raises(driver.ResponseError) as caught:
            await client.client_setname(name)
        assert str(caught.value) == str(expected.value)
        assert await client.client_getname() is None


async def test_a_forbidden_setting_raises_the_error_of_the_server(redis_server):
    await redis_server.query(
        "ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-client|no-evict"
    )
    url = f"redis://app:secret@127.0.0.1:{redis_server.port}"
    async with ResilientRedis.from_url(url) as client:
        with pytest.raises(driver.ResponseError, match="permission"):
            await client.client_no_evict("ON")
        assert await client.ping()


async def test_the_clients_on_one_pool_share_the_settings(redis_server):
    async with driver.ConnectionPool(port=redis_server.port) as pool:
        await ResilientRedis(connection_pool=pool).client_setname("jobs")
        assert await ResilientRedis(connection_pool=pool).client_getname() == "jobs"


async def test_a_bound_client_sets_its_own_connection_only(shared_redis):
    async with ResilientRedis(port=shared_redis.port) as client, client.client() as own:
        await own.client_setname("own")
        assert await own.client_getname() == "own"
        assert await client.client_getname() is None


async def test_other_commands_that_change_a_connection_are_refused(shared_redis):
    async with ResilientRedis(port=shared_redis.port) as client:
        for command in ("CLIENT REPLY OFF", "CLIENT TRACKING ON", "SELECT 1"):
            with pytest.raises(RouteRefused):
                await client.execute_command(*command.split())
        with pytest.raises(RouteRefused, match="client_setname"):
            await client.pipeline().client_setname("x").execute()
