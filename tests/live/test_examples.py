"""The examples do what they say, as processes, on real servers."""

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from resilient_io import ResilientRedis
from resilient_io.testing import RedisServer

EXAMPLES = Path(__file__).parents[2] / "examples"


class Program:
    """An example that runs as a process."""

    def __init__(self, process):
        self.process = process
        self.lines = []

    async def line_with(self, text):
        async with asyncio.timeout(30):
            while True:
                line = (await self.process.stdout.readline()).decode()
                assert line, f"it ended without saying {text!r}: {self.lines}"
                self.lines.append(line)
                if text in line:
                    return line


@contextlib.asynccontextmanager
async def running(example, **environment):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        EXAMPLES / example,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        # Read to the end: else the pipe's transport outlives the test.
        await process.communicate()


async def request(port, method, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)
    finally:
        writer.close()
        await writer.wait_closed()


async def readiness_becomes(port, status, *, within):
    async with asyncio.timeout(within):
        # The service is another process, which sets no event of ours.
        while (await request(port, "GET", "/readyz"))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_readiness_of_the_service_follows_its_redis(redis_server):
    redis_server.kill()
    async with running("service.py", REDIS_URL=redis_server.url, PORT="0") as service:
        port = int((await service.line_with("listening on port")).split()[-1])
        assert (await request(port, "GET", "/readyz"))[0] == 503
        assert (await request(port, "GET", "/livez"))[0] == 200

        await redis_server.start()
        await readiness_becomes(port, 200, within=10)
        assert await request(port, "POST", "/visits") == (200, {"visits": 1})
        assert await request(port, "GET", "/visits") == (200, {"visits": 1})

        redis_server.kill()
        await readiness_becomes(port, 503, within=10)
        status, answer = await request(port, "POST", "/visits")
        assert (status, answer["counted"]) == (503, False)
        assert (await request(port, "GET", "/livez"))[0] == 200

        await redis_server.restart()
        await readiness_becomes(port, 200, within=10)
        assert await request(port, "POST", "/visits") == (200, {"visits": 1})

        service.process.send_signal(signal.SIGTERM)
        await service.line_with("stopped")
        async with asyncio.timeout(15):
            assert await service.process.wait() == 0
    assert "Traceback" not in "".join(service.lines)


async def test_a_visit_whose_reply_was_lost_is_perhaps_counted(redis_server, fault_proxy):
    async with running("service.py", REDIS_URL=fault_proxy.url, PORT="0") as service:
        port = int((await service.line_with("listening on port")).split()[-1])
        await readiness_becomes(port, 200, within=10)
        fault_proxy.drop_reply("INCRBY")
        status, answer = await request(port, "POST", "/visits")
        assert (status, answer["counted"]) == (503, "perhaps")
    assert fault_proxy.requests["INCRBY"] == 1
    assert await redis_server.query("GET", "visits") == b"1"


async def test_the_rate_limiter_allows_as_many_as_it_should(redis_server):
    async with running("rate_limiter.py", REDIS_URL=redis_server.url) as limiter:
        output, _ = await limiter.process.communicate()
    words = re.findall(r"\b(allowed|rejected)$", output.decode(), re.MULTILINE)
    assert words == ["allowed"] * 5 + ["rejected"] * 5


@pytest.fixture
def rate_limiter():
    spec = importlib.util.spec_from_file_location("rate_limiter", EXAMPLES / "rate_limiter.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RateLimiter


@pytest.mark.parametrize("command", ["SADD", "EXPIRE", "SCARD"])
async def test_a_lost_reply_counts_a_request_once(redis_server, fault_proxy, rate_limiter, command):
    async with ResilientRedis.from_url(fault_proxy.url, socket_timeout=0.1) as redis:
        await redis.health.until_up(5)
        limiter = rate_limiter(redis, limit=2, window=3600)
        fault = fault_proxy.drop_reply(command)
        assert await limiter.allows("ada", "first")
        assert fault.spent
        assert await limiter.allows("ada", "second")
        assert not await limiter.allows("ada", "third")
        [key] = await redis_server.query("KEYS", "limit:*")
        assert sorted(await redis_server.query("SMEMBERS", key)) == [b"first", b"second", b"third"]


async def test_the_rate_limiter_lets_pass_while_redis_is_away(redis_server, rate_limiter):
    redis_server.kill()
    async with ResilientRedis.from_url(redis_server.url) as redis:
        assert await rate_limiter(redis, limit=0, window=60).allows("ada")


# -- the order service ---------------------------------------------------------------------------

ORDER_SERVICE = EXAMPLES / "order_service"
DOCKERFILE = ORDER_SERVICE / "Dockerfile"
DEFAULT_HEALTH_FILE = "/tmp/order-service.health"


async def records_of(kafka, topic):
    """Read a topic of one partition with a plain client."""
    partition = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers) as consumer:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        found = []
        while await consumer.position(partition) < end:
            found += (await consumer.getmany(partition, timeout_ms=500)).get(partition, [])
        return found


async def committed_of(kafka, topic, group):
    async with AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, group_id=group, enable_auto_commit=False
    ) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return await consumer.committed(TopicPartition(topic, 0))


async def booked_are(redis, count):
    async with asyncio.timeout(30):
        # The service is another process, which sets no event of ours.
        while await redis.query("HLEN", "orders:ada") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_the_order_service_loses_no_order_and_ends_in_good_order(shared_kafka, tmp_path):
    topics = {
        "ORDERS_TOPIC": "example.orders",
        "BOOKED_TOPIC": "example.booked",
        "RETRY_TOPICS": "example.retry.200ms",
        "DEAD_LETTER_TOPIC": "example.dead",
    }
    for topic in topics.values():
        await shared_kafka.create_topic(topic)
    health_file = tmp_path / "health"
    port = unused_port()
    async with (
        RedisServer(persist=True) as redis,
        AIOKafkaProducer(bootstrap_servers=shared_kafka.bootstrap_servers) as shop,
    ):

        async def order(number, **changes):
            value = {"id": f"a-{number}", "customer": "ada", "amount": number} | changes
            await shop.send_and_wait(topics["ORDERS_TOPIC"], json.dumps(value).encode(), key=b"ada")

        redis.kill()
        async with running(
            "order_service/main.py",
            REDIS_URL=redis.url,
            KAFKA_BOOTSTRAP_SERVERS=shared_kafka.bootstrap_servers,
            HEALTH_FILE=str(health_file),
            PORT=str(port),
            **topics,
        ) as service:
            await service.line_with("paused: redis")
            assert (await answer(port, "/readyz"))[0] == 503
            assert (await answer(port, "/livez"))[0] == 200
            for number in range(50):
                await order(number)
            await redis.start()
            await booked_are(redis, 50)

            sending = asyncio.create_task(send_on(order))
            await booked_are(redis, 60)
            redis.kill()
            await service.line_with("paused: redis")
            await redis.start()
            await sending
            await shop.send_and_wait(topics["ORDERS_TOPIC"], b"no JSON", key=b"ada")
            await order(999, amount="much")
            await booked_are(redis, 150)
            await service.line_with("dead-letter topic")
            async with asyncio.timeout(30):
                while len(await records_of(shared_kafka, "example.dead")) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

            assert await answer(port, "/readyz") == (200, "ready")
            assert "resilient_io" in (await answer(port, "/metrics"))[1]
            assert await health_check(health_file) == 0
            service.process.send_signal(signal.SIGTERM)
            await service.line_with("stopped")
            async with asyncio.timeout(10):
                assert await service.process.wait() == 0
        assert "Traceback" not in "".join(service.lines)
        assert json.loads(health_file.read_text())["stopped"]

        booked = await redis.query("HGETALL", "orders:ada")
    amounts = dict(zip(booked[::2], booked[1::2], strict=True))
    assert amounts == {b"a-%d" % number: b"%d" % number for number in range(150)}
    announced = [
        json.loads(record.value)["id"]
        for record in await records_of(shared_kafka, "example.booked")
    ]
    assert list(dict.fromkeys(announced)) == [f"a-{number}" for number in range(150)]
    dead = await records_of(shared_kafka, "example.dead")
    assert [record.value for record in dead][:1] == [b"no JSON"]
    assert [dict(record.headers)["x-error-type"] for record in dead] == [
        b"json.decoder.JSONDecodeError",
        b"builtins.ValueError",
    ]
    assert dict(dead[1].headers)["x-attempts"] == b"6", "three more after it had waited"
    assert await committed_of(shared_kafka, "example.orders", "order-service") == 152


def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def answer(port, path):
    """Ask a probe, as soon as the service listens."""
    async with asyncio.timeout(30):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return int(head.split()[1]), body.decode().strip()
        finally:
            writer.close()
            await writer.wait_closed()


async def health_check(path):
    """Run the HEALTHCHECK of the Dockerfile with another file; its exit code."""
    command = json.loads(re.search(r"CMD (\[.*\])\n\n#", DOCKERFILE.read_text())[1])
    assert command[0] == "resilient-io"
    arguments = [str(path) if each == DEFAULT_HEALTH_FILE else each for each in command[1:]]
    assert str(path) in arguments
    program = [sys.executable, "-m", "resilient_io.cli", *arguments]
    process = await asyncio.create_subprocess_exec(*program)
    return await process.wait()


async def send_on(order):
    for number in range(50, 150):
        await order(number)
        await asyncio.sleep(0.005)


@pytest.fixture
def order_settings(monkeypatch):
    spec = importlib.util.spec_from_file_location("order_settings", ORDER_SERVICE / "settings.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "order_settings", module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module.Settings


def test_the_settings_of_the_order_service_are_those_of_its_readme(order_settings):
    readme = (ORDER_SERVICE / "README.md").read_text()
    documented = dict(re.findall(r"^\| `([A-Z_]+)` \| (?:`(.+?)`|none) \|", readme, re.MULTILINE))
    defaults = {
        field.name.upper(): str(field.default) for field in dataclasses.fields(order_settings)
    }
    assert documented == defaults
    given = order_settings.from_environment(
        {"CONCURRENCY": "4", "DRAIN_SECONDS": "1.5", "GROUP_ID": "mine", "OTHER": "1"}
    )
    assert (given.concurrency, given.drain_seconds, given.group_id) == (4, 1.5, "mine")
    assert given.redis_url == defaults["REDIS_URL"]


def test_the_container_of_the_order_service_is_made_of_what_is_there(order_settings):
    lines = DOCKERFILE.read_text()
    assert re.search(r"^USER (?!root)\w+$", lines, re.MULTILINE)
    assert "HEALTHCHECK" in lines
    copied = re.findall(r"[\w-]+\.(?:py|txt)", lines)
    assert {"main.py", "settings.py", "requirements.txt"} <= set(copied)
    assert [name for name in copied if not (ORDER_SERVICE / name).exists()] == []
    compose = (ORDER_SERVICE / "compose.yaml").read_text()
    known = {field.name.upper() for field in dataclasses.fields(order_settings)}
    service = compose.partition("environment:")[2].partition("#")[0]
    assert set(re.findall(r"([A-Z_]+):", service)) <= known
    assert set(re.findall(r"image: (\S+)", compose)) == {"redis:8", "apache/kafka:4.3.0"}
