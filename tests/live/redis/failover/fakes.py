"""A Sentinel that answers what a test wants, also if that is false or stale."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Self

from resilient_io.testing.resp import read_reply


def _array(*items: object, kind: str = "*") -> bytes:
    count = len(items) // 2 if kind == "%" else len(items)
    return f"{kind}{count}\r\n".encode() + b"".join(map(_item, items))


def _item(item: object) -> bytes:
    if isinstance(item, bytes) and item[:1] == b"*":
        return item  # an array
    if isinstance(item, int):
        return b":%d\r\n" % item
    data = str(item).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


class FakeSentinel:
    """Answers with one address for every master, an epoch, and some replicas."""

    host = "127.0.0.1"

    def __init__(
        self,
        address: tuple[str, int],
        *,
        epoch: int = 0,
        replicas: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self.address = address
        self.epoch = epoch
        self.replicas = replicas
        self.port = 0
        self._server: asyncio.Server | None = None
        self._subscribed: list[asyncio.StreamWriter] = []
        self._open: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.close()
        await asyncio.sleep(0.01)

    def publish(self, channel: str, text: str) -> None:
        """Publish an event to all subscribers."""
        for writer in self._subscribed:
            writer.write(_array("message", channel, text, kind=">"))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                words: Any = await read_reply(reader)
                writer.write(self._reply([word.decode() for word in words], writer))
        self._open.remove(writer)
        writer.close()

    def _reply(self, words: list[str], writer: asyncio.StreamWriter) -> bytes:
        command = words[0].upper()
        if command == "SENTINEL":
            return self._answer(words[1].upper(), words[2])
        if command == "HELLO":
            return _array("server", "redis", "proto", 3, "mode", "sentinel", kind="%")
        if command == "SUBSCRIBE":
            self._subscribed.append(writer)
            return b"".join(
                _array("subscribe", channel, number, kind=">")
                for number, channel in enumerate(words[1:], start=1)
            )
        return b"+PONG\r\n" if command == "PING" else b"+OK\r\n"

    def _answer(self, question: str, name: str) -> bytes:
        host, port = self.address
        if question == "GET-MASTER-ADDR-BY-NAME":
            return _array(host, port)
        if question == "REPLICAS":
            facts = ({"ip": ip, "port": at, "flags": "slave"} for ip, at in self.replicas)
            return _array(*map(_pairs, facts))
        return _pairs(
            {
                "name": name,
                "ip": host,
                "port": port,
                "flags": "master",
                "last-ok-ping-reply": 100,
                "config-epoch": self.epoch,
                "down-after-milliseconds": 1000,
                "num-other-sentinels": 2,
            }
        )


def _pairs(facts: dict[str, object]) -> bytes:
    return _array(*(str(each) for pair in facts.items() for each in pair))
