"""What callers do with the public API: one function for each kind of call.

A function `async def KIND(use: Use) -> None` makes the call of the plan and records one operation,
or several for a lock or a burst. Each write carries its own token, `tNUMBER.INDEX`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import redis

from resilient_io.errors import Closed

from .history import Operation, Outcome
from .redis_server.scripts import (
    INCR_THEN_ERROR,
    PUSH_AND_RETURN,
    READ_AND_ECHO,
    SET_AND_RETURN,
)
from .world import plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_io import RetryPolicy
    from resilient_io.redis import ResilientRedis

    from .plan import Call, Caller
    from .world import Client, World

SPACING = 20
"""Calls are numbered in steps, so that a call of several operations has numbers for all."""

_PADDING = 70_000  # bytes that make a value large: above the client's limit of 64 KiB


@dataclass(slots=True)
class Use:
    """One call of a caller, with all that it needs."""

    world: World
    caller: Caller
    call: Call

    @property
    def client(self) -> Client:
        """The client, with its setup."""
        return self.world.clients[self.caller.client]

    @property
    def redis(self) -> ResilientRedis:
        """The client or the view to call."""
        client = self.client.redis
        view = self.call.view
        return client if view is None else client.with_policy(**view)

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument of the call."""
        return self.call.arguments.get(name, default)

    def token(self, index: int = 0, offset: int = 0) -> str:
        """Return the token of a command of this call."""
        return f"t{self.call.number + offset}.{index}"

    def operation(
        self, *commands: tuple[str, ...], kind: str | None = None, offset: int = 0, **facts: Any
    ) -> Operation:
        """Return a new operation with these commands."""
        call, policy = self.call, self.client.policy
        if call.view is not None:
            policy = _viewed(policy, tuple(call.view.items()))
        facts.setdefault("limit", policy.deadline)
        facts["attempts"] = policy.attempts
        facts["while_down"] = policy.while_down
        return Operation(
            number=call.number + offset,
            kind=kind or call.kind,
            client=self.caller.client,
            caller=self.caller.number,
            commands=tuple(commands),
            repeat=policy.repeat,
            facts=facts,
        )

    async def send(self, *words: str, **options: Any) -> None:
        """Make a call of one command and record it."""
        operation = self.operation(words)
        client = self.redis
        await self.perform(operation, lambda: client.execute_command(*words, **options))

    async def perform(self, operation: Operation, work: Callable[[], Awaitable[Any]]) -> None:
        """Run an operation and record it."""
        await self.world.perform(operation, self.call, work)


@functools.lru_cache(maxsize=1000)
def _viewed(policy: RetryPolicy, changes: tuple[tuple[str, Any], ...]) -> RetryPolicy:
    return policy.replace(**dict(changes))


# -- single commands -----------------------------------------------------------------------


def _register(use: Use) -> str:
    return f"r{use.argument('key', 0)}"


def _list(use: Use) -> str:
    return f"l{use.argument('key', 0)}"


async def set_(use: Use) -> None:
    """Overwrite a register."""
    key, value = _register(use), use.token()
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
    await use.perform(operation, lambda: client.set(key, b"\xff" + token.encode()))


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
    key = _register(use)
    operation = use.operation(("GET", key))
    client = use.redis
    await use.perform(operation, lambda: client.get(key))


async def get_several(use: Use) -> None:
    """Read all registers at once."""
    await use.send("MGET", "r0", "r1", "r2")


async def get_range(use: Use) -> None:
    """Read a whole list."""
    await use.send("LRANGE", _list(use), "0", "-1")


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
    await use.send("RPUSH", _list(use), use.token())


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
    await use.send("EVAL", PUSH_AND_RETURN, "1", _list(use), use.token())


async def script_fail(use: Use) -> None:
    """Run a script that writes, and then returns an error that looks like a refusal."""
    await use.send("EVAL", INCR_THEN_ERROR, "1", f"n:{use.token()}", use.token())


async def script_registered(use: Use) -> None:
    """Run a registered script: EVALSHA, and SCRIPT LOAD if the server does not know it."""
    key, token = _register(use), use.token()
    operation = use.operation(("EVALSHA", SET_AND_RETURN, "1", key, token))
    operation.facts["limit"] = None  # each of its commands has a limit of its own
    script = use.redis.register_script(SET_AND_RETURN)
    await use.perform(operation, lambda: script(keys=[key], args=[token]))


# -- several commands ----------------------------------------------------------------------


def _several(use: Use) -> list[tuple[str, ...]]:
    """Return the commands of a batch; `shape` has a letter for each of them."""
    commands: list[tuple[str, ...]] = []
    for index, letter in enumerate(use.argument("shape", "sig")):
        token = use.token(index)
        commands.append(
            {
                "s": ("SET", f"r{index % 3}", token),
                "i": ("INCR", f"n:{token}"),
                "p": ("RPUSH", _list(use), token),
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
    key, token = _register(use), use.token(2)
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


async def burst(use: Use) -> None:
    """Make several calls in one tick: they keep their order. Those of `kept` are not cancelled."""
    count, letter = use.argument("count", 4), use.argument("letter", "p")
    client = use.redis
    waits = []
    for offset in range(count):
        token = use.token(0, offset)
        words = ("RPUSH", _list(use), token) if letter == "p" else ("SET", _register(use), token)
        operation = use.operation(words, kind="push" if letter == "p" else "set", offset=offset)
        operation.burst = use.call.number
        call = use.call
        if use.argument("kept", 0) >> offset & 1:
            call = replace(call, cancel_after=None)
        waits.append(use.world.perform(operation, call, _sender(client, words)))
    await asyncio.gather(*waits)


async def traffic(use: Use) -> None:
    """Make one call after the other, with short pauses, or none."""
    pause, client = use.argument("pause", 0.0), use.redis
    for offset in range(use.argument("count", 10)):
        if offset and pause:
            await asyncio.sleep(pause)
        words = ("GET", _register(use))
        if use.argument("letter") == "i":
            words = ("INCR", f"n:{use.token(0, offset)}")
        elif use.argument("letter") == "s":
            words = ("SET", _register(use), use.token(0, offset))
        operation = use.operation(words, kind="traffic", offset=offset)
        await use.perform(operation, _sender(client, words))


def _sender(client: ResilientRedis, words: tuple[str, ...]) -> Callable[[], Awaitable[Any]]:
    return lambda: client.execute_command(*words)


# -- blocking commands ---------------------------------------------------------------------


async def pop(use: Use) -> None:
    """Wait for an element at the head of a list, or at its tail."""
    command = "BRPOP" if use.argument("tail") else "BLPOP"
    timeout = use.argument("timeout", 1)
    keys = [_list(use), "l3"] if use.argument("second") else [_list(use)]
    operation = use.operation((command, *keys, str(timeout)))
    _limit_reaching(operation, timeout)
    client = use.redis
    method = client.brpop if command == "BRPOP" else client.blpop
    await use.perform(operation, lambda: method(keys, timeout))


async def pop_now(use: Use) -> None:
    """Take an element from a list without waiting."""
    await use.send("LPOP", _list(use))


async def move(use: Use) -> None:
    """Wait for an element and move it to another list."""
    words = ("BLMOVE", _list(use), "moved", "LEFT", "RIGHT", str(use.argument("timeout", 1)))
    operation = use.operation(words)
    _limit_reaching(operation, use.argument("timeout", 1))
    client = use.redis
    await use.perform(operation, lambda: client.execute_command(*words))


async def stream_read(use: Use) -> None:
    """Wait for the next entry of a stream."""
    milliseconds = int(use.argument("timeout", 1) * 1000)
    operation = use.operation(("XREAD", "BLOCK", str(milliseconds), "STREAMS", "x", "$"))
    _limit_reaching(operation, use.argument("timeout", 1))
    client = use.redis
    await use.perform(operation, lambda: client.xread({"x": "$"}, block=milliseconds))


def _limit_reaching(operation: Operation, timeout: float) -> None:
    """Note the limits of a blocking call: reaching the server is limited by the deadline."""
    limit = operation.facts["limit"]
    operation.facts["reach_deadline"] = limit
    operation.facts["block"] = timeout or float("inf")
    operation.facts["limit"] = None


# -- locks ---------------------------------------------------------------------------------


async def lock(use: Use) -> None:
    """Acquire a lock, hold it, and release it: two operations."""
    name = f"lock{use.argument('key', 0)}"
    timeout = use.argument("timeout", 10.0)
    held = use.redis.lock(name, timeout=timeout, sleep=0.05)
    acquire = use.operation(kind="acquire", lock=name, timeout=timeout, limit=None)
    blocking = use.argument("blocking", 0.5)
    await use.perform(acquire, lambda: held.acquire(blocking_timeout=blocking))
    if acquire.outcome is not Outcome.OK or not acquire.reply:
        return
    token = held.local.token
    acquire.facts["token"] = token.decode() if isinstance(token, bytes) else token
    await asyncio.sleep(use.argument("hold", 0.05))
    if use.argument("extend"):
        extend = use.operation(kind="extend", offset=1, lock=name, limit=None)
        await use.perform(extend, lambda: held.extend(timeout, replace_ttl=True))
    release = use.operation(kind="release", offset=2, lock=name, limit=None)
    release.facts["token"] = acquire.facts["token"]
    await use.perform(release, held.release)


# -- lifecycle and health ------------------------------------------------------------------


async def close(use: Use) -> None:
    """Close the client, perhaps twice at once, while other callers use it."""
    client, history = use.client, use.world.history
    label = use.caller.client
    client.open = False
    history.event("workload", "closing", client=label)
    operation = use.operation(limit=None)
    closings = [use.perform(operation, client.redis.aclose)]
    if use.argument("twice"):
        second = use.operation(offset=1, limit=None)
        closings.append(use.perform(second, client.redis.aclose))
    calls = []
    for offset in range(2, 2 + use.argument("calls", 0)):
        words = ("INCR", f"n:{use.token(0, offset)}")
        call = use.operation(words, kind="increment", offset=offset)
        calls.append(use.perform(call, _sender(client.redis, words)))
    before = min(use.argument("before", 0), len(calls))  # they precede it in the same tick
    works = [*calls[:before], *closings, *calls[before:]]
    if use.argument("reopens") is not None:
        works.append(_reopen(use, after=use.argument("reopens"), offset=15))
    tasks = [use.world.loop.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks[before : before + len(closings)])
        if operation.outcome is Outcome.OK and not client.open:  # nor opened by another caller
            history.event("workload", "closed", client=label)
            await _note_what_is_left(use)
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _note_what_is_left(use: Use) -> None:
    """Note the tasks and connections a moment after the last client was closed."""
    world = use.world
    await asyncio.sleep(0.05)
    latest = {
        event.facts["client"]: event.kind
        for event in world.history.events
        if event.kind in ("opened", "closing", "closed")
    }
    if any(client.open for client in world.clients.values()) or "closing" in latest.values():
        return
    if any(
        each.ended is None and each.kind in ("close", "reopen", "manual")
        for each in world.history.operations
    ):
        return
    names = sorted(task.get_name() for task in asyncio.all_tasks())
    world.history.event(
        "workload",
        "all closed",
        tasks=[name for name in names if name.startswith("resilient-io")],
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
        client.open = True

    await use.perform(operation, work)
    if operation.outcome is Outcome.OK:
        history.event("workload", "opened", client=use.caller.client)


async def wait_up(use: Use) -> None:
    """Wait until the server is up."""
    operation = use.operation(limit=None)
    health = use.redis.health
    timeout = use.argument("timeout", 1.0)

    async def work() -> Any:
        with contextlib.suppress(TimeoutError, Closed):
            await health.until_up(timeout)

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


async def late(use: Use) -> None:
    """Make a call whose deadline has already passed."""
    key, value = _register(use), use.token()
    operation = use.operation(("SET", key, value))
    client, loop = use.redis, use.world.loop

    async def work() -> Any:
        await asyncio.sleep(use.call.deadline or 0.0)
        if operation.deadline is not None and loop.time() >= operation.deadline:
            operation.facts["already_late"] = True
        return await client.set(key, value)

    await use.perform(operation, work)


KINDS: dict[str, Callable[[Use], Awaitable[None]]] = {
    "set": set_,
    "set large": set_large,
    "get large": get_large,
    "set binary": set_binary,
    "get binary": get_binary,
    "set conditional": set_conditional,
    "set expiring": set_expiring,
    "get": get,
    "get several": get_several,
    "get range": get_range,
    "get hash": get_hash,
    "increment": increment,
    "append": append,
    "push": push,
    "hash set": hash_set,
    "add": add,
    "stream add": stream_add,
    "delete": delete,
    "echo": echo,
    "script read": script_read,
    "script push": script_push,
    "script fail": script_fail,
    "script registered": script_registered,
    "pipeline": pipeline,
    "transaction": transaction,
    "watch": watch,
    "manual": manual,
    "burst": burst,
    "traffic": traffic,
    "pop": pop,
    "pop now": pop_now,
    "move": move,
    "stream read": stream_read,
    "lock": lock,
    "close": close,
    "reopen": reopen,
    "wait up": wait_up,
    "rotate": rotate,
    "late": late,
}
