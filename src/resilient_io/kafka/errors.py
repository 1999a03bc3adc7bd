"""The hierarchy of `resilient_io.errors`, Kafka-flavoured: each is also aiokafka's own.

```
DependencyUnavailable ─ KafkaUnavailable        also aiokafka's KafkaConnectionError
                        └ KafkaAuthenticationFailed     also aiokafka's AuthenticationFailedError
OutcomeUnknown ──────── KafkaOutcomeUnknown     also aiokafka's KafkaError
DeadlineExceeded ────── KafkaDeadlineExceeded   also aiokafka's KafkaTimeoutError, TimeoutError
Overloaded ──────────── KafkaOverloaded         also aiokafka's KafkaTimeoutError
Closed ──────────────── KafkaClosed             also ProducerClosed and ConsumerStoppedError
```

So `except KafkaError` keeps working, and so does `except KafkaTimeoutError` for a full buffer. Mind
that a retry decorator on `KafkaError` would repeat an `OutcomeUnknown`: let it retry
`DependencyUnavailable` only. What the broker refuses for good (an unknown topic, a missing
permission, a record that is too large) passes as aiokafka raises it.
"""

from __future__ import annotations

from aiokafka import errors as driver

from resilient_io.errors import (
    Closed,
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
)

__all__ = [
    "KafkaAuthenticationFailed",
    "KafkaClosed",
    "KafkaDeadlineExceeded",
    "KafkaOutcomeUnknown",
    "KafkaOverloaded",
    "KafkaUnavailable",
]


class KafkaUnavailable(DependencyUnavailable, driver.KafkaConnectionError):
    """Kafka cannot be reached, and nothing was applied."""


class KafkaAuthenticationFailed(KafkaUnavailable, driver.AuthenticationFailedError):
    """Kafka refused the credentials; repeating the call cannot help."""

    retriable = False


class KafkaOutcomeUnknown(OutcomeUnknown, driver.KafkaError):
    """It was handed over, no answer proves what became of it, and repeating it is not safe."""


class KafkaDeadlineExceeded(DeadlineExceeded, driver.KafkaTimeoutError):
    """The time was used up; nothing was applied."""


class KafkaOverloaded(Overloaded, driver.KafkaTimeoutError):
    """Too much is waiting already; nothing was sent."""


class KafkaClosed(Closed, driver.ProducerClosed, driver.ConsumerStoppedError):
    """The client was closed."""
