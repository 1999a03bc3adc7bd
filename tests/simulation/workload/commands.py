"""Calls of single commands, of scripts, and of blocking commands."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import redis.asyncio
import redis.commands.core

from tests.simulation.redis_server.scripts import (
    INCR_THEN_ERROR,
    PUSH_AND_RETURN,
    READ_AND_ECHO,
    SET_AND_RETURN,
    sha1,
)

from .use import limit_reaching, list_of, register_of, sender

if TYPE_CHECKING:
    from .use import Use

_PADDING = 70_000  # bytes that make a value large: above the client's limit of 64 KiB
_MEDIUM = 50_000  # bytes of values that keep their order, and fill the kernel when they are many
_HUGE = 1_100_000  # bytes of a script that the client does not remember


# -- single commands -----------------------------------------------------------------------


async def set_(use: Use) -> None:
    """Overwrite a register."""
    key, value = register_of(use), use.token()
    operation = use.operation(("SET", key, value))
    client = use.redis
    await use.perform(operation, lambda: client.set(key, value))


async def set_large(use: Use) -> None:
    """Overwrite a key with a large value."""
    await use.send("SET", f"big{use.argument('key', 0)}", use.token() + "." * _PADDING)


async def get_large(use: Use) -> None:
    """Read a large value."""
    await use.send("GET", f"big{use.argument('key', 0)}")


async def set_binary(use: Use) -> None:
    """Overwrite a key with a value that is not UTF-8."""
    key, token = f"bin{use.argument('key', 0)}", use.token()
    client = use.redis
    operation = use.operation(("SET", key, token))
    value: Any = b"\xff" + token.encode()
    if use.argument("packed"):  # only redis-py's encoder takes it
        value = memoryview(value)
    await use.perform(operation, lambda: client.set(key, value))


async def get_binary(use: Use) -> None:
    """Read a value that is not UTF-8, which a client that decodes replies cannot return."""
    key = f"bin{use.argument('key', 0)}"
    client = use.redis

    async def work() -> Any:
        try:
            return await client.get(key)
        except UnicodeDecodeError as error:
            return error.object

    await use.perform(use.operation(("GET", key)), work)


async def set_conditional(use: Use) -> None:
    """Set a key unless it exists."""
    await use.send("SET", f"nx{use.argument('key', 0)}", use.token(), "NX")


async def set_expiring(use: Use) -> None:
    """Set a key that expires."""
    await use.send("SET", f"x{use.argument('key', 0)}", use.token(), "PX", "60000")


async def get(use: Use) -> None:
    """Read a register."""
    key = register_of(use)
    operation = use.operation(("GET", key))
    client = use.redis
    await use.perform(operation, lambda: client.get(key))


async def get_several(use: Use) -> None:
    """Read all registers at once."""
    await use.send("MGET", "r0", "r1", "r2")


async def get_range(use: Use) -> None:
    """Read a whole list."""
    await use.send("LRANGE", list_of(use), "0", "-1")


async def get_hash(use: Use) -> None:
    """Read a whole hash."""
    await use.send("HGETALL", "h")


async def increment(use: Use) -> None:
    """Increment a counter of its own, so that its value tells how often that was applied."""
    await use.send("INCR", f"n:{use.token()}")


async def append(use: Use) -> None:
    """Append to a string."""
    await use.send("APPEND", f"log{use.argument('key', 0)}", f"{use.token()} ")


async def push(use: Use) -> None:
    """Push an element to a list."""
    await use.send("RPUSH", list_of(use), use.token())


async def push_binary(use: Use) -> None:
    """Push an element that is not UTF-8, which a client that decodes replies cannot return."""
    key, token = f"lb{use.argument('key', 0)}", use.token()
    client = use.redis
    operation = use.operation(("RPUSH", key, token))
    await use.perform(operation, lambda: client.rpush(key, b"\xff" + token.encode()))


async def pop_binary(use: Use) -> None:
    """Wait for an element that is not UTF-8."""
    key = f"lb{use.argument('key', 0)}"
    operation = use.operation(("BLPOP", key, "1"))
    limit_reaching(operation, 1)
    client = use.redis

    async def work() -> Any:
        try:
            return await client.blpop([key], 1)
        except UnicodeDecodeError as error:
            return [key, error.object]

    await use.perform(operation, work)


async def hash_set(use: Use) -> None:
    """Set a field of a hash."""
    await use.send("HSET", "h", use.token(), "1")


async def add(use: Use) -> None:
    """Add a member to a set."""
    await use.send("SADD", "s", use.token())


async def stream_add(use: Use) -> None:
    """Add an entry to a stream."""
    await use.send("XADD", "x", "*", "e", use.token())


async def delete(use: Use) -> None:
    """Delete a key whose name has the token."""
    await use.send("DEL", f"gone:{use.token()}")


async def echo(use: Use) -> None:
    """Read the token back."""
    await use.send("ECHO", use.token())


# -- scripts -------------------------------------------------------------------------------


async def script_read(use: Use) -> None:
    """Run a script that only reads."""
    await use.send("EVAL_RO", READ_AND_ECHO, "1", "r0", use.token())


async def script_push(use: Use) -> None:
    """Run a script that pushes."""
    await use.send("EVAL", PUSH_AND_RETURN, "1", list_of(use), use.token())


async def script_fail(use: Use) -> None:
    """Run a script that writes, and then returns an error that looks like a refusal."""
    await use.send("EVAL", INCR_THEN_ERROR, "1", f"n:{use.token()}", use.token())


async def script_registered(use: Use) -> None:
    """Run a registered script: EVALSHA, and SCRIPT LOAD if the server does not know it."""
    key, token = register_of(use), use.token()
    operation = use.operation(("EVALSHA", SET_AND_RETURN, "1", key, token))
    operation.facts["limit"] = None  # each of its commands has a limit of its own
    script = use.redis.register_script(SET_AND_RETURN)
    await use.perform(operation, lambda: script(keys=[key], args=[token]))


async def script_large(use: Use) -> None:
    """Queue a script that is too large for the client to remember."""
    text = READ_AND_ECHO + " " * _HUGE
    token = use.token()
    operation = use.operation(("EVALSHA", sha1(text.encode()), "1", "any", token), limit=None)
    script = redis.commands.core.AsyncScript(redis.asyncio.Redis(), text)
    client = use.redis

    async def work() -> Any:
        async with client.pipeline(transaction=False) as pipe:
            await script(keys=["any"], args=[token], client=pipe)
            return (await pipe.execute())[0]

    await use.perform(operation, work)


# -- many calls --------------------------------------------------------------------------


async def burst(use: Use) -> None:
    """Make several calls in one tick: they keep their order. Those of `kept` are not cancelled."""
    count, letter = use.argument("count", 4), use.argument("letter", "p")
    client = use.redis
    waits = []
    for offset in range(count):
        token = use.token(0, offset)
        words = ("SET", register_of(use), token)
        if letter == "p":
            words = ("RPUSH", list_of(use), token)
        elif letter == "l":
            words = ("SET", f"big{use.argument('key', 0)}", token + "." * _MEDIUM)
        operation = use.operation(words, kind="push" if letter == "p" else "set", offset=offset)
        operation.burst = use.call.number
        call = use.call
        if use.argument("kept", 0) >> offset & 1:
            call = replace(call, cancel_after=None)
        waits.append(use.world.perform(operation, call, sender(client, words)))
    await asyncio.gather(*waits)


async def traffic(use: Use) -> None:
    """Make one call after the other, with short pauses, or none."""
    pause, client = use.argument("pause", 0.0), use.redis
    for offset in range(use.argument("count", 10)):
        if offset and pause:
            await asyncio.sleep(pause)
        words = ("GET", register_of(use))
        if use.argument("letter") == "i":
            words = ("INCR", f"n:{use.token(0, offset)}")
        elif use.argument("letter") == "s":
            words = ("SET", register_of(use), use.token(0, offset))
        elif use.argument("letter") == "e":
            words = ("EVAL", PUSH_AND_RETURN, "1", list_of(use), use.token(0, offset))
        operation = use.operation(words, kind="traffic", offset=offset)
        await use.perform(operation, sender(client, words))


# -- blocking commands ---------------------------------------------------------------------


async def pop(use: Use) -> None:
    """Wait for an element at the head of a list, or at its tail."""
    command = "BRPOP" if use.argument("tail") else "BLPOP"
    timeout = use.argument("timeout", 1)
    keys = [list_of(use), "l3"] if use.argument("second") else [list_of(use)]
    operation = use.operation((command, *keys, str(timeout)))
    limit_reaching(operation, timeout)
    client = use.redis
    method = client.brpop if command == "BRPOP" else client.blpop
    await use.perform(operation, lambda: method(keys, timeout))


async def pop_now(use: Use) -> None:
    """Take an element from a list without waiting."""
    await use.send("LPOP", list_of(use))


async def move(use: Use) -> None:
    """Wait for an element and move it to another list."""
    words = ("BLMOVE", list_of(use), "moved", "LEFT", "RIGHT", str(use.argument("timeout", 1)))
    operation = use.operation(words)
    limit_reaching(operation, use.argument("timeout", 1))
    client = use.redis
    await use.perform(operation, lambda: client.execute_command(*words))


async def stream_read(use: Use) -> None:
    """Wait for the next entry of a stream."""
    milliseconds = int(use.argument("timeout", 1) * 1000)
    operation = use.operation(("XREAD", "BLOCK", str(milliseconds), "STREAMS", "x", "$"))
    limit_reaching(operation, use.argument("timeout", 1))
    client = use.redis
    await use.perform(operation, lambda: client.xread({"x": "$"}, block=milliseconds))


async def name(use: Use) -> None:
    """Set the name of the client, which all of its connections have from then on."""
    text = f"name{use.call.number}"
    operation = use.operation(limit=None, name=text)
    client = use.redis
    await use.perform(operation, lambda: client.client_setname(text))


async def no_touch(use: Use) -> None:
    """Have no command of the client count as a use of its key."""
    operation = use.operation(("CLIENT", "NO-TOUCH", "ON"), limit=None)
    client = use.redis
    await use.perform(operation, lambda: client.client_no_touch("ON"))


async def late(use: Use) -> None:
    """Make a call whose deadline has already passed."""
    key, value = register_of(use), use.token()
    operation = use.operation(("SET", key, value))
    client, loop = use.redis, use.world.loop

    async def work() -> Any:
        await asyncio.sleep(use.call.deadline or 0.0)
        if operation.deadline is not None and loop.time() >= operation.deadline:
            operation.facts["already_late"] = True
        return await client.set(key, value)

    await use.perform(operation, work)
