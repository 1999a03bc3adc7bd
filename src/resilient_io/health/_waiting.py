"""Waiting for a state, within a timeout and the deadline in force."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from resilient_io.deadlines import current_deadline
from resilient_io.errors import Closed, DeadlineExceeded
from resilient_io.validation import check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health._feed import Feed

__all__ = ["wait_until"]

T = TypeVar("T")


async def wait_until(
    feed: Feed[T],
    reached: Callable[[], bool],
    *,
    timeout: float | None,
    dependency: str,
    operation: str,
    describe: Callable[[], str],
) -> None:
    """Wait until `reached()`; it is asked again whenever the feed has news.

    Raises:
        ConfigurationError: `timeout` is negative or no number.
        DeadlineExceeded: It was not reached in time; `describe()` says what was instead.
        Closed: The feed was closed.
    """
    if timeout is not None:
        check_number("timeout", timeout)
    if reached():
        return
    loop = asyncio.get_running_loop()
    began = loop.time()
    until = current_deadline()
    if timeout is not None and (until is None or began + timeout < until):
        until = began + timeout
    try:
        async with asyncio.timeout_at(until):
            while not reached():
                if feed.closed:
                    raise Closed(
                        "it was closed",
                        dependency=dependency,
                        operation=operation,
                        elapsed=loop.time() - began,
                    )
                await feed.wait()
    except TimeoutError:
        if reached():
            return
        raise DeadlineExceeded(
            describe(),
            dependency=dependency,
            operation=operation,
            elapsed=loop.time() - began,
        ) from None
