"""Continuing the tasks whose replies arrived, without another iteration of the event loop.

`Future.set_result` has the loop call the future's callbacks in its next iteration, through a handle
for each. On the hot path, the only callback is the one that continues the waiting task. So whatever
settles many futures at once (a read of a Redis connection, a batch of a Kafka producer) collects
the results first, until everything is accounted for. Then it takes the callback out of each future,
sets the result, and calls the callback itself. So each future is in the processor's cache once.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Answer: TypeAlias = tuple[Any, object]
"""A future, or what stands for one, and its result, which is not set yet."""

TaskWakeup = BuiltinMethodType
"""The type of the callback of a task that waits, if the task is CPython's own."""


def can_wake(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether callbacks can be taken out of a loop's futures, as in CPython 3.11 to 3.13.

    In the loop's debug mode they are not: it reports slow callbacks by their handles.
    """
    if loop.get_debug():
        return False
    future: asyncio.Future[object] = asyncio.Future(loop=loop)
    called: list[object] = []
    callback = called.append
    try:
        future.add_done_callback(callback)
        callbacks: Any = future._callbacks
        ((found, context),) = callbacks
        removed = future.remove_done_callback(callback)
        left = future._callbacks
    except (AttributeError, TypeError, ValueError):
        return False
    return found is callback and type(context) is Context and removed == 1 and not left


def deliver(loop: asyncio.AbstractEventLoop, answers: Iterable[Answer]) -> None:
    """Set the results in order, and continue the tasks that wait for them. Never raises.

    Each task continues in its own context, as the loop would do it. It may do anything: send,
    cancel a later one, close the connection. If it stops the loop with KeyboardInterrupt or
    SystemExit, the loop raises that, and continues the others later. It also continues whatever
    does not wait with the only callback of a future.
    """
    task_wakeup, remaining = TaskWakeup, iter(answers)
    for future, result in remaining:
        callbacks = future._callbacks
        if callbacks and len(callbacks) == 1:
            callback, context = callbacks[0]
            if type(callback) is task_wakeup:
                future.remove_done_callback(callback)
                future.set_result(result)
                try:
                    context.run(callback, future)
                except (KeyboardInterrupt, SystemExit) as stop:
                    # Raised here, it would be taken for an error of the transport by some loops.
                    loop.call_soon(_raise, stop)
                    break
                except Exception as error:  # noqa: BLE001 (as in `asyncio.Handle._run`)
                    if _waits(callback, future):
                        loop.call_soon(callback, future, context=context)
                    else:
                        message = f"Exception in callback {callback!r}"
                        loop.call_exception_handler({"message": message, "exception": error})
                continue
        if not future.done():  # otherwise its caller no longer waits
            future.set_result(result)
    for future, result in remaining:  # the loop was stopped
        if not future.done():
            future.set_result(result)


def _waits(callback: Callable[[Any], Any], future: asyncio.Future[object]) -> bool:
    """Return whether the task has not continued, because its context is in use, for example."""
    return getattr(getattr(callback, "__self__", None), "_fut_waiter", None) is future


def _raise(stop: BaseException) -> NoReturn:
    raise stop
