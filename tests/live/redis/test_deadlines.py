"""A call whose deadline has passed is not sent, whatever kind of connection it uses."""

import asyncio
import time

import pytest

from resilient_io import DeadlineExceeded, Progress, deadline
from resilient_io.redis import ResilientRedis


async def transact(client):
    async with client.pipeline() as pipe:
        await pipe.watch("guard")
        pipe.multi()
        with deadline(0.01):
            time.sleep(0.02)
            await pipe.incr("n").execute()


async def write_while_watching(client):
    async with client.pipeline() as pipe:
        await pipe.watch("guard")
        with deadline(0.01):
            time.sleep(0.02)
            await pipe.incr("n")


def late(call):
    async def make(client):
        with deadline(0.01):
            time.sleep(0.02)
            await call(client)

    return make


CALLS = {
    "simple": late(lambda client: client.incr("n")),
    "with a subcommand": late(
        lambda client: client.execute_command("XGROUP", "CREATE", "n", "g", 0, "MKSTREAM")
    ),
    "blocking": late(lambda client: client.blmove("from", "n", 1)),
    "popping": late(lambda client: client.blpop("from", 1)),
    "plain pipeline": late(lambda client: client.pipeline(transaction=False).incr("n").execute()),
    "transaction": late(lambda client: client.pipeline().incr("n").execute()),
    "blocking pipeline": late(
        lambda client: client.pipeline(transaction=False).blmove("from", "n", 1).execute()
    ),
    "EXEC": transact,
    "WATCH": write_while_watching,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_call_whose_deadline_has_passed_is_not_sent(client, shared_redis, call):
    await client.delete("n", "from")
    await client.rpush("from", "element")
    await client.blpop("absent", timeout=0.01)  # leaves an idle connection

    with pytest.raises(DeadlineExceeded) as caught:
        await call(client)

    assert caught.value.progress is Progress.NOT_SENT
    assert await shared_redis.query("EXISTS", "n") == 0
    assert await shared_redis.query("LLEN", "from") == 1
    assert not client._runtime.pool._acquired


async def test_a_call_that_waits_for_a_connection_beyond_its_deadline_is_not_sent(shared_redis):
    await shared_redis.query("DEL", "n")
    async with ResilientRedis(port=shared_redis.port) as client:
        call = asyncio.create_task(late_incr(client))
        await asyncio.sleep(0)
        time.sleep(0.3)  # the connection is opened and the deadline passes, at once
        with pytest.raises(DeadlineExceeded) as caught:
            await call
        assert caught.value.progress is Progress.NOT_SENT
        assert await client.exists("n") == 0


async def late_incr(client):
    with deadline(0.2):
        await client.incr("n")
