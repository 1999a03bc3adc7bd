"""The spans of Redis commands, by OpenTelemetry's conventions for databases."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanKind, get_current_span
from redis.exceptions import ResponseError, WatchError

from ._span import ATTEMPTS, failed, is_suppressed, running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

__all__ = ["RedisSpans"]


class RedisSpans:
    """Makes the spans of one client and its views.

    Args:
        tracer: OpenTelemetry's.
        settings: Of redis-py's connection pool: where the server is.
    """

    def __init__(self, tracer: Tracer, settings: Mapping[str, Any]) -> None:
        self._tracer = tracer
        self._where: dict[str, AttributeValue] = {
            "db.system.name": "redis",
            "db.namespace": str(settings.get("db") or 0),
        }
        if settings.get("path"):
            self._where["server.address"] = str(settings["path"])
        elif settings.get("host"):
            self._where["server.address"] = str(settings["host"])
            self._where["server.port"] = int(settings.get("port") or 6379)

    def current(self) -> object:
        """Return the span that is current before anybody sees the call."""
        return get_current_span()

    def command(self, operation: str, before: object) -> AbstractContextManager[object]:
        """Begin the span of a command, or use the one that was begun for it."""
        return self._begin(operation, before, {})

    def batch(
        self, operations: Sequence[str], before: object, *, transaction: bool
    ) -> AbstractContextManager[object]:
        """Begin the span of a pipeline, or use the one that was begun for it."""
        name = "MULTI" if transaction else "PIPELINE"
        if operations and all(operation == operations[0] for operation in operations):
            name = f"{name} {operations[0]}"
        several = len(operations) > 1
        return self._begin(
            name, before, {"db.operation.batch.size": len(operations)} if several else {}
        )

    def retrying(self, attempt: int, backoff: float, cause: str) -> None:
        """Note that another attempt follows."""
        span = get_current_span()
        span.set_attribute(ATTEMPTS, attempt)
        span.add_event("retry", {"attempt": attempt, "backoff": backoff, "cause": cause})

    def _begin(
        self, operation: str, before: object, more: dict[str, AttributeValue]
    ) -> AbstractContextManager[object]:
        if get_current_span() is not before or is_suppressed():
            return contextlib.nullcontext()  # an instrumentation of redis-py was first
        attributes = {**self._where, "db.operation.name": operation, **more}
        span = self._tracer.start_span(operation, kind=SpanKind.CLIENT, attributes=attributes)
        return running(span, _failed)


def _failed(span: Span, error: BaseException) -> None:
    if isinstance(error, WatchError):
        return  # how optimistic locking works, and no failure
    code = code_of(error) if isinstance(error, ResponseError) else ""
    if code and span.is_recording():
        span.set_attribute("db.response.status_code", code)
    failed(span, error, code=code)


def code_of(error: ResponseError) -> str:
    """Return the prefix of an error reply; redis-py takes it off where it has a class for it."""
    first = str(error).partition(" ")[0]
    if first.isupper() and first.isalpha():
        return first
    return _CODES.get(type(error).__name__, "ERR")


_CODES = {
    "AskError": "ASK",
    "AuthWrongNumberOfArgsError": "ERR",
    "BusyLoadingError": "LOADING",
    "ClusterCrossSlotError": "CROSSSLOT",
    "ClusterDownError": "CLUSTERDOWN",
    "ExecAbortError": "EXECABORT",
    "MasterDownError": "MASTERDOWN",
    "MovedError": "MOVED",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "TryAgainError": "TRYAGAIN",
}
