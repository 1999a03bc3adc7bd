"""A stub server that replies to commands as a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest_asyncio

Reply = Callable[[list[bytes]], bytes]


class StubServer:
    """Accepts connections, and replies to each command with the result of `reply`."""

    def __init__(self) -> None:
        self.reply: Reply = lambda words: b"+OK\r\n"
        self.commands: list[list[bytes]] = []
        self._server: asyncio.Server | None = None
        self._connections: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.append(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                words = await _command(reader)
                self.commands.append(words)
                writer.write(self.reply(words))
        writer.transport.abort()


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    header = await reader.readuntil(b"\r\n")
    words = []
    for _ in range(int(header[1:])):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words


@pytest_asyncio.fixture
async def stub() -> AsyncIterator[StubServer]:
    """Start a stub server."""
    server = StubServer()
    await server.start()
    yield server
    await server.stop()
