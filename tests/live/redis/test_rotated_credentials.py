"""A streaming credential provider rotates the credentials while calls are in flight."""

import asyncio

from redis.credentials import StreamingCredentialProvider

from resilient_io import ResilientRedis


class Token:
    def __init__(self, user, password):
        self._user = user
        self._password = password

    def try_get(self, key):
        assert key == "oid"
        return self._user

    def get_value(self):
        return self._password


class Provider(StreamingCredentialProvider):
    def __init__(self, user, password):
        self.current = (user, password)
        self.listener = None

    async def get_credentials_async(self):
        return self.current

    def on_next(self, callback):
        self.listener = callback

    def on_error(self, callback):
        pass

    def is_streaming(self):
        return True

    async def rotate(self, user, password):
        self.current = (user, password)
        await self.listener(Token(user, password))


async def names(server):
    listed = (await server.query("CLIENT", "LIST")).decode()
    return [
        dict(part.split("=", 1) for part in line.split())["user"]
        for line in listed.splitlines()
        if "resilient-io:" in line
    ]


async def test_open_connections_authenticate_again_and_lose_nothing(redis_server, until_complete):
    await redis_server.query("ACL", "SETUSER", "old", "on", ">one", "~*", "+@all")
    await redis_server.query("ACL", "SETUSER", "new", "on", ">two", "~*", "+@all")
    provider = Provider("old", "one")
    async with ResilientRedis(
        host=redis_server.host, port=redis_server.port, credential_provider=provider
    ) as redis:
        await redis.incr("counter")
        await until_complete(redis)
        connections = redis._runtime.multiplexer.connections
        assert await names(redis_server) == ["old", "old"]

        busy = [asyncio.create_task(redis.incr("counter")) for _ in range(100)]
        await provider.rotate("new", "two")

        assert sorted(await asyncio.gather(*busy)) == list(range(2, 102))
        assert await names(redis_server) == ["new", "new"]
        assert redis._runtime.multiplexer.connections == connections


async def test_subscriber_authenticates_again_and_misses_nothing(redis_server):
    await redis_server.query("ACL", "SETUSER", "old", "on", ">one", "~*", "&*", "+@all")
    await redis_server.query("ACL", "SETUSER", "new", "on", ">two", "~*", "&*", "+@all")
    provider = Provider("old", "one")
    async with (
        ResilientRedis(port=redis_server.port, credential_provider=provider, protocol=3) as redis,
        redis.pubsub() as subscriber,
    ):
        await subscriber.subscribe("c")
        assert (await subscriber.get_message(timeout=5))["type"] == "subscribe"
        await provider.rotate("new", "two")
        listed = (await redis_server.query("CLIENT", "LIST", "TYPE", "pubsub")).decode()
        assert "user=new" in listed
        await redis.publish("c", "1")
        assert (await subscriber.get_message(timeout=5))["data"] == b"1"


async def test_refused_credentials_leave_the_old_ones_in_use_and_show_no_secret(
    redis_server, until_complete, caplog
):
    await redis_server.query("ACL", "SETUSER", "old", "on", ">one", "~*", "+@all")
    provider = Provider("old", "one")
    async with ResilientRedis(
        host=redis_server.host, port=redis_server.port, credential_provider=provider
    ) as redis:
        await redis.incr("counter")
        await until_complete(redis)

        await provider.rotate("old", "s3cret-but-wrong")

        assert await redis.incr("counter") == 2
        assert await names(redis_server) == ["old", "old"]
    assert "the server refused rotated credentials" in caplog.text
    assert "s3cret" not in caplog.text
