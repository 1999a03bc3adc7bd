"""What the spans of Redis commands and of Kafka records have in common."""

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

# The number of attempts of a call; only present if there was more than one.
ATTEMPTS = "resilient_io.attempts"

# opentelemetry-instrumentation 0.66 `suppress_instrumentation` sets both; the API has one of them.
_SUPPRESSING = ("suppress_instrumentation", context._SUPPRESS_INSTRUMENTATION_KEY)  # noqa: SLF001


def is_suppressed() -> bool:
    """Return whether the application has suppressed the spans of libraries."""
    return any(context.get_value(key) for key in _SUPPRESSING)


class running:  # noqa: N801 (used as a function, and faster than a generator)
    """Makes a span the current one, and ends it with the exception that is raised."""

    __slots__ = ("_on_error", "_span", "_token")

    _token: Token[context.Context]

    def __init__(
        self, span: Span, on_error: Callable[[Span, BaseException], None] | None = None
    ) -> None:
        self._span = span
        self._on_error = on_error or record_failure

    def __enter__(self) -> Span:
        self._token = context.attach(set_span_in_context(self._span))
        return self._span

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        # A generator that is closed after its event loop has ended is closed in another context.
        if error.__class__ is not GeneratorExit or get_current_span() is self._span:
            context.detach(self._token)
        if isinstance(error, (Exception, CancelledError)):
            self._on_error(self._span, error)
        self._span.end()


def record_failure(span: Span, error: BaseException, *, code: str = "") -> None:
    """Record how a call failed, without texts from a server or a driver, which may quote data."""
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
