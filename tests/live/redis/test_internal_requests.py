"""Requests of the library itself end with their connection: none waits, and none moves."""

import asyncio

import pytest
from redis.auth.token import SimpleToken
from redis.credentials import StreamingCredentialProvider
from redis.exceptions import RedisError

from resilient_io import Cause
from resilient_io.redis import ResilientRedis
from resilient_io.redis.errors import ConnectionFailure

LOST = ConnectionFailure(Cause.RESET, "for the test")


def tasks_named(part):
    return [task.get_name() for task in asyncio.all_tasks() if part in task.get_name()]


async def test_a_query_on_a_lost_connection_fails_immediately(client):
    connection = client._runtime.multiplexer.current
    connection.close(LOST)
    async with asyncio.timeout(1):
        with pytest.raises(ConnectionResetError, match="for the test"):
            await connection.query("PING")


@pytest.mark.parametrize("how", ["close", "retire"])
async def test_a_query_that_was_not_written_ends_with_its_connection(client, until_complete, how):
    await until_complete(client)
    multiplexer = client._runtime.multiplexer
    connection = multiplexer.current
    connection.pause_writing()
    query = asyncio.create_task(connection.query("CLIENT", "ID"))
    call = asyncio.create_task(client.ping())
    await asyncio.sleep(0)
    if how == "close":
        connection.close(LOST)
    else:
        multiplexer.retire(connection)
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionResetError):
            await query
        assert await call is True  # which moves to the other connection


async def test_connections_that_die_in_the_same_tick_leave_no_fencing_task(
    fault_proxy, until_complete
):
    async with ResilientRedis(port=fault_proxy.port) as client:
        await client.ping()
        await until_complete(client)
        for _ in range(3):
            held = fault_proxy.hold("SET")
            write = asyncio.create_task(client.set("key", 1))
            async with asyncio.timeout(5):
                await held.happened()
            for connection in list(client._runtime.multiplexer.connections):
                connection.close(LOST)
            async with asyncio.timeout(5):
                assert await write is True
            await until_complete(client)
            await asyncio.sleep(0.05)
            assert tasks_named("fence") == []


class Provider(StreamingCredentialProvider):
    """Calls the listener of the client with a new password."""

    def __init__(self):
        self.listener = None

    def get_credentials(self):
        return ("default", "anything")

    def on_next(self, callback):
        self.listener = callback

    def on_error(self, callback):
        pass

    def is_streaming(self):
        return True


async def test_the_callback_of_a_credential_provider_ends_when_a_connection_dies(
    redis_server, until_complete
):
    provider = Provider()
    async with ResilientRedis(port=redis_server.port, credential_provider=provider) as client:
        await client.ping()
        await until_complete(client)
        first, second = client._runtime.multiplexer.connections
        loop = asyncio.get_running_loop()
        token = SimpleToken("anything", (loop.time() + 100) * 1000, 0, {"oid": "default"})
        rotating = asyncio.create_task(provider.listener(token))
        await asyncio.sleep(0)
        second.close(LOST)  # while the first one is asked
        async with asyncio.timeout(2):
            await asyncio.gather(rotating, return_exceptions=True)
        assert not isinstance(rotating.exception(), RedisError)
        assert first.lost is None
