"""Opening and closing, credentials, and misuse."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio

from resilient_io.errors import ConfigurationError
from resilient_io.redis import ResilientLock
from tests.simulation.history import Outcome
from tests.simulation.world import client_tasks

from .use import sender

if TYPE_CHECKING:
    from .use import Use


async def close(use: Use) -> None:
    """Close the client, perhaps twice at once, while other callers use it."""
    client, history = use.client, use.world.history
    label = use.caller.client

    async def work() -> None:
        # Now, because another caller may have opened the client since the task was created.
        was_open, client.open = client.open, False
        if client.pooled:  # the connections stay open
            if was_open:
                use.world.leave(label)
            await client.redis.aclose()
            return
        history.event("workload", "closing", client=label)
        await client.redis.aclose()

    operation = use.operation(limit=None)
    closings = [use.perform(operation, work)]
    if use.argument("twice"):
        second = use.operation(offset=1, limit=None)
        closings.append(use.perform(second, work))
    calls = []
    for offset in range(2, 2 + use.argument("calls", 0)):
        words = ("INCR", f"n:{use.token(0, offset)}")
        call = use.operation(words, kind="increment", offset=offset)
        calls.append(use.perform(call, sender(client.redis, words)))
    before = min(use.argument("before", 0), len(calls))  # they precede it in the same tick
    works = [*calls[:before], *closings, *calls[before:]]
    if use.argument("reopens") is not None:
        works.append(_reopen(use, after=use.argument("reopens"), offset=15))
    tasks = [use.world.loop.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks[before : before + len(closings)])
        closed = operation.outcome is Outcome.OK and not client.open  # nor opened by another caller
        if closed and not client.pooled:
            history.event("workload", "closed", client=label)
            await _note_what_is_left(use)
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _note_what_is_left(use: Use) -> None:
    """Note the tasks and connections a moment after the last client was closed."""
    world = use.world
    if any(client.pooled for client in world.clients.values()):
        return  # their connections are kept
    await asyncio.sleep(0.05)
    if not world.only_clients:
        return
    latest = {
        event.facts["client"]: event.kind
        for event in world.history.events
        if event.kind in ("opening", "opened", "closing", "closed")
    }
    if any(client.open for client in world.clients.values()) or any(
        latest.get(each) in ("opening", "closing") for each in world.clients
    ):
        return
    if any(
        each.ended is None and each.kind in ("close", "reopen", "manual", "visit")
        for each in world.history.operations
    ):
        return
    world.history.event(
        "workload",
        "all closed",
        tasks=client_tasks(use.world.loop),
        connections=[connection.number for connection in world.network.connections],
    )


async def reopen(use: Use) -> None:
    """Open the client again, perhaps while it is closing."""
    await _reopen(use)


async def _reopen(use: Use, *, after: float = 0.0, offset: int = 0) -> None:
    client, history = use.client, use.world.history
    if after:
        await asyncio.sleep(after)
    operation = use.operation(kind="reopen", offset=offset, limit=None)

    async def work() -> None:
        await client.redis.initialize()
        if client.pooled and not client.open:
            use.world.join(use.caller.client)
        client.open = True
        history.event("workload", "opened", client=use.caller.client)

    await use.perform(operation, work)


async def rotate(use: Use) -> None:
    """Rotate the credentials, as the task of a provider does."""
    credentials = use.client.credentials
    if credentials is not None:
        operation = use.operation(limit=None)

        async def work() -> None:
            with contextlib.suppress(redis.RedisError, OSError):
                await credentials.rotate()

        await use.perform(operation, work)


async def misuse(use: Use) -> None:
    """Do what the client refuses at once, with an error that says what to use instead."""
    client, what = use.redis, use.argument("what", "select")
    if what == "select" and use.client.setup.single:
        what = "batch"  # a connection of its own may change its database, but not in a batch
    operation = use.operation(kind="misuse", limit=None, what=what)

    async def refused() -> Any:  # noqa: PLR0911 (one for each case)
        if what == "batch":
            async with client.pipeline(transaction=False) as pipe:
                pipe.execute_command("SELECT", "1")
                return await pipe.execute()
        if what == "lock":
            return client.lock("lock0", renew=True)
        if what == "plain lock":
            return ResilientLock(redis.asyncio.Redis(), "lock0")
        if what == "not held":
            return client.lock("lock0").lost
        if what == "not fenced":
            return client.lock("lock0").fencing_token
        if what == "release":
            return await client.lock("lock0").release()
        if what == "with":
            with client:
                pass
        if what == "health":
            return client.health.start(None, last_reply=None)
        return await client.execute_command("SELECT", "1")

    async def work() -> str:
        try:
            reply = await refused()
        except (TypeError, ConfigurationError, redis.RedisError) as error:
            return type(error).__name__
        return f"no error, but {reply!r}"

    await use.perform(operation, work)
