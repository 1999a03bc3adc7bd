"""Spans for OpenTelemetry, through its API: of commands, of records sent, of handlers.

```
trace(redis, producer, consumer)
```

A client that was not handed to `trace` makes no span and pays nothing. Redis tracers that patch
redis-py (opentelemetry-instrumentation-redis, Sentry and others) need no call of this: they see
our commands as they see redis-py's, each once. With such an OpenTelemetry instrumentation at work,
`trace` makes no second span, and notes attempts in theirs.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from resilient_io.errors import ConfigurationError

from ._clients import kind_of

try:
    from opentelemetry.trace import get_tracer
except ModuleNotFoundError:
    raise ConfigurationError(
        "opentelemetry-api is not installed: pip install 'resilient-io[otel]'"
    ) from None

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["trace"]


def trace(*clients: object, tracer_provider: TracerProvider | None = None) -> None:
    """Make spans of what clients do from now on.

    Of each Redis command or pipeline one span (all attempts included), of each record that is sent
    one, from the call until Kafka has confirmed it, and of each call of a handler by `run` one,
    which continues the trace of the record. Names and attributes are OpenTelemetry's conventions.
    Keys, values, arguments and messages of error replies are never in them.

    Call it once, before the clients are used, and before views (`with_policy`) are made of them.

    Args:
        clients: `ResilientRedis`, `ResilientKafkaProducer` and `ResilientKafkaConsumer` objects.
        tracer_provider: Whose tracer; None for the global one.

    Raises:
        ConfigurationError: A client is none of ours.
    """
    tracer = get_tracer("resilient_io", version("resilient-io"), tracer_provider)
    for client in clients:
        given: Any = client
        kind = kind_of(given)
        # Only the driver that the client has is there for sure, and is imported already.
        if kind == "redis":
            from resilient_io.redis.instrumentation import observe  # noqa: PLC0415

            from ._redis_spans import RedisSpans  # noqa: PLC0415

            observe(given, RedisSpans(tracer, given.connection_pool.connection_kwargs))
        else:
            from resilient_io.kafka.instrumentation import (  # noqa: PLC0415
                instrument_consumer,
                instrument_producer,
            )

            from ._kafka_spans import KafkaSpans  # noqa: PLC0415

            if kind == "producer":
                instrument_producer(given, KafkaSpans(tracer))
            else:
                instrument_consumer(given, KafkaSpans(tracer, group=given.group_id))
