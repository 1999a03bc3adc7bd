"""A subscriber that records what it receives, and a publisher of numbers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, Self

from resilient_io.redis import Gap
from resilient_io.testing import RedisServer, ServerError

KINDS = ("plain", "sharded")

SERVES_AGAIN = 1.5
"""Seconds from which on messages must arrive again."""


def now() -> float:
    """Return the time of the loop."""
    return asyncio.get_running_loop().time()


class Listener:
    """Subscribes to channels in `async with`, and records what its task receives.

    Leaving the block fails if the task has ended meanwhile.
    """

    def __init__(
        self, pubsub: Any, kind: str = "plain", *, channels: Sequence[str] = ("c",)
    ) -> None:
        self.pubsub = pubsub
        self.kind = kind
        self._channels = channels
        self.seen: list[tuple[float, dict[str, Any]]] = []
        self._new = asyncio.Event()

    async def __aenter__(self) -> Self:
        subscribe = self.pubsub.ssubscribe if self.kind == "sharded" else self.pubsub.subscribe
        await subscribe(*self._channels)
        self.task = asyncio.ensure_future(self._listen())
        await self.until(lambda message: message["type"] in ("subscribe", "ssubscribe"))
        return self

    async def __aexit__(self, *_: object) -> None:
        alive = not self.task.done()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.pubsub.aclose()
        assert alive, "the listener has ended"

    async def _listen(self) -> None:
        async for message in self.pubsub.listen():
            self.seen.append((now(), message))
            self._new.set()

    async def until(
        self, condition: Callable[[dict[str, Any]], bool], *, after: float = 0.0, within: float = 10
    ) -> tuple[float, dict[str, Any]]:
        """Return the time and the first message that fulfils a condition."""
        async with asyncio.timeout(within):
            while True:
                for at, message in self.seen:
                    if at >= after and condition(message):
                        return at, message
                self._new.clear()
                await self._new.wait()

    async def received(self, after: float, *, within: float = 10.0) -> float:
        """Return the seconds from `after` to the first message of the channel after it."""
        kinds = ("message", "smessage")
        at, _ = await self.until(lambda m: m["type"] in kinds, after=after, within=within)
        return at - after

    async def gap(self) -> tuple[float, Gap]:
        """Return the first gap, and when it was received."""
        at, message = await self.until(lambda m: m["type"] == "gap")
        return at, message["data"]

    @property
    def gaps(self) -> list[Gap]:
        """All gaps so far."""
        return [message["data"] for _, message in self.seen if message["type"] == "gap"]


class Publisher:
    """Publishes numbers every 20 ms in `async with`, past the client and past any proxy.

    Args:
        servers: Where each number is published. In a cluster, one node serves the slot of a shard
            channel, and each node distributes other messages to all of them.
        kind: Of the channel.
    """

    def __init__(self, *servers: RedisServer, kind: str = "plain") -> None:
        self.servers: Sequence[RedisServer] = servers
        self._command = "SPUBLISH" if kind == "sharded" else "PUBLISH"
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._publish())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _publish(self) -> None:
        while True:
            await asyncio.gather(*(self._publish_on(server) for server in self.servers))
            await asyncio.sleep(0.02)

    async def _publish_on(self, server: RedisServer) -> None:
        with contextlib.suppress(OSError, TimeoutError, EOFError, ServerError):
            async with asyncio.timeout(0.2):
                await server.query(self._command, "c", next(self._numbers))


class CancelledReader:
    """Reads the numbers of the channel "c", and uses other channels, with calls to cancel.

    Args:
        pubsub: The subscriber.
        kind: Of the channels.
        read: Returns its next message, within a timeout.
    """

    def __init__(self, pubsub: Any, kind: str, read: Callable[..., Any] | None = None) -> None:
        self.pubsub = pubsub
        self.numbers: list[int] = []
        self._rng = random.Random(3)
        self._read = read if read is not None else pubsub.get_message
        prefix = "s" if kind == "sharded" else ""
        self._subscribe = getattr(pubsub, f"{prefix}subscribe")
        self._unsubscribe = getattr(pubsub, f"{prefix}unsubscribe")
        self._others = (f"{kind}:other", f"{kind}:another")

    async def start(self) -> None:
        """Subscribe to the channel."""
        await self._subscribe("c")

    async def read(self) -> None:
        """Read until cancelled."""
        while True:
            timeout = self._rng.choice([None, 0.0, 0.05])
            message = await self._read(timeout=timeout)
            if message is None:
                await asyncio.sleep(0.002)
            elif message["type"] in ("message", "smessage"):
                assert message["channel"] == b"c"
                self.numbers.append(int(message["data"]))

    async def use_others(self) -> None:
        """Subscribe to other channels, and unsubscribe from them."""
        await self._subscribe(*self._others)
        await self._unsubscribe(self._others[0])
        await self._unsubscribe(self._others[1])

    async def check(self, *, ordered: bool = True) -> None:
        """Check that messages arrive, each once, in order if one server publishes them."""
        count = len(self.numbers)
        reading = asyncio.ensure_future(self.read())
        await asyncio.sleep(SERVES_AGAIN)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        assert len(self.numbers) > count, "no message arrives"
        assert len(set(self.numbers)) == len(self.numbers)
        assert not ordered or self.numbers == sorted(self.numbers)
