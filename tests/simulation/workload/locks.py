"""Locks: one that is acquired and released by hand, `async with`, and an operator's deletion."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.simulation.history import Outcome

if TYPE_CHECKING:
    from resilient_io.redis import ResilientLock
    from tests.simulation.history import Operation

    from .use import Use


class BodyFailed(Exception):
    """What the body of a block raises."""


def _lock(use: Use, **options: Any) -> ResilientLock:
    """Return a new lock object."""
    return use.redis.lock(
        f"lock{use.argument('key', 0)}",
        timeout=use.argument("timeout", 10.0),
        sleep=0.05,
        renew=use.argument("renew", False),
        fencing=use.argument("fencing", False),
        **options,
    )


def _operation(use: Use, kind: str, offset: int = 0) -> Operation:
    """Return the operation of one step, with what the rules need."""
    operation = use.operation(kind=kind, offset=offset, limit=None)
    operation.facts |= {
        "lock": f"lock{use.argument('key', 0)}",
        "timeout": use.argument("timeout", 10.0),
        "renew": use.argument("renew", False),
        "fencing": use.argument("fencing", False),
    }
    return operation


async def lock(use: Use) -> None:
    """Acquire a lock, hold it, and release it: an operation for each step."""
    held = _lock(use)
    acquire = _operation(use, "acquire")
    blocking = use.argument("blocking", 0.5)
    acquire.facts["waits"] = blocking
    await use.perform(acquire, lambda: held.acquire(blocking_timeout=blocking))
    if acquire.outcome is not Outcome.OK or not acquire.reply:
        return
    _note_holder(acquire, held)
    if use.argument("watched"):
        hold = _operation(use, "hold", offset=3)
        hold.facts["token"] = acquire.facts["token"]
        await use.perform(hold, lambda: _until_lost(use, held, hold))
    else:
        await asyncio.sleep(use.argument("hold", 0.05))
    if use.argument("extend"):
        await _extend(use, held, acquire.facts["token"])
    release = _operation(use, "release", offset=2)
    release.facts["token"] = acquire.facts["token"]
    await use.perform(release, held.release)
    if release.outcome is Outcome.CANCELLED:
        again = _operation(use, "release again", offset=4)
        again.facts["token"] = acquire.facts["token"]
        await use.perform(again, held.release)


async def _until_lost(use: Use, held: ResilientLock, hold: Operation) -> Any:
    """Hold the lock. Return the text of the loss, or None."""
    lost = held.lost
    hold.facts["watched"] = use.world.loop.time()
    await asyncio.wait([lost], timeout=use.argument("hold", 0.05))
    if not lost.done():
        return None
    hold.facts["lost_at"], hold.facts["lost"] = use.world.history.next(), use.world.loop.time()
    return str(lost.result())


async def _extend(use: Use, held: ResilientLock, token: str) -> None:
    how, timeout = use.argument("extend"), use.argument("timeout", 10.0)
    extend = _operation(use, "extend", offset=1)
    extend.facts |= {"token": token, "how": how}
    if how == "reacquire":
        await use.perform(extend, held.reacquire)
    else:
        replace = how != "add"
        await use.perform(extend, lambda: held.extend(timeout, replace_ttl=replace))


def _note_holder(operation: Operation, held: ResilientLock) -> None:
    token = held.local.token
    operation.facts["token"] = token.decode() if isinstance(token, bytes) else token
    if held.fencing:
        operation.facts["number"] = held.fencing_token


async def lock_block(use: Use) -> None:
    """Hold a lock in `async with`: the body is cancelled when the lock is lost."""
    cancels = use.argument("cancels", True)
    held = _lock(
        use,
        blocking_timeout=use.argument("blocking", 0.5),
        cancel_on_loss=cancels,
        raise_on_release_error=use.argument("strict", True),
    )
    block = _operation(use, "lock block")
    facts, history, loop = block.facts, use.world.history, use.world.loop
    facts["cancels"] = cancels
    deadline = use.policy.deadline
    facts["release"] = float("inf") if deadline is None else 3 * deadline + 0.3

    async def work() -> str:
        try:
            async with held:
                _note_holder(block, held)
                facts["watched"] = loop.time() + 0.02
                facts["entered_at"], facts["entered"] = history.next(), loop.time()
                try:
                    await asyncio.sleep(use.argument("hold", 0.05))
                    if use.argument("raises"):
                        raise BodyFailed
                finally:
                    facts["left_at"], facts["left"] = history.next(), loop.time()
        except BodyFailed:
            return "raised"
        return "ended"

    await use.perform(block, work)


async def lock_steal(use: Use) -> None:
    """Delete the key of a lock, as an operator does."""
    await use.send("DEL", f"lock{use.argument('key', 0)}")
