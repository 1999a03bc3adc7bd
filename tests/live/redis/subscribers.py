"""A subscriber that records what it receives, and a publisher of numbers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Self

from resilient_io.redis import Gap
from resilient_io.testing import RedisServer

KINDS = ("plain", "sharded")

SERVES_AGAIN = 1.5
"""Seconds from which on messages must arrive again."""


def now() -> float:
    """Return the time of the loop."""
    return asyncio.get_running_loop().time()


class Listener:
    """Subscribes to the channel "c" in `async with`, and records what its task receives.

    Leaving the block fails if the task has ended meanwhile.
    """

    def __init__(self, pubsub: Any, kind: str = "plain") -> None:
        self.pubsub = pubsub
        self.kind = kind
        self.seen: list[tuple[float, dict[str, Any]]] = []
        self._new = asyncio.Event()

    async def __aenter__(self) -> Self:
        subscribe = self.pubsub.ssubscribe if self.kind == "sharded" else self.pubsub.subscribe
        await subscribe("c")
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
    """Publishes numbers every 20 ms in `async with`, past the client and past any proxy."""

    def __init__(self, server: RedisServer, kind: str = "plain") -> None:
        self.server = server
        self._command = "SPUBLISH" if kind == "sharded" else "PUBLISH"

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._publish())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _publish(self) -> None:
        number = 0
        while True:
            number += 1
            with contextlib.suppress(OSError, TimeoutError, EOFError):
                async with asyncio.timeout(0.2):
                    await self.server.query(self._command, "c", number)
            await asyncio.sleep(0.02)
