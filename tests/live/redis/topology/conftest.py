"""A policy with short times, for calls that must fail, and a server with invented replies."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from resilient_io import RetryPolicy
from resilient_io.redis import ResilientRedis
from resilient_io.testing.resp import read_reply


@pytest.fixture
def quick() -> RetryPolicy:
    """Return the default policy with timeouts four times as short."""
    return RetryPolicy(response_timeout=0.5, connect_timeout=0.25, deadline=1.25)


@pytest_asyncio.fixture
async def fake_server() -> AsyncIterator[Callable[..., Awaitable[ResilientRedis]]]:
    """Return a function that opens a client of a server with one reply to every GET."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(reply: bytes) -> ResilientRedis:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    while command := await read_reply(reader):
                        name = command[0].upper() if isinstance(command, list) else b""
                        answer = {b"GET": reply, b"HELLO": b"%1\r\n+proto\r\n:3\r\n"}
                        if command[1:] == [b"ID"]:
                            answer[b"CLIENT"] = b":1\r\n"
                        writer.write(answer.get(name, b"+OK\r\n"))
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            stack.callback(server.close)
            port = server.sockets[0].getsockname()[1]
            return await stack.enter_async_context(ResilientRedis(host="127.0.0.1", port=port))

        yield start
