"""What all our spans have in common: how they end, and when there is none."""

from __future__ import annotations

from asyncio import CancelledError
from typing import TYPE_CHECKING

from opentelemetry import context
from opentelemetry.trace import Status, StatusCode, get_current_span, set_span_in_context

from resilient_io.errors import ResilientIOError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.trace import Span

__all__ = ["ATTEMPTS", "failed", "is_suppressed", "running"]

ATTEMPTS = "resilient_io.attempts"
"""How many attempts a call took; only where there was more than one."""

# opentelemetry-instrumentation 0.66 `suppress_instrumentation` sets both; the API has one of them.
_SUPPRESSING = ("suppress_instrumentation", context._SUPPRESS_INSTRUMENTATION_KEY)  # noqa: SLF001


def is_suppressed() -> bool:
    """Tell whether the application wants no spans of libraries just now."""
    return any(context.get_value(key) for key in _SUPPRESSING)


class running:  # noqa: N801 (used as a function, and faster than one that yields)
    """Makes a span the current one, and ends it with what is raised.

    Args:
        span: The span.
        on_error: Says more about an error than `failed`, which it has to call.
    """

    __slots__ = ("_on_error", "_span", "_token")

    _token: Token[context.Context]

    def __init__(
        self, span: Span, on_error: Callable[[Span, BaseException], None] | None = None
    ) -> None:
        self._span = span
        self._on_error = on_error or failed

    def __enter__(self) -> Span:
        self._token = context.attach(set_span_in_context(self._span))
        return self._span

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        # What is closed after its loop has ended is closed in another context.
        if error.__class__ is not GeneratorExit or get_current_span() is self._span:
            context.detach(self._token)
        if isinstance(error, (Exception, CancelledError)):
            self._on_error(self._span, error)
        self._span.end()


def failed(span: Span, error: BaseException, *, code: str = "") -> None:
    """Record how a call failed, without the messages of others: they may quote what is nobody's.

    Args:
        span: The call's.
        error: What it raised.
        code: What the server calls the error.
    """
    if not span.is_recording():
        return
    kind = type(error)
    builtin = kind.__module__ == "builtins"
    name = kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute("error.type", name)
    description = code or kind.__qualname__
    if isinstance(error, ResilientIOError):
        description = f"{kind.__qualname__}: {error}"
        if error.attempts > 1:
            span.set_attribute(ATTEMPTS, error.attempts)
    span.set_status(Status(StatusCode.ERROR, description))
