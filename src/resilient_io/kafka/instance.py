"""Starts and ends an aiokafka instance within bounds, whatever state it is in.

aiokafka's own `start` has no bound and leaves tasks, sockets and a member of the group behind when
it is cancelled; its `stop` may hang for ever, raises `CancelledError` of its own making, and
swallows the caller's. So both run in tasks of ours, and what they leave is ended by force.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from resilient_io.deadlines import context_without_deadline

from .group import leave_group
from .internals import (
    connections_in,
    connections_of,
    dead_sender_is_ours,
    drop,
    is_shielded,
    membership_of,
    parts_of,
    works_for,
)
from .sealing import seal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextvars import Context

    from .protocols import Connection, Driver

__all__ = ["end_instance", "start_instance"]

_ROUNDS = 20
"""How often leftover tasks are cancelled again: some of aiokafka's swallow one or await another."""

_ROUND = 0.1
"""Longest wait for cancelled tasks, in seconds; they do no I/O any more."""


async def start_instance(
    instance: Driver, timeout: float, *, context: Context | None = None
) -> None:
    """Start an instance that was never started.

    One that does not come up, for whatever reason, is ended wholly before this returns, by force:
    no task, no socket, no member of a group is left. So it is when this is cancelled.

    Args:
        instance: Made in the running loop.
        timeout: Longest wait in seconds.
        context: The context its tasks run in.

    Raises:
        TimeoutError: It did not come up in time.
        Exception: Whatever `start()` raised.
    """
    starting = asyncio.get_running_loop().create_task(
        instance.start(),
        name="resilient-io kafka start",
        context=context if context is not None else context_without_deadline(),
    )
    up = False
    try:
        await asyncio.wait([starting], timeout=timeout)
        if not starting.done():
            raise TimeoutError(f"it did not come up within {timeout:g} s")
        if starting.cancelled():
            # By nobody who may: the start has nothing that cancels.
            raise TimeoutError("its start was cancelled from inside")
        starting.result()
        dead_sender_is_ours(instance)
        up = True
    finally:
        if not up:
            await _force(instance, [starting], "it did not come up", None)


async def end_instance(
    instance: Driver,
    timeout: float,
    *,
    reason: str = "it was ended",
    error: BaseException | None = None,
    context: Context | None = None,
) -> bool:
    """Stop an instance: in good order if it can within the timeout, else by force.

    Afterwards none of its tasks runs, none of its sockets is open, nobody waits on it, and nothing
    can begin on it. In good order means that a producer's batches are settled, and that a consumer
    has left its group; by force, batches fail with `InstanceEnded` and the group notices when the
    session times out. Never raises what `stop()` raises. Ending one twice does no harm.

    Cancelling goes straight on to force, which takes no I/O, and then leaves.

    Args:
        instance: The instance, started or not.
        timeout: Longest wait for good order, in seconds; 0 for force at once.
        reason: What those are told who wait on it.
        error: Of what it has to end, if anything.
        context: The context its tasks run in.

    Returns:
        Whether it ended in good order.
    """
    tasks: list[asyncio.Task[Any]] = []
    stopping: asyncio.Task[None] | None = None
    try:
        if timeout > 0:
            stopping = asyncio.get_running_loop().create_task(
                instance.stop(),
                name="resilient-io kafka stop",
                context=context if context is not None else context_without_deadline(),
            )
            tasks.append(stopping)
            await asyncio.wait(tasks, timeout=timeout / 2)
            if not stopping.done():
                tasks += _help(instance, timeout / 2, context)
                await asyncio.wait([stopping], timeout=timeout / 2)
    finally:
        await _force(instance, tasks, reason, error)
    return stopping is not None and not stopping.cancelled() and stopping.exception() is None


def _help(instance: Driver, timeout: float, context: Context | None) -> list[asyncio.Task[None]]:
    """Leave the group for a consumer that cannot, while it waits for the others to join.

    Its `stop()` waits for that, too: the broker's answer that it is no member ends both.
    """
    membership = membership_of(instance)
    if membership is None:
        return []
    leaving = asyncio.get_running_loop().create_task(
        leave_group(instance, membership, timeout),
        name="resilient-io kafka leave",
        context=context.copy() if context is not None else context_without_deadline(),
    )
    return [leaving]


async def _force(
    instance: Driver, tasks: list[asyncio.Task[Any]], reason: str, error: BaseException | None
) -> None:
    """End what is left; the first part does not wait, so that no cancel can come between."""
    parts = parts_of(instance)
    left = _leftovers(instance, parts, tasks)
    closing = _drop([*connections_of(instance), *_held_by(left)])
    seal(instance, reason, error)
    for task in left:
        if not is_shielded(task):  # the loss of its connection ends it, with an error
            task.cancel()
    for _ in range(_ROUNDS):
        if not left and not closing:
            break
        # Each of these ends within a few turns of the loop.
        await asyncio.wait([*left, *closing], timeout=_ROUND)
        closing = [future for future in closing if not future.done()]
        left = _leftovers(instance, parts, left)
        closing += _drop([*connections_of(instance), *_held_by(left)])
        for task in left:
            task.cancel()
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # whatever it is, it was no answer to anybody


def _leftovers(
    instance: Driver, parts: list[object], known: Iterable[asyncio.Task[Any]]
) -> list[asyncio.Task[Any]]:
    """Find the tasks that still work for an instance, oldest first."""
    found = [task for task in known if not task.done()]
    for part in parts_of(instance):  # a start that was under way may have made more of them
        if not any(part is seen for seen in parts):
            parts.append(part)
    for task in sorted(asyncio.all_tasks(), key=_age):  # of the set: the same order in each run
        if task not in found and not task.done() and works_for(task, parts):
            found.append(task)
    me = asyncio.current_task()
    return [task for task in found if task is not me]


def _age(task: asyncio.Task[Any]) -> tuple[int, str]:
    name = task.get_name()  # "Task-9", then "Task-10"
    return len(name), name


def _held_by(tasks: Iterable[asyncio.Task[Any]]) -> list[Connection]:
    return [connection for task in tasks for connection in connections_in(task)]


def _drop(connections: Iterable[Connection]) -> list[asyncio.Future[None]]:
    """Close connections at once; give what is done when their sockets are closed."""
    closing = []
    for connection in connections:
        future = drop(connection)
        if future is not None and not future.done():
            closing.append(future)
    return closing
