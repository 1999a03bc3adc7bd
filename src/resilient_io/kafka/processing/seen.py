"""The application's handler as tracing sees it: one span for each call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_io.kafka.tracing import Tracing

__all__ = ["seen"]


def seen(
    handler: Callable[[Any], Awaitable[object]], tracing: Tracing, *, several: bool
) -> Callable[[Any], Awaitable[object]]:
    """Return the handler with a span around each call.

    It is in this folder for `handling._is_no_handler`, which looks where a call went wrong.

    Args:
        handler: The application's.
        tracing: Makes the spans.
        several: Whether the handler takes a list of records.
    """

    async def handle(given: Any) -> None:
        with tracing.processing(given if several else [given]):
            await handler(given)

    return handle
