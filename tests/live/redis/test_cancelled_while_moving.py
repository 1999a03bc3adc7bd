"""A call that is cancelled in the loop tick in which its connection dies, before it was written."""

import asyncio

from resilient_io import ResilientRedis
from resilient_io.health import Cause
from resilient_io.redis.errors import ConnectionFailure


async def test_a_call_cancelled_while_it_moves_to_another_connection_is_never_sent(redis_server):
    async with ResilientRedis.from_url(redis_server.url) as redis:
        await redis.set("n", 0)
        connection = redis._runtime.multiplexer.current
        before = connection.in_flight  # the probe may have sent a PING
        written = asyncio.create_task(redis.get("n"))
        unwritten = [asyncio.create_task(redis.incr("n")) for _ in range(3)]
        await asyncio.sleep(0)
        assert connection.in_flight == before + 4

        connection.close(ConnectionFailure(Cause.RESET, "for the test"))
        for task in unwritten:
            task.cancel()
        await asyncio.wait([written, *unwritten])

        assert all(task.cancelled() for task in unwritten)
        assert await redis.get("n") == b"0"
        await asyncio.sleep(0.1)
        assert await redis_server.query("GET", "n") == b"0"
