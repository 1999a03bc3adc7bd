"""A service with a real Redis, and an HTTP client with full control over its connection."""

import asyncio
import json
from dataclasses import dataclass

import pytest

from resilient_io import HealthMonitor, ResilientRedis


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self):
        return self.body.decode()

    def json(self):
        return json.loads(self.body)


class Connection:
    """HTTP on one connection that only the server closes."""

    def __init__(self, port):
        self.port = port
        self.reader = self.writer = None

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *exc_info):
        self.writer.transport.abort()

    async def ask(self, path, method="GET", **headers):
        self.send(path, method, **headers)
        return await self.reply(method)

    def send(self, path, method="GET", **headers):
        lines = [f"{method} {path} HTTP/1.1", "host: service"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def reply(self, method="GET"):
        status, headers = await self.head()
        length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
        return Reply(status, headers, await self.reader.readexactly(length))

    async def head(self):
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = raw.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, value in headers.items()}

    async def event(self):
        """Return the data of the next event of `/events`."""
        while True:
            line = await self.reader.readline()
            if not line:
                raise EOFError
            if line.startswith(b"data: "):
                return json.loads(line.removeprefix(b"data: "))


@pytest.fixture
def connect():
    return Connection


@pytest.fixture
def ask():
    async def ask_once(port, path, method="GET", **headers):
        async with Connection(port) as connection:
            return await connection.ask(path, method, connection="close", **headers)

    return ask_once


@pytest.fixture
def until():
    async def wait(condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 (the condition is not an event)
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture
async def redis(redis_server):
    async with ResilientRedis.from_url(f"redis://127.0.0.1:{redis_server.port}") as client:
        await client.health.until_up(10)
        yield client


@pytest.fixture
async def monitor(redis):
    async with HealthMonitor(redis.health, liveness=[redis]) as made:
        yield made
