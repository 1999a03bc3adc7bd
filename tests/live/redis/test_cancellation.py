"""Every coroutine, cancelled at each point where it waits: re-raised at once, nothing left behind.

After each cancel the next reply must be the next caller's. What redis-py itself does for pub/sub
and MONITOR is cancelled too, as far as it is sound there.
"""

import asyncio
import contextlib
import itertools

import pytest
from redis.exceptions import RedisError

from resilient_io import DeadlineExceeded, RetryPolicy
from resilient_io.health import Dependency, HealthMonitor
from resilient_io.redis import ResilientRedis
from resilient_io.testing import Moment, cancel_everywhere, free_port

_unique = itertools.count()


@pytest.fixture
async def client(client, until_complete):
    await until_complete(client)  # a connection opened later would look like a leak
    return client


async def next_reply_is_ours(client):
    """Check after a cancellation: replies reach their own callers, and resources are released."""
    keys = [f"check:{next(_unique)}" for _ in range(3)]
    await client.mset({key: key for key in keys})
    assert await asyncio.gather(*map(client.get, keys)) == [key.encode() for key in keys]
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.get(key)
    assert await pipe.execute() == [key.encode() for key in keys]
    await client.delete(*keys)  # the keys that the work iterates over must not grow
    await client.rpush("check:list", keys[0])
    assert await client.blpop("check:list", timeout=1) == (b"check:list", keys[0].encode())
    stats = client.stats()
    assert stats.waiting == 0
    assert not client._runtime.pool._acquired


async def watch_and_set(client):
    async with client.pipeline() as pipe:
        await pipe.watch("w")
        value = await pipe.get("w")
        pipe.multi()
        pipe.set("w", value or 1).get("w")
        await pipe.execute()


async def increment(pipe):
    value = await pipe.get("w")
    pipe.multi()
    pipe.set("w", int(value or 0) + 1)


async def lock_and_unlock(client):
    # Each run has its own name, so that it does not wait for the lock of a cancelled run.
    async with client.lock(f"lock:{next(_unique)}", timeout=10, blocking_timeout=2) as lock:
        await lock.extend(10)
        await lock.reacquire()
        await lock.owned()


async def scan_all(client):
    async for _ in client.scan_iter("many:*", count=5):
        pass


async def run_script(client):
    await client.script_flush()
    await client.register_script("return 1")()


async def script_in_a_pipeline(client):
    await client.script_flush()
    pipe = client.pipeline()
    await client.register_script("return 1")(client=pipe)
    await pipe.execute()


async def own_connection(client):
    async with client.client() as own:
        await own.select(1)
        await own.get("k")


async def blocking_pop(client):
    await client.blpop("nothing", timeout=0.02)


async def pop_of_an_element(client):
    await client.rpush("some", 1)
    await client.blpop("some", timeout=1)


async def stream_read(client):
    await client.xread({"stream": "$"}, block=20)


WORK = [
    lambda client: client.get("k"),
    lambda client: client.set("k", "v"),
    lambda client: client.execute_command("CONFIG", "GET", "maxmemory"),
    lambda client: client.with_policy(attempts=1).get("k"),
    lambda client: client.set("large", bytes(300_000)),
    lambda client: client.get("large"),
    lambda client: client.pipeline(transaction=False).get("k").incr("n").get("k").execute(),
    lambda client: client.pipeline().get("k").incr("n").execute(),
    watch_and_set,
    lambda client: client.transaction(increment, "w"),
    lock_and_unlock,
    scan_all,
    run_script,
    script_in_a_pipeline,
    own_connection,
    blocking_pop,
    pop_of_an_element,
    stream_read,
    lambda client: client.initialize(),
    lambda client: client.health.until_up(1),
]
NAMES = [
    "GET", "SET", "CONFIG", "with_policy", "large-SET", "large-GET", "pipeline", "MULTI", "WATCH",
    "transaction", "lock", "scan_iter", "script", "script-in-pipeline", "client", "BLPOP-nothing",
    "BLPOP", "XREAD", "initialize", "until_up",
]  # fmt: skip
_NEVER_WAITS = ("initialize", "until_up")
FAULTY = [name for name in NAMES if name not in ("CONFIG", "large-GET", "lock", *_NEVER_WAITS)]


def open_client(port, *, warm, policy=None):
    """Return a setup that creates a client for each run, so that anything left is a leak."""

    @contextlib.asynccontextmanager
    async def opened():
        client = ResilientRedis(port=port, policy=policy)
        try:
            if warm:
                await client.ping()
            yield client
        finally:
            await client.aclose()

    return opened


@pytest.mark.parametrize("work", WORK, ids=NAMES)
async def test_calls_cancelled_while_the_server_is_healthy(work, request, shared_redis):
    # This client is closed before the check: a connection that it opens late is not a leak.
    async with ResilientRedis(port=shared_redis.port) as client:
        await client.mset({f"many:{number}": 1 for number in range(8)})
        await client.set("large", bytes(300_000))
    report = await cancel_everywhere(
        work, setup=open_client(shared_redis.port, warm=True), check=next_reply_is_ours
    )
    assert report.findings == []
    assert report.points or request.node.callspec.id in _NEVER_WAITS


@pytest.mark.parametrize("work", WORK[:-1], ids=NAMES[:-1])
async def test_the_first_call_of_a_client_cancelled(shared_redis, work):
    """The first call is cancelled while the connections are being opened."""
    report = await cancel_everywhere(
        work,
        setup=open_client(shared_redis.port, warm=False),
        check=next_reply_is_ours,
        moments=(Moment.WAITING,),
        max_points=4,
    )
    assert report.findings == []


HURRIED = RetryPolicy(
    deadline=0.15, response_timeout=0.05, connect_timeout=0.05, backoff=0.01, attempts=2
)
PATIENT = RetryPolicy(while_down="wait", attempts=10)


@pytest.mark.parametrize("while_down", ["fail", "wait"])
@pytest.mark.parametrize("name", FAULTY)
async def test_calls_cancelled_while_the_server_is_dead(fault_proxy, name, while_down):
    work = WORK[NAMES.index(name)]
    alive, nowhere = fault_proxy.target, ("127.0.0.1", free_port())

    @contextlib.asynccontextmanager
    async def dead():
        async with ResilientRedis(port=fault_proxy.port) as client:
            await client.ping()
            fault_proxy.target = nowhere
            fault_proxy.reset()
            yield client.with_policy(HURRIED.replace(while_down=while_down))
            fault_proxy.target = alive

    async def check(client):
        fault_proxy.target = alive
        await next_reply_is_ours(client.with_policy(PATIENT))

    report = await cancel_everywhere(
        work,
        setup=dead,
        check=check,
        raises=RedisError,
        max_points=4,
        moments=(Moment.WAITING,),
        run_timeout=3,
    )
    assert report.findings == []


@pytest.mark.parametrize("name", FAULTY)
async def test_calls_cancelled_while_the_server_is_frozen(redis_server, name):
    work = WORK[NAMES.index(name)]

    @contextlib.asynccontextmanager
    async def frozen():
        async with ResilientRedis(port=redis_server.port) as client:
            await client.ping()
            redis_server.freeze()
            try:
                yield client.with_policy(HURRIED)
            finally:
                redis_server.thaw()

    async def check(client):
        redis_server.thaw()
        await next_reply_is_ours(client.with_policy(PATIENT))

    report = await cancel_everywhere(
        work,
        setup=frozen,
        check=check,
        raises=RedisError,
        max_points=3,
        moments=(Moment.WAITING,),
        run_timeout=3,
    )
    assert report.findings == []


async def test_opening_and_closing_cancelled(shared_redis):
    """A cancelled close continues in the background; the next one finds everything closed."""
    clients = []

    async def live():
        client = ResilientRedis(port=shared_redis.port)
        clients.append(client)
        async with client:
            await client.get("k")

    async def check(*_):
        await clients[-1].aclose()

    report = await cancel_everywhere(live, check=check)
    assert report.findings == []
    assert report.points


async def test_a_cancelled_exit_of_async_with_still_closes_the_client(shared_redis):
    """After a cancelled `async with`, aclose() is not called again."""

    @contextlib.asynccontextmanager
    async def opened():
        client = ResilientRedis(port=shared_redis.port)
        await client.__aenter__()
        await client.get("k")
        yield client

    report = await cancel_everywhere(
        lambda client: client.__aexit__(None, None, None), setup=opened
    )
    assert report.findings == []
    assert report.points


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_cancelled_aclose_continues_in_the_background(redis_server, frozen):
    @contextlib.asynccontextmanager
    async def opened():
        client = ResilientRedis(port=redis_server.port)
        await client.get("k")
        waiting = asyncio.ensure_future(client.blpop("nothing", timeout=0))
        await asyncio.sleep(0.01)
        if frozen:
            redis_server.freeze()
        try:
            yield client
        finally:
            redis_server.thaw()
            await asyncio.wait([waiting])
            assert waiting.exception() is not None

    report = await cancel_everywhere(lambda client: client.aclose(), setup=opened)
    assert report.findings == []
    assert report.points


async def test_watching_health_cancelled(client, redis_server, until_complete):
    async with ResilientRedis(port=redis_server.port) as other:
        monitor = HealthMonitor(client.health, other.health)
        await until_complete(client, other)

        async def next_change(source):
            async for _ in source.watch():
                break

        for source in (client.health, monitor):
            report = await cancel_everywhere(
                lambda source=source: next_change(source), max_points=3
            )
            assert report.findings == []
        never = Dependency("never heard from")
        report = await cancel_everywhere(
            never.until_up, max_points=1, moments=(Moment.SUSPENDED, Moment.WAITING)
        )
        assert report.findings == []
        report = await cancel_everywhere(lambda: never.until_up(0.05), raises=DeadlineExceeded)
        assert report.findings == []
        with contextlib.suppress(Exception):
            await monitor.aclose()
    await next_reply_is_ours(client)


async def test_a_call_cancelled_before_it_was_written_is_never_sent(client):
    gathered = [asyncio.ensure_future(client.incr("n")) for _ in range(10)]
    await asyncio.sleep(0)
    late = asyncio.ensure_future(client.incr("n"))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.gather(*gathered)
    assert await client.get("n") == b"10"


async def test_many_cancellations_mix_no_replies(client):
    async def caller(number):
        for turn in range(30):
            key = f"storm:{number}:{turn}"
            await client.set(key, key)
            assert await client.get(key) == key.encode()
            assert await client.pipeline().get(key).get(key).execute() == [key.encode()] * 2

    async def killer(tasks):
        for place, task in enumerate(tasks):
            if place % 2:
                for _ in range(place % 5 + 1):
                    await asyncio.sleep(0)
                task.cancel()

    tasks = [asyncio.ensure_future(caller(number)) for number in range(60)]
    await killer(tasks)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results
    assert results.count(None) == 30
    await next_reply_is_ours(client)


async def test_a_cancelled_pubsub_does_not_affect_the_client(client):
    """A cancellation drops redis-py's own connection, which is all that is promised here."""

    async def listen():
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("c")
            await pubsub.get_message(timeout=0.01)
            await pubsub.get_message(timeout=0.01)

    report = await cancel_everywhere(listen, check=lambda: next_reply_is_ours(client))
    assert report.leaked_tasks == []


async def test_a_cancelled_monitor_does_not_affect_the_client(client):
    """As for pub/sub."""

    async def look():
        async with client.monitor() as monitor:
            await client.set("seen", 1)
            await monitor.next_command()

    report = await cancel_everywhere(look, check=lambda: next_reply_is_ours(client))
    assert report.leaked_tasks == []
