"""fakeredis's TCP server serves as a server for the tests of an application."""

import asyncio
import threading

import pytest
from fakeredis import TcpFakeServer

from resilient_io.redis import ResilientRedis


@pytest.fixture
def fake_port():
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_all_kinds_of_calls_work(fake_port, protocol, slack):
    began = asyncio.get_running_loop().time()
    async with ResilientRedis(port=fake_port, protocol=protocol) as client:
        assert await client.set("key", "value")
        assert await asyncio.gather(*(client.get("key") for _ in range(50))) == [b"value"] * 50
        assert await client.pipeline().incr("n").incr("n").execute() == [1, 2]
        async with client.pipeline() as pipe:
            await pipe.watch("n")
            pipe.multi()
            assert await pipe.incr("n").execute() == [3]
        assert await client.blpop("list", timeout=0.05) is None
        assert await client.lock("lock", timeout=5).acquire(blocking=False)
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("channel")
            assert (await pubsub.get_message(timeout=1))["type"] == "subscribe"
        assert client.health.available
    assert asyncio.get_running_loop().time() - began < 0.5 + slack()
