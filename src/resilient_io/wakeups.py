"""Continuing the tasks whose replies arrived, without another iteration of the event loop.

`Future.set_result` has the loop call the future's callbacks in its next iteration, through a handle
for each. On the hot path, the only callback is the one that continues the waiting task. So whatever
settles many futures at once (a read of a Redis connection, a batch of a Kafka producer) takes it
out of each before it sets the result, and calls it itself, when everything is accounted for.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Wakeup: TypeAlias = tuple[Context, Callable[[Any], Any], asyncio.Future[object]]
    """A callback that was taken out of its future, whose result is set, and its context."""

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


def wake(loop: asyncio.AbstractEventLoop, wakeups: list[Wakeup]) -> None:
    """Continue the tasks in order, each in its own context, as the loop would. Never raises.

    A task may do anything: send, cancel a later one, close the connection. If it stops the loop
    with KeyboardInterrupt or SystemExit, the loop raises that, and continues the others later.
    """
    stopped = False
    for context, callback, future in wakeups:
        if stopped:
            loop.call_soon(callback, future, context=context)
            continue
        try:
            context.run(callback, future)
        except (KeyboardInterrupt, SystemExit) as stop:
            # Raised here, it would be taken for an error of the transport by some event loops.
            loop.call_soon(_raise, stop)
            stopped = True
        except Exception as error:  # noqa: BLE001 (as in `asyncio.Handle._run`)
            if _waits(callback, future):
                loop.call_soon(callback, future, context=context)
            else:
                message = f"Exception in callback {callback!r}"
                loop.call_exception_handler({"message": message, "exception": error})


def _waits(callback: Callable[[Any], Any], future: asyncio.Future[object]) -> bool:
    """Return whether the task has not continued, because its context is in use, for example."""
    return getattr(getattr(callback, "__self__", None), "_fut_waiter", None) is future


def _raise(stop: BaseException) -> NoReturn:
    raise stop
