"""Calls that are begun again and again, and cancelled at random moments, while a server fails."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

from redis.exceptions import RedisError

CANCELLATIONS = 200

_AT_ONCE = 1.0  # seconds after which a cancelled call has not ended because of its cancellation

Call = Callable[[], Awaitable[object]]


class Cancelling:
    """What becomes of the calls that are cancelled.

    Args:
        rng: Chooses the moments.
        longest: Seconds after which a call is cancelled at the latest.
    """

    def __init__(self, rng: random.Random, longest: float) -> None:
        self.cancelled = 0
        self._rng = rng
        self._longest = longest

    async def make(self, call: Call) -> None:
        """Begin a call, and cancel it at a random moment.

        It may end earlier, and may fail with an error of the driver. A cancellation must be
        re-raised immediately.
        """
        task = asyncio.ensure_future(call())
        # Many calls take less than a millisecond, if they do not have to wait for a server.
        await asyncio.sleep(self._longest * self._rng.choice((0.0, 0.02, 1.0)) * self._rng.random())
        ended = task.done()
        task.cancel()
        await asyncio.wait([task], timeout=_AT_ONCE)
        assert task.done(), f"a cancelled call continues: {task}"
        if not ended:
            assert task.cancelled(), f"a cancellation was not re-raised: {task}"
            self.cancelled += 1
        else:
            with contextlib.suppress(RedisError, OSError):
                task.result()


@contextlib.asynccontextmanager
async def cancelled_at_random(*calls: Call, longest: float = 0.05) -> AsyncIterator[Cancelling]:
    """Repeat calls and cancel them, each in its own task, while the block runs.

    They go on after the block until `CANCELLATIONS` of them were cancelled.
    """
    cancelling = Cancelling(random.Random(7), longest)
    over = asyncio.Event()

    async def repeat(call: Call) -> None:
        while cancelling.cancelled < CANCELLATIONS or not over.is_set():
            await cancelling.make(call)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(repeat(call))
        yield cancelling
        over.set()
