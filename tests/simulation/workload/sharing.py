"""Clients that come and go: on the pool of another one, and with connections of their own."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
import weakref
from typing import TYPE_CHECKING

from resilient_io.redis import ResilientRedis
from tests.simulation.clients import ReopeningRedis
from tests.simulation.world import HOST, PORT

from .use import Use, register_of, sender

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from tests.simulation.history import Operation


class Visitor:
    """Another client on the pool of one, with which it shares its connections.

    Attributes:
        redis: The client, or None after it was dropped.
        operations: What was done with it.
    """

    def __init__(self, use: Use) -> None:
        self._world, self._label = use.world, use.caller.client
        client = use.client
        reopens = bool(client.setup.form.get("reopens"))
        redis = ReopeningRedis(connection_pool=use.world.pool, reopen=reopens, **client.own)
        assert redis._runtime is client.redis._runtime, "they have the same options"
        redis.observe(self._note)
        self.redis: ReopeningRedis | None = redis
        self.operations: list[Operation] = []
        self._counted = True
        use.world.join(self._label)

    def _note(self, change: str) -> None:
        if change == "opened" and not self._counted:
            self._counted = True
            self._world.join(self._label)
        self._world.history.event("workload", change, client=self._label)

    async def close(self) -> None:
        """Close it. The connections stay open."""
        assert self.redis is not None
        self._leave()
        await self.redis.aclose()

    def drop(self) -> None:
        """Drop the client, without closing it."""
        if self.redis is not None:
            collected = weakref.ref(self.redis)
            self.redis = None
            _collect(collected)
            self._leave()

    def _leave(self) -> None:
        for operation in self.operations:
            operation.facts.setdefault("left_at", self._world.history.next())
        if self._counted:
            self._counted = False
            self._world.leave(self._label)


def _collect(collected: weakref.ref[Any]) -> None:
    """Have a dropped client collected, also if an error of one of its calls refers to itself."""
    if collected() is not None:
        gc.collect()


async def visit(use: Use) -> None:
    """Make calls with another client on the pool, and close or drop it.

    The calls are made one after the other, or all at once while the client is closed.
    """
    if not use.client.pooled:
        return
    visitor, ends = Visitor(use), use.argument("ends", "close")
    try:
        calls = _calls(use, visitor.redis, visitor.operations)
        if ends == "early":
            tasks = [use.world.loop.create_task(call) for call in calls]
            await asyncio.sleep(use.argument("pause", 0.0))
            await visitor.close()
            if tasks:
                await asyncio.wait(tasks)
        else:
            for call in calls:
                await call
                await asyncio.sleep(use.argument("pause", 0.0))
            if ends == "close":
                await visitor.close()
            elif ends == "pool":
                await _close_pool(use, offset=15)
        calls = tasks = call = None
    finally:
        visitor.drop()
    if use.argument("rest") and not use.client.users:
        await asyncio.sleep(use.argument("rest"))


def _calls(
    use: Use, client: Any, operations: list[Operation], label: str | None = None
) -> list[Coroutine[Any, Any, None]]:
    """Return the calls, in the order in which they are to be made."""
    calls = []
    for offset in range(use.argument("count", 2)):
        words, letter = ("INCR", f"n:{use.token(0, offset)}"), use.argument("letter", "i")
        if letter == "s":
            words = ("SET", register_of(use), use.token(0, offset))
        elif letter == "g":
            words = ("GET", register_of(use))
        operation = use.operation(words, kind="visit", offset=offset, visitor=True)
        operation.client = label or operation.client
        operations.append(operation)
        calls.append(use.perform(operation, sender(client, words)))
    return calls


async def close_pool(use: Use) -> None:
    """Close the pool, and with it the connections of its clients, which may use it again."""
    if use.client.pooled:
        await _close_pool(use)


async def _close_pool(use: Use, offset: int = 0) -> None:
    world, history = use.world, use.world.history
    operation = use.operation(kind="close pool", offset=offset, limit=None)
    clients = {label: client for label, client in world.clients.items() if client.pooled}

    async def work() -> None:
        pool = world.pool
        assert pool is not None, "there are clients on it"
        for label in clients:
            history.event("workload", "closing", client=label)
        await pool.aclose()
        for label, client in clients.items():
            closed = client.redis._runtime.executor.closed
            history.event("workload", "closed" if closed else "opened", client=label)

    await use.perform(operation, work)


async def temporary(use: Use) -> None:
    """Make calls with a client that has its own connections, and drop it without closing it.

    Its operations have a label of their own, because it shares nothing with other clients.
    """
    world, label = use.world, f"{use.caller.client}~{use.call.number}"
    if world.servers[0].password_required:
        return  # it has none
    client: ResilientRedis | None = ResilientRedis.from_url(
        f"redis://{HOST}:{PORT}/0",
        policy=use.policy,
        rng=random.Random(f"{world.plan.seed}/{label}"),
        name=f"redis-{label}",
    )
    world.begin_temporary(label)
    calls = _calls(use, client, [], label)
    while calls:
        await calls.pop(0)
        await asyncio.sleep(use.argument("pause", 0.0))
    running = client._runtime.running
    collected = weakref.ref(client)
    caught: list[type[Warning]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # Not `record=True`, which would keep the client.
        warnings.showwarning = lambda _message, category, *_: caught.append(category)
        client = None
        _collect(collected)
    world.end_temporary(label)
    world.history.event(
        "workload",
        "dropped",
        client=label,
        running=running,
        collected=collected() is None,
        warned=caught.count(ResourceWarning),
    )
