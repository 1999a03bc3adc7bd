"""Encodings, response callbacks, pushes, modules, and connections without a transport."""

import asyncio
import datetime as dt

import pytest
import redis.asyncio as driver
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import DataError

from resilient_io.redis import ResilientRedis


async def test_another_encoding_works_in_both_directions(shared_redis):
    options = {"port": shared_redis.port, "encoding": "latin-1", "decode_responses": True}
    async with ResilientRedis(**options) as ours, driver.Redis(**options) as theirs:
        await ours.set("é", "ÿ")
        assert await shared_redis.query("GET", b"\xe9") == b"\xff"
        assert await ours.get("é") == await theirs.get("é") == "ÿ"
        assert await ours.pipeline().get("é").execute() == ["ÿ"]
        assert await ours.hset("hé", mapping={"fé": "vé"}) == 1
        assert await ours.hgetall("hé") == await theirs.hgetall("hé") == {"fé": "vé"}
        with pytest.raises(UnicodeEncodeError):
            await ours.set("k", "€")
        assert await ours.get("é") == "ÿ"


async def test_undecodable_bytes_are_replaced_if_requested(shared_redis):
    await shared_redis.query("SET", "k", b"a\xffb")
    options = {"port": shared_redis.port, "encoding_errors": "replace", "decode_responses": True}
    async with ResilientRedis(**options) as ours, driver.Redis(**options) as theirs:
        assert await ours.get("k") == await theirs.get("k") == "a\ufffdb"


async def test_an_undecodable_value_fails_only_its_own_caller(shared_redis):
    await shared_redis.query("SET", "bad", b"\xff")
    async with ResilientRedis(port=shared_redis.port, decode_responses=True) as client:
        await client.set("good", "g")
        clients = await client.client_list(_type="normal")
        outcomes = await asyncio.gather(
            *(client.get("bad" if number % 3 == 0 else "good") for number in range(30)),
            return_exceptions=True,
        )
        for number, outcome in enumerate(outcomes):
            expected = UnicodeDecodeError if number % 3 == 0 else str
            assert isinstance(outcome, expected), outcome
        with pytest.raises(UnicodeDecodeError):
            await client.pipeline(transaction=False).get("bad").get("good").execute()
        assert await client.get("good") == "g"
        again = await client.client_list(_type="normal")
        # Without the connection of a probe.
        ours = {line["id"] for line in clients if line["name"].startswith("resilient-io:")}
        assert ours
        assert ours <= {line["id"] for line in again}


async def test_dumps_are_never_decoded(shared_redis):
    for protocol in (2, 3):
        async with ResilientRedis(
            port=shared_redis.port, decode_responses=True, protocol=protocol
        ) as client:
            await client.set("k", "é" * 50)
            dump = await client.dump("k")
            assert isinstance(dump, bytes)
            assert await client.restore("copy", 0, dump, replace=True) == "OK"
            assert await client.get("copy") == "é" * 50
            among = await asyncio.gather(client.get("k"), client.dump("k"), client.get("copy"))
            assert among == ["é" * 50, dump, "é" * 50]
            batch = client.pipeline(transaction=False).get("k").dump("k").get("copy")
            assert await batch.execute() == ["é" * 50, dump, "é" * 50]


async def test_custom_response_callbacks_are_applied(client):
    async def later(reply, **options):
        await asyncio.sleep(0)
        return ("later", reply)

    client.set_response_callback("GET", lambda reply, **options: ("now", reply))
    client.set_response_callback("STRLEN", later)
    client.set_response_callback("MINE", lambda reply: reply)
    await client.set("k", "v")
    assert await client.get("k") == ("now", b"v")
    assert await client.strlen("k") == ("later", 1)
    assert await client.pipeline().get("k").strlen("k").execute() == [("now", b"v"), ("later", 1)]
    batch = client.pipeline(transaction=False).strlen("k").get("k")
    assert await batch.execute() == [("later", 1), ("now", b"v")]


async def test_response_callback_changes_one_client_with_its_views_and_pipelines(
    client, shared_redis
):
    async with ResilientRedis(port=shared_redis.port) as other:
        assert client.callback_table is other.callback_table  # shared until one is changed
        view, batch = client.with_policy(attempts=2), client.pipeline()
        batch.set_response_callback("GET", lambda reply, **options: ("mine", reply))
        view.response_callbacks["strlen"] = lambda reply, **options: -reply
        await client.set("k", "v")
        assert await client.get("k") == await view.get("k") == ("mine", b"v")
        assert await client.strlen("k") == await view.strlen("k") == -1
        assert await batch.get("k").strlen("k").execute() == [("mine", b"v"), -1]
        assert (await other.get("k"), await other.strlen("k")) == (b"v", 1)
        assert await other.pipeline().get("k").execute() == [b"v"]


async def test_a_callback_that_raises_fails_only_its_own_caller(client):
    def broken(reply, **options):
        raise ZeroDivisionError

    client.set_response_callback("STRLEN", broken)
    await client.set("k", "v")
    outcomes = await asyncio.gather(
        client.get("k"), client.strlen("k"), client.get("k"), return_exceptions=True
    )
    assert outcomes[0] == outcomes[2] == b"v"
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert await client.get("k") == b"v"
    assert client.health.state.value == "up"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_every_kind_of_argument(shared_redis, protocol):
    options = {"port": shared_redis.port, "protocol": protocol}
    values = ["é", b"\xff\x00", bytearray(b"array"), memoryview(b"view"), 7, -1.5, 2**70, 1e-7]
    async with ResilientRedis(**options) as ours, driver.Redis(**options) as theirs:
        for value in values:
            await ours.set("ours", value)
            await theirs.set("theirs", value)
            assert await ours.get("ours") == await theirs.get("theirs")
            await ours.pipeline().set("ours", value).execute()
            assert await ours.get("ours") == await theirs.get("theirs")
        for value in (None, True, False, {"a": 1}, [1], object(), dt.timedelta(1)):
            with pytest.raises(DataError) as expected:
                await theirs.set("k", value)
            with pytest.raises(DataError) as got:
                await ours.set("k", value)
            assert str(got.value) == str(expected.value)
            with pytest.raises(DataError):
                await ours.pipeline().get("ours").set("k", value).execute()
        assert await ours.exists("k") == 0
        with pytest.raises(driver.ResponseError):
            await ours.execute_command("SET")


async def test_an_array_may_be_changed_after_the_call_was_made(client):
    array = bytearray(b"first")
    first = asyncio.ensure_future(client.set("k", array))
    await asyncio.sleep(0)
    array[:] = b"other"
    await first
    assert await client.get("k") == b"first"


async def test_pushes_are_not_treated_as_replies(shared_redis):
    async with (
        ResilientRedis(port=shared_redis.port, protocol=3) as client,
        client.client() as own,
    ):
        await own.execute_command("CLIENT", "TRACKING", "ON", "BCAST")
        for number in range(20):
            await client.set("k", number)
            assert await own.get("k") == str(number).encode()
            assert await own.set("own", number)
        many = await asyncio.gather(*(own.get("k") for _ in range(20)))
        assert many == [b"19"] * 20


async def test_iterators_yield_every_element(client):
    keys = {f"key:{number}" for number in range(250)}
    await client.mset(dict.fromkeys(keys, 1))
    assert {key.decode() async for key in client.scan_iter("key:*", count=20)} == keys
    await client.hset("h", mapping=dict.fromkeys(keys, 1))
    assert {key.decode() async for key, _ in client.hscan_iter("h", count=20)} == keys
    await client.sadd("s", *keys)
    assert {key.decode() async for key in client.sscan_iter("s", count=20)} == keys
    await client.zadd("z", dict.fromkeys(keys, 1))
    assert {key.decode() async for key, _ in client.zscan_iter("z", count=20)} == keys


async def test_helpers_for_modules_work(client):
    assert client.json() is not None
    assert client.ft("index") is not None
    assert client.ts() is not None
    assert client.bf() is not None
    with pytest.raises(driver.ResponseError, match="unknown command"):
        await client.json().get("k")
    with pytest.raises(driver.ResponseError, match=r"(?i)module"):
        await client.module_load("/nowhere.so")


class TalkingToNobody(AbstractConnection):
    """A connection class like those of fakes, without socket and transport."""

    values: dict = {}  # noqa: RUF012 - the "server", which all connections share
    made = 0

    def __init__(self, **options):
        super().__init__(**options)
        self._replies = []
        self._alive = False
        type(self).made += 1

    def repr_pieces(self):
        return [("talking to", "no-server")]

    @property
    def is_connected(self):
        return self._alive

    async def connect(self):
        self._alive = True

    async def disconnect(self, *args, **options):
        self._alive = False

    async def can_read(self):
        return bool(self._replies)

    async def send_command(self, *args, **options):
        name, *rest = args
        if name == "SET":
            self.values[rest[0]] = self.encoder.encode(rest[1])
            self._replies.append(b"OK")
        elif name == "PING":
            self._replies.append(b"PONG")
        elif name == "GET":
            self._replies.append(self.values.get(rest[0]))
        else:
            self._replies.append(driver.ResponseError(f"unknown command {name}"))

    async def read_response(self, *args, **options):
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _connect(self):
        raise NotImplementedError

    def _host_error(self):
        return "no-server"


async def test_connections_without_a_transport_carry_one_call_at_a_time():
    pool = driver.ConnectionPool(connection_class=TalkingToNobody)
    async with ResilientRedis.from_pool(pool) as client:
        assert await client.set("k", "v") is True
        outcomes = await asyncio.gather(*(client.get("k") for _ in range(20)))
        assert outcomes == [b"v"] * 20
        assert await client.get("missing") is None
        with pytest.raises(driver.ResponseError, match="unknown command INCR"):
            await client.incr("n")
        assert client.health.available
