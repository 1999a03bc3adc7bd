"""The examples do what they say, as processes, on real servers."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from resilient_io import ResilientRedis

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
    words = re.findall(r"\b(allowed|refused)$", output.decode(), re.MULTILINE)
    assert words == ["allowed"] * 5 + ["refused"] * 5


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
