"""Scripts that a new server does not have are loaded and run once more."""

import pytest
import redis.asyncio as driver
from redis.exceptions import NoScriptError, ResponseError

from resilient_io import DeadlineExceeded, Progress, deadline
from resilient_io.redis import ResilientRedis

COUNT = "return redis.call('incrby', KEYS[1], ARGV[1])"
READ = "return redis.call('get', KEYS[1])"


@pytest.fixture
async def client(redis_server):
    """Open a client whose server has no script."""
    async with ResilientRedis(port=redis_server.port) as client:
        await client.ping()
        yield client


async def restart(server, client):
    server.kill()
    await server.start()
    await client.health.until_up(5)


def ways_to_know():
    async def load(client):
        return await client.script_load(COUNT)

    async def load_raw(client):
        return (await client.execute_command(b"script", "load", COUNT.encode())).decode()

    async def evaluate(client):
        await client.eval(COUNT, 1, "other", 1)
        return client.register_script(COUNT).sha

    async def register(client):
        return client.register_script(COUNT.encode()).sha

    async def batch(client):
        pipeline = client.pipeline()
        pipeline.script_load(COUNT)
        return (await pipeline.execute())[0]

    return [load, load_raw, evaluate, register, batch]


@pytest.mark.parametrize("learn", ways_to_know(), ids=lambda way: way.__name__)
async def test_script_runs_after_a_restart(client, redis_server, learn):
    sha = await learn(client)
    for expected in (1, 2):
        await restart(redis_server, client)
        assert await client.evalsha(sha, 1, "n", 1) == 1
        assert await client.execute_command("EVALSHA", sha.upper().encode(), 1, "n", 1) == 2
        assert await redis_server.query("GET", "n") == b"2", expected


async def test_script_runs_after_a_flush(client, redis_server):
    sha = await client.script_load(READ)
    await client.set("n", 5)
    await redis_server.query("SCRIPT", "FLUSH")
    assert await client.evalsha(sha, 1, "n") == b"5"
    await client.script_flush()
    assert await client.evalsha_ro(sha, 1, "n") == b"5"


async def test_script_runs_on_the_server_that_took_over(client, redis_server):
    sha = await client.script_load(COUNT)
    async with ResilientRedis(port=redis_server.port) as other:
        await other.script_flush()
    assert await client.with_policy(attempts=1).evalsha(sha, 1, "n", 1) == 1
    bound = client.client()
    await redis_server.query("SCRIPT", "FLUSH")
    with pytest.raises(NoScriptError):
        await bound.evalsha(sha, 1, "n", 1)  # another client, which has not seen it
    await bound.script_load(COUNT)
    await redis_server.query("SCRIPT", "FLUSH")
    assert await bound.evalsha(sha, 1, "n", 1) == 2
    await bound.aclose()


async def test_unknown_script_is_an_error(client, redis_server):
    sha = await redis_server.query("SCRIPT", "LOAD", COUNT)
    await redis_server.query("SCRIPT", "FLUSH")
    with pytest.raises(NoScriptError):
        await client.evalsha(sha.decode(), 1, "n", 1)
    pipeline = client.pipeline()
    pipeline.evalsha(sha.decode(), 1, "n", 1)
    with pytest.raises(NoScriptError):
        await pipeline.execute()


async def test_error_that_a_script_returns_is_not_taken_for_a_missing_script(client, redis_server):
    liar = "redis.call('incr', KEYS[1]) return redis.error_reply('NOSCRIPT my own')"
    sha = await client.script_load(liar)
    with pytest.raises(ResponseError):
        await client.evalsha(sha, 1, "n")
    assert await redis_server.query("GET", "n") == b"1"


async def test_script_that_may_not_be_loaded_is_an_error(client, redis_server):
    sha = await client.script_load(COUNT)
    await redis_server.query("SCRIPT", "FLUSH")
    await redis_server.query("ACL", "SETUSER", "default", "-script|load")
    with pytest.raises(NoScriptError):
        await client.evalsha(sha, 1, "n", 1)
    pipeline = client.pipeline()
    pipeline.evalsha(sha, 1, "n", 1).set("other", 1)
    with pytest.raises(NoScriptError):
        await pipeline.execute()


@pytest.mark.parametrize("transaction", [False, True], ids=["pipeline", "multi"])
async def test_script_of_a_batch_runs_in_order_after_a_restart(client, redis_server, transaction):
    sha = await client.script_load(COUNT)
    script = client.register_script(READ)
    for _ in range(2):
        await restart(redis_server, client)
        pipeline = client.pipeline(transaction=transaction)
        pipeline.set("n", 5).evalsha(sha, 1, "n", 2).get("n")
        await script(keys=["n"], client=pipeline)
        pipeline.evalsha(sha, 1, "n", 3)
        assert await pipeline.execute() == [True, 7, b"7", b"7", 10]
        assert await pipeline.execute() == []


async def test_script_of_a_batch_is_loaded_once_per_connection(fault_proxy):
    async with ResilientRedis(port=fault_proxy.port) as client:
        script = client.register_script(COUNT)
        for _ in range(3):
            pipeline = client.pipeline()
            await script(keys=["n"], args=[1], client=pipeline)
            await pipeline.execute()
        assert fault_proxy.requests["SCRIPT"] == 1


@pytest.mark.parametrize("transaction", [False, True], ids=["pipeline", "multi"])
async def test_batch_applied_nothing_if_the_reply_to_its_large_script_is_lost(
    fault_proxy, transaction
):
    async with ResilientRedis(port=fault_proxy.port) as client:
        script = client.register_script(COUNT + " " * 1_100_000)  # too large to be remembered
        pipeline = client.pipeline(transaction=transaction)
        await script(keys=["n"], args=[1], client=pipeline)
        fault_proxy.drop_reply("SCRIPT", nth=2)  # the first one is SCRIPT EXISTS
        with deadline(0.3), pytest.raises(DeadlineExceeded) as caught:
            await pipeline.execute()
        assert caught.value.progress is Progress.SENT
        assert await client.get("n") is None
        await script(keys=["n"], args=[1], client=pipeline)
        assert await pipeline.execute() == [1]


@pytest.mark.parametrize("transaction", [False, True], ids=["pipeline", "multi"])
async def test_batch_works_again_after_a_flush_by_another_client(client, redis_server, transaction):
    sha = await client.script_load(COUNT)

    def batch(raw):
        pipeline = client.pipeline(transaction=transaction)
        if raw:
            pipeline.execute_command("EVALSHA", sha, 1, "n", 1)
        else:
            pipeline.evalsha(sha, 1, "n", 1)
        return pipeline.incr("other")

    for raw in (False, True):
        await batch(raw).execute()
        await redis_server.query("SCRIPT", "FLUSH")
        # The rest of the batch was executed, so the script does not run after it.
        first, second = await batch(raw).execute(raise_on_error=False)
        assert isinstance(first, NoScriptError)
        assert isinstance(second, int)
        first, _ = await batch(raw).execute()
        assert isinstance(first, int)
    assert await redis_server.query("GET", "n") == b"4"
    assert await redis_server.query("GET", "other") == b"6"


@pytest.mark.parametrize("raw", [False, True], ids=["evalsha", "execute_command"])
async def test_end_of_a_pipeline_runs_after_a_flush_by_another_client(client, redis_server, raw):
    sha = await client.script_load(COUNT)

    def batch():
        pipeline = client.pipeline(transaction=False)
        pipeline.incr("other")
        for amount in (1, 2):
            if raw:
                pipeline.execute_command("EVALSHA", sha, 1, "n", amount)
            else:
                pipeline.evalsha(sha, 1, "n", amount)
        return pipeline

    assert await batch().execute() == [1, 1, 3]
    await redis_server.query("SCRIPT", "FLUSH")
    assert await batch().execute() == [2, 4, 6]


async def test_script_runs_between_watch_and_exec_after_a_restart(client, redis_server):
    sha = await client.script_load(COUNT)
    await restart(redis_server, client)
    async with client.pipeline() as pipeline:
        await pipeline.watch("n")
        assert await pipeline.evalsha(sha, 1, "other", 1) == 1
        await redis_server.query("SCRIPT", "FLUSH")
        pipeline.multi()
        pipeline.evalsha(sha, 1, "n", 1)
        assert await pipeline.execute() == [1]


async def test_script_is_not_repeated_if_its_reply_was_lost(fault_proxy, redis_server):
    async with ResilientRedis(port=fault_proxy.port, socket_timeout=0.3) as client:
        sha = await client.script_load(COUNT)
        await redis_server.query("SCRIPT", "FLUSH")
        fault_proxy.drop_reply("EVALSHA", nth=2)
        with pytest.raises(driver.ConnectionError):
            await client.evalsha(sha, 1, "n", 1)
        assert await redis_server.query("GET", "n") == b"1"


async def test_remembered_scripts_are_bounded(client):
    scripts = client._runtime.scripts
    first = await client.script_load("return 0")
    for number in range(1, 1100):
        scripts.remember(f"return {number}")
    assert len(scripts.bodies._bodies) == len(scripts.bodies._hashes) == 1000
    assert first not in scripts
    for number in range(100):
        scripts.remember(f"return {number} -- {'x' * 100_000}")
    assert scripts.bodies._size == sum(map(len, scripts.bodies._bodies.values())) <= 4 * 1024 * 1024
    scripts.remember("x" * 2_000_000)
    assert scripts.bodies._size <= 4 * 1024 * 1024
