"""Pipelines and transactions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.simulation.world import plain

from .use import list_of, register_of

if TYPE_CHECKING:
    from .use import Use


def _several(use: Use) -> list[tuple[str, ...]]:
    """Return the commands of a batch; `shape` has a letter for each of them."""
    commands: list[tuple[str, ...]] = []
    for index, letter in enumerate(use.argument("shape", "sig")):
        token = use.token(index)
        commands.append(
            {
                "s": ("SET", f"r{index % 3}", token),
                "i": ("INCR", f"n:{token}"),
                "p": ("RPUSH", list_of(use), token),
                "h": ("HSET", "h", token, "1"),
                "e": ("ECHO", token),
                "g": ("GET", f"r{index % 3}"),
                "w": ("HSET", "r0", token, "1"),  # WRONGTYPE, if the register exists
                "d": ("DEL", f"gone:{token}"),  # accepted also while writes that add are refused
            }[letter]
        )
    return commands


async def _batch(use: Use, *, transaction: bool) -> None:
    commands = _several(use)
    raises = bool(use.argument("raises", False))
    operation = use.operation(*commands, raise_on_error=raises)
    client = use.redis

    async def work() -> Any:
        async with client.pipeline(transaction=transaction) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            return await pipe.execute(raise_on_error=raises)

    await use.perform(operation, work)


async def pipeline(use: Use) -> None:
    """Send a batch without MULTI."""
    await _batch(use, transaction=False)


async def transaction(use: Use) -> None:
    """Send a batch in MULTI and EXEC."""
    await _batch(use, transaction=True)


async def watch(use: Use) -> None:
    """Read a key, and overwrite it or another in a transaction that fails if the first changed."""
    key, token = register_of(use), use.token(2)
    watched = f"guard{use.argument('key', 0)}" if use.argument("guarded") else key
    operation = use.operation(("WATCH", watched), ("GET", watched), ("SET", key, token))
    client, history = use.redis, use.world.history

    async def work() -> Any:
        async with client.pipeline() as pipe:
            began = history.next()
            await pipe.watch(watched)
            operation.steps.append((0, began, history.next(), None))
            began = history.next()
            value = await pipe.get(watched)
            operation.steps.append((1, began, history.next(), plain(value)))
            if use.argument("think"):
                await asyncio.sleep(use.argument("think"))
            pipe.multi()
            pipe.set(key, token)
            began = history.next()
            replies = await pipe.execute()
            operation.steps.append((2, began, history.next(), plain(replies)))
            return replies

    operation.facts["limit"] = None  # each of its commands has a limit of its own
    operation.facts["thinks"] = bool(use.argument("think"))
    await use.perform(operation, work)


async def manual(use: Use) -> None:
    """Send MULTI, commands and EXEC one by one, on a client with a connection of its own."""
    commands = _several(use)
    operation = use.operation(*commands, limit=None, thinks=bool(use.argument("think")))
    client = use.redis.client()
    history = use.world.history

    async def work() -> Any:
        await client.execute_command("MULTI")
        for index, words in enumerate(commands):
            if use.argument("think"):
                await asyncio.sleep(use.argument("think"))
            began = history.next()
            reply = await client.execute_command(*words)
            operation.steps.append((index, began, history.next(), plain(reply)))
        return await client.execute_command("EXEC")

    try:
        await use.perform(operation, work)
    finally:
        await client.aclose()
