"""The server's name is gone and comes back, with another address.

No real DNS: the loop's `getaddrinfo`, which both the library and asyncio ask, is replaced.
"""

import asyncio
import gc
import socket

import pytest
import pytest_asyncio
from redis import exceptions as driver
from redis.asyncio import ConnectionPool

from resilient_io import NotReplicated, State
from resilient_io.health import Cause
from resilient_io.redis import Durability
from resilient_io.redis.connect import RedisTarget
from resilient_io.testing import RedisServer

NAME = "cache.example"


class OtherServer(RedisServer):
    """A server on another loopback address."""

    host = "127.0.0.2"


class Names:
    """A resolver, and how often it was called."""

    def __init__(self, loop, monkeypatch) -> None:
        self.address: str | None = "127.0.0.1"
        self.hangs = False
        self.asked = 0
        self.at_once = 0
        self.most_at_once = 0
        self._real = loop.getaddrinfo
        monkeypatch.setattr(loop, "getaddrinfo", self._look_up)

    async def _look_up(self, host, port, **options):
        if host != NAME:
            return await self._real(host, port, **options)
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            while self.hangs:  # noqa: ASYNC110 - a test sets the flag
                await asyncio.sleep(0.01)
            if self.address is None:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, port))]
        finally:
            self.at_once -= 1


@pytest_asyncio.fixture
async def names(monkeypatch):
    return Names(asyncio.get_running_loop(), monkeypatch)


@pytest_asyncio.fixture
async def other_server(redis_server):
    async with OtherServer(port=redis_server.port) as server:
        yield server


def url(server: RedisServer) -> str:
    return f"redis://{NAME}:{server.port}/0"


async def test_a_name_that_disappears_and_returns_with_another_address_leads_to_the_new_server(
    names, redis_server, other_server, connect, watch, slack
):
    await redis_server.query("SET", "who", "old")
    await other_server.query("SET", "who", "new")
    redis = await connect(url(redis_server))
    seen = watch(redis)
    assert await redis.get("who") == b"old"

    names.address = None
    redis_server.kill()
    await seen.until(State.DOWN, within=5)
    assert redis.health.cause is Cause.DNS
    assert NAME in str(redis)
    await asyncio.sleep(0.3)
    names.address = "127.0.0.2"
    back = asyncio.get_running_loop().time()
    up = await seen.until(State.UP, within=5)

    assert up - back <= 0.25 + slack(0.1)
    results = await asyncio.gather(*[redis.get("who") for _ in range(50)])
    assert results == [b"new"] * 50
    assert names.most_at_once <= 2  # one of resilient-io, one of asyncio while it connects


async def test_a_changed_address_is_found_at_the_first_failure(
    names, redis_server, other_server, connect, watch
):
    await other_server.query("SET", "who", "new")
    redis = await connect(url(redis_server))
    seen = watch(redis)

    names.address = "127.0.0.2"
    redis_server.kill()
    results = await asyncio.gather(*[redis.get("who") for _ in range(20)])

    assert results == [b"new"] * 20
    assert seen.count(State.DOWN) <= 1


async def test_an_unknown_name_at_the_start_neither_raises_nor_hangs(
    names, redis_server, connect, quick
):
    names.address = None
    policy = quick.replace(deadline=5.0, while_down="wait")
    redis = await connect(url(redis_server), up=False, policy=policy)
    call = asyncio.create_task(redis.incr("counter"))
    async with asyncio.timeout(3):
        async for change in redis.health.watch():
            if change.state is State.DOWN:
                break
    assert redis.health.cause is Cause.DNS

    names.address = "127.0.0.1"
    await redis.health.until_up(5)
    assert await call == 1


async def test_a_hanging_resolver_occupies_one_lookup_and_extends_no_deadline(
    names, redis_server, connect, quick, slack
):
    names.hangs = True
    redis = await connect(url(redis_server), up=False, policy=quick)
    began = asyncio.get_running_loop().time()
    results = await asyncio.gather(*[redis.get("key") for _ in range(50)], return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)
    assert asyncio.get_running_loop().time() - began <= quick.deadline + slack()
    assert names.most_at_once == 1

    names.hangs = False
    await redis.health.until_up(5)
    assert await redis.get("key") is None


async def test_a_lookup_that_fails_after_its_caller_is_gone_is_not_logged(names, caplog):
    names.hangs, names.address = True, None
    target = RedisTarget(ConnectionPool.from_url(f"redis://{NAME}:6379/0"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await target.places()
    names.hangs = False
    await asyncio.wait([target._places._lookup._task])
    del target
    gc.collect()  # only then does asyncio log exceptions that were never retrieved
    assert "never retrieved" not in caplog.text


async def test_a_client_whose_open_connection_answers_is_not_down_while_lookups_hang(
    names, redis_server, connect, quick, watch
):
    redis = await connect(url(redis_server), policy=quick)
    await asyncio.sleep(0.5)
    seen = watch(redis)
    names.hangs = True
    multiplexer = redis._runtime.multiplexer
    next(
        each for each in multiplexer.connections if each is not multiplexer.current
    ).transport.abort()

    await seen.until(State.DEGRADED, within=2)
    await asyncio.sleep(3)  # nothing is called

    assert seen.states == [State.DEGRADED]
    assert await redis.set("key", "value") is True
    names.hangs = False
    await seen.until(State.UP, within=5)


async def test_a_client_of_a_demoted_master_moves_to_the_new_master(
    names, redis_server, other_server, connect, watch
):
    """A failover behind a name: the old master replies READONLY, the name leads to the new one."""
    redis = await connect(url(redis_server))
    assert await redis.set("who", "old")

    await other_server.query("SET", "who", "new")
    await redis_server.query("REPLICAOF", "127.0.0.2", other_server.port)
    names.address = "127.0.0.2"
    results = await asyncio.gather(*[redis.incr("counter") for _ in range(20)])

    assert sorted(results) == list(range(1, 21))
    assert await other_server.query("GET", "counter") == b"20"
    assert redis.health.state is not State.DOWN


async def run_a_script(redis):
    return await redis.eval("return redis.call('INCR', KEYS[1])", 1, "counter")


async def send_a_pipeline(redis):
    return (await redis.pipeline(transaction=False).get("who").incr("counter").execute())[1]


async def send_a_pipeline_of_scripts(redis):
    pipeline = redis.pipeline(transaction=False).get("who")
    return (await pipeline.eval("return redis.call('INCR', KEYS[1])", 1, "counter").execute())[1]


@pytest.mark.parametrize("call", [run_a_script, send_a_pipeline, send_a_pipeline_of_scripts])
async def test_a_client_whose_refused_calls_are_not_repeated_moves_to_the_new_master(
    call, names, redis_server, other_server, connect
):
    """The error of a script, or of a part of a pipeline, is raised: a part may be applied."""
    redis = await connect(url(redis_server))
    assert await call(redis) == 1

    await redis_server.query("REPLICAOF", "127.0.0.2", other_server.port)
    names.address = "127.0.0.2"
    results = []
    async with asyncio.timeout(5):
        while results[-1:] != [1]:
            try:
                results.append(await call(redis))
            except driver.ResponseError as error:
                results.append(type(error))
            await asyncio.sleep(0.05)

    assert results == [*[driver.ReadOnlyError] * (len(results) - 1), 1]
    assert len(results) <= 10


async def watch_and_increment(redis):
    async with redis.pipeline() as pipeline:
        await pipeline.watch("who")
        pipeline.multi()
        return (await pipeline.incr("counter").execute())[0]


async def watch_and_set_immediately(redis):
    async with redis.pipeline() as pipeline:
        await pipeline.watch("who")
        counter = await pipeline.incr("counter")
        await pipeline.unwatch()
        return counter


@pytest.mark.parametrize("call", [watch_and_increment, watch_and_set_immediately])
async def test_a_client_that_only_watches_is_up_again_after_the_first_accepted_write(
    call, names, redis_server, other_server, connect
):
    redis = await connect(url(redis_server))
    assert await call(redis) == 1
    await redis_server.query("REPLICAOF", "127.0.0.2", other_server.port)
    names.address = "127.0.0.2"
    with pytest.raises(driver.ReadOnlyError):
        await call(redis)
    assert redis.health.state is State.DEGRADED

    assert await call(redis) == 1

    assert redis.health.state is State.UP


async def increment_in_a_transaction(redis):
    return (await redis.pipeline(transaction=True).incr("counter").execute())[0]


async def increment(redis):
    return await redis.incr("counter")


REPEATED = [increment, increment_in_a_transaction]
RAISED = [run_a_script, send_a_pipeline, send_a_pipeline_of_scripts, watch_and_increment]


@pytest.mark.parametrize("call", [*REPEATED, *RAISED])
async def test_a_durable_write_that_a_demoted_master_refused_is_not_reported_as_applied(
    call, names, redis_server, other_server, connect
):
    """A replica refuses WAIT, too, but that says nothing about a write that it refused."""
    async with OtherServer(replica_of=other_server):
        redis = await connect(url(redis_server), durability=Durability(replicas=1, timeout=3))
        with pytest.raises(NotReplicated):
            await call(redis.with_durability(Durability(replicas=1, timeout=0.1)))
        await redis_server.query("REPLICAOF", "127.0.0.2", other_server.port)
        names.address = "127.0.0.2"

        if call in RAISED:
            with pytest.raises(driver.ReadOnlyError):
                await call(redis)

        assert await call(redis) == 1
        assert await other_server.query("GET", "counter") == b"1"


async def test_a_durable_pipeline_of_which_a_part_was_applied_reports_the_shortfall(
    redis_server, connect
):
    await redis_server.query("SET", "text", "text")
    redis = await connect(redis_server, durability=Durability(replicas=1, timeout=0.1))
    pipeline = redis.pipeline(transaction=False).incr("text")
    with pytest.raises(driver.ResponseError, match="not an integer"):
        await pipeline.execute()

    with pytest.raises(NotReplicated) as caught:
        await pipeline.incr("text").incr("counter").execute()

    refused, counter = caught.value.reply
    assert isinstance(refused, driver.ResponseError)
    assert counter == 1


async def test_a_subscriber_leaves_a_demoted_master_when_writes_are_accepted_elsewhere(
    names, redis_server, other_server, connect
):
    """The demoted master receives nothing of what is published on the new one."""
    redis = await connect(url(redis_server))
    async with redis.pubsub() as subscriber:
        await subscriber.subscribe("news")
        assert (await subscriber.get_message(timeout=5))["type"] == "subscribe"
        await redis_server.query("REPLICAOF", "127.0.0.1", 1)
        names.address = "127.0.0.2"

        assert await redis.incr("counter") == 1

        async with asyncio.timeout(5):
            while not await other_server.query("PUBLISH", "news", "hello"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await subscriber.get_message(timeout=5))["type"] == "gap"
        assert (await subscriber.get_message(timeout=5))["type"] == "subscribe"
        assert (await subscriber.get_message(timeout=5))["data"] == b"hello"


async def test_a_client_that_reads_from_replicas_leaves_a_demoted_master(
    names, redis_server, other_server, connect
):
    """It writes nothing, so that nothing is refused. The demoted master is behind forever."""
    await redis_server.query("SET", "who", "old")
    await other_server.query("SET", "who", "new")
    redis = await connect(url(redis_server), read_from="replica", max_lag=0.5)
    assert await redis.get("who") == b"old"
    await asyncio.sleep(0.3)  # the master was asked

    await redis_server.query("REPLICAOF", "127.0.0.1", 1)
    names.address = "127.0.0.2"

    async with asyncio.timeout(5):
        while await redis.get("who") != b"new":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    asked = names.asked
    await asyncio.sleep(0.5)
    assert names.asked == asked


@pytest.mark.parametrize("change", ["release", "extend", "reacquire"])
async def test_a_lock_can_be_changed_although_its_master_was_demoted(
    change, names, redis_server, other_server, connect
):
    """The scripts of a lock change nothing if the server refuses one of their commands."""
    redis = await connect(url(redis_server))
    lock = redis.lock("held", timeout=30)
    assert await lock.acquire()
    await other_server.query("SET", "held", lock.local.token, "PX", 20_000)  # as if replicated

    await redis_server.query("REPLICAOF", "127.0.0.1", 1)
    names.address = "127.0.0.2"
    if change == "extend":
        await lock.extend(60, replace_ttl=True)
    else:
        await getattr(lock, change)()

    left = {"release": -2, "extend": 60_000, "reacquire": 30_000}[change]
    assert left - 5_000 < await other_server.query("PTTL", "held") <= left


async def test_a_fenced_lock_is_acquired_on_the_new_master(
    names, redis_server, other_server, connect
):
    redis = await connect(url(redis_server))
    await redis_server.query("REPLICAOF", "127.0.0.2", other_server.port)
    names.address = "127.0.0.2"

    assert await redis.lock("held", timeout=30, fencing=True).acquire()

    assert await other_server.query("EXISTS", "held") == 1
