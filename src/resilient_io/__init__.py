"""asyncio clients for Redis and Kafka that survive the failures of their servers.

Every public name is imported when it is first used, so that a service does not pay for importing a
driver that it does not use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_io.deadlines import Deadline, deadline
    from resilient_io.errors import (
        Closed,
        ConfigurationError,
        DeadlineExceeded,
        DependencyUnavailable,
        NotReplicated,
        OutcomeUnknown,
        Overloaded,
        Progress,
        ResilientIOError,
    )
    from resilient_io.health import (
        Cause,
        Change,
        Dependency,
        FlightRecorder,
        HealthMonitor,
        HealthSettings,
        LivenessSettings,
        MonitorChange,
        State,
    )
    from resilient_io.kafka import (
        ConsumerSettings,
        DeadLetter,
        DeliverySettings,
        HandlerPolicy,
        ResilientKafkaConsumer,
        ResilientKafkaProducer,
        RetryTopic,
        RunLimits,
    )
    from resilient_io.lifecycle import Lifecycle, LifecycleReport
    from resilient_io.probing import lint_probes
    from resilient_io.redis import (
        ConnectionSettings,
        RedisStats,
        ResilientRedis,
        ResilientRedisCluster,
    )
    from resilient_io.retry import RetryPolicy

__all__ = [
    "Cause",
    "Change",
    "Closed",
    "ConfigurationError",
    "ConnectionSettings",
    "ConsumerSettings",
    "DeadLetter",
    "Deadline",
    "DeadlineExceeded",
    "DeliverySettings",
    "Dependency",
    "DependencyUnavailable",
    "FlightRecorder",
    "HandlerPolicy",
    "HealthMonitor",
    "HealthSettings",
    "Lifecycle",
    "LifecycleReport",
    "LivenessSettings",
    "MonitorChange",
    "NotReplicated",
    "OutcomeUnknown",
    "Overloaded",
    "Progress",
    "RedisStats",
    "ResilientIOError",
    "ResilientKafkaConsumer",
    "ResilientKafkaProducer",
    "ResilientRedis",
    "ResilientRedisCluster",
    "RetryPolicy",
    "RetryTopic",
    "RunLimits",
    "State",
    "deadline",
    "lint_probes",
]

_HOMES = {
    "deadlines": "Deadline deadline",
    "errors": "Closed ConfigurationError DeadlineExceeded DependencyUnavailable NotReplicated "
    "OutcomeUnknown Overloaded Progress ResilientIOError",
    "health": "Cause Change Dependency FlightRecorder HealthMonitor HealthSettings "
    "LivenessSettings MonitorChange State",
    "kafka": "ConsumerSettings DeadLetter DeliverySettings HandlerPolicy ResilientKafkaConsumer "
    "ResilientKafkaProducer RetryTopic RunLimits",
    "lifecycle": "Lifecycle LifecycleReport",
    "probing": "lint_probes",
    "redis": "ConnectionSettings RedisStats ResilientRedis ResilientRedisCluster",
    "retry": "RetryPolicy",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
