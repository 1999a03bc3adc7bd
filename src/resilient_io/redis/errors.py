"""The hierarchy of `resilient_io.errors`, Redis-flavoured: each is also redis-py's own.

```
DependencyUnavailable ─ RedisUnavailable        also redis.ConnectionError
                        └ RedisAuthenticationFailed     also redis.AuthenticationError
OutcomeUnknown ──────── RedisOutcomeUnknown     also redis.ConnectionError and redis.TimeoutError
DeadlineExceeded ────── RedisDeadlineExceeded   also redis.TimeoutError and the builtin TimeoutError
Overloaded ──────────── RedisOverloaded         also redis.MaxConnectionsError
Closed ──────────────── RedisClosed             also redis.ConnectionError
                        RouteRefused            also redis.DataError
```

So `except redis.ConnectionError` and `except redis.TimeoutError` keep working. Mind that a retry
decorator on `redis.ConnectionError` would repeat an `OutcomeUnknown`: let it retry
`DependencyUnavailable` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import exceptions as driver

from resilient_io.errors import (
    Closed,
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class RedisUnavailable(DependencyUnavailable, driver.ConnectionError):
    """Redis cannot be reached, and nothing was applied."""


class RedisAuthenticationFailed(RedisUnavailable, driver.AuthenticationError):
    """Redis refused the username or password; repeating the call cannot help."""


class RedisOutcomeUnknown(OutcomeUnknown, driver.ConnectionError, driver.TimeoutError):
    """The command was sent, no reply came, and repeating it is not safe.

    Attributes:
        answered: For a batch: the replies that came, in order, from the first command on.
        unanswered: For a batch: the positions of the commands that may have been applied.
    """

    answered: Sequence[object] = ()
    unanswered: Sequence[int] = ()


class RedisDeadlineExceeded(DeadlineExceeded, driver.TimeoutError):
    """The time was used up; nothing was applied."""


class RedisOverloaded(Overloaded, driver.MaxConnectionsError):
    """Too much is in flight already; nothing was sent."""


class RedisClosed(Closed, driver.ConnectionError):
    """The client was closed."""


class RouteRefused(driver.DataError):
    """The command changes its connection, which is shared; the message says what to use."""
