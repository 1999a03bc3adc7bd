"""A name with several addresses, of which the first is dead or does not answer.

No real DNS: the loop's `getaddrinfo` is replaced. A dead address is a listener on loopback that
accepts nothing, or accepts and never answers: an unroutable address may be routed.
"""

import asyncio
import contextlib
import socket

import pytest
import pytest_asyncio

from resilient_io import State
from resilient_io.redis.addresses import STAGGER

NAME = "cache.example"


@pytest_asyncio.fixture
async def named(monkeypatch):
    """Return the list of addresses of the name, to be changed by tests."""
    loop = asyncio.get_running_loop()
    real, addresses = loop.getaddrinfo, ["127.0.0.2", "127.0.0.1"]

    async def look_up(host, port, **options):
        if host != NAME:
            return await real(host, port, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(loop, "getaddrinfo", look_up)
    return addresses


@contextlib.contextmanager
def black_hole(port):
    """Listen on the first address with a full backlog: new connections are not answered at all."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))
        yield []


@contextlib.asynccontextmanager
async def silent(port):
    """Accept connections on the first address, and never answer."""
    accepted = []

    async def accept(_reader, writer):
        accepted.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.2", port)
    try:
        yield accepted
    finally:
        server.close()
        for writer in accepted:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def dead(kind, port):
    if kind == "silent":
        async with silent(port) as accepted:
            yield accepted
    else:
        with black_hole(port) as accepted:
            yield accepted


@pytest.mark.parametrize("kind", ["black hole", "silent"])
async def test_client_reaches_the_second_address(
    named, redis_server, connect, watch, slack, kind, quick
):
    async with dead(kind, redis_server.port) as accepted:
        began = asyncio.get_running_loop().time()
        policy = quick.replace(connect_timeout=1.0)
        redis = await connect(f"redis://{NAME}:{redis_server.port}/0", policy=policy)
        seen = watch(redis)
        assert await redis.incr("counter") == 1
        assert asyncio.get_running_loop().time() - began < STAGGER + slack(0.5)

        tried = len(accepted)
        began = asyncio.get_running_loop().time()
        assert await redis.blpop("list", 0.01) is None
        # The address that answered last is tried first.
        assert asyncio.get_running_loop().time() - began < STAGGER + slack(0.0)
        assert len(accepted) == tried
        assert State.DOWN not in seen.states


async def test_next_attempt_begins_with_another_address(named, redis_server, connect, quick):
    """The time limit of an attempt is too short to try a second address."""
    policy = quick.replace(connect_timeout=0.2, deadline=3.0, while_down="wait")
    async with silent(redis_server.port):
        redis = await connect(f"redis://{NAME}:{redis_server.port}/0", up=False, policy=policy)
        assert await redis.incr("counter") == 1


async def test_address_that_refuses_costs_no_time(named, redis_server, connect, slack):
    began = asyncio.get_running_loop().time()
    redis = await connect(f"redis://{NAME}:{redis_server.port}/0")
    assert await redis.incr("counter") == 1
    assert asyncio.get_running_loop().time() - began < slack(0.25)


async def test_tls_verifies_the_name_not_the_address(named, tls_server, connect, monkeypatch):
    """The certificate is valid for localhost, which leads to the second address here."""
    loop = asyncio.get_running_loop()
    look_up = loop.getaddrinfo

    async def find(host, port, **options):
        return await look_up(NAME if host == "localhost" else host, port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", find)
    redis = await connect(tls_server.tls_url.replace("127.0.0.1", "localhost"))
    assert await redis.incr("counter") == 1
