"""OpenTelemetry spans of Redis commands, of sent records and of handlers.

```
trace(redis, producer, consumer)
```

A client that was not passed to `trace` creates no spans and pays nothing. Tracers that patch
redis-py (opentelemetry-instrumentation-redis, Sentry and others) do not need `trace`: they see the
commands of a `ResilientRedis` as they see those of redis-py, each once. If such an OpenTelemetry
instrumentation is active, `trace` creates no second span, and adds the attempts to its span.
"""

from __future__ import annotations

import contextlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from resilient_io.errors import ConfigurationError

from .clients import kind_of

try:
    from opentelemetry.trace import SpanKind, get_current_span, get_tracer

    from .spans import ATTEMPTS, is_suppressed, record_failure, running
except ModuleNotFoundError:
    raise ConfigurationError(
        "opentelemetry-api is not installed: pip install 'resilient-io[otel]'"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span, Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue
    from redis.exceptions import ResponseError


def trace(*clients: object, tracer_provider: TracerProvider | None = None) -> None:
    """Create spans for everything that the clients do from now on.

    There is one span per Redis command or pipeline (all attempts included), one per sent record,
    from the call until Kafka has confirmed it, and one per call of a handler by `run`, which
    continues the trace of the record. Names and attributes follow OpenTelemetry's conventions.
    Keys, values, arguments and the texts of error replies are never recorded.

    Call it once, before the clients are used, and before views (`with_policy`) are made of them.

    Args:
        clients: `ResilientRedis`, `ResilientRedisCluster`, `ResilientKafkaProducer` and
            `ResilientKafkaConsumer` objects.
        tracer_provider: The provider of the tracer; None for the global one.

    Raises:
        TypeError: A client is not one of these.
    """
    tracer = get_tracer("resilient_io", version("resilient-io"), tracer_provider)
    for client in clients:
        given: Any = client
        kind = kind_of(given)
        # Only the driver of the client is certainly installed, and it is imported already.
        if kind == "redis":
            # A cluster client has the settings of its connections itself.
            settings = getattr(given, "connection_pool", given).connection_kwargs
            given.trace_with(RedisSpans(tracer, settings))
        else:
            from .kafka_spans import KafkaSpans  # noqa: PLC0415

            group = given.group_id if kind == "consumer" else None
            given.trace_with(KafkaSpans(tracer, group=group))


# --- Redis: OpenTelemetry's conventions for databases


class RedisSpans:
    """Creates the spans of one client and its views."""

    def __init__(self, tracer: Tracer, settings: Mapping[str, Any]) -> None:
        self._tracer = tracer
        self._server: dict[str, AttributeValue] = {
            "db.system.name": "redis",
            "db.namespace": str(settings.get("db") or 0),
        }
        if settings.get("path"):
            self._server["server.address"] = str(settings["path"])
        elif settings.get("host"):
            self._server["server.address"] = str(settings["host"])
            self._server["server.port"] = int(settings.get("port") or 6379)

    def current(self) -> object:
        """Return the current span, before an instrumentation sees the call."""
        return get_current_span()

    def command(self, operation: str, before: object) -> AbstractContextManager[object]:
        """Start the span of a command, or use the one that an instrumentation has started."""
        return self._start(operation, before, {})

    def batch(
        self, operations: Sequence[str], before: object, *, transaction: bool
    ) -> AbstractContextManager[object]:
        """Start the span of a pipeline, or use the one that an instrumentation has started."""
        name = "MULTI" if transaction else "PIPELINE"
        if operations and all(operation == operations[0] for operation in operations):
            name = f"{name} {operations[0]}"
        several = len(operations) > 1
        return self._start(
            name, before, {"db.operation.batch.size": len(operations)} if several else {}
        )

    def retrying(self, attempt: int, backoff: float, cause: str) -> None:
        """Record that another attempt follows."""
        span = get_current_span()
        span.set_attribute(ATTEMPTS, attempt)
        span.add_event("retry", {"attempt": attempt, "backoff": backoff, "cause": cause})

    def _start(
        self, operation: str, before: object, more: dict[str, AttributeValue]
    ) -> AbstractContextManager[object]:
        if get_current_span() is not before or is_suppressed():
            return contextlib.nullcontext()  # an instrumentation of redis-py has started a span
        attributes = {**self._server, "db.operation.name": operation, **more}
        span = self._tracer.start_span(operation, kind=SpanKind.CLIENT, attributes=attributes)
        return running(span, _record_redis_failure)


def _record_redis_failure(span: Span, error: BaseException) -> None:
    from redis.exceptions import ResponseError, WatchError  # noqa: PLC0415 (not without Redis)

    if isinstance(error, WatchError):
        return  # optimistic locking: not a failure
    code = code_of(error) if isinstance(error, ResponseError) else ""
    if code and span.is_recording():
        span.set_attribute("db.response.status_code", code)
    record_failure(span, error, code=code)


def code_of(error: ResponseError) -> str:
    """Return the code of an error reply. redis-py removes it from errors with their own class."""
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
