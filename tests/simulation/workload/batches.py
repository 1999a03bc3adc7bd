"""Pipelines and transactions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.client import EMPTY_RESPONSE, NEVER_DECODE

from tests.simulation.history import ErrorReply, Outcome
from tests.simulation.redis_server.scripts import (
    PUSH_AND_RETURN,
    READ,
    READ_AND_ECHO,
    SET_AND_RETURN,
    sha1,
)
from tests.simulation.world import plain

from .use import limit_reaching, list_of, register_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.redis import ResilientPipeline, ResilientRedis

    from .use import Use

_SCRIPTS = (PUSH_AND_RETURN, SET_AND_RETURN, READ_AND_ECHO, READ)
_PUSH, _SET, _ECHO, _READ = (sha1(text.encode()) for text in _SCRIPTS)

_DEFAULT = "the default"
_BLOCK = 300  # milliseconds for which a pipeline waits for an entry of a stream


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
                "b": ("GET", f"bin{use.argument('key', 0)}"),  # never decoded
                "m": ("GET", list_of(use)),  # WRONGTYPE, if the list exists, but it has a default
                "x": ("EVALSHA", _PUSH, "1", list_of(use), token),  # of a script object
                "y": ("EVALSHA", _SET, "1", f"r{index % 3}", token),
                "z": ("EVAL", PUSH_AND_RETURN, "1", list_of(use), token),
                "v": ("EVALSHA_RO", _ECHO, "1", "r0", token),
                "r": ("EVAL_RO", READ_AND_ECHO, "1", "r0", token),
                "l": ("SCRIPT", "LOAD", READ),
                "u": ("NOSUCH", token),  # the server does not know it
                "k": ("XREAD", "BLOCK", str(_BLOCK), "STREAMS", "x", "$"),
            }[letter]
        )
    return commands


async def _queue(
    pipe: ResilientPipeline, client: ResilientRedis, letter: str, words: tuple[str, ...]
) -> None:
    """Queue a command in the way that its letter stands for."""
    name, *rest = words
    if letter == "x":
        if len(pipe) % 2:
            await pipe.register_script(PUSH_AND_RETURN)(rest[2:3], rest[3:])
        else:
            await client.register_script(PUSH_AND_RETURN)(rest[2:3], rest[3:], client=pipe)
        return
    methods: dict[str, Callable[[], Any]] = {
        "b": lambda: pipe.execute_command(*words, **{NEVER_DECODE: True}),
        "m": lambda: pipe.execute_command(*words, **{EMPTY_RESPONSE: _DEFAULT}),
        "y": lambda: pipe.evalsha(*rest),
        "z": lambda: pipe.eval(*rest),
        "v": lambda: pipe.evalsha_ro(*rest),
        "r": lambda: pipe.eval_ro(*rest),
        "l": lambda: pipe.script_load(READ),
        "s": lambda: pipe.set(*rest),
        "g": lambda: pipe.get(*rest),
        "p": lambda: pipe.rpush(*rest),
    }
    methods.get(letter, lambda: pipe.execute_command(name, *rest))()


async def _batch(use: Use, *, transaction: bool) -> None:
    commands, shape = _several(use), use.argument("shape", "sig")
    raises = bool(use.argument("raises", False))
    operation = use.operation(*commands, raise_on_error=raises)
    if "k" in shape:
        limit_reaching(operation, shape.count("k") * _BLOCK / 1000)
    client = use.redis
    if any(letter in shape for letter in "yv"):
        for text in (SET_AND_RETURN, READ_AND_ECHO):
            client.register_script(text)
    if use.argument("discards"):
        _discarded(use)

    async def work() -> Any:
        async with client.pipeline(transaction=transaction and not use.argument("multi")) as pipe:
            if use.argument("discards"):
                pipe.execute_command("INCR", f"n:{use.token(0, _DISCARDED)}")
                await pipe.reset()
            if transaction and use.argument("multi"):
                pipe.multi()
            for letter, words in zip(shape, commands, strict=True):
                await _queue(pipe, client, letter, words)
            try:
                replies = await pipe.execute(raise_on_error=raises)
            finally:
                assert len(pipe) == 0, "the pipeline is not empty"
            if use.argument("again"):
                assert await pipe.execute() == [], "an empty pipeline returns replies"
            return [ErrorReply(each) if each == _DEFAULT else each for each in replies]

    await use.perform(operation, work)


_DISCARDED = 10


def _discarded(use: Use) -> None:
    """Record a command that is queued and discarded: it must never be applied."""
    words = ("INCR", f"n:{use.token(0, _DISCARDED)}")
    operation = use.operation(words, kind="discarded", offset=_DISCARDED, limit=None)
    history, loop = use.world.history, use.world.loop
    operation.outcome, operation.error = Outcome.NOT_APPLIED, "it was discarded"
    operation.started_at, operation.started = history.next(), loop.time()
    operation.ended_at, operation.ended = history.next(), loop.time()
    history.operations.append(operation)


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
    by_script = use.argument("by_script", False)
    read = ("EVALSHA_RO", _READ, "1", watched) if by_script else ("GET", watched)
    operation = use.operation(("WATCH", watched), read, ("SET", key, token))
    client, history = use.redis, use.world.history
    if by_script:
        client.register_script(READ)

    async def work() -> Any:
        async with client.pipeline() as pipe:
            began = history.next()
            await pipe.watch(watched)
            operation.steps.append((0, began, history.next(), None))
            began = history.next()
            if by_script:
                value = await pipe.evalsha_ro(_READ, 1, watched)
            else:
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


class Abandoned(Exception):
    """What ends the block of a pipeline that was not executed."""


async def peek(use: Use) -> None:
    """Watch and read a key, and give up the transaction: what was queued is never sent."""
    key, ends = register_of(use), use.argument("ends", "leave")
    operation = use.operation(("GET", key), limit=None, thinks=bool(use.argument("think")))
    _discarded(use)
    client = use.redis

    async def work() -> Any:
        value = None
        try:
            async with client.pipeline() as pipe:
                await pipe.watch(key)
                value = await pipe.get(key)
                if use.argument("think"):
                    await asyncio.sleep(use.argument("think"))
                if ends == "unwatch":
                    await pipe.unwatch()
                    assert not pipe.watching, "the pipeline still watches"
                pipe.multi()
                pipe.incr(f"n:{use.token(0, _DISCARDED)}")
                if ends == "reset":
                    await pipe.reset()
                    assert await pipe.execute() == [], "a pipeline that was reset returns replies"
                elif ends == "raise":
                    raise Abandoned  # noqa: TRY301 (it leaves the block of the pipeline)
        except Abandoned:
            pass
        return value

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
