"""The load: several tasks that count, push and read, each write with an id of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from resilient_io.demo.told import Told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_io.demo.redis.run import Run

_TASKS_OF_A_KIND: Final = 6
_PAUSE: Final = 0.008
_PAUSE_AFTER_AN_ERROR: Final = 0.05
_GRACE: Final = 3.0
_LOOK_AGAIN: Final = 0.05


class Workload:
    """Calls steadily until told to stop; a context manager.

    Leaving it waits a few seconds for the calls under way; when that fails, or when the body
    failed or was cancelled, they are cancelled.

    Args:
        run: The client to call, and where to note what happens.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._client = run.side.client
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> None:
        kinds = {"increment": self._increment, "push": self._push, "read": self._read}
        for place in range(_TASKS_OF_A_KIND):
            for name, make in kinds.items():
                work = self._work(f"{name}-{place}", make, writes=name != "read")
                self._tasks.append(asyncio.create_task(work, name=f"demo {name} {place}"))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping = True
        try:
            if kind is None:
                await asyncio.wait(self._tasks, timeout=_GRACE)
        finally:
            while left := [task for task in self._tasks if not task.done()]:
                for task in left:
                    task.cancel()
                # Again and again: redis-py loses cancels on Python 3.11.
                await asyncio.wait(left, timeout=_LOOK_AGAIN)
        if kind is None:
            for task in self._tasks:
                if not task.cancelled():
                    task.result()

    async def _work(
        self, name: str, make: Callable[[str], Awaitable[object]], *, writes: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        run, ledger = self._run, self._run.ledger
        count = 0
        while not self._stopping:
            count += 1
            number = f"{name}-{count}"
            pause = _PAUSE
            if writes:
                ledger.begin(number)
            run.call_began(name, loop.time())
            try:
                await make(number)
            except (RedisError, OSError) as error:
                run.call_ended(name, loop.time(), error)
                if writes:
                    ledger.settle(number, run.side.told(error))
                pause = _PAUSE_AFTER_AN_ERROR
            else:
                run.call_ended(name, loop.time(), None)
                if writes:
                    ledger.settle(number, Told.DONE)
            await asyncio.sleep(pause)

    async def _increment(self, number: str) -> object:
        return await self._client.hincrby(self._run.ledger.increments, number, 1)

    async def _push(self, number: str) -> object:
        return await self._client.rpush(self._run.ledger.pushes, number)

    async def _read(self, number: str) -> object:
        del number
        return await self._client.get("demo:speed")
