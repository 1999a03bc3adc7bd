"""Several clients share one health: each of them may be closed, and none misleads the others."""

import asyncio

from resilient_io import Cause, Dependency, HealthSettings, RetryPolicy, State
from resilient_io.redis import ConnectionSettings, ResilientRedis

OOM = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"


async def until(condition, *, within):
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)


async def test_the_last_client_closes_the_health_and_not_the_one_that_created_it(
    fault_proxy, slack
):
    first = ResilientRedis(port=fault_proxy.port)
    second = ResilientRedis(port=fault_proxy.port, health=first.health)
    await first.ping()
    await second.ping()
    ended = asyncio.create_task(anext(changes := first.health.watch()))
    await ended
    await first.aclose()
    assert second.health.state is State.UP
    fault_proxy.reset()
    await asyncio.sleep(0.1)
    async with asyncio.timeout(2 + slack()):
        assert await second.ping()
        await second.health.until_up()
    assert second.liveness_failure() is None
    await second.aclose()
    assert second.health.state is State.UNKNOWN
    async with asyncio.timeout(1):
        assert [change.state async for change in changes] == [State.UNKNOWN]


async def test_the_creator_may_be_opened_again_after_the_others(redis_server):
    first = ResilientRedis(port=redis_server.port)
    second = ResilientRedis(port=redis_server.port, health=first.health)
    for closed_first, closed_last in ((first, second), (second, first)) * 2:
        async with asyncio.timeout(5), closed_last:
            async with closed_first:
                await closed_first.ping()
            await closed_last.ping()
            await closed_last.health.until_up()
        assert first.health.state is State.UNKNOWN


async def test_a_client_works_on_without_a_health_that_the_application_closed(redis_server, slack):
    health = Dependency("redis")
    async with ResilientRedis(port=redis_server.port, health=health) as client:
        await client.ping()
        await health.aclose()
        redis_server.kill()
        for _ in range(5):
            await asyncio.gather(client.ping(), return_exceptions=True)
        assert client.liveness_failure() is None
        await redis_server.start()
        waiting = client.with_policy(while_down="wait", deadline=5 + slack())
        assert await waiting.ping()
        assert client.liveness_failure() is None


async def test_a_lost_connection_of_a_closed_client_does_not_degrade_the_health(
    redis_server, until_complete, slack
):
    one = ConnectionSettings(count=1)
    async with ResilientRedis(port=redis_server.port, connections=one) as other:
        await until_complete(other)
        client = ResilientRedis(port=redis_server.port, health=other.health)
        await client.ping()
        await until_complete(client)
        multiplexer = client._runtime.multiplexer
        lost = next(each for each in multiplexer.connections if each is not multiplexer.current)
        await redis_server.query("CONFIG", "SET", "maxclients", 2)
        # `current` kills, because a new connection would be refused.
        await client.client_kill_filter(_id=lost.client_id)
        health = other.health
        await until(lambda: len(health.snapshot()["parts_lost"]) == 1, within=5)
        await client.aclose()
        assert health.snapshot()["parts_lost"] == []
        await until(lambda: health.state is State.UP, within=3 + slack())


async def test_a_refusal_that_another_client_sees_ends_with_the_next_accepted_write(
    redis_server, fault_proxy
):
    once = RetryPolicy(attempts=1)
    async with (
        ResilientRedis(port=redis_server.port) as writer,
        ResilientRedis(port=fault_proxy.port, health=writer.health, policy=once) as refused,
    ):
        health = writer.health
        await writer.set("key", 1)
        await refused.set("key", 1)
        health.part_lost("a part", Cause.OTHER)
        await until(lambda: health.state is State.DEGRADED, within=3)
        fault_proxy.answer("SET", OOM)
        await asyncio.gather(refused.set("key", 1), return_exceptions=True)
        assert health.refusing
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await writer.set("key", 2)
        assert not health.refusing
        # The other client notices that, too, and uses its hot path again.
        await until(lambda: refused._runtime.multiplexer.fast is not None, within=1)
        assert health.state is State.DEGRADED


LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


async def test_a_loading_server_is_down_also_while_it_refuses_many_callers(fault_proxy, slack):
    """Its refusals are not signs of life: the probe gets the same answer."""
    ended = False
    async with ResilientRedis(port=fault_proxy.port, policy=RetryPolicy(attempts=1)) as client:
        await client.ping()

        async def call(pause):
            while not ended:
                await asyncio.gather(client.get("key"), return_exceptions=True)
                await asyncio.sleep(pause)

        callers = [asyncio.create_task(call(0.005 + number / 7000)) for number in range(60)]
        await asyncio.sleep(0.1)
        loading = fault_proxy.answer(
            lambda request: request.name in ("GET", "PING"), LOADING, times=None
        )
        await until(lambda: client.health.state is State.DOWN, within=1 + slack())
        assert client.health.cause is Cause.LOADING
        down_at = client.health.since
        await asyncio.sleep(1)
        assert (client.health.state, client.health.since) == (State.DOWN, down_at)
        loading.remove()
        await until(lambda: client.health.state is State.UP, within=2 + slack())
        assert await client.get("key") is None
        ended = True
        await asyncio.gather(*callers)


async def test_only_new_connections_that_find_a_loading_server_degrade_it(fault_proxy):
    async with ResilientRedis(port=fault_proxy.port) as client:
        await client.ping()
        multiplexer = client._runtime.multiplexer
        opened = list(fault_proxy.connections)
        await until(lambda: len(multiplexer.connections) == 2, within=2)
        opened = list(fault_proxy.connections)
        fault_proxy.answer(
            lambda request: request.name == "PING" and len(fault_proxy.connections) > len(opened),
            LOADING,
        )
        client.health.failed(Cause.RESET, "for the test")
        await until(lambda: client.health.state is not State.UP, within=2)
        assert (client.health.state, client.health.cause) == (State.DEGRADED, Cause.LOADING)


async def test_the_probe_sends_nothing_on_a_connection_that_is_bound_to_a_caller(redis_server):
    settings = HealthSettings(interval=0.05)
    health = Dependency("redis", settings=settings)
    async with ResilientRedis(
        port=redis_server.port, single_connection_client=True, health=health
    ) as client:
        await client.execute_command("MULTI")
        await client.execute_command("SET", "key", 1)
        await asyncio.sleep(0.5)
        client.health.failed(Cause.RESET, "for the test")
        await asyncio.sleep(0.2)
        assert await client.execute_command("EXEC") == [b"OK"]
        assert client.health.state is State.UP
        redis_server.kill()
        await until(lambda: client.health.state is State.DOWN, within=2)


async def test_a_client_of_its_own_that_is_used_before_its_parent_is_not_probed(redis_server):
    parent = ResilientRedis(
        port=redis_server.port, health=Dependency("redis", settings=HealthSettings(interval=0.05))
    )
    async with parent.client() as alone:
        await alone.execute_command("MULTI")
        await alone.execute_command("SET", "key", 1)
        async with parent:
            await parent.ping()
            await asyncio.sleep(0.4)
        assert await alone.execute_command("EXEC") == [b"OK"]


async def test_a_bound_client_stays_usable_when_only_new_connections_are_refused(redis_server):
    settings = HealthSettings(interval=0.05)
    health = Dependency("redis", settings=settings)
    async with ResilientRedis(
        port=redis_server.port, single_connection_client=True, health=health
    ) as client:
        await client.config_set("maxclients", 1)
        await until(lambda: health.state is State.DEGRADED, within=2)
        assert health.cause is Cause.MAX_CLIENTS
        assert await client.ping()
