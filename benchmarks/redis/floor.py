"""The bare minimum of a client: no client in Python can be much faster.

It has a socket, `hiredis` and a future per call, and nothing else: no commands, no errors, no
timeouts, no reconnecting. What saves time in resilient-io is used here, too: one write for the
calls of a tick, tasks that are continued by the read, large values that are not copied.
"""

from __future__ import annotations

import asyncio
from collections import deque
from io import BytesIO
from itertools import repeat
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import hiredis

from resilient_io.wakeups import deliver

from .clients import own_key

if TYPE_CHECKING:
    from collections.abc import Sequence

_LARGE = "large:"
"""How the keys of large values begin."""


class _Connection(asyncio.Protocol):
    """Shares a connection among all callers."""

    transport: Any  # not always an asyncio.Transport: uvloop has its own

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader: Any = hiredis.Reader(notEnoughData=...)
        self._waiting: deque[Any] = deque()
        self._queue: list[bytes] = []
        self._queueing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def call(self, *words: Any) -> asyncio.Future[Any]:
        """Send a command. Return the future of its reply."""
        future = self._loop.create_future()
        if self._queueing:
            self._queue.append(hiredis.pack_command(words))
        elif self._waiting:
            self._queue.append(hiredis.pack_command(words))
            self._queueing = True
            self._loop.call_soon(self._write)
        else:
            self.transport.write(hiredis.pack_command(words))
        self._waiting.append(future)
        return future

    def batch(self, commands: Sequence[tuple[Any, ...]]) -> asyncio.Future[Any]:
        """Send commands. Return the future of the list of their replies."""
        batch = _Batch(self._loop.create_future(), len(commands))
        self._waiting.extend(repeat(batch, len(commands)))
        self.transport.write(b"".join(map(hiredis.pack_command, commands)))
        return batch.future

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        answers, next_one = [], self._waiting.popleft
        for reply in iter(self._reader.gets, ...):
            answers.append((next_one(), reply))  # noqa: PERF401 (the comprehension is slower)
        queueing, self._queueing = self._queueing, len(answers) > 1
        deliver(self._loop, answers)
        self._queueing = queueing
        if self._queue and not queueing:
            self._write()

    def _write(self) -> None:
        self._queueing = False
        queue, self._queue = self._queue, []
        self.transport.write(b"".join(queue))


class _Batch:
    """What waits for the replies to a pipeline, in the place of a future for each."""

    _callbacks = None

    def __init__(self, future: asyncio.Future[Any], count: int) -> None:
        self.future = future
        self._replies: list[Any] = []
        self._count = count

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any) -> None:
        self._replies.append(reply)
        if len(self._replies) == self._count:
            self.future.set_result(self._replies)


class _LargeConnection(asyncio.BufferedProtocol):
    """Serves one caller, whose values go to and from the kernel without a copy."""

    transport: Any  # not always an asyncio.Transport: uvloop has its own

    def __init__(self) -> None:
        self._small = memoryview(bytearray(1024))
        self._room = self._small
        self._value: BytesIO | None = None
        self._future: asyncio.Future[Any]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def call(self, *words: Any) -> asyncio.Future[Any]:
        """Send a command. Return the future of its reply."""
        self._future = asyncio.get_running_loop().create_future()
        *small, last = words
        head = b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in small)
        value = last if isinstance(last, bytes) else last.encode()
        self.transport.write(b"*%d\r\n%s$%d\r\n" % (len(words), head, len(value)))
        self.transport.write(memoryview(value))
        self.transport.write(b"\r\n")
        return self._future

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (asyncio's signature)
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        if self._value is not None:
            rest = self._room[nbytes:]
            self._room.release()
            self._room = rest
            if not rest:
                rest.release()
                self._value.truncate(self._value.seek(-2, 2))
                self._future.set_result(self._value.getvalue())
                self._value, self._room = None, self._small
            return
        received = bytes(self._small[:nbytes])
        header, _, begun = received.partition(b"\r\n")
        if not header.startswith(b"$"):
            self._future.set_result(received)
            return
        self._value = BytesIO(bytes(int(header[1:]) + 2))
        room = self._value.getbuffer()
        room[: len(begun)] = begun
        self._room = room[len(begun) :]
        room.release()


class Floor:
    """The bare minimum, with the interface of a client."""

    def __init__(self, connection: _Connection, own: list[_LargeConnection], value: bytes) -> None:
        self._connection = connection
        self._own = own
        self.mixed = [
            own_key(self.get, ""),
            own_key(self.set, "", value),
            own_key(self._hgetall, "hash:"),
            own_key(self._zrange, "zset:"),
            own_key(self._incr, "count:"),
        ]

    @classmethod
    async def open(cls, url: str, callers: int, value: bytes, connections: int = 0) -> Self:  # noqa: ARG003
        loop, parts = asyncio.get_running_loop(), urlsplit(url)
        _, connection = await loop.create_connection(_Connection, parts.hostname, parts.port)
        await connection.call("HELLO", 3)
        own = []
        for _ in range(min(callers, 8)):
            _, large = await loop.create_connection(_LargeConnection, parts.hostname, parts.port)
            own.append(large)
        return cls(connection, own, value)

    async def get(self, key: str) -> Any:
        if key.startswith(_LARGE):
            return await self._call_alone("GET", key)
        return await self._connection.call("GET", key)

    async def set(self, key: str, value: bytes) -> Any:
        if key.startswith(_LARGE):
            return await self._call_alone("SET", key, value)
        return await self._connection.call("SET", key, value)

    async def _hgetall(self, key: str) -> Any:
        return await self._connection.call("HGETALL", key)

    async def _zrange(self, key: str) -> Any:
        return await self._connection.call("ZRANGE", key, 0, -1)

    async def _incr(self, key: str) -> Any:
        return await self._connection.call("INCR", key)

    async def _call_alone(self, *words: Any) -> Any:
        connection = self._own.pop()
        reply = await connection.call(*words)
        self._own.append(connection)
        return reply

    async def pipeline(self, keys: Sequence[str]) -> Any:
        return await self._connection.batch([("GET", key) for key in keys])

    async def aclose(self) -> None:
        for connection in (self._connection, *self._own):
            connection.transport.abort()
        await asyncio.sleep(0)
